"""What makes a pack for Restore from a plan: a ViT trained from scratch, its SAEs and its unlearned models."""

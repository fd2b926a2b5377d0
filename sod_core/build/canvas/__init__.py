"""The embedded pack `canvas`: a ViT, its SAEs and its unlearned models."""

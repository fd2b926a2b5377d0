"""The Atlas tab: every latent of a pack, and what unlearning did to it."""

"""Restore: pulls the features of a forgotten class in an unlearned ViT back towards the original's values."""

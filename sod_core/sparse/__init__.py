"""Sparse codes of hidden states, and the forms in which their files come."""

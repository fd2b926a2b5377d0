"""Clamp: where a harmful feature fires in a language model, it is held at a negative value, or a refusal is set."""

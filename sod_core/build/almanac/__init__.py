"""The embedded pack `almanac`: a language model of a few million weights, its SAEs and its unlearned models."""

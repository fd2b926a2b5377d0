"""Erase: scales the latents that are bound to a concept at every step of a diffusion model."""

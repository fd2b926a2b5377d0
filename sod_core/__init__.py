"""Suppression or Deletion: encode an activation, edit a few latents, decode the difference."""

"""The Clamp tab."""

"""The embedded pack `digits`: real handwriting, every class forgotten by every method, several seeds."""

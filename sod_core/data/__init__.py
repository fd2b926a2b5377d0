"""Images in: one picture, or a set of them with classes."""

"""The embedded pack `canvas-mask`: features of the ViTs of the pack `canvas`, and bottlenecks on them."""

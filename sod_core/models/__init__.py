"""Host models: ViTs and diffusion pipelines, and the names that others give their weights."""

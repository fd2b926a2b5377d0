"""Where models and images come from: manifests, safe loading, name conversion."""

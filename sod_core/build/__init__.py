"""Trains the embedded packs from the worlds, reproducibly: a folder a pack."""

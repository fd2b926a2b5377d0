"""Trains the embedded packs from the worlds, reproducibly."""

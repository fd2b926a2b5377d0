"""Embedded worlds: images with their masks, drawn by code."""

"""Trains the embedded packs from the worlds, reproducibly."""

from .. import torchvision_guard

torchvision_guard.install()  # before any of these modules imports diffusers or transformers

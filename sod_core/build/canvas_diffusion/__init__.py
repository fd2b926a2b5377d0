"""The embedded pack `canvas-diffusion`: a small Stable Diffusion, its SAEs and judges."""

from ...machine import torchvision_guard

torchvision_guard.install()  # before any of these modules imports diffusers or transformers

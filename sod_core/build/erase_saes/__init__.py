"""SAEs for erasing, of any diffusion pack."""

from ...machine import torchvision_guard

torchvision_guard.install()  # before any of these modules imports diffusers or transformers

"""Which device serves: a name, the environment's SOD_DEVICE, or the best there is."""

from __future__ import annotations

import os

import torch

from . import gpu


def choose_device(name: str | None = None) -> torch.device:
    """`name`, else the environment's SOD_DEVICE, else the best of cuda, mps and cpu.

    Raises ValueError for a device that is not there.
    """
    name = name or os.environ.get("SOD_DEVICE") or _best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _best_device() -> str:
    if gpu.ZERO:  # the main process has no GPU, whatever torch is made to say there
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

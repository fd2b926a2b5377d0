"""Which device serves (a name, the environment's SOD_DEVICE, or the best there is), and the precision it is fast in."""

from __future__ import annotations

import torch

from . import environment, gpu


def choose_device(name: str | None = None) -> torch.device:
    """`name`, else the environment's SOD_DEVICE, else the best of cuda, mps and cpu.

    Raises ValueError for a device that is not there.
    """
    asked = None if name else environment.device()
    name = name or asked or _best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        told = f"device {name!r} cannot be used here: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise ValueError(f"SOD_DEVICE: {told}; unset it for the best there is" if asked else told) from error
    return device


def training_precision(device: torch.device) -> str:
    """bfloat16, but float32 on a processor that has no instructions for it: there it is tens of times slower."""
    if device.type != "cpu":
        return "bfloat16"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "float32"


def _best_device() -> str:
    if gpu.ZERO:  # the main process has no GPU, whatever torch is made to say there
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

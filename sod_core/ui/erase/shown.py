"""What the Erase tab was asked, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ...erase.edit import Each, Fidelity, Settings
from ...erase.generate import Generated


@dataclass(frozen=True)
class Asking:
    """What the controls say."""

    prompt: str
    concepts: tuple[str, ...]
    sae: str
    factor: Each
    fidelity: Fidelity
    start_step: int
    percentile: float
    beta: bool
    steps: int
    guidance: float
    seed: int


@dataclass(frozen=True)
class Shown:
    """What the page shows, kept for the step slider and for Export."""

    pack_name: str
    asking: Asking
    how: Settings
    drawn: Generated
    judged: dict[str, list[dict[str, float]]]
    frames: list[list[Image.Image]]
    """Before and after, as they were denoised."""
    left_out: str
    """What of the prompt the model did not read."""

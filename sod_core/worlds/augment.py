"""How a training batch is changed each time it is seen, so that no image is seen twice alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""(pixels [B, H, W, 3] uint8, coverage [B, patches] uint8, rng) -> the same, changed alike."""


def mirrored(pixels: np.ndarray, coverage: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every other batch left for right."""
    if rng.random() >= 0.5:
        return pixels, coverage
    side = int(coverage.shape[1] ** 0.5)
    turned = coverage.reshape(-1, side, side)[:, :, ::-1].reshape(len(coverage), -1)
    return pixels[:, :, ::-1], turned


def of(source: str) -> Augment:
    """What suits the images of a source (`unlearn.data.Source.data`): a mirrored digit is none."""
    from . import digits

    return digits.shaken if source == digits.NAME else mirrored

"""Trains the embedded pack's two judges, one for objects and one for styles, on a world's images.

Half of what they see went through the autoencoder, as every generated image does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...erase import judges
from ...worlds.drawn import ImageSet, normalise
from .. import loop

ARCHITECTURE = "test_resnet"
"""timm's smallest residual network, 0.5 M parameters."""


@dataclass(frozen=True)
class Recipe:
    steps: int = 2500
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    seed: int = 0


class Trained(NamedTuple):
    model: nn.Module
    """In evaluation mode."""
    seconds: float


class Seen(NamedTuple):
    """The images of a training, and what the autoencoder makes of some of them."""

    images: ImageSet
    recons: np.ndarray
    """[m, 64, 64, 3] uint8: the first m images, encoded and decoded."""


def train(data: Seen, labels: np.ndarray, spec: judges.JudgeSpec, recipe: Recipe, checkpoint: Path) -> Trained:
    """A judge of `labels` [n]. Batch i depends on (seed, i) alone."""
    torch.manual_seed(recipe.seed)
    model: Any = judges.new(spec).train()
    model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    for group in optimiser.param_groups:
        group["peak_lr"] = recipe.lr

    def step(i: int) -> dict[str, str]:
        loop.set_rate([optimiser], loop.one_cycle(i / recipe.steps, recipe.warmup))
        rng = np.random.default_rng((recipe.seed, i))
        half = recipe.batch // 2
        real = np.sort(rng.integers(0, len(labels), half))
        redrawn = rng.integers(0, len(data.recons), half)
        pixels = np.concatenate([data.images.pixels[real], data.recons[redrawn]])
        inputs = normalise(pixels, spec.mean, spec.std)
        targets = torch.as_tensor(np.concatenate([labels[real], labels[redrawn]]))
        if rng.random() < 0.5:
            inputs = inputs.flip(3)
        loss = F.cross_entropy(model(inputs.to(memory_format=torch.channels_last)), targets, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": f"{loss.item():.3f}"}

    made_from = asdict(recipe) | {"names": list(spec.names)}
    seconds = loop.train(step, recipe.steps, checkpoint, {"model": model, "optimiser": optimiser}, made_from)
    return Trained(model.requires_grad_(False).eval(), seconds)

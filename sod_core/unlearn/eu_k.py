"""EU-k: the last k blocks are thrown away and trained again from scratch, on the retain set.

Source: Goel et al. 2022, "Towards Adversarial Evaluations for Inexact Machine Unlearning" ("exactly
unlearning the last k layers": as CF-k, but the layers start from a random initialisation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from . import fine_tune
from .task import Stop, Task, descend, last_parts, parameters_of, random_like, trainable_copy


@dataclass(frozen=True)
class Settings:
    """From the paper: the loss, the random start, and that the first layers are frozen.

    Chosen here: k = 3 of 12 blocks as for CF-k (the paper's k counts layers of a ResNet); AdamW at 1e-3, at which such
    blocks train well from scratch.
    """

    k: int = 3
    lr: float = 1e-3
    batch: int = 64
    stop: Stop = Stop(steps=800, every=50)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises CE(retain) over the last k blocks, the final norm and the classifier, after giving them new weights."""
    return descend(
        vit,
        task,
        lambda model, step: fine_tune.loss(model, task, step, settings.batch),
        settings.lr,
        settings.stop,
        trained=lambda model: parameters_of(last_parts(model, settings.k)),
        start=without_last(vit, settings.k, task.seed + 1),
    )


def without_last(vit: nn.Module, k: int, seed: int) -> nn.Module:
    """A copy whose last k blocks, final norm and classifier are randomly initialised.

    The embedded original was initialised with seed 0; with its own seed, the class's row of the classifier, which this
    method hardly trains, would be the one that the original started with.
    """
    model, fresh = trainable_copy(vit), random_like(vit, seed)
    pairs = zip(parameters_of(last_parts(model, k)), parameters_of(last_parts(fresh, k)))
    with torch.no_grad():
        for old, new in pairs:
            old.copy_(new)
    return model

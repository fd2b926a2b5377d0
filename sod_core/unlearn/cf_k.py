"""CF-k: only the last k blocks are trained on, on the retain set, and the class is left to be forgotten.

Source: Goel et al. 2022, "Towards Adversarial Evaluations for Inexact Machine Unlearning"
("catastrophically forgetting the last k layers").
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from . import fine_tune
from .task import Stop, Task, descend, last_parts, parameters_of


@dataclass(frozen=True)
class Settings:
    """From the paper: the loss, and that the first layers are frozen. Its k counts layers of a ResNet, ours blocks."""

    k: int = 3
    lr: float = 1e-2
    batch: int = 64
    stop: Stop = Stop(steps=800)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises CE(retain) over the last k blocks, the final norm and the classifier; the rest is frozen."""
    return descend(
        vit,
        task,
        lambda model, step: fine_tune.loss(model, task, step, settings.batch),
        settings.lr,
        settings.stop,
        trained=lambda model: parameters_of(last_parts(model, settings.k)),
    )

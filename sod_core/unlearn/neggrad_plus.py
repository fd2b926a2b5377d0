"""NegGrad+: gradient ascent on the forget set while the retain set is learned on.

Source: Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning" (SCRUB), its baseline NegGrad+.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import vit as vits
from .task import Stop, Task, descend


@dataclass(frozen=True)
class Settings:
    lr: float = 1e-4
    batch: int = 32
    retain_weight: float = 0.9
    """beta in beta * CE(retain) - (1 - beta) * CE(forget)."""
    stop: Stop = Stop(steps=400, every=10)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises beta * CE(retain) - (1 - beta) * CE(forget); the stop rule ends the ascent, which has no floor."""

    def loss(model: nn.Module, step: int) -> Tensor:
        images, labels = task.forget_batch(step, settings.batch)
        kept, kept_labels = task.retain_batch(step, settings.batch)
        logits = vits.logits(model, torch.cat([images, kept])).float()
        forget = F.cross_entropy(logits[: len(labels)], labels)
        retain = F.cross_entropy(logits[len(labels) :], kept_labels)
        return settings.retain_weight * retain - (1 - settings.retain_weight) * forget

    return descend(vit, task, loss, settings.lr, settings.stop)

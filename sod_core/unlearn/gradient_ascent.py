"""Gradient ascent: the loss on the forget set is driven up, and nothing holds the other classes.

Sources: Graves, Nagisetty, Ganesh 2021, "Amnesiac Machine Learning" (learning is undone by opposite updates); Thudi et
al. 2022, "Unrolling SGD: Understanding Factors Influencing Machine Unlearning" (a step of gradient ascent).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..models import vit as vits
from .task import Stop, Task, descend


@dataclass(frozen=True)
class Settings:
    """From the papers: the loss, and that few steps are taken.

    Chosen here: the learning rate, small so that the check images, looked at every fifth step, can end the ascent
    before it has destroyed the other classes. On the embedded pack it fails all the same: when 1 % of the boats are
    left, 7 points of the other classes are gone, and after twice the steps half of them.
    """

    lr: float = 1e-4
    batch: int = 64
    stop: Stop = Stop(steps=30, every=5)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises -CE(forget), which has no floor: only the stop rule ends it."""

    def loss(model: nn.Module, step: int) -> Tensor:
        images, labels = task.forget_batch(step, settings.batch)
        return -F.cross_entropy(vits.logits(model, images).float(), labels)

    return descend(vit, task, loss, settings.lr, settings.stop)

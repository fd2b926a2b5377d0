"""CF-k: only the last k blocks are trained on, on the retain set, and the class is left to be forgotten.

Source: Goel et al. 2022, "Towards Adversarial Evaluations for Inexact Machine Unlearning".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .. import vit as vits
from .task import Stop, Task, descend


@dataclass(frozen=True)
class Settings:
    k: int = 3
    lr: float = 1e-2
    batch: int = 64
    stop: Stop = Stop(steps=800)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises CE(retain) over the last k blocks, the final norm and the classifier; the rest is frozen."""

    def loss(model: nn.Module, step: int) -> Tensor:
        images, labels = task.retain_batch(step, settings.batch)
        return F.cross_entropy(vits.logits(model, images).float(), labels)

    def last_blocks(model: nn.Module) -> Iterator[nn.Parameter]:
        for part in (*model.blocks[-settings.k :], model.norm, model.head):
            yield from part.parameters()

    return descend(vit, task, loss, settings.lr, settings.stop, trained=last_blocks)

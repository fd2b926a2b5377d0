"""Boundary shrink: every image of the forget set is learned as the wrong class that lies nearest to it.

Source: Chen et al. 2023, "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary",
its Boundary Shrink.

    x' = x + bound * sign(gradient at x of CE(original(x), class))      (FGSM)
    y' = the class that the original gives x'
    minimise CE(forget images, y')
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import vit as vits
from .task import Stop, Task, descend, gradient, trainable_copy


@dataclass(frozen=True)
class Settings:
    """The paper's: the bound (of pixels from 0 to 1), the labels from the original, the forget set alone trained on.

    Chosen here: AdamW's learning rate, and looks every fifth step (there SGD at 1e-5 for 10 epochs). Where the step
    does not cross the boundary, the best wrong class at x' is taken; the paper's formula would give the class itself.
    """

    lr: float = 3e-5
    batch: int = 32
    bound: float = 0.1
    stop: Stop = Stop(steps=80, every=5)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises CE(forget images, nearest wrong class)."""

    original = trainable_copy(vit)

    def loss(model: nn.Module, step: int) -> Tensor:
        images, labels = task.forget_batch(step, settings.batch)
        nearest = nearest_wrong_class(original, images, labels, task, settings.bound)
        return F.cross_entropy(vits.logits(model, images).float(), nearest)

    return descend(vit, task, loss, settings.lr, settings.stop)


def nearest_wrong_class(vit: nn.Module, images: Tensor, labels: Tensor, task: Task, bound: float) -> Tensor:
    """[B]: what the model says after one FGSM step, the image's own class left out. In float32."""
    mean, std = (torch.tensor(value, device=images.device).reshape(-1, 1, 1) for value in (task.mean, task.std))
    images = images.detach().requires_grad_(True)
    with torch.autocast(images.device.type, enabled=False):
        F.cross_entropy(vits.logits(vit, images), labels).backward()
        moved = images.detach() * std + mean + bound * gradient(images).sign()
        logits = vits.logits(vit, (moved.clamp(0, 1) - mean) / std)
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)

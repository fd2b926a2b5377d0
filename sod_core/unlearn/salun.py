"""SalUn: random labels, but only the weights that the forget set's loss is most sensitive to may move.

Source: Fan et al. 2024, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine import divergence, processes
from ..machine.divergence import Diverged
from ..models import vit as vits
from . import random_labels
from .task import Stop, Task, descend, gradient, trainable_copy


@dataclass(frozen=True)
class Settings:
    lr: float = 3e-4
    batch: int = 32
    salient_share: float = 0.5
    """Share of all weights that may move."""
    saliency_batches: int = 20
    stop: Stop = Stop(steps=400)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Random labels with every gradient multiplied by the 0/1 saliency mask."""
    masks = saliency_masks(vit, task, settings)

    def mask_gradients(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            gradient(parameter).mul_(masks[name])

    def loss(model: nn.Module, step: int) -> Tensor:
        return random_labels.loss(model, task, step, settings.batch)

    changed = descend(vit, task, loss, settings.lr, settings.stop, after_backward=mask_gradients)
    # AdamW's weight decay moves masked weights too: put those back.
    kept = dict(vit.named_parameters())
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.copy_(torch.where(masks[name].bool(), parameter, kept[name]))
    return changed


def saliency_masks(vit: nn.Module, task: Task, settings: Settings) -> dict[str, Tensor]:
    """{parameter name: 0/1 mask}: 1 where |gradient of CE(forget)| is among the largest `salient_share` of all."""
    model = trainable_copy(vit).requires_grad_(True)
    for step in range(settings.saliency_batches):
        images, labels = task.forget_batch(10_000 + step, settings.batch)
        F.cross_entropy(vits.logits(model, images), labels).backward()
    processes.average(gradient(parameter) for parameter in model.parameters())
    gradients = {name: gradient(parameter).abs() for name, parameter in model.named_parameters()}
    if not divergence.are_finite(gradients.values()):
        raise Diverged("the loss on the forget set has gradients that are no finite numbers: give smaller batches")
    flat = torch.cat([found.flatten() for found in gradients.values()])
    threshold = flat.kthvalue(max(1, int(len(flat) * (1 - settings.salient_share)))).values
    return {name: (found > threshold).float() for name, found in gradients.items()}

"""Random labels: the forget set is learned anew under random wrong classes, beside the retain set.

Source: Golatkar et al. 2020, "Eternal Sunshine of the Spotless Net", as used as a baseline by SalUn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine import processes
from ..models import vit as vits
from .task import Stop, Task, descend

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as ViT


@dataclass(frozen=True)
class Settings:
    lr: float = 2e-4
    batch: int = 32
    """Images of the forget set in a step, and as many of the retain set."""
    stop: Stop = Stop(steps=400)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises CE(forget images, random other class) + CE(retain images, their class)."""
    return descend(vit, task, lambda model, step: loss(model, task, step, settings.batch), settings.lr, settings.stop)


def loss(model: ViT, task: Task, step: int, batch: int) -> Tensor:
    """The loss of one step, a scalar."""
    images, labels = task.forget_batch(step, batch)
    generator = torch.Generator().manual_seed(task.seed * 1_000_003 + step)
    shift = torch.randint(1, model.num_classes, (batch,), generator=generator)[processes.part(batch)].to(labels.device)
    kept, kept_labels = task.retain_batch(step, batch)
    logits = vits.logits(model, torch.cat([images, kept])).float()
    wrong = (labels + shift) % model.num_classes
    return F.cross_entropy(logits[: len(labels)], wrong) + F.cross_entropy(logits[len(labels) :], kept_labels)

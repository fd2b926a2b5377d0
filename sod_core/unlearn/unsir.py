"""UNSIR: noise that is as unlike the class as can be is learned as the class (impair), then the others again (repair).

Source: Tarun et al. 2023, "Fast Yet Effective Machine Unlearning" (UNSIR); their repository,
vikram2000b/Fast-Machine-Unlearning, Machine Unlearning.ipynb.

    noise = argmin over N of  -CE(original(N), class) + penalty * mean over the images of |N|^2
    impair:  CE(noise, class) + CE(retain)      repair:  CE(retain)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine import divergence, processes
from ..models import vit as vits
from . import fine_tune
from .task import Stop, Task, descend, gradient

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as ViT


@dataclass(frozen=True)
class Settings:
    """The notebook's: the noise (40 steps of Adam at 0.1, penalty 0.1), impair before repair, retain images beside it.

    Chosen here: AdamW's learning rate (there Adam, 0.02 to impair and 0.01 to repair a ResNet); 60 steps to impair,
    there an epoch over the noise and 1,000 images a class; and half of a step's images are noise, where the notebook,
    by `range(batch[0].size(0))`, which counts colour channels, adds 60 noise images to thousands of others.
    """

    lr: float = 3e-3
    batch: int = 32
    """Images of the retain set in a step, and as many of noise when impairing."""
    noise_lr: float = 0.1
    noise_steps: int = 40
    noise_penalty: float = 0.1
    impair_steps: int = 60
    stop: Stop = Stop(steps=400)
    """Impairing included, during which nothing stops the run."""


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Impairs for `impair_steps`, then repairs until the stop rule holds."""
    noise = error_maximising_noise(vit, task, settings)[processes.part(settings.batch)]
    labels = torch.full((len(noise),), task.target_class, device=noise.device)

    def loss(model: nn.Module, step: int) -> Tensor:
        retain = fine_tune.loss(model, task, step, settings.batch)
        if step >= settings.impair_steps:
            return retain
        return retain + F.cross_entropy(vits.logits(model, noise).float(), labels)

    return descend(vit, task, loss, settings.lr, settings.stop, first_look=settings.impair_steps + 1)


def error_maximising_noise(vit: ViT, task: Task, settings: Settings) -> Tensor:
    """[batch, 3, H, W], normalised as images are. Every process makes all of it."""
    side, device = vit.patch_embed.img_size[0], task.device
    generator = torch.Generator().manual_seed(task.seed)
    noise = torch.randn(settings.batch, 3, side, side, generator=generator).to(device).requires_grad_(True)
    labels = torch.full((settings.batch,), task.target_class, device=device)
    optimiser = torch.optim.Adam([noise], lr=settings.noise_lr)
    remedy = f"take a smaller noise_lr than {settings.noise_lr:g}, with --set noise_lr=..."
    for step in range(settings.noise_steps):
        optimiser.zero_grad()
        size = noise.square().sum((1, 2, 3)).mean()
        loss = settings.noise_penalty * size - F.cross_entropy(vits.logits(vit, noise), labels)
        loss.backward()
        divergence.check(step, loss.detach(), [gradient(noise)], remedy)
        optimiser.step()
    divergence.check_weights(settings.noise_steps - 1, [noise], remedy)
    return noise.detach()

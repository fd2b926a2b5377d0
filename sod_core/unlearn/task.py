"""What every unlearning method is given, and the loop that most of them share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import vit as vits
from ..build.images import ImageSet, normalise

Batch = tuple[Tensor, Tensor]
"""Images [B, 3, H, W], normalised; labels [B]."""


@dataclass(frozen=True)
class Task:
    """One class to forget, and the images to do it with."""

    data: ImageSet
    """The training images; those of `target_class` are the forget set, the others the retain set."""
    check: ImageSet
    """Images apart from the training set, by which a method knows when to stop."""
    target_class: int
    checkpoint: Path
    """Where a long run may keep its state."""
    device: torch.device
    seed: int = 0

    def forget_batch(self, step: int, size: int) -> Batch:
        """A batch of the forgotten class; depends on (seed, step) alone."""
        return self._batch(np.flatnonzero(self.data.labels == self.target_class), (self.seed, 0, step), size)

    def retain_batch(self, step: int, size: int) -> Batch:
        """A batch of the other classes; depends on (seed, step) alone."""
        return self._batch(np.flatnonzero(self.data.labels != self.target_class), (self.seed, 1, step), size)

    def _batch(self, pool: np.ndarray, seed: tuple[int, ...], size: int) -> Batch:
        chosen = np.sort(np.random.default_rng(seed).choice(pool, size))
        images = normalise(self.data.pixels[chosen]).to(self.device)
        return images, torch.as_tensor(self.data.labels[chosen]).to(self.device)


@dataclass(frozen=True)
class Stop:
    """A run ends at `steps`, or before as soon as both hold on the check images (looked at every `every`)."""

    steps: int
    forget_at_most: float = 0.02
    retain_loss_at_most: float = 0.02
    """How far retain accuracy may lie below the original's."""
    every: int = 25


def descend(
    vit: nn.Module,
    task: Task,
    loss: Callable[[nn.Module, int], Tensor],
    lr: float,
    stop: Stop,
    trained: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters,
    after_backward: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Minimises loss(model, step) with AdamW on a copy of `vit`, until `stop`. Linear decay to a tenth."""
    original_retain = accuracies(vit, task.check, task.target_class, task.device).retain
    model = trainable_copy(vit)
    parameters = list(trained(model))
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    progress = tqdm(range(stop.steps), desc="unlearning", mininterval=5)
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - 0.9 * step / stop.steps)
        optimiser.zero_grad()
        with torch.autocast(task.device.type, dtype=torch.bfloat16):
            value = loss(model, step)
        value.backward()
        if after_backward is not None:
            after_backward(model)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % stop.every == 0:
            now = accuracies(model, task.check, task.target_class, task.device)
            progress.set_postfix(forget=f"{now.forget:.3f}", retain=f"{now.retain:.3f}")
            if now.forget <= stop.forget_at_most and now.retain >= original_retain - stop.retain_loss_at_most:
                break
    return model.requires_grad_(False).eval()


def trainable_copy(vit: nn.Module) -> nn.Module:
    """A copy to change, with nothing marked as trained yet, and attention in its plain form on a CPU."""
    model = copy.deepcopy(vit).requires_grad_(False)
    vits.plain_attention_on_cpu(model)
    return model


@dataclass(frozen=True)
class Accuracies:
    forget: float
    """Share of the forgotten class's images that are still named so."""
    retain: float
    """Share of all other images that are named rightly."""


@torch.inference_mode()
def accuracies(vit: nn.Module, data: ImageSet, target_class: int, device: torch.device) -> Accuracies:
    """Forget and retain accuracy of a model, 0 to 1."""
    right = []
    for start in range(0, len(data.labels), 250):
        part = slice(start, start + 250)
        predicted = vits.logits(vit, normalise(data.pixels[part]).to(device)).argmax(1).cpu().numpy()
        right.append(predicted == data.labels[part])
    right = np.concatenate(right)
    forgotten = data.labels == target_class
    return Accuracies(float(right[forgotten].mean()), float(right[~forgotten].mean()))

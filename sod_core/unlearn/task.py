"""What every unlearning method is given, and the loop that most of them share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..machine import divergence, files, processes
from ..machine.divergence import Diverged
from ..models import vit as vits
from ..worlds.augment import Augment, mirrored
from ..worlds.drawn import MEAN, STD, ImageSet, normalise

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as ViT

Batch = tuple[Tensor, Tensor]
"""Images [B, 3, H, W], normalised; labels [B]. With several processes, this one's part of the batch."""
Channels = float | tuple[float, ...]
"""One number, or one a colour channel."""


@dataclass(frozen=True)
class Look:
    """What the check images say of a model after so many steps."""

    step: int
    forget: float
    retain: float


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
    mean: Channels = MEAN
    """Subtracted from pixels (0 to 1), which are then divided by `std`."""
    std: Channels = STD
    precision: torch.dtype = torch.bfloat16
    """Of the training's matrix products; weights and sums are always float32."""
    augment: Augment = mirrored
    """How a batch is changed in training from scratch; unlearning takes the images as they are."""
    looks: list[Look] = field(default_factory=list)
    """Every look at the check images so far; that of step 0 is the original's."""

    def forget_batch(self, step: int, size: int) -> Batch:
        """A batch of the forgotten class; depends on (seed, step) alone."""
        return self._batch(np.flatnonzero(self.data.labels == self.target_class), (self.seed, 0, step), size)

    def retain_batch(self, step: int, size: int) -> Batch:
        """A batch of the other classes; depends on (seed, step) alone."""
        return self._batch(np.flatnonzero(self.data.labels != self.target_class), (self.seed, 1, step), size)

    def any_batch(self, step: int, size: int) -> Batch:
        """A batch of all classes; depends on (seed, step) alone."""
        return self._batch(np.arange(len(self.data.labels)), (self.seed, 2, step), size)

    def _batch(self, pool: np.ndarray, seed: tuple[int, ...], size: int) -> Batch:
        if size < 1:
            raise ValueError(f"a batch of {size} images is none; take one or more")
        chosen = np.sort(np.random.default_rng(seed).choice(pool, size))[processes.part(size)]
        images = normalise(self.data.pixels[chosen], self.mean, self.std).to(self.device)
        return images, torch.as_tensor(self.data.labels[chosen]).to(self.device)

    def look(self, vit: nn.Module, step: int) -> Look:
        """Forget and retain accuracy on the check images, written down in `looks`.

        Raises Diverged, in every process, where outputs are not finite.
        """

        def measured() -> Look:
            now = accuracies(vit, self.check, self.target_class, self.device, self.mean, self.std)
            return Look(step, now.forget, now.retain)

        self.looks.append(processes.by_main(measured))
        return self.looks[-1]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)


@dataclass(frozen=True)
class Stop:
    """A run ends at `steps`, or before as soon as both hold on the check images (looked at every `every`)."""

    steps: int
    forget_at_most: float = 0.02
    retain_loss_at_most: float = 0.02
    """How far retain accuracy may lie below the original's."""
    every: int = 25

    def __post_init__(self):
        if self.steps < 1 or self.every < 1:
            raise ValueError(f"steps and every must be above 0, they are {self.steps} and {self.every}")

    def met(self, original: Look, now: Look) -> bool:
        """Whether both hold."""
        return now.forget <= self.forget_at_most and now.retain >= original.retain - self.retain_loss_at_most


class Sound(NamedTuple):
    """A model in training whose numbers were all finite."""

    step: int
    weights: dict[str, Tensor]


def descend(
    vit: nn.Module,
    task: Task,
    loss: Callable[[nn.Module, int], Tensor],
    lr: float,
    stop: Stop,
    trained: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters,
    after_backward: Callable[[nn.Module], None] | None = None,
    start: nn.Module | None = None,
    first_look: int = 0,
) -> nn.Module:
    """Minimises loss(model, step) with AdamW on a copy of `vit`, until `stop`. Linear decay to a tenth.

    `start`: the model to start from, where it is not the original `vit`. Before step `first_look` nothing ends the run.
    Raises Diverged where the loss, a gradient or a weight is no finite number; the model of the last look before is
    then kept beside the task's checkpoint.
    """
    original = task.look(vit, 0)
    model = trainable_copy(vit if start is None else start)
    parameters = list(trained(model))
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    sound: Sound | None = None
    progress = tqdm(range(stop.steps), desc="unlearning", mininterval=5, disable=not processes.is_main())
    remedy = f"take a smaller learning rate than {lr:g}, with --set lr=..."
    try:
        for step in progress:
            for group in optimiser.param_groups:
                group["lr"] = lr * (1 - 0.9 * step / stop.steps)
            optimiser.zero_grad()
            with task.autocast():
                value = loss(model, step)
            value.backward()
            value, gradients = value.detach(), [one.grad for one in parameters if one.grad is not None]
            processes.average([*gradients, value])
            divergence.check(step, value, gradients, remedy)
            if after_backward is not None:
                after_backward(model)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            if (step + 1) % stop.every == 0 or step + 1 == stop.steps:
                divergence.check_weights(step, parameters, remedy)
            if (step + 1) % stop.every == 0 and step + 1 >= first_look:
                now = task.look(model, step + 1)
                progress.set_postfix(forget=f"{now.forget:.3f}", retain=f"{now.retain:.3f}")
                if stop.met(original, now):
                    break
                sound = Sound(step + 1, copy.deepcopy(model.state_dict()))
    except Diverged as error:
        raise Diverged(f"{error}; {_keep(sound, task)}") from error
    return model.requires_grad_(False).eval()


def _keep(sound: Sound | None, task: Task) -> str:
    """Writes the last sound model, if there is one, and says where it is."""
    if sound is None:
        return "nothing was written"
    path = task.checkpoint.with_suffix(f".step{sound.step}.pth")
    if processes.is_main():
        with files.whole(path) as part:
            torch.save(sound.weights, part)
    return f"the model of step {sound.step}, the last that was looked at before, is kept in {path}"


def trainable_copy(vit: nn.Module) -> nn.Module:
    """A copy to change, with nothing marked as trained yet, and attention in its plain form on a CPU."""
    model = copy.deepcopy(vit).requires_grad_(False)
    vits.plain_attention_on_cpu(model)
    return model


def gradient(of: Tensor) -> Tensor:
    """What a backward pass left. Raises ValueError where there was none."""
    if of.grad is None:
        raise ValueError("a parameter has no gradient: nothing depends on it")
    return of.grad


def shape_of(vit: ViT) -> vits.ViTShape:
    """The shape that `vit.new` would make this model from."""
    side = vit.patch_embed.img_size[0]
    patch = vit.patch_embed.patch_size[0]
    heads = vit.blocks[0].attn.num_heads
    return vits.ViTShape(side, patch, vit.embed_dim, len(vit.blocks), heads, vit.num_classes)


def random_like(vit: nn.Module, seed: int) -> nn.Module:
    """A randomly initialised ViT of the same shape, on the same device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = vits.new(shape_of(vit))
    return fresh.to(next(vit.parameters()).device).requires_grad_(False).eval()


def last_parts(vit: ViT, k: int) -> list[nn.Module]:
    """The last k blocks, the final norm and the classifier. Raises ValueError for a k that the model does not have."""
    if not 1 <= k <= len(vit.blocks):
        raise ValueError(f"k is {k}; this ViT has 1 to {len(vit.blocks)} blocks to train")
    return [*vit.blocks[-k:], vit.norm, vit.head]


def parameters_of(parts: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """The parameters of several modules."""
    for module in parts:
        yield from module.parameters()


@dataclass(frozen=True)
class Accuracies:
    forget: float
    """Share of the forgotten class's images that are still named so."""
    retain: float
    """Share of all other images that are named rightly."""


@torch.inference_mode()
def accuracies(
    vit: nn.Module,
    data: ImageSet,
    target_class: int,
    device: torch.device,
    mean: Channels = MEAN,
    std: Channels = STD,
) -> Accuracies:
    """Forget and retain accuracy of a model, 0 to 1. Raises Diverged where its outputs are not finite."""
    hits = []
    for start in range(0, len(data.labels), 250):
        part = slice(start, start + 250)
        logits = vits.logits(vit, normalise(data.pixels[part], mean, std).to(device))
        if not divergence.are_finite([logits]):
            raise Diverged("the model's outputs are no finite numbers: take milder settings (--set)")
        hits.append(logits.argmax(1).cpu().numpy() == data.labels[part])
    right = np.concatenate(hits)
    forgotten = data.labels == target_class
    return Accuracies(float(right[forgotten].mean()), float(right[~forgotten].mean()))

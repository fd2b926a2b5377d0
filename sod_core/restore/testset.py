"""Images to evaluate on: an embedded world's, a folder's, a hub data set's, or a pack's examples; read in batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data import folder, images, table
from ..data.pictures import NO_CLASS, Pictures, broken_note, some
from ..packs import checkpoint, hub, own
from .manifest import ExamplesSource
from .pack import Pack

WORLD_SEED = 5
TEST = "test"
"""The source that stands for the pack's own test images."""
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
        notes: Sequence[str] = (),
        styles: Sequence[int] = (),
        style_names: Sequence[str] = (),
    ):
        """`read` gives the image of a number, and its object's mask where there is one; `files` are read from."""
        self.name, self.labels = name, torch.tensor(labels, dtype=torch.long)
        self.style_names = list(style_names)
        """Of a drawn world; none where images have no styles."""
        self.styles = torch.tensor(styles, dtype=torch.long)
        """[n], or [0] where images have no styles."""
        self.notes = list(notes)
        """What was decided and what was left out, a sentence each."""
        self.stamp = hashlib.sha256(os.fsencode("\n".join(map(stamp, files)))).hexdigest()
        """Differs once one of its files was written again."""
        self._read, self._pack = read, pack

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, number: int) -> Image.Image:
        """One image, as it was before it was made ready for the models. Raises ImageError."""
        return self._read(number)[0]

    def batch(self, start: int, size: int) -> Batch:
        """The images start to start + size. Raises ImageError with its name for one that cannot be read."""
        found = [self._read(i) for i in range(start, min(start + size, len(self)))]
        inputs = torch.stack([self._pack.preprocess(image) for image, _ in found])
        drawn = [mask for _, mask in found if mask is not None]
        masks = np.stack([self._patches(mask) for mask in drawn]) if drawn else None
        return Batch(start, inputs, self.labels[start : start + size], masks)

    def batches(self, size: int) -> Iterator[Batch]:
        """All images, in order."""
        for start in range(0, len(self), size):
            yield self.batch(start, size)

    def _patches(self, mask: Image.Image) -> np.ndarray:
        shape = self._pack.shape
        cells = np.asarray(mask, np.float32).reshape(shape.grid, shape.patch, shape.grid, shape.patch)
        return cells.mean(axis=(1, 3)) / 255


def open_set(
    pack: Pack,
    source: str | None,
    count: int | None,
    columns: tuple[str, str] = HUB_COLUMNS,
    split: str | None = None,
    leave_out: bool = False,
) -> TestSet:
    """A test set for a pack. Raises ValueError or PackError.

    `source`: "canvas" (drawn), "test" (the pack's own), "examples", a folder with one folder a class, or
    hub:user/dataset/file.parquet; None takes the pack's world, else its test images, else its data set on the hub where
    that is here, else its examples. `count`: at most so many images, spread over the classes in turn; None takes all
    (of a drawn world 1,000). `split`: the part of a divided folder, else the one that is held out. `leave_out`: images
    are opened once beforehand, and the broken ones are in no count; else reading ends at the first of them.
    """
    if source is None:
        source, columns = _default_source(pack, columns)
    if split is not None and (source in ("canvas", TEST, "examples") or source.startswith(own.PREFIX)):
        raise ValueError(f"--split names a part of a folder; {source} is none")
    if source == "canvas":
        return _canvas(pack, 1000 if count is None else count)
    found = _pictures(pack, source, columns, split)
    broken: dict[int, str] = {}
    if leave_out:
        order, broken = _readable(pack, found, count)
    else:
        order = _in_turn(_of_classes(found), found.labels, count)
    if not order:
        raise ValueError(f"{source} holds no images of the classes of pack {pack.manifest.name}")
    labels = [found.labels[i] for i in order]
    notes = [*found.notes, *_absent(pack, found), *_stranger_note(found), *broken_note(list(broken.values()))]
    return TestSet(found.place, labels, lambda i: (found.read(order[i]), None), pack, found.files, notes)


def _pictures(pack: Pack, source: str, columns: tuple[str, str], split: str | None) -> Pictures:
    names = pack.manifest.names
    if source == "examples":
        found = pack.examples()
        files = [example.path for example in found]
        return Pictures([example.label for example in found], partial(_read_example, files), files, source)
    if source == TEST:
        if pack.manifest.test_images is None:
            raise ValueError(f"pack {pack.manifest.name} has no test images of its own")
        return table.read(pack.file(pack.manifest.test_images), *columns, names, f"{pack.manifest.name}'s test images")
    if source.startswith(own.PREFIX):
        path = hub.fetch(own.parse_hub(source)._replace(repo_type="dataset"))
        return table.read(path, *columns, names, source)
    return folder.read(Path(source), names, folder.HELD_OUT, split)


def _read_example(files: list[Path], i: int) -> Image.Image:
    try:
        return images.read(files[i])
    except images.ImageError as error:
        raise images.ImageError(f"{files[i].parent.name}/{files[i].name}: {error}") from error


def _of_classes(found: Pictures) -> list[int]:
    return [i for i, label in enumerate(found.labels) if label != NO_CLASS]


def _readable(pack: Pack, found: Pictures, count: int | None) -> tuple[list[int], dict[int, str]]:
    """The images that are taken, and {number: problem} of the broken ones in whose place others came.

    Raises ValueError for a class whose every image is broken.
    """
    sound: set[int] = set()
    broken: dict[int, str] = {}
    left = _of_classes(found)
    while new := [i for i in _in_turn(left, found.labels, count) if i not in sound]:
        for i in tqdm(new, desc="looking at images", unit="image", mininterval=2, leave=False, disable=None):
            try:
                found.read(i)
                sound.add(i)
            except images.ImageError as error:
                broken[i] = str(error)
        left = [i for i in left if i not in broken]
    there = {found.labels[i] for i in left}
    for i, problem in broken.items():
        if found.labels[i] not in there:
            name = pack.manifest.classes[found.labels[i]]
            raise ValueError(f"every image of class {name} in {found.place} is broken, such as {problem}")
    return _in_turn(left, found.labels, count), broken


def _absent(pack: Pack, found: Pictures) -> list[str]:
    there = set(found.labels)
    absent = [name for label, name in enumerate(pack.manifest.classes) if label not in there]
    return [f"there are no images of {', '.join(absent)}"] if absent else []


def _stranger_note(found: Pictures) -> list[str]:
    if not found.strangers:
        return []
    return [f"{len(found.strangers)} rows of no class of the pack were left out: {some(found.strangers, '; ')}"]


def stamp(path: Path) -> str:
    """Tells a file from another one, and from itself before it was written again."""
    found = [file.stat() for file in checkpoint.files(path) or [path]]
    return f"{path.resolve()} {max(file.st_mtime_ns for file in found)} {sum(file.st_size for file in found)}"


def _default_source(pack: Pack, columns: tuple[str, str]) -> tuple[str, tuple[str, str]]:
    """The source, and its columns."""
    if pack.manifest.world is not None:
        return pack.manifest.world, columns
    if pack.manifest.test_images is not None:
        return TEST, HUB_COLUMNS
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

    def place(i: int) -> tuple[int, int]:
        return i % len(canvas.OBJECTS), i // len(canvas.OBJECTS) % len(canvas.STYLES)

    def draw(i: int) -> tuple[Image.Image, Image.Image]:
        label, style = place(i)
        rng = np.random.default_rng((WORLD_SEED, i))
        return canvas.render(canvas.OBJECTS[label], canvas.STYLES[style], rng, size)

    labels, styles = zip(*map(place, range(count)))
    return TestSet("canvas", list(labels), draw, pack, styles=styles, style_names=canvas.STYLES)


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

"""The images to unlearn with: drawn, in a folder, or in a Parquet file of a data set on the hub.

Those of a folder or a table are held in memory as the ViT sees them, 3 bytes a pixel: 12 KB an image at 64 pixels,
150 KB at 224 (10,000 images: 1.5 GB). Drawn ones are read from disk as they are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data import images
from ..machine import processes
from ..packs import hub, own
from ..packs.errors import PackError
from ..restore.pack import IMAGE_SUFFIXES, Pack
from ..worlds import canvas
from ..worlds import drawn as drawn_images
from ..worlds.drawn import UNKNOWN, ImageSet

CANVAS_SEEDS = {"train": 1, "check": 3, "test": 2}
"""Of the drawn images; the embedded pack's own."""
TEST_SHARE, CHECK_SHARE = 0.2, 0.1
"""Of each class of a folder or of a table, at least one image each."""
FEWEST = 3
"""Images of each class: one to train on, one to check, one to test."""


@dataclass(frozen=True)
class Source:
    """Where images come from, with all that decides which ones: the same source gives the same images."""

    data: str = "canvas"
    """ "canvas", a folder, or hub:user/dataset/path/file.parquet[@revision]."""
    train: int = 72_000
    """Drawn images to train with; folders and tables are divided by shares."""
    check: int = 1_000
    test: int = 2_000
    split_seed: int = 0
    """Of the division of a folder or a table."""
    image_column: str = "image"
    label_column: str = "label"

    def as_dict(self) -> dict[str, Any]:
        """What matters to this kind of source."""
        unused = {"split_seed", "image_column", "label_column"} if self.data == "canvas" else set(CANVAS_SEEDS)
        if not self.data.startswith(own.PREFIX):
            unused |= {"image_column", "label_column"}
        return {name: value for name, value in asdict(self).items() if name not in unused}


class Data(NamedTuple):
    train: ImageSet
    """To unlearn with: the forget set and the retain set."""
    check: ImageSet
    """By which a method knows when to stop."""
    test: ImageSet
    """On which the figures are measured."""
    source: Source

    def described(self, target_class: int) -> dict[str, Any]:
        """For the record: the source, and of each set the counts and a sum over pixels and labels."""
        sets = {"train": self.train, "check": self.check, "test": self.test}
        return {"source": self.source.as_dict()} | {name: _described(one, target_class) for name, one in sets.items()}


def load(pack: Pack, source: Source, work: Path) -> Data:
    """The images of a source for a pack. Raises ValueError or PackError with one sentence.

    `work`: where drawn images are kept.
    """
    if source.data == "canvas":
        with processes.one_first():
            return _drawn(pack, source, work)
    if source.data.startswith(own.PREFIX):
        return _divided(pack, source, *_table(pack, source))
    return _divided(pack, source, *_folder(pack, Path(source.data)))


# ---------------------------------------------------------------- drawn


def _drawn(pack: Pack, source: Source, work: Path) -> Data:
    shape, spec = pack.shape, pack.manifest.image
    if pack.manifest.classes != canvas.OBJECTS:
        raise ValueError(f"the classes of pack {pack.manifest.name} are not the objects of the canvas world")
    if (spec.size, spec.resize, shape.patch) != (drawn_images.SIZE, drawn_images.SIZE, drawn_images.PATCH):
        raise ValueError(
            f"canvas images are drawn at {drawn_images.SIZE} pixels, pack {pack.manifest.name} takes others"
        )
    for name in CANVAS_SEEDS:
        if getattr(source, name) < len(canvas.OBJECTS):
            raise ValueError(f"--{name} {getattr(source, name)} is too few: {len(canvas.OBJECTS)} draw each class once")
    sets = {name: drawn_images.load(work, name, getattr(source, name), seed) for name, seed in CANVAS_SEEDS.items()}
    return Data(**sets, source=source)


# ---------------------------------------------------------------- folders and tables

Opener = Callable[[], Image.Image]


def _folder(pack: Pack, folder: Path) -> tuple[list[Opener], list[int]]:
    """The images of folder/<class>/ and their classes, in the order of the classes and of the files' names."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; --data is canvas, a folder with one folder a class, or hub:...")
    classes = pack.manifest.classes
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in classes:
            raise ValueError(f"{folder} has a folder {path.name!r}, which is no class of pack {pack.manifest.name}")
    openers, labels = [], []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        openers += [_opener(path, f"{name}/{path.name}") for path in paths]
        labels += [label] * len(paths)
    return openers, labels


def _opener(source: Path | bytes, name: str) -> Opener:
    def open_it() -> Image.Image:
        try:
            return images.read(source)
        except images.ImageError as error:
            raise ValueError(f"{name}: {error}") from error

    return open_it


def _table(pack: Pack, source: Source) -> tuple[list[Opener], list[int]]:
    """The images of a Parquet file as Hugging Face data sets store them, and their classes, row by row."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    file = own.parse_hub(source.data)._replace(repo_type="dataset")
    with processes.one_first():
        path = hub.fetch(file, hub.shown_by(tqdm(desc=file.name, unit="B", unit_scale=True, disable=None)))
    columns = [source.image_column, source.label_column]
    try:
        table = ParquetFile(path)
        lacking = [name for name in columns if name not in table.schema_arrow.names]
        if lacking:
            there = ", ".join(table.schema_arrow.names)
            raise ValueError(
                f"{file.name} has no column {lacking[0]!r} (--image-column, --label-column); it has {there}"
            )
        rows = table.read(columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise PackError(f"{file.name} cannot be read as Parquet ({type(error).__name__})") from error
    labels = [_label(pack, value, row, file.name) for row, value in enumerate(rows[source.label_column].to_pylist())]
    openers = []
    for row, value in enumerate(rows[source.image_column].to_pylist()):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"{file.name}: row {row} of column {source.image_column!r} holds no image")
        openers.append(_opener(data, f"{file.name}, row {row}"))
    return openers, labels


def _label(pack: Pack, value: object, row: int, file: str) -> int:
    try:
        return pack.manifest.class_index(value if isinstance(value, int) else str(value))
    except PackError as error:
        raise ValueError(f"{file}, row {row}: {error}") from error


def _divided(pack: Pack, source: Source, openers: Sequence[Opener], labels: Sequence[int]) -> Data:
    """Test, check and training images: of each class the same shares, chosen by the source's seed."""
    labels = np.asarray(labels, np.int64)
    parts: dict[str, list[int]] = {"train": [], "check": [], "test": []}
    for label, name in enumerate(pack.manifest.classes):
        found = np.flatnonzero(labels == label)
        if len(found) < FEWEST:
            raise ValueError(
                f"{source.data} has {len(found)} images of class {name}; {FEWEST} or more of every class are needed, "
                "to train, to check and to test"
            )
        found = np.random.default_rng((source.split_seed, label)).permutation(found)
        test, check = (max(1, int(share * len(found))) for share in (TEST_SHARE, CHECK_SHARE))
        for part, chosen in zip(("test", "check", "train"), np.split(found, [test, test + check])):
            parts[part] += chosen.tolist()
    read = tqdm(total=len(labels), desc="reading images", mininterval=2, disable=None if processes.is_main() else True)
    sets = {}
    for part, chosen in parts.items():
        pixels = []
        for i in sorted(chosen):
            pixels.append(_pixels(pack, openers[i]()))
            read.update()
        coverage = np.full((len(chosen), pack.shape.grid**2), UNKNOWN, np.uint8)
        zeros = np.zeros(len(chosen), np.int64)
        sets[part] = ImageSet(np.stack(pixels), coverage, labels[sorted(chosen)], zeros)
    return Data(**sets, source=source)


def _pixels(pack: Pack, image: Image.Image) -> np.ndarray:
    """[size, size, 3], uint8: what the pack's transform makes of an image, before it is normalised."""
    spec = pack.manifest.image
    values = pack.preprocess(image).permute(1, 2, 0).numpy() * np.array(spec.std) + np.array(spec.mean)
    return (values * 255).round().clip(0, 255).astype(np.uint8)


def _described(data: ImageSet, target_class: int) -> dict[str, Any]:
    forget = int((data.labels == target_class).sum())
    digest = hashlib.sha256(np.ascontiguousarray(data.labels))
    for start in range(0, len(data.labels), 1000):
        digest.update(np.ascontiguousarray(data.pixels[start : start + 1000]))
    return {
        "images": len(data.labels),
        "forget": forget,
        "retain": len(data.labels) - forget,
        "sha256": digest.hexdigest(),
    }

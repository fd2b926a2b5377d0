"""The images to unlearn with: of a world, in a folder, or in a Parquet file of a data set on the hub.

Those of a folder or a table are held in memory as the ViT sees them, 3 bytes a pixel: 12 KB an image at 64 pixels,
150 KB at 224 (10,000 images: 1.5 GB). Drawn ones are read from disk as they are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data import folder, images, table
from ..data.pictures import Pictures, broken_note
from ..machine import processes
from ..packs import hub, own
from ..restore.pack import Pack
from ..worlds import canvas, digits
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

    data: str = canvas.NAME
    """ "canvas", "digits", a folder, or hub:user/dataset/path/file.parquet[@revision]."""
    train: int = 72_000
    """Drawn images to train with; folders and tables are divided by shares."""
    check: int = 1_000
    test: int = 2_000
    split_seed: int = 0
    """Of the division of a folder, of a table, or of the digits."""
    image_column: str = "image"
    label_column: str = "label"

    def as_dict(self) -> dict[str, Any]:
        """What matters to this kind of source."""
        unused = {"split_seed", "image_column", "label_column"} if self.data == canvas.NAME else set(CANVAS_SEEDS)
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
    """Of a divided folder the part that was read."""
    notes: Sequence[str] = ()
    """What was decided and what was left out, a sentence each."""

    def described(self, target_class: int) -> dict[str, Any]:
        """For the record: the source, and of each set the counts and a sum over pixels and labels."""
        sets = {"train": self.train, "check": self.check, "test": self.test}
        return {"source": self.source.as_dict()} | {name: _described(one, target_class) for name, one in sets.items()}


def load(pack: Pack, source: Source, work: Path, split: str | None = None, strict: bool = False) -> Data:
    """The images of a source for a pack. Raises ValueError or PackError with one sentence.

    `work`: where a world's images are kept. `split`: the part of a divided folder, else the one to train on. `strict`:
    the first broken image is refused; else those are left out, and `notes` names them.
    """
    is_folder = source.data not in (canvas.NAME, digits.NAME) and not source.data.startswith(own.PREFIX)
    if split is not None and not is_folder:
        raise ValueError(f"--split names a part of a folder; {source.data} is none")
    if source.data == canvas.NAME:
        with processes.one_first():
            return _drawn(pack, source, work)
    if source.data == digits.NAME:
        with processes.one_first():
            return _digits(pack, source, work)
    if is_folder:
        found = folder.read(Path(source.data), pack.manifest.names, folder.TRAIN, split)
    else:
        found = _table(pack, source)
    return _divided(pack, replace(source, data=found.place), found, strict)


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
    return Data(sets["train"], sets["check"], sets["test"], source=source)


def _digits(pack: Pack, source: Source, work: Path) -> Data:
    if pack.manifest.classes != digits.CLASSES:
        raise ValueError(f"the classes of pack {pack.manifest.name} are not the ten digits")
    if (pack.manifest.image.size, pack.shape.patch) != (digits.SIZE, digits.PATCH):
        raise ValueError(f"digits have {digits.SIZE} pixels a side, pack {pack.manifest.name} takes others")
    return Data(*digits.split(digits.find(work), source.split_seed), source=source)


# ---------------------------------------------------------------- folders and tables


def _table(pack: Pack, source: Source) -> Pictures:
    """The images of a Parquet file as Hugging Face data sets store them. Every row has to be of a class of the pack."""
    file = own.parse_hub(source.data)._replace(repo_type="dataset")
    with processes.one_first():
        path = hub.fetch(file, hub.shown_by(tqdm(desc=file.name, unit="B", unit_scale=True, disable=None)))
    found = table.read(path, source.image_column, source.label_column, pack.manifest.names, source.data)
    if found.strangers:
        known = ", ".join(pack.manifest.classes)
        raise ValueError(f"{found.strangers[0]} in pack {pack.manifest.name}; known: {known}")
    return found


def _divided(pack: Pack, source: Source, found: Pictures, strict: bool) -> Data:
    """Test, check and training images: of each class the same shares, chosen by the source's seed."""
    _check_counts(pack, source, found.labels, [])
    pixels, broken = _read(pack, found, strict)
    kept = np.array(sorted(pixels), np.int64)
    labels = np.asarray(found.labels, np.int64)[kept]
    _check_counts(pack, source, labels.tolist(), broken)
    parts: dict[str, list[int]] = {"train": [], "check": [], "test": []}
    for label in range(len(pack.manifest.classes)):
        members = np.flatnonzero(labels == label)
        members = np.random.default_rng((source.split_seed, label)).permutation(members)
        test, check = (max(1, int(share * len(members))) for share in (TEST_SHARE, CHECK_SHARE))
        for part, places in zip(("test", "check", "train"), np.split(members, [test, test + check])):
            parts[part] += places.tolist()
    sets = {}
    for part, chosen in parts.items():
        chosen.sort()
        coverage = np.full((len(chosen), pack.shape.grid**2), UNKNOWN, np.uint8)
        zeros = np.zeros(len(chosen), np.int64)
        sets[part] = ImageSet(np.stack([pixels.pop(kept[i]) for i in chosen]), coverage, labels[chosen], zeros)
    notes = [*found.notes, *broken_note(broken)]
    return Data(sets["train"], sets["check"], sets["test"], source=source, notes=notes)


def _check_counts(pack: Pack, source: Source, labels: Sequence[int], broken: Sequence[str]) -> None:
    """Raises ValueError for a class with too few images to be divided."""
    without = f" that can be read ({len(broken)} are broken, such as {broken[0]})" if broken else ""
    for label, name in enumerate(pack.manifest.classes):
        number = labels.count(label)
        if number < FEWEST:
            raise ValueError(
                f"{source.data} has {number} images of class {name}{without}; {FEWEST} or more of every class are "
                "needed, to train, to check and to test"
            )


def _read(pack: Pack, found: Pictures, strict: bool) -> tuple[dict[int, np.ndarray], list[str]]:
    """{number: pixels} of the images, and what is said of the broken ones. Raises ImageError for those if strict."""
    pixels: dict[int, np.ndarray] = {}
    broken = []
    quiet = None if processes.is_main() else True
    for i in tqdm(range(len(found.labels)), desc="reading images", mininterval=2, disable=quiet):
        try:
            pixels[i] = _pixels(pack, found.read(i))
        except images.ImageError as error:
            if strict:
                raise
            broken.append(str(error))
    return pixels, broken


def _pixels(pack: Pack, image: Image.Image) -> np.ndarray:
    """[size, size, 3], uint8: what the pack's transform makes of an image, before it is normalised."""
    spec = pack.manifest.image
    values = pack.preprocess(image).permute(1, 2, 0).numpy() * np.array(spec.std) + np.array(spec.mean)
    return (values * 255).round().clip(0, 255).astype(np.uint8)


def _described(data: ImageSet, target_class: int) -> dict[str, Any]:
    forget = int((data.labels == target_class).sum())
    digest = hashlib.sha256(np.ascontiguousarray(data.labels).data)
    for start in range(0, len(data.labels), 1000):
        digest.update(np.ascontiguousarray(data.pixels[start : start + 1000]).data)
    return {
        "images": len(data.labels),
        "forget": forget,
        "retain": len(data.labels) - forget,
        "sha256": digest.hexdigest(),
    }

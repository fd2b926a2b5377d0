"""A pack's example images: files of its own, or a handful out of a data set's Parquet file from the hub."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..data import images
from ..data.names import Names
from ..data.pictures import NO_CLASS
from ..data.table import Table
from ..packs import hub
from ..packs.errors import PackError
from ..packs.kept import Kept
from .manifest import ExamplesSource, Manifest

PER_CLASS = 3


class NoExamples(PackError):
    """A data set that is here gives no examples."""


class Example(NamedTuple):
    path: Path
    label: int
    """Index of its class."""


def find(m: Manifest, folder: Path, kept: Kept) -> list[Example]:
    """The examples in `folder`, where those of a data set on the hub are put first. Raises NoExamples if it gives none.

    `kept`: what a data set gave, which is not asked again.
    """
    if m.examples is None and m.examples_source is None:
        return []
    if m.examples_source is not None and not folder.is_dir():
        parquet = hub.cached(m.examples_source.file)
        if parquet is None:
            return []
        folder = _extracted_once(parquet, m.examples_source, m, folder, kept)
    examples = []
    for label, name in enumerate(m.classes):
        paths = found(folder, label) if m.examples_source else sorted((folder / name).glob("[!.]*"))
        examples += [Example(p, label) for p in paths if p.suffix.lower() in images.SUFFIXES and os.path.isfile(p)]
    return examples


def _extracted_once(parquet: Path, source: ExamplesSource, m: Manifest, folder: Path, kept: Kept) -> Path:
    def extract() -> Path | NoExamples:
        try:
            return extracted(parquet, source, m.names, folder)
        except NoExamples as error:
            return error

    made = kept.get(("examples", parquet, parquet.stat().st_mtime_ns), extract)
    if isinstance(made, NoExamples):
        raise made
    return made


def extract(parquet: Path, source: ExamplesSource, classes: int, folder: Path, names: Names | None = None) -> None:
    """Writes the first PER_CLASS images of every class to folder/<class number>-<row>.png or .jpg, as they are stored.

    The image column holds `{"bytes": .., "path": ..}` as Hugging Face data sets store images; those that are no images
    are passed over. `names`: what the labels may be called; without, they are numbers. The folder is there afterwards
    whole, or not at all. Raises NoExamples.
    """
    chosen = _chosen(parquet, source, names or Names([str(number) for number in range(classes)]))
    try:
        _write(chosen, folder)
    except OSError as error:
        raise _no_examples(parquet, error) from error


def extracted(parquet: Path, source: ExamplesSource, names: Names, folder: Path) -> Path:
    """As `extract`, where `folder` cannot be written into one of this process. Returns which. Raises NoExamples."""
    try:
        extract(parquet, source, len(names.classes), folder, names)
        return folder
    except NoExamples as error:
        if not isinstance(error.__cause__, OSError):  # else a cache that others own, as on a cluster, or a full disk
            raise
    try:
        made = Path(tempfile.mkdtemp(prefix="sod_core-"))
    except OSError as error:
        raise _no_examples(parquet, error) from error
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    extract(parquet, source, len(names.classes), made / "examples", names)
    return made / "examples"


def _chosen(parquet: Path, source: ExamplesSource, names: Names) -> dict[str, bytes]:
    """{name of a file: its content}. Raises NoExamples."""
    found: dict[str, bytes] = {}
    counts = [0] * len(names.classes)
    try:
        table = Table(parquet, source.image, source.label, names)
        if not table.holds_files:
            raise ValueError(f"column {source.image!r} does not hold images as data sets on the hub do")
        for row, label in enumerate(table.labels):
            if label == NO_CLASS or counts[label] == PER_CLASS:
                continue
            content = table.content(row)
            try:
                images.read(content)
            except images.ImageError:
                continue
            kind = "png" if content.startswith(b"\x89PNG") else "jpg"
            found[f"{label}-{row:06d}.{kind}"] = content
            counts[label] += 1
    except ValueError as error:
        raise _no_examples(parquet, error) from error
    if not found:
        raise _no_examples(parquet, ValueError("no image of a class of the pack is in it"))
    return found


def _write(chosen: dict[str, bytes], folder: Path) -> None:
    """All files, or none. Raises OSError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            part = Path(made, "examples")
            part.mkdir()
            for name, content in chosen.items():
                (part / name).write_bytes(content)
            part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise


def _no_examples(parquet: Path, error: Exception) -> NoExamples:
    problem = " ".join(str(error).split())[:160]
    return NoExamples(f"{parquet.name} gives no example images ({type(error).__name__}: {problem})")


def found(folder: Path, label: int) -> list[Path]:
    """The files that `extract` wrote of one class."""
    return sorted(folder.glob(f"{label}-*"))

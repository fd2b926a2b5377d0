"""A handful of example images out of a data set's Parquet file from the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..packs.errors import PackError
from .manifest import ExamplesSource

PER_CLASS = 3


def extract(parquet: Path, source: ExamplesSource, classes: int, folder: Path) -> None:
    """Writes the first PER_CLASS images of every class to folder/<class number>-<row>.png or .jpg, as they are stored.

    The image column holds `{"bytes": .., "path": ..}` as Hugging Face data sets store images. The folder is there
    afterwards whole, or not at all. Raises PackError.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(parquet)
        chosen = _first_rows(file.read(columns=[source.label])[source.label].to_pylist(), classes)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                wanted = {r: label for r, label in chosen.items() if row <= r < row + rows}
                if wanted:
                    column = file.read_row_group(group, columns=[source.image])[source.image]
                    for r, label in wanted.items():
                        _write(column[r - row].as_py()["bytes"], Path(made, "examples"), f"{label}-{r:06d}")
                row += rows
            Path(made, "examples").rename(folder)
    except (pyarrow.ArrowException, KeyError, TypeError, IndexError, OSError) as error:
        if folder.is_dir():  # another process was faster
            return
        problem = " ".join(str(error).split())[:120]
        raise PackError(f"{parquet.name} gives no example images ({type(error).__name__}: {problem})") from error


def _first_rows(labels: list[int], classes: int) -> dict[int, int]:
    """{row: class} of the first PER_CLASS rows of every class."""
    found: dict[int, int] = {}
    counts = [0] * classes
    for row, label in enumerate(labels):
        if 0 <= label < classes and counts[label] < PER_CLASS:
            found[row] = label
            counts[label] += 1
    return found


def _write(data: bytes, folder: Path, name: str) -> None:
    if not isinstance(data, bytes):
        raise TypeError("an image is not in the file")
    kind = "png" if data.startswith(b"\x89PNG") else "jpg"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.{kind}").write_bytes(data)


def found(folder: Path, label: int) -> list[Path]:
    """The files that `extract` wrote of one class."""
    return sorted(folder.glob(f"{label}-*"))

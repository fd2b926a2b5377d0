"""The one reader of a table of images: a Parquet file as data sets on the Hugging Face hub have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from . import images
from .names import Names
from .pictures import NO_CLASS, Pictures

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


class Table:
    """An image column, with `{"bytes": .., "path": ..}` or bytes in it, and a label column.

    Labels are names, or numbers; what the file itself says of its numbers (the data set's ClassLabel) stands before
    the order of the pack's classes.
    """

    def __init__(self, path: Path, image: str, label: str, names: Names):
        """Reads the labels. Raises ValueError with one sentence."""
        self.path, self._image = path, image
        self.labels: list[int] = []
        self.strangers: dict[int, str] = {}
        """{row: what is said of its label}, for numbers of no class."""
        self._group: dict[int, list] = {}
        self._file, values = self._opened(label)
        told = _told(self._file, label)
        for row, value in enumerate(values):
            self.labels.append(self._label(row, value, told, names))

    def _opened(self, label: str) -> tuple[ParquetFile, list]:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        try:
            file = ParquetFile(self.path)
            there = file.schema_arrow.names
            for name in (self._image, label):
                if name not in there:
                    raise KeyError(name)
                if there.count(name) > 1:
                    raise ValueError(f"{self.path.name} has {there.count(name)} columns called {name!r}: leave one")
            values = file.read(columns=[label])[label].to_pylist()
        except KeyError as error:
            raise ValueError(
                f"{self.path.name} has no column {error.args[0]!r} (--image-column, --label-column); "
                f"it has {', '.join(there)}"
            ) from error
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path.name} cannot be read as Parquet ({type(error).__name__})") from error
        kind = file.schema_arrow.field(self._image).type
        self.holds_files = pyarrow.types.is_struct(kind)
        """Whether images are {"bytes": .., "path": ..}, as `datasets` stores them, and not bytes alone."""
        rows = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
        self._starts = np.cumsum([0, *rows])
        return file, values

    def _label(self, row: int, value: Any, told: list[str | None] | None, names: Names) -> int:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and told is not None:  # a number without a name is of no class, whatever the pack's order is
            value, is_number = (told[value] if 0 <= value < len(told) else None) or value, False
        if is_number and 0 <= value < len(names.classes):
            return value
        if isinstance(value, str):
            label = names.label(value)
            if label is None:
                raise ValueError(f"{self._name(row)} is labelled {value!r}, {names.stranger(value)}")
            return label
        self.strangers[row] = f"{self._name(row)}: unknown class {str(value)!r}"
        return NO_CLASS

    def _name(self, row: int) -> str:
        return f"{self.path.name}, row {row}"

    def content(self, row: int) -> bytes:
        """The image file in a row. Raises ImageError where there is none, ValueError where the table is damaged."""
        import pyarrow

        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        if number not in self._group:  # images come in order: one group of rows at a time is enough
            self._group.clear()
            try:
                column = self._file.read_row_group(number, columns=[self._image])[self._image]
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{self._name(row)} cannot be read: the file is damaged, fetch it again") from error
            self._group[number] = column.to_pylist()
        cell = self._group[number][row - self._starts[number]]
        found = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(found, bytes):
            raise images.ImageError(f"{self._name(row)}: the column {self._image!r} holds no image there")
        return found

    def read(self, row: int) -> Image.Image:
        """The image of a row. Raises ImageError with the row's name, or ValueError."""
        content = self.content(row)
        try:
            return images.read(content)
        except images.ImageError as error:
            raise images.ImageError(f"{self._name(row)}: {error}") from error


def read(path: Path, image: str, label: str, names: Names, place: str) -> Pictures:
    """The images of a Parquet file, row by row. Raises ValueError with one sentence."""
    table = Table(path, image, label, names)
    return Pictures(table.labels, table.read, [path], place, strangers=list(table.strangers.values()))


def _told(file: ParquetFile, label: str) -> list[str | None] | None:
    """The names of the label's numbers, which `datasets` keeps in the file; None where it has none, or only digits."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        found = features[label].get("class_label", features[label])["names"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    if isinstance(found, dict):  # {"0": "cat"}, as in the data set's card
        found = [found.get(str(number)) for number in range(len(found))]
    if not isinstance(found, list) or not all(name is None or isinstance(name, str) for name in found):
        return None
    return None if found == [str(number) for number in range(len(found))] else found

"""Files that are there whole or not at all, and JSON for people and scripts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it becomes `path` where nothing went wrong, so that a kill leaves no half.

    It keeps the suffix, by which writers choose their format. Processes that write the same file do not meet.
    """
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(found: Any, path: Path) -> None:
    """Writes readable JSON. Raises ValueError for figures that JSON has no words for (NaN)."""
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def give_json(found: Any, file: str) -> None:
    """As `give_text`. Raises ValueError for figures that JSON has no words for, too."""
    give_text(json.dumps(found, indent=1, allow_nan=False) + "\n", file)


def give_text(text: str, file: str) -> None:
    """To a file, or to standard output for "-". Raises ValueError where the file cannot be written."""
    if file == "-":
        print(text, end="")
        return
    try:
        with whole(Path(file)) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}") from error
    print(f"wrote {file}", file=sys.stderr)

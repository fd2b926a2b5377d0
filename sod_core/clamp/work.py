"""What an evaluation has measured so far, a line of JSON a job, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Work:
    """The jobs that are done. Each process appends to a file of its own, and reads everybody's when it begins."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any], rank: int = 0):
        """`folder`: None keeps nothing. Raises ValueError where it holds rows of other settings, or cannot be used."""
        self.done: dict[str, dict[str, Any]] = {}
        self._key = key_of(settings)
        self._file = None if folder is None else folder / f"rows-{rank}.jsonl"
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("rows-*.jsonl")):
                self._read(path)
        except OSError as error:
            raise ValueError(f"{folder} cannot be used for work files: {error.strerror}") from error

    def add(self, key: str, row: dict[str, Any]) -> None:
        """A job that is done."""
        self.done[key] = row
        if self._file is None:
            return
        begins = not self._file.exists()
        with self._file.open("a", encoding="utf-8") as out:
            lines = [{"settings": self._key}] if begins else []
            out.write("".join(json.dumps(line) + "\n" for line in (*lines, {"key": key, "row": row})))
            out.flush()
            os.fsync(out.fileno())

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # a run was killed as it wrote
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        lines = text.splitlines()
        try:
            rows = [json.loads(line) for line in lines]
            if rows and rows[0]["settings"] != self._key:
                raise ValueError(
                    f"{path} holds rows of another evaluation (other settings, questions or weights): "
                    "give another folder for the work, or delete it"
                )
            self.done |= {row["key"]: row["row"] for row in rows[1:]}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no work file of an evaluation: give another folder, or delete it") from error
        if not rows:
            path.unlink()


def key_of(settings: Mapping[str, Any]) -> str:
    """Tells the same settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

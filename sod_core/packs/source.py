"""What every pack.json has: JSON that is checked, the hub's place of its files, names that stay inside its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .errors import PackError
from .hub import HubFile

T = TypeVar("T")


def read_manifest(
    folder: Path, parse: Callable[[Path, dict[str, Any]], T], faults: Callable[[T], Iterable[tuple[bool, str]]]
) -> T:
    """What `parse` makes of folder/pack.json, if `faults` (whether it is one, a sentence) finds nothing wrong in it.

    Raises PackError with one sentence that says what is wrong.
    """
    path = folder / "pack.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PackError(f"{folder} is no pack: it has no pack.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PackError(f"{path} cannot be read: {error}") from error
    try:
        found = parse(folder, data)
    except PackError:
        raise
    except KeyError as error:
        raise PackError(f"{path} lacks the key {error.args[0]!r}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise PackError(f"{path} has a value of the wrong kind: {error}") from error
    for wrong, sentence in faults(found):
        if wrong:
            raise PackError(f"{path}: {sentence}")
    return found


@dataclass(frozen=True)
class Source:
    """Where on the Hugging Face hub files of a pack lie."""

    repo_id: str
    revision: str = "main"
    folder: str = ""
    megabytes: int | None = None
    """About how much has to be downloaded."""

    def file(self, name: str) -> HubFile:
        """A file of it by its name in the pack."""
        return HubFile(self.repo_id, f"{self.folder}/{name}" if self.folder else name, self.revision)


def inside(folder: Path, pack: str, file: str) -> Path:
    """A file of a pack's folder. Raises PackError for a name that leads out of it."""
    pure = PurePosixPath(file)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file or ":" in file:
        raise PackError(f"pack.json of {pack} names {file!r}, which lies outside of the pack's folder")
    return folder / pure


def read_source(item: dict[str, Any] | None) -> Source | None:
    """The key `source` of a manifest or of one of its entries."""
    if item is None:
        return None
    size = item.get("megabytes")
    return Source(
        repo_id=str(item["repo_id"]),
        revision=str(item.get("revision", "main")),
        folder=str(item.get("folder", "")),
        megabytes=None if size is None else int(size),
    )

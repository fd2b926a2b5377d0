"""What every pack.json may say: where on the hub its files lie, and names that stay inside the pack's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import PackError
from .hub import HubFile


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

"""Which packs there are: the embedded ones, and those in the folders that SOD_PACKS names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..machine import environment
from .errors import PackError
from .kept import Kept

_HOUSE = Path(__file__).resolve().parents[1]
ASSETS = next((place for place in (_HOUSE / "assets", _HOUSE.parent / "assets") if place.is_dir()), _HOUSE / "assets")
"""The embedded packs: inside of the package where it was installed, beside it in the repository."""
UNNAMED = "restore"
"""The kind of a pack whose pack.json names none: the first packs had no such key."""

_opened = Kept()


def folders(kind: str | None = None) -> dict[str, Path]:
    """Name -> folder of every pack on disk, or of those of a kind (a verb's name).

    A name in SOD_PACKS (folders, split as PATH is) hides an embedded one.
    """
    roots = [root for root in (ASSETS, *environment.packs()) if os.path.isdir(root)]
    found = {}
    for root in roots:
        for path in sorted(root.glob("*/pack.json")):
            found[path.parent.name] = path.parent
    return {name: folder for name, folder in found.items() if kind in (None, kind_of(folder))}


def kind_of(folder: Path) -> str:
    """The verb that pack.json names under `kind`; UNNAMED without, or where it cannot be read (its reader says why)."""
    try:
        data = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return UNNAMED
    named = data.get("kind", UNNAMED) if isinstance(data, dict) else UNNAMED
    return named if isinstance(named, str) else UNNAMED


def folder(name: str, kind: str | None = None) -> Path:
    """The folder of a pack by its name, or by its path. Raises PackError for a name that no pack of the kind has."""
    known = folders(kind)
    if name in known:
        return known[name]
    if os.path.isfile(os.path.join(name, "pack.json")):  # unlike Path.is_file: no error for impossible names
        return Path(name)
    raise PackError(
        f"unknown pack {name!r}; known: {', '.join(known) or 'none'}, or the path of a folder with pack.json"
    )


def shared(name: str, kind: str, open_it: Callable[[Path], Any]) -> Any:
    """What `open_it` makes of the pack's folder, made once for everybody in this process. Raises PackError."""
    place = folder(name, kind).resolve()
    return _opened.get(place, lambda: open_it(place))

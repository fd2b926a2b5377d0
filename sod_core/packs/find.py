"""Which packs there are: the embedded ones, and those in the folders that SOD_PACKS names."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import PackError
from .pack import Pack

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def folders() -> dict[str, Path]:
    """Name -> folder of every pack on disk; a name in SOD_PACKS (folders, split as PATH is) hides an embedded one."""
    roots = [ASSETS, *(Path(root) for root in os.environ.get("SOD_PACKS", "").split(os.pathsep) if root)]
    found = {}
    for root in roots:
        for path in sorted(root.glob("*/pack.json")):
            found[path.parent.name] = path.parent
    return found


def open_pack(name: str, device=None) -> Pack:
    """A pack by its name, or by its folder. Raises PackError."""
    known = folders()
    if name in known:
        return Pack(known[name], device)
    if os.path.isfile(os.path.join(name, "pack.json")):  # unlike Path.is_file: no error for impossible names
        return Pack(Path(name), device)
    raise PackError(
        f"unknown pack {name!r}; known: {', '.join(known) or 'none'}, or the path of a folder with pack.json"
    )

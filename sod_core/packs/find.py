"""Which packs there are: the embedded ones, and those in the folders that SOD_PACKS names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import erase_manifest
from .errors import PackError
from .kept import Kept
from .pack import Pack

if TYPE_CHECKING:
    from .erase_pack import ErasePack

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def folders(kind: str = "restore") -> dict[str, Path]:
    """Name -> folder of every pack of a kind ("restore" or "erase") on disk.

    A name in SOD_PACKS (folders, split as PATH is) hides an embedded one.
    """
    roots = [ASSETS, *(Path(root) for root in os.environ.get("SOD_PACKS", "").split(os.pathsep) if root)]
    found = {}
    for root in roots:
        for path in sorted(root.glob("*/pack.json")):
            found[path.parent.name] = path.parent
    return {name: folder for name, folder in found.items() if erase_manifest.kind(folder) == kind}


def open_pack(name: str, device: torch.device | None = None) -> Pack:
    """A pack by its name, or by its folder. Raises PackError."""
    return Pack(_folder(name), device)


def shared_pack(name: str) -> Pack:
    """As `open_pack`, opened once for everybody in this process."""
    folder = _folder(name).resolve()
    return _opened.get(folder, lambda: Pack(folder))


def open_erase_pack(name: str, device: torch.device | None = None) -> ErasePack:
    """A diffusion pack by its name, or by its folder. Raises PackError."""
    from .erase_pack import ErasePack

    return ErasePack(_folder(name, "erase"), device)


def shared_erase_pack(name: str) -> ErasePack:
    """As `open_erase_pack`, opened once for everybody in this process."""
    from .erase_pack import ErasePack

    folder = _folder(name, "erase").resolve()
    return _opened.get(folder, lambda: ErasePack(folder))


_opened = Kept()


def _folder(name: str, kind: str = "restore") -> Path:
    known = folders(kind)
    if name in known:
        return known[name]
    if os.path.isfile(os.path.join(name, "pack.json")):  # unlike Path.is_file: no error for impossible names
        return Path(name)
    raise PackError(
        f"unknown pack {name!r}; known: {', '.join(known) or 'none'}, or the path of a folder with pack.json"
    )

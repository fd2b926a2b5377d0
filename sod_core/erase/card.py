"""What the command `packs` says of diffusion packs: a line, the files wanted, and the check of every part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..packs.errors import PackError
from ..packs.kinds import Checked, Kind, Wanted
from .pack import ErasePack, open_erase_pack


def kind() -> Kind:
    """For `packs`, which takes names."""
    return Kind(line, wanted, lambda name, device: check(open_erase_pack(name, device)), card)


def line(name: str) -> str:
    """Title, where it is, how many concepts. Raises PackError."""
    pack = open_erase_pack(name)
    where = "not whole on this computer" if pack.missing() else "here"
    return f"{pack.manifest.title}; {where}; {len(pack.manifest.concepts)} concepts to erase"


def wanted(name: str, unlearned: list[str]) -> Wanted:
    """The SAEs' files, and what no hub has. Raises PackError."""
    pack = open_erase_pack(name)
    return Wanted(name, pack.lacking(), pack.missing)


def card(name: str, device: torch.device) -> str:
    """A diffusion pack has none. Raises PackError."""
    raise PackError(f"{name} is a diffusion pack, which has no card: `python -m sod_core packs check {name}` checks it")


def check(pack: ErasePack) -> Checked:
    """Loads every part of a diffusion pack, one (what, problem or None) at a time."""
    steps: list[tuple[str, Callable]] = [("pipeline", pack.pipeline)]
    for entry in pack.manifest.saes:
        steps.append((f"SAE {entry.id}", partial(pack.sae, entry.id)))
        steps.append((f"statistics of {entry.id}", partial(pack.statistics, entry.id)))
        steps.append((f"settings of {entry.id}", partial(pack.settings, entry.id)))
    steps += [(f"judge of the {what}", partial(pack.judge, what)) for what in pack.manifest.judges]
    for what, load in steps:
        try:
            yield what, None if load() is not None else "it is not on this computer"
        except ValueError as error:
            yield what, str(error)

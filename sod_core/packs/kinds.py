"""The kinds of packs: each verb tells here what the command `packs` can do with its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from . import find
from .errors import PackError
from .hub import HubFile

if TYPE_CHECKING:
    import torch


class Caution(str):
    """A problem with which a pack can be used all the same."""


Checked = Iterator[tuple[str, str | None]]
"""One (part, problem or None) at a time."""


class Wanted(NamedTuple):
    """What `packs get` fetches, and what it cannot."""

    name: str
    """The pack's own."""
    files: list[HubFile]
    still_to_do: Callable[[], list[str]]
    """A sentence for everything that is missing then."""


class Kind(NamedTuple):
    """A verb's packs. Every function takes the pack's name or folder, and raises PackError."""

    line: Callable[[str], str]
    """What `packs list` says: title, where it is, what is in it."""
    wanted: Callable[[str, list[str]], Wanted]
    """Takes the models asked for, too."""
    check: Callable[[str, torch.device], Checked]
    """Loads every file."""
    card: Callable[[str, torch.device], str]
    """Markdown."""


_kinds: dict[str, Callable[[], Kind]] = {}


def register(name: str, kind: Callable[[], Kind]) -> None:
    """Makes a verb's packs known; `kind` is called when it is needed, so that registering loads nothing."""
    _kinds[name] = kind


def kind_of(pack: str) -> Kind:
    """The kind of a pack, by its name or folder. Raises PackError."""
    name = find.kind_of(find.folder(pack))
    if name not in _kinds:
        raise PackError(f"pack.json of {pack} names the kind {name!r}; known: {', '.join(_kinds)}")
    return _kinds[name]()


def names() -> list[str]:
    """Every pack that is on disk, those of one kind together."""
    found = {name: find.kind_of(folder) for name, folder in find.folders().items()}
    order = [*_kinds, *sorted(set(found.values()) - set(_kinds))]
    return sorted(found, key=lambda name: order.index(found[name]))

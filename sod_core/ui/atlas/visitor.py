"""What one page of the Atlas tab shows and has computed; it lives in the page's gr.State, never in a global."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from ...restore import fates
from ...restore.atlas import ORIGINAL
from ...restore.atlas_layers import Atlas
from ...restore.manifest import UnlearnedEntry
from ...restore.pack import Pack, shared_pack
from ..restore.visitor import Visitor
from . import work
from .scatter import OFTEN

FORGOTTEN, ALL = "", "all images"
"""Of the images: those of the class that the model forgot, and all of them."""
EVERY, EXPERTS = "every latent", "experts"
"""Of the filter: everything, and the experts; else it is one of fates.FATES."""
FILTERS = (EVERY, EXPERTS, *fates.FATES)


class Controls(NamedTuple):
    """What the controls say."""

    model: str
    layer: int
    images: str = FORGOTTEN
    """FORGOTTEN, ALL or a class."""
    measure: str = OFTEN
    show: str = EVERY


class Page:
    """Created empty: Gradio copies it for each page."""

    def __init__(self) -> None:
        self.pack_name = ""
        self.latent: int | None = None
        self.followed = ""
        """The model that Restore showed when this page last looked."""
        self._entries: tuple[UnlearnedEntry, ...] = ()
        """The visitor's own models."""
        self._own: dict[str, Callable[[], nn.Module]] = {}
        self._computed: dict[str, Atlas] = {}
        """By pack: atlases with models that were computed here."""

    @property
    def pack(self) -> Pack:
        """The pack that is shown."""
        return shared_pack(self.pack_name)

    @property
    def atlas(self) -> Atlas | None:
        """The pack's, with what was computed here; None where there is none. Raises PackError."""
        computed = self._computed.get(self.pack_name)
        return work.stored(self.pack) if computed is None else computed

    @property
    def entries(self) -> list[UnlearnedEntry]:
        """The models that can be chosen: the pack's, and the visitor's own."""
        found = [*self.pack.manifest.unlearned, *self._entries]
        return found or [UnlearnedEntry(ORIGINAL, ORIGINAL, 0, self.pack.manifest.files["original"])]

    def entry(self, id: str) -> UnlearnedEntry:
        """The model called `id`, or the first."""
        return next((entry for entry in self.entries if entry.id == id), self.entries[0])

    def follow(self, visitor: Visitor | None, first: str) -> None:
        """Takes over the pack and the own models of the Restore tab; without a visitor, pack `first`."""
        name = first if visitor is None else visitor.pack_name
        if name != self.pack_name:
            self.pack_name, self.latent, self.followed = name, None, ""
        listed = self.pack.manifest.unlearned
        own = [] if visitor is None else [e for e in visitor.entries if e not in listed and e.id != ORIGINAL]
        self._entries = tuple(own)
        self._own = {} if visitor is None else {entry.id: visitor.model_of(entry) for entry in own}

    def model_of(self, entry: UnlearnedEntry) -> Callable[[], nn.Module]:
        """What gives the entry's model."""
        if entry.id == ORIGINAL:
            return self.pack.original
        return self._own.get(entry.id) or partial(self.pack.unlearned, entry.id)

    def here(self, entry: UnlearnedEntry) -> bool:
        """Whether the entry's model, and all it takes to run it, is on this computer."""
        return not self.pack.lacking() and (
            entry.id == ORIGINAL or entry.id in self._own or not self.pack.lacking(entry.id)
        )

    def has(self, entry: UnlearnedEntry) -> bool:
        """Whether the atlas has the entry's model. Raises PackError."""
        atlas = self.atlas
        return atlas is not None and entry.id in [model.id for model in atlas.models]

    def keep(self, pack_name: str, found: Atlas) -> None:
        """Keeps what was computed for this page."""
        self._computed[pack_name] = found

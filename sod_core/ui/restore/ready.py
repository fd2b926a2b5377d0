"""What a pack needs before a visitor can work with it: files from the hub, and what everybody would wait for."""

from __future__ import annotations

from ...packs.hub import HubFile
from ...restore.pack import Pack
from .thumbs import example_uris
from .visitor import Controls, Visitor


def warm(pack_name: str) -> None:
    """Loads into the shared pack what the first visitor would otherwise wait for. Raises PackError."""
    visitor = Visitor(pack_name)
    layers = visitor.pack.manifest.layers
    if visitor.picture is not None:
        visitor.measure(Controls(layers[len(layers) // 2], "inject", 1.0), visitor.version)
    example_uris(visitor.pack)


def needed(pack: Pack) -> list[HubFile]:
    """What has to come from the hub before a visitor can work with the pack."""
    first = [file for entry in pack.manifest.unlearned[:1] for file in pack.lacking(entry.id)]
    return [*pack.lacking(), *first]

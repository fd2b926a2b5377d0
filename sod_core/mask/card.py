"""What the command `packs` says of mask packs: a line, the check of every part, accuracies beside yardsticks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..packs import hub
from ..packs.kinds import Checked, Kind, Wanted
from . import probe, published
from .manifest import MaskPackManifest
from .pack import MaskPack, open_mask_pack


def kind() -> Kind:
    """For `packs`, which takes names."""
    return Kind(line, wanted, lambda name, device: check(open_mask_pack(name)), card)


def line(name: str) -> str:
    """Title, where it is, how many encoders and bottlenecks. Raises PackError."""
    pack = open_mask_pack(name)
    m = pack.manifest
    where = "not whole on this computer" if missing(pack) else "here"
    return f"{m.title}; {where}; {len(m.encoders)} encoders, {len(m.bottlenecks)} bottlenecks"


def wanted(name: str, unlearned: list[str]) -> Wanted:
    """The encoders and data sets that features are computed from, where those are not here yet. Raises PackError."""
    pack = open_mask_pack(name)
    to_do = [e for e in pack.manifest.encoders if e.published and pack.manifest.here(e.features) is None]
    files = [file for entry in to_do if entry.published for file in published.hub_files(entry.published)]
    return Wanted(name, [file for file in files if hub.cached(file) is None], lambda: missing(pack))


def missing(pack: MaskPack) -> list[str]:
    """A sentence for every file that the manifest names and that is not here, and for how it is made."""
    m, lines = pack.manifest, []
    for entry in m.encoders:
        how = f": `python -m sod_core mask features --pack {m.name}` computes it" if entry.published else ""
        lines += [_not_here(m, entry.features, how)]
    for made in m.bottlenecks:
        how = f": `python -m sod_core mask fit --pack {m.name} --bottleneck {made.id}` makes it" if made.plan else ""
        lines += [_not_here(m, made.file, how)]
    return [line for line in lines if line]


def _not_here(m: MaskPackManifest, file: str, how: str) -> str:
    return "" if m.here(file) else f"{file} of pack {m.name} is not on this computer{how}"


def check(pack: MaskPack) -> Checked:
    """Loads every part, one (what, problem or None) at a time."""
    steps: list[tuple[str, Callable]] = []
    for encoder in pack.manifest.encoders:
        steps.append((f"features of {encoder.id}", partial(pack.features, encoder.id)))
    for entry in pack.manifest.bottlenecks:
        steps.append((f"bottleneck {entry.id}", partial(pack.session, entry.id)))
    for what, load in steps:
        try:
            load()
            yield what, None
        except ValueError as error:
            yield what, str(error)


def card(name: str, device: torch.device) -> str:
    """Every bottleneck's accuracy beside nearest mean and linear probe, as Markdown. Raises PackError."""
    pack = open_mask_pack(name)
    m = pack.manifest
    lines = [
        f"# {m.title}",
        "",
        m.note,
        "",
        "| bottleneck | accuracy | nearest mean | linear probe |",
        "|---|---|---|---|",
    ]
    for entry in m.bottlenecks:
        found = pack.features(entry.encoder)
        accuracy = pack.session(entry.id).figures(torch.zeros_like(pack.bottleneck(entry.id).masked), []).retain or 0.0
        mean, linear = probe.nearest_mean(found.train, found.test), probe.linear(found.train, found.test)
        lines.append(f"| {entry.title} | {accuracy:.1%} | {mean:.1%} | {linear:.1%} |")
    return "\n".join(lines) + "\n"

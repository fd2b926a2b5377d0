"""Files of what the Mask tab shows: picture, moving picture, curves, and what the command line needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...mask import drawing
from ...mask.drawing import Drawing
from ...mask.pack import MaskPack, shared_mask_pack
from ...mask.sweep import Sweep
from .. import exports
from . import stage, work
from .visitor import Page


def make(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    """As `exports.Make`: of the figure that the page shows, at the dose where the slider rests."""
    name, bottleneck, names, method = page.shown
    if not name:
        raise ValueError("there is no figure yet: choose a class to forget, then export")
    pack = shared_mask_pack(name)
    classes = work.class_indices(pack, list(names))
    found = work.swept(pack, bottleneck, classes, method)
    at = min(page.position, len(found.doses) - 1)
    if kind == "csv":
        content = _csv(pack, found)
    elif kind == "json":
        content = _json(pack, bottleneck, list(names), method, found, at)
    else:
        drawn = _drawing(pack, bottleneck, classes, method, found)
        content = drawing.png(drawn, at) if kind == "png" else drawing.gif(drawn)
    dose = "" if kind in ("gif", "csv") else f"dose{stage.label(found.doses[at])}"
    return exports.name(kind, "mask", name, bottleneck, "-".join(names), dose), content


def _drawing(pack: MaskPack, bottleneck: str, classes: Sequence[int], method: str, found: Sweep) -> Drawing:
    said, m = stage.data(pack.manifest, (), classes, found), pack.manifest
    note = f"{m.title} · {m.bottleneck(bottleneck).title}\nmasked by {method}"
    return Drawing(said["title"], note, m.classes, classes, said["labels"], said["unit"], found)


def _csv(pack: MaskPack, found: Sweep) -> bytes:
    """A row a dose; random masks are drawn at some of them only."""
    head = ["dose", "pairs", "forget", "retain", "abstained", "random_forget", "random_retain"]
    random = {at: pair for at, pair in zip(found.random_at, zip(found.random_forget, found.random_retain))}
    rows = [
        [
            stage.label(dose), found.pairs[at], found.forget[at], found.retain[at], found.abstained[at],
            *random.get(at, (None, None)), *(None if math.isnan(value) else value for value in found.by_class[at]),
        ]
        for at, dose in enumerate(found.doses)
    ]  # fmt: skip
    return exports.table([*head, *(f"right: {name}" for name in pack.manifest.classes)], rows)


def _json(pack: MaskPack, bottleneck: str, names: list[str], method: str, found: Sweep, at: int) -> bytes:
    """The dose as `mask evaluate` takes it; none where nothing is masked yet: it measures a range then."""
    dose = found.doses[at]
    options: dict[str, Any] = {"pack": pack.manifest.name, "bottleneck": bottleneck, "forget": names}
    if found.pairs[at]:
        how_much = {"share": dose.share, "pairs": dose.pairs, "examples": dose.examples}
        options |= {"method": dose.method, "per-codebook": dose.per_codebook or None}
        options |= {key: [value] for key, value in how_much.items() if value is not None}
    figures = {
        "classes": list(pack.manifest.classes),
        "pairs": found.pairs[at],
        "forget_accuracy": found.forget[at],
        "retain_accuracy": found.retain[at],
        "by_class": [None if math.isnan(value) else value for value in found.by_class[at]],
        "retrained": list(found.retrained),
    }
    page = {"pack": pack.manifest.name, "bottleneck": bottleneck, "forget": names, "method": method, "position": at}
    return exports.for_command(["mask", "evaluate"], options | {"seed": 0}, figures, "mask", page)

"""Files of what the Atlas tab shows: picture, table, and what the command line needs."""

from __future__ import annotations

from typing import Any

from ...restore import atlas_drawing, fates
from ...restore.atlas import ORIGINAL
from ...restore.atlas_layers import stale
from .. import exports
from . import table
from .scatter import MEASURES, OFTEN
from .visitor import Controls, Page


def make(kind: str, scale: str, page: Page, *values: Any) -> tuple[str, bytes]:
    """As `exports.Make`; values are those of Panel.controls."""
    model, layer, *rest = values
    controls = Controls(model or ORIGINAL, int(layer), *rest)
    entry, atlas = page.entry(controls.model), page.atlas
    if atlas is None or not page.has(entry) or stale(atlas, page.pack, controls.layer, entry.id):
        raise ValueError("there is no figure of this model yet: compute it, then export")
    found, name = table.chosen(atlas, page.pack, controls), page.pack_name
    called = exports.name(kind, "atlas", name, entry.id, f"layer{controls.layer}", "" if kind == "json" else rest[0])
    rows = table.cells(atlas, page.pack, controls, found)
    if kind == "csv":
        return called, exports.table(table.HEADERS, rows)
    if kind == "json":
        target = atlas.models[atlas.model(entry.id)].target
        figures: dict[str, Any] = {"headers": table.HEADERS, "rows": rows}
        if target is not None:
            experts = page.pack.expert_ids(controls.layer, target)
            figures["summary"] = fates.summary(atlas, controls.layer, entry.id, experts)._asdict()
        options = {"pack": name, "images": len(atlas.labels)}
        shown = {"pack": name} | controls._asdict() | {"model": entry.id}
        return called, exports.for_command(["atlas"], options, figures, "atlas", shown)
    group, measure = table.group(atlas, controls), controls.measure
    on = "all images" if group is None else f"images of {atlas.classes[group]}"
    note = f"{page.pack.manifest.title} · {entry.id} · layer {controls.layer} · on {on} of {len(atlas.labels)} images"
    points = [
        (point.original, point.unlearned, point.expert)
        for point in table.points(found, measure)
        if point.kept and (point.original > 0 or point.unlearned > 0)
    ]
    title = f"Every latent, original against unlearned: {MEASURES[measure]}"
    return called, atlas_drawing.png(title, note, points, ("original", entry.id), measure == OFTEN)

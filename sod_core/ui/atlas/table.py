"""What the controls choose out of an atlas: every latent's figures, as points and as the rows of a table."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...restore import fates
from ...restore.atlas_layers import Atlas
from ...restore.fates import Among
from ...restore.pack import Pack
from .scatter import OFTEN, Point
from .visitor import ALL, EVERY, EXPERTS, FORGOTTEN, Controls

HEADERS = ["latent", "fate", "expert for", "often", "often after", "strength", "strength after", "kept"]
HEADERS += ["most on", "label entropy", "style", "style entropy", "on object", "patches", "CLS"]


class Chosen(NamedTuple):
    """Every latent of a layer on the images that are looked at."""

    original: Among
    unlearned: Among
    fates: list[str]
    experts: set[int]
    """Of the class that is looked at, or else of the forgotten one."""
    kept: list[bool]
    """What the filter keeps."""


def group(atlas: Atlas, controls: Controls) -> int | None:
    """The class whose images are looked at; None for all. Raises ValueError."""
    if controls.images == ALL:
        return None
    if controls.images == FORGOTTEN:
        return atlas.models[atlas.model(controls.model)].target
    return atlas.classes.index(controls.images)


def experts(pack: Pack, layer: int) -> dict[int, list[str]]:
    """{latent: the classes that it is an expert for}; empty where the pack's lists are not on this computer."""
    found: dict[int, list[str]] = {}
    if not pack.lacking():
        for label, name in enumerate(pack.manifest.classes):
            for latent in pack.expert_ids(layer, label):
                found.setdefault(latent, []).append(name)
    return found


def chosen(atlas: Atlas, pack: Pack, controls: Controls) -> Chosen:
    """Raises ValueError."""
    layer, place = atlas.layer(controls.layer), atlas.model(controls.model)
    of = group(atlas, controls)
    before, after = (fates.among(layer, model, atlas.class_sizes, of) for model in (0, place))
    each = fates.fates(before, after)
    whose = atlas.models[place].target if of is None else of
    names = experts(pack, controls.layer)
    ours = set() if whose is None else {j for j, classes in names.items() if atlas.classes[whose] in classes}
    kept = [
        controls.show == EVERY or fate == controls.show or (controls.show == EXPERTS and j in ours)
        for j, fate in enumerate(each)
    ]
    return Chosen(before, after, each, ours, kept)


def points(found: Chosen, measure: str) -> list[Point]:
    """For the scatter plot."""
    before, after = (_measured(of, measure).tolist() for of in (found.original, found.unlearned))
    return [
        Point(j, before[j], after[j], found.fates[j], j in found.experts, found.kept[j])
        for j in range(len(found.fates))
    ]


def _measured(of: Among, measure: str) -> Tensor:
    return of.often if measure == OFTEN else of.strength


def strongest_first(found: Chosen) -> list[int]:
    """The latents that the filter keeps and that fire in either model: experts, then by strength in the original."""
    before, after = found.original.strength.tolist(), found.unlearned.strength.tolist()
    alive = [j for j, kept in enumerate(found.kept) if kept and (before[j] > 0 or after[j] > 0)]
    return sorted(alive, key=lambda j: (j not in found.experts, -before[j], j))


def cells(atlas: Atlas, pack: Pack, controls: Controls, found: Chosen) -> list[list[Any]]:
    """The table's rows, in the order of HEADERS."""
    layer = atlas.layer(controls.layer)
    kept = fates.kept(found.original, found.unlearned)
    labels, styles = fates.entropy(layer.class_strength[0]), fates.entropy(layer.style_strength[0])
    most = layer.class_strength[0].argmax(0).tolist()
    names = experts(pack, controls.layer)
    style = layer.style_strength[0].argmax(0).tolist() if atlas.styles else None
    rows = []
    for j in strongest_first(found):
        fires = bool(layer.patches[j] > 0)
        rows.append(
            [
                j,
                found.fates[j],
                ", ".join(names.get(j, [])),
                *(_rounded(value[j]) for value in (found.original.often, found.unlearned.often)),
                *(_rounded(value[j]) for value in (found.original.strength, found.unlearned.strength, kept)),
                atlas.classes[most[j]] if fires else "",
                _rounded(labels[j], 2),
                atlas.styles[style[j]] if style and fires else "",
                _rounded(styles[j], 2) if style else None,
                *(_rounded(value[j]) for value in (layer.on_object, layer.patches, layer.cls)),
            ]
        )
    return rows


def _rounded(value: Tensor, digits: int = 3) -> float | None:
    return None if value.isnan() else round(value.item(), digits)

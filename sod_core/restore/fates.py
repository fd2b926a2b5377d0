"""What became of each latent in an unlearned model, by its stored figures. No models in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .atlas import ORIGINAL
from .atlas_layers import Atlas, Layer

SILENCED, WEAKENED, LEFT, STRONGER, NEW, NO_PART = "silenced", "weakened", "left", "stronger", "new", "no part"
FATES = (SILENCED, WEAKENED, LEFT, STRONGER, NEW, NO_PART)
TAKES_PART = 0.05
"""Share of the images on which a latent has to fire before anything can be said of it there."""
SILENT, WEAK = 0.25, 0.75
"""Of the strength in the original: with less than the first it is silenced, with less than the second weakened, with
more than the second's inverse stronger."""


class Among(NamedTuple):
    """How the latents of a layer fire on some of the images."""

    often: Tensor
    """[F]: the share of these images on which a latent fires."""
    strength: Tensor
    """[F]: its largest value on any patch, mean over these images, 0 where it does not fire."""


def among(layer: Layer, model: int, sizes: Tensor, group: int | None) -> Among:
    """On the images of one class, or with None on all of them. sizes [C]: images of each class."""
    fires, strength = layer.class_fires[model], layer.class_strength[model]
    if group is not None:
        return Among(fires[group] / sizes[group].clamp(min=1), strength[group])
    count = sizes.sum().clamp(min=1)
    return Among(fires.sum(0) / count, (strength * sizes[:, None]).sum(0) / count)


def entropy(strength: Tensor) -> Tensor:
    """[G, F] -> [F]: the label entropy -sum p log2 p in bits, p the share of each group in a latent's strengths.

    0 where it fires on one class alone, log2(G) where on all alike; NaN where it never fires. The strengths are means
    over each group's images, so that large classes count no more than small ones.
    """
    share = strength / strength.sum(0)
    return torch.special.entr(share).sum(0) / torch.log(torch.tensor(2.0))


def kept(original: Among, unlearned: Among) -> Tensor:
    """[F]: the strength that is left, as a share of the original's; NaN where the original's is 0."""
    return torch.where(original.strength > 0, unlearned.strength / original.strength, torch.nan)


def fates(original: Among, unlearned: Among) -> list[str]:
    """[F]: one of FATES each."""
    share = kept(original, unlearned).tolist()
    found = []
    for before, after, ratio in zip(original.often.tolist(), unlearned.often.tolist(), share):
        if before < TAKES_PART:
            found.append(NEW if after >= TAKES_PART else NO_PART)
        elif ratio < SILENT:
            found.append(SILENCED)
        elif ratio < WEAK:
            found.append(WEAKENED)
        else:
            found.append(STRONGER if ratio > 1 / WEAK else LEFT)
    return found


class Summary(NamedTuple):
    """What became, at one layer, of the latents that fire on the class which a model forgot."""

    id: str
    target: str
    layer: int
    all: dict[str, int]
    """How many latents had each of FATES."""
    experts: dict[str, int]
    """Of the class's experts alone."""


def summary(atlas: Atlas, layer: int, id: str, experts: Sequence[int]) -> Summary:
    """Of one unlearned model; `experts`: of the class that it forgot. Raises ValueError."""
    found, place = atlas.layer(layer), atlas.model(id)
    target = atlas.models[place].target
    if target is None:
        raise ValueError(f"{ORIGINAL} forgot nothing")
    before, after = (among(found, model, atlas.class_sizes, target) for model in (0, place))
    each = fates(before, after)
    counted = {fate: each.count(fate) for fate in FATES}
    ours = [each[j] for j in experts]
    return Summary(id, atlas.classes[target], layer, counted, {fate: ours.count(fate) for fate in FATES})


def table(found: Sequence[Summary]) -> str:
    """Markdown, a row a model and layer: of all latents that fire on the class, and of its experts."""
    kinds = (SILENCED, WEAKENED, LEFT, STRONGER)
    head = ["model", "forgot", "layer", "fire on it", *kinds, *(f"experts {kind}" for kind in kinds)]
    rows = [head, ["---"] * len(head)]
    for one in found:
        counts = [sum(one.all[kind] for kind in kinds), *(one.all[kind] for kind in kinds)]
        counts += [one.experts[kind] for kind in kinds]
        rows.append([one.id, one.target, str(one.layer), *map(str, counts)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# ---------------------------------------------------------------- one latent


def told(atlas: Atlas, layer: int, latent: int, id: str = ORIGINAL) -> dict[str, Any]:
    """A latent's page in plain values, in the original and in the model `id`. Raises ValueError."""
    found, place = atlas.layer(layer), atlas.model(id)
    if not 0 <= latent < found.latents:
        raise ValueError(f"latent {latent} does not exist: this SAE has latents 0 to {found.latents - 1}")
    models = {ORIGINAL: 0} | {id: place}
    target = atlas.models[place].target
    groups = {"all images": None} | ({} if target is None else {atlas.classes[target]: target})
    there = {
        name: {
            model: {
                "often": of.often[latent].item(),
                "strength": of.strength[latent].item(),
            }
            for model, number in models.items()
            for of in [among(found, number, atlas.class_sizes, group)]
        }
        for name, group in groups.items()
    }
    return {
        "pack": atlas.pack,
        "data": atlas.data,
        "images": len(atlas.labels),
        "layer": layer,
        "latent": latent,
        "model": id,
        "forgot": None if target is None else atlas.classes[target],
        "fate": None if target is None else _fate(atlas, found, place, target, latent),
        "fires": there,
        "patches": found.patches[latent].item(),
        "cls": found.cls[latent].item(),
        "on_object": _known(found.on_object[latent].item()),
        "label_entropy": _known(entropy(found.class_strength[0])[latent].item()),
        "style_entropy": _known(entropy(found.style_strength[0])[latent].item()) if atlas.styles else None,
        "classes": _by_group(atlas.classes, found.class_fires, found.class_strength, atlas.class_sizes, models, latent),
        "styles": _by_group(atlas.styles, found.style_fires, found.style_strength, atlas.style_sizes, models, latent),
        "strongest": strongest(atlas, found, latent),
        "together": [
            {"latent": j, "overlap": share}
            for j, share in zip(found.together[latent].tolist(), found.overlap[latent].tolist())
            if j >= 0
        ],
    }


def strongest(atlas: Atlas, layer: Layer, latent: int) -> list[dict[str, Any]]:
    """The images where a latent's largest value is largest: number, class, style, value."""
    return [
        {
            "image": number,
            "class": atlas.classes[int(atlas.labels[number])],
            "style": atlas.styles[int(atlas.image_styles[number])] if atlas.styles else None,
            "value": layer.peaks[latent, rank].item(),
        }
        for rank, number in enumerate(layer.strongest[latent].tolist())
        if number >= 0
    ]


def _fate(atlas: Atlas, layer: Layer, place: int, target: int, latent: int) -> str:
    return fates(*(among(layer, model, atlas.class_sizes, target) for model in (0, place)))[latent]


def _by_group(
    names: Sequence[str], fires: Tensor, strength: Tensor, sizes: Tensor, models: dict[str, int], latent: int
) -> dict[str, dict[str, dict[str, float]]]:
    """{class or style: {model: {often, strength}}}"""
    return {
        name: {
            model: {
                "often": fires[place, group, latent].item() / max(1, int(sizes[group])),
                "strength": strength[place, group, latent].item(),
            }
            for model, place in models.items()
        }
        for group, name in enumerate(names)
    }


def _known(value: float) -> float | None:
    return value if value == value else None

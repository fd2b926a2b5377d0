"""One latent's page: figures, its strongest images with the heat on them, classes, styles, companions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np

from ...restore.atlas import ORIGINAL
from .. import overlays


class Pictured(NamedTuple):
    """One of the strongest images."""

    picture: str
    """A data: address; "" where the image is not here."""
    original: Sequence[float]
    """[N]: the heat of the original on its patches."""
    unlearned: Sequence[float] | None
    """Of the unlearned model; empty where it is still to come, None where it cannot be known."""
    value: float
    """The largest value in the original."""
    after: float | None
    """In the unlearned model."""


def html(
    told: Mapping[str, Any],
    pictured: Sequence[Pictured],
    expert_for: Sequence[str],
    editable: bool,
    name: str,
    notes: Sequence[str] = (),
) -> str:
    """The page. `told` as `fates.told` gives it; `editable`: whether a link can lead to its model in Restore; `name`:
    what the model is called."""
    latent = told["latent"]
    parts = [f"Latent {latent} of layer {told['layer']}"]
    if expert_for:
        parts.append(f"expert for {', '.join(expert_for)}")
    if told["fate"] is not None:
        parts.append(f"{told['fate']} in {name}, on {told['forgot']}")
    said = "".join(f'<p class="sod-quiet">{escape(note)}</p>' for note in notes if note)
    return (
        f'<div class="sod-title">{escape("; ".join(parts))}</div>'
        f"{_figures(told, name)}{_edit(told) if editable else ''}{said}"
        f"{_gallery(told, pictured, name)}"
        f'<div class="sod-atlas-groups">{_bars("Classes", told, "classes")}{_bars("Styles", told, "styles")}</div>'
        f"{_companions(told['together'])}"
    )


def empty(text: str) -> str:
    """Where there is no latent to show."""
    return f'<p class="sod-quiet">{escape(text)}</p>'


def _figures(told: Mapping[str, Any], name: str) -> str:
    groups = told["fires"]
    heads = "".join(f'<th scope="col">{escape(name)}: fires on</th><th scope="col">strength</th>' for name in groups)
    rows = "".join(
        f'<tr><th scope="row">{escape(ORIGINAL if model == ORIGINAL else name)}</th>'
        + "".join(
            f"<td>{_share(of[model]['often'])}</td><td>{of[model]['strength']:.2f}</td>" for of in groups.values()
        )
        + "</tr>"
        for model in dict.fromkeys((ORIGINAL, told["model"]))
    )
    bits = np.log2(max(1, len(told["classes"])))
    facts = [
        _entropy("label entropy", told["label_entropy"], bits),
        _entropy("style entropy", told["style_entropy"], np.log2(max(1, len(told["styles"])))),
        "" if told["on_object"] is None else f"{_share(told['on_object'])} of it on the object",
        f"on {_share(told['patches'])} of all patches",
        f"on CLS of {_share(told['cls'])} of the images",
    ]
    return (
        f'<table class="sod-latents sod-figures"><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="sod-quiet">In the original: {"; ".join(fact for fact in facts if fact)}.</p>'
    )


def _entropy(name: str, value: float | None, most: float) -> str:
    return "" if value is None else f"{name} {value:.2f} of {most:.2f} bits"


def edit_link(told: Mapping[str, Any]) -> str:
    """The address that opens Restore with this latent edited, and its heat shown."""
    values = {"pack": told["pack"], "model": told["model"], "layer": told["layer"], "mode": "inject", "alpha": 1}
    if told["model"] == ORIGINAL:
        del values["model"]
    return "?" + urlencode(values | {"features": "own", "latents": told["latent"], "latent": told["latent"]})


def _edit(told: Mapping[str, Any]) -> str:
    return f'<p class="sod-acts"><a class="sod-act" href="{escape(edit_link(told))}">Edit it in Restore</a></p>'


def _gallery(told: Mapping[str, Any], pictured: Sequence[Pictured], name: str) -> str:
    if not pictured:
        return '<p class="sod-quiet">It fires on none of the images in the original.</p>'
    both, top = pictured[0].unlearned is not None, pictured[0].value
    figures = "".join(_figure(one, image, name, top) for one, image in zip(pictured, told["strongest"]))
    above = f"above in the original, below in {name}" if both else "in the original"
    title = f"The {len(pictured)} images where it is strongest, {above}; point at one to see it without the heat"
    return (
        f'<div class="sod-title">{escape(title)}</div><div class="sod-gallery">{figures}</div>{overlays.scale_bar(top)}'
    )


def _figure(one: Pictured, image: Mapping[str, Any], model: str, top: float) -> str:
    name = image["class"] if image["style"] is None else f"{image['class']}, {image['style']}"
    value = f"{one.value:.1f}" if one.after is None else f"{one.value:.1f} to {one.after:.1f}"
    squares = _square(one.picture, heat(one.original, top, f"{name}, heat in the original"))
    if one.unlearned is not None:
        squares += _square(one.picture, heat(one.unlearned, top, f"{name}, heat in {model}"))
    return f"<figure>{squares}<figcaption>{escape(name)}<br>{value}</figcaption></figure>"


def _square(picture: str, above: str) -> str:
    below = f'<img src="{picture}" alt="">' if picture else ""
    return f'<span class="sod-shot">{below}{above}</span>'


def heat(values: Sequence[float], top: float, words: str) -> str:
    """A heatmap of the patches where a latent fires, in the page's colours; the scale ends at `top`.

    A path for each of the scale's colours, since sixteen maps in two models would be thousands of squares.
    """
    side = round(len(values) ** 0.5)
    cells: dict[int, str] = {}
    for place, value in enumerate(values):
        if value > 0:
            step = overlays.step(min(value / (top or 1.0), 1.0))
            cells[step] = cells.get(step, "") + f"M{place % side} {place // side}h1v1h-1z"
    paths = "".join(
        f'<path d="{cells[step]}" fill="{overlays.colour(share)}" fill-opacity="{overlays.opacity(share):.2f}"/>'
        for step in sorted(cells)
        for share in [max(overlays.share(step), 1e-6)]
    )
    return f'<svg class="heat" viewBox="0 0 {side} {side}" role="img" aria-label="{escape(words)}">{paths}</svg>'


def _bars(title: str, told: Mapping[str, Any], what: str) -> str:
    """Each class or style: how strongly in the original (thin, above) and in the unlearned model, and how often."""
    groups, model = told[what], told["model"]
    if not groups:
        return ""
    top = max((of[name]["strength"] for of in groups.values() for name in of), default=0.0) or 1.0
    rows = ""
    for name, of in groups.items():
        before, after = of[ORIGINAL], of[model]
        same = model == ORIGINAL
        bars = "" if same else f'<i class="was" style="width:{before["strength"] / top:.1%}"></i>'
        bars += f'<i style="width:{after["strength"] / top:.1%}"></i>'
        often = _share(after["often"]) if same else f"{_share(before['often'])} to {_share(after['often'])}"
        mine = ' class="mine"' if name == told["forgot"] else ""
        rows += f'<tr{mine}><th scope="row">{escape(name)}</th><td>{bars}</td><td>{often}</td></tr>'
    told_how = "strength; fires on" if model == ORIGINAL else "strength before (thin) and after; fires on"
    caption = f"<caption>{title}: {told_how}</caption>"
    return f'<table class="sod-called sod-groups">{caption}<tbody>{rows}</tbody></table>'


def _companions(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    buttons = "".join(
        f'<button type="button" data-kind="latent" data-pick="{one["latent"]}">latent {one["latent"]} '
        f"<small>{_share(one['overlap'])}</small></button>"
        for one in found
    )
    title = "Fires with it: patches on which both fire, of those on which either does"
    return f'<div class="sod-title">{title}</div><div class="sod-acts">{buttons}</div>'


def _share(value: float) -> str:
    """0.123 -> "12%", 0.0123 -> "1.2%"."""
    return f"{value:.0%}" if value >= 0.0995 or value == 0 else f"{value:.1%}"

"""All latents of a layer at once, original against unlearned, as an SVG whose points can be clicked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import NamedTuple

from ...restore.fates import SILENT
from .. import points
from ..points import Axis, percent

OFTEN, STRONGLY = "often", "strongly"
"""What can be compared."""
MEASURES = {OFTEN: "how often it fires", STRONGLY: "how strongly"}


class Point(NamedTuple):
    """One latent on the images that are looked at."""

    latent: int
    original: float
    unlearned: float
    fate: str
    expert: bool
    kept: bool
    """Whether the filter keeps it."""


def html(found: Sequence[Point], measure: str, images: str, model: str) -> str:
    """The scatter plot; a click on a point sends the latent's id. `images`: on which ones, in words."""
    alive = [point for point in found if point.original > 0 or point.unlearned > 0]
    alive.sort(key=lambda point: (point.kept, point.expert))  # experts lie on top
    shares = measure == OFTEN
    x = points.across([point.original for point in alive], shares)
    y = points.upwards([point.unlearned for point in alive], shares)
    circles = "".join(_point(point, x, y, measure) for point in alive)
    kept = sum(point.kept for point in alive)
    title = f"Every latent on {images}: {MEASURES[measure]}, in the original and in {model}"
    names = f"original: {MEASURES[measure]}", f"{model}: {MEASURES[measure]}"
    note = f"{len(alive)} of {len(found)} latents fire on these images in either model"
    note += f"; {kept} of them are chosen by the filter." if kept < len(alive) else "."
    inside = points.frame(x, y, names, percent if shares else _plain) + _ratios(alive, x, y, measure) + circles
    return (
        f'<div class="sod-title">{escape(title)}</div>{points.plot(title, inside)}'
        '<p class="sod-legend sod-atlas-legend"><span class="expert">the class\'s experts</span>'
        '<span class="other">other latents</span></p>'
        f'<p class="sod-quiet">{escape(note)} On the line nothing changed; in the strip below it fell silent. '
        "Click a point for its page.</p>"
    )


def _ratios(alive: Sequence[Point], x: Axis, y: Axis, measure: str) -> str:
    """The line on which nothing changed, and of strengths the one below which a latent counts as silenced."""
    lines = [(1.0, "same"), *([(SILENT, "silent")] if measure == STRONGLY else [])]
    ends = max(x.powers[0], y.powers[0]), min(x.powers[-1], y.powers[-1])
    found = ""
    for ratio, name in lines:
        first, last = (min(max(end, y.powers[0] / ratio), y.powers[-1] / ratio) for end in ends)
        if alive and first < last:
            start = f'x1="{x.at(first):.1f}" y1="{y.at(first * ratio):.1f}"'
            found += f'<line class="{name}" {start} x2="{x.at(last):.1f}" y2="{y.at(last * ratio):.1f}"/>'
    return found


def _point(point: Point, x: Axis, y: Axis, measure: str) -> str:
    kind = " ".join(name for name, on in (("chosen", point.expert), ("off", not point.kept)) if on)
    mark = f' class="{kind}"' if kind else ""
    size = 'r="5.5" tabindex="0"' if point.expert else 'r="3.5"'  # Tab would take long through all
    said = percent if measure == OFTEN else _plain
    return (
        f'<circle cx="{x.at(point.original):.1f}" cy="{y.at(point.unlearned):.1f}" {size}{mark} data-kind="latent" '
        f'data-pick="{point.latent}"><title>latent {point.latent}, {point.fate}: {said(point.original)} to '
        f"{said(point.unlearned)}</title></circle>"
    )


def marked(latent: int | None) -> str:
    """A style that marks one latent's point, so that a click need not send all of them again."""
    if latent is None:
        return ""
    return (
        f'<style>#atlas-scatter [data-pick="{latent}"] {{ stroke: var(--body-text-color); stroke-width: 2.5; }}</style>'
    )


def lines(found: Collection[str]) -> str:
    """A paragraph each."""
    return "".join(f'<p class="sod-quiet">{escape(line)}</p>' for line in found if line)


def _plain(value: float) -> str:
    return f"{value:.3g}"

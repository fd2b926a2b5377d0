"""Every latent's forget against retain frequency, as an SVG whose points can be clicked; and one latent's words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import NamedTuple

from .. import points
from ..points import Axis, percent

MOST_POINTS = 3000
"""Points that are drawn at most; those that fire least on the forget texts are left out, and the page says so."""
_NAMES = "fires on retain tokens", "fires on forget tokens"


class Firing(NamedTuple):
    """How often one latent fires, as shares of tokens."""

    latent: int
    forget: float
    retain: float


def html(firing: Sequence[Firing], chosen: Collection[int], looked_at: int | None = None) -> str:
    """The scatter plot; a click on a point sends the latent's id."""
    alive = [point for point in firing if point.forget > 0 or point.retain > 0 or point.latent in chosen]
    alive.sort(key=lambda point: (point.latent in chosen, point.forget, point.retain))
    drawn, silent = alive[-MOST_POINTS:], len(firing) - len(alive)
    x = points.across([point.retain for point in drawn])
    y = points.upwards([point.forget for point in drawn])
    circles = "".join(_point(point, x, y, point.latent in chosen, point.latent == looked_at) for point in drawn)
    left_out = len(alive) - len(drawn)
    title = f"Every latent: how often it fires on texts to forget, and on the others; {len(chosen)} chosen"
    note = f"{silent} of {len(firing)} fire on neither."
    note += f" {left_out} that fire least on the forget texts are not drawn." if left_out else ""
    drawing = points.plot(title, points.frame(x, y, _NAMES, percent) + circles)
    return (
        f'<div class="sod-title">{escape(title)}</div>{drawing}'
        f'<p class="sod-quiet">{escape(note)} Click a point for the words that it fires on most.</p>'
    )


def _point(point: Firing, x: Axis, y: Axis, chosen: bool, looked_at: bool) -> str:
    kind = " ".join(name for name, on in (("chosen", chosen), ("on", looked_at)) if on)
    mark = f' class="{kind}"' if kind else ""
    size = 'r="5.5" tabindex="0"' if chosen else 'r="3.5"'  # Tab would take long through all
    return (
        f'<circle cx="{x.at(point.retain):.1f}" cy="{y.at(point.forget):.1f}" {size}{mark} data-kind="latent" '
        f'data-pick="{point.latent}"><title>latent {point.latent}: {_often(point)}</title></circle>'
    )


def _often(point: Firing) -> str:
    return f"{percent(point.forget)} of forget tokens, {percent(point.retain)} of retain tokens"


class Word(NamedTuple):
    """A token on which a latent fires strongly, within its text."""

    before: str
    token: str
    after: str
    value: float


def words(latent: int, firing: Firing | None, found: Sequence[Word]) -> str:
    """What one latent fires on most, strongest first."""
    how = "" if firing is None else f": {_often(firing)}"
    title = f'<div class="sod-title">Latent {latent}{how}</div>'
    if not found:
        return f'{title}<p class="sod-quiet">It fires on none of the pack\'s texts.</p>'
    rows = "".join(
        f"<tr><td>{word.value:.3g}</td><td>{escape(word.before)}<b>{escape(word.token)}</b>{escape(word.after)}</td></tr>"
        for word in found
    )
    return f'{title}<table class="sod-words"><tbody>{rows}</tbody></table>'

"""Every latent's forget against retain frequency, as an SVG whose points can be clicked; and one latent's words."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from html import escape
from typing import NamedTuple

MOST_POINTS = 3000
"""Points that are drawn at most; those that fire least on the forget texts are left out, and the page says so."""
_WIDTH, _HEIGHT = 480, 370
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 28, 12, 58
_STRIP = 64
"""Width of the strip in which a frequency of 0 stands, which has no logarithm."""


class Firing(NamedTuple):
    """How often one latent fires, as shares of tokens."""

    latent: int
    forget: float
    retain: float


class _Axis:
    """From a frequency to a place: a strip for 0, then whole decades up to 1."""

    def __init__(self, values: Sequence[float], start: float, end: float):
        least = min((value for value in values if value > 0), default=0.1)
        self.decades = max(1, math.ceil(-math.log10(least) - 1e-9))
        self.start, self.end = start, end
        self._zero = start + math.copysign(_STRIP / 2, end - start)
        self._log = start + math.copysign(_STRIP, end - start)

    def at(self, value: float) -> float:
        if value <= 0:
            return self._zero
        share = 1 + math.log10(min(value, 1.0)) / self.decades
        return self._log + (self.end - self._log) * share

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(place, label)"""
        found = [(self.at(10.0**-power), _percent(10.0**-power)) for power in range(self.decades, -1, -1)]
        return [(self._zero, "0"), *found]

    @property
    def edge(self) -> float:
        """Where the strip ends."""
        return self._log


def html(firing: Sequence[Firing], chosen: Collection[int], looked_at: int | None = None) -> str:
    """The scatter plot; a click on a point sends the latent's id."""
    alive = [point for point in firing if point.forget > 0 or point.retain > 0 or point.latent in chosen]
    alive.sort(key=lambda point: (point.latent in chosen, point.forget, point.retain))
    drawn, silent = alive[-MOST_POINTS:], len(firing) - len(alive)
    x = _Axis([point.retain for point in drawn], _LEFT, _WIDTH - _RIGHT)
    y = _Axis([point.forget for point in drawn], _HEIGHT - _BOTTOM, _TOP)
    points = "".join(_point(point, x, y, point.latent in chosen, point.latent == looked_at) for point in drawn)
    left_out = len(alive) - len(drawn)
    title = f"Every latent: how often it fires on texts to forget, and on the others; {len(chosen)} chosen"
    note = f"{silent} of {len(firing)} fire on neither."
    note += f" {left_out} that fire least on the forget texts are not drawn." if left_out else ""
    return (
        f'<div class="sod-title">{escape(title)}</div>'
        f'<svg class="sod-scatter" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="{escape(title)}">'
        f"{_axes(x, y)}{points}</svg>"
        f'<p class="sod-quiet">{escape(note)} Click a point for the words that it fires on most.</p>'
    )


def _point(point: Firing, x: _Axis, y: _Axis, chosen: bool, looked_at: bool) -> str:
    kind = " ".join(name for name, on in (("chosen", chosen), ("on", looked_at)) if on)
    mark = f' class="{kind}"' if kind else ""
    size = 'r="5.5" tabindex="0"' if chosen else 'r="3.5"'  # Tab would take long through all
    return (
        f'<circle cx="{x.at(point.retain):.1f}" cy="{y.at(point.forget):.1f}" {size}{mark} data-kind="latent" '
        f'data-pick="{point.latent}"><title>latent {point.latent}: {_often(point)}</title></circle>'
    )


def _axes(x: _Axis, y: _Axis) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    lines = "".join(f'<line x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>' for at, _ in y.ticks)
    strips = (
        f'<rect class="strip" x="{_LEFT}" y="{_TOP}" width="{_STRIP}" height="{bottom - _TOP}"/>'
        f'<rect class="strip" x="{_LEFT}" y="{y.edge}" width="{right - _LEFT}" height="{_STRIP}"/>'
    )
    labels = "".join(
        f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{label}</text>' for at, label in x.ticks
    )
    labels += "".join(
        f'<text x="{_LEFT - 8}" y="{at + 5:.1f}" text-anchor="end">{label}</text>' for at, label in y.ticks
    )
    middle = (_TOP + bottom) / 2
    names = (
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">fires on retain tokens</text>'
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">fires on forget tokens</text>'
    )
    return f"{strips}<g>{lines}</g>{labels}{names}"


def _often(point: Firing) -> str:
    return f"{_percent(point.forget)} of forget tokens, {_percent(point.retain)} of retain tokens"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


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

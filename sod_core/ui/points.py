"""What scatter plots of latents share: two axes of whole decades, each with a strip for 0, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 480, 370
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 28, 12, 58
STRIP = 64
"""Width of the strip in which 0 stands, which has no logarithm."""
MOST_DECADES = 5


class Axis:
    """From a value to a place: a strip for 0, then whole decades up to 1, or as far as the values go."""

    def __init__(self, values: Sequence[float], start: float, end: float, up_to_one: bool = True):
        """Without `up_to_one` there are at most MOST_DECADES, and what is smaller stands at their end."""
        above = [value for value in values if value > 0]
        self.high = 0 if up_to_one else math.ceil(math.log10(max(above, default=1.0)) - 1e-9)
        least = min(above, default=10.0 ** (self.high - 1))
        self.decades = max(1, math.ceil(self.high - math.log10(least) - 1e-9))
        self.decades = self.decades if up_to_one else min(self.decades, MOST_DECADES)
        self.start, self.end = start, end
        self._zero = start + math.copysign(STRIP / 2, end - start)
        self._log = start + math.copysign(STRIP, end - start)

    def at(self, value: float) -> float:
        """The place of a value."""
        if value <= 0:
            return self._zero
        share = 1 + (min(math.log10(value), self.high) - self.high) / self.decades
        return self._log + (self.end - self._log) * max(share, 0.0)

    @property
    def powers(self) -> list[float]:
        """The values that have a line, smallest first."""
        return [10.0 ** (self.high - power) for power in range(self.decades, -1, -1)]

    @property
    def edge(self) -> float:
        """Where the strip ends."""
        return self._log


def across(values: Sequence[float], up_to_one: bool = True) -> Axis:
    """The axis from left to right."""
    return Axis(values, _LEFT, WIDTH - _RIGHT, up_to_one)


def upwards(values: Sequence[float], up_to_one: bool = True) -> Axis:
    """The axis from bottom to top."""
    return Axis(values, HEIGHT - _BOTTOM, _TOP, up_to_one)


def frame(x: Axis, y: Axis, names: tuple[str, str], label: Callable[[float], str]) -> str:
    """Strips, lines, labels, and the names of both axes."""
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    rows, columns = ([(axis.at(0), "0"), *((axis.at(v), label(v)) for v in axis.powers)] for axis in (y, x))
    lines = "".join(f'<line x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>' for at, _ in rows)
    strips = (
        f'<rect class="strip" x="{_LEFT}" y="{_TOP}" width="{STRIP}" height="{bottom - _TOP}"/>'
        f'<rect class="strip" x="{_LEFT}" y="{y.edge}" width="{right - _LEFT}" height="{STRIP}"/>'
    )
    labels = "".join(f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{said}</text>' for at, said in columns)
    labels += "".join(f'<text x="{_LEFT - 8}" y="{at + 5:.1f}" text-anchor="end">{said}</text>' for at, said in rows)
    middle = (_TOP + bottom) / 2
    told = (
        f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(names[0])}</text>'
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(names[1])}</text>'
    )
    return f"{strips}<g>{lines}</g>{labels}{told}"


def plot(title: str, inside: str) -> str:
    """The whole picture; `title` is for those who do not see it."""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}"'
    return f'<svg class="sod-scatter" {box}>{inside}</svg>'


def percent(share: float) -> str:
    """0.0123 -> "1.23%"."""
    return f"{100 * share:.3g}%"

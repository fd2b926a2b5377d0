"""Clamp's figure as a picture: a question and its answers, and what is forgotten and kept against the coefficient."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data import charts
from ..data.charts import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 12.0, 7.6
LONGEST = 10
"""Lines of an answer that are shown."""


@dataclass(frozen=True)
class Mark:
    """Where a coefficient stands."""

    x: float
    colour: str


@dataclass(frozen=True)
class Drawing:
    """What is drawn, wherever the coefficient stands."""

    title: str
    note: str
    answers: Sequence[tuple[str, str]]
    """(title, text)"""
    curves: Mapping[str, Sequence[Line]]
    """{what is measured: its curves}; empty where nothing is."""
    still: Sequence[Mark] = ()
    """Coefficients that do not move."""


def png(drawing: Drawing, mark: Mark, told: str) -> bytes:
    """The figure at one coefficient; `told` is the line over the curves."""
    return charts.png(lambda: _draw(drawing, mark, told))


def gif(drawing: Drawing, moments: Sequence[tuple[Mark, str]]) -> bytes:
    """The figure while the coefficient moves."""
    return charts.gif(lambda: _draw(drawing, *moments[0]), [_mover(*moment) for moment in moments])


def _draw(drawing: Drawing, mark: Mark, told: str) -> Figure:
    figure = charts.figure(WIDTH, HEIGHT, drawing.title, drawing.note)
    width = 11.0 / max(1, len(drawing.answers))
    for place, (title, text) in enumerate(drawing.answers):
        x, lines = (0.48 + width * place) / WIDTH, textwrap.wrap(text.strip(), int(11 * width))
        if len(lines) > LONGEST:
            lines = [*lines[: LONGEST - 1], lines[LONGEST - 1] + " ..."]
        head = charts.plain(title)
        figure.text(x, 1 - 1.5 / HEIGHT, head, size=12, weight="bold", color=charts.TEXT, va="top")
        body = charts.plain("\n".join(lines))
        figure.text(x, 1 - 1.78 / HEIGHT, body, size=11, color=charts.TEXT, va="top", linespacing=1.4)
    at = 1 - 4.1 / HEIGHT
    figure.text(0.04, at, charts.plain(told), size=12, weight="bold", color=charts.TEXT, va="top", gid="told")
    for place, (metric, found) in enumerate(drawing.curves.items()):
        axes = charts.place(figure, 0.9 + 3.75 * place, 5.1, 3.2, 1.8)
        charts.lines(axes, found, "coefficient", metric, legend=place == 0)
        for one in drawing.still:
            axes.axvline(one.x, color=one.colour, alpha=0.6, linewidth=2)
        axes.axvline(mark.x, color=mark.colour, alpha=0.6, linewidth=2, gid="now")
    return figure


def _mover(mark: Mark, told: str) -> Callable[[Figure], None]:
    """Moves what `_draw` has drawn to another coefficient."""

    def move(figure: Figure) -> None:
        for artist in figure.findobj(lambda one: one.get_gid() in ("told", "now")):
            if artist.get_gid() == "told":
                artist.set_text(charts.plain(told))  # type: ignore[attr-defined]
            else:
                artist.set_xdata([mark.x, mark.x])  # type: ignore[attr-defined]

    return move

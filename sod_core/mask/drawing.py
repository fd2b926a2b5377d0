"""Mask's figure as a picture: accuracy on a class and on all others against the dose, and each class at one dose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data import charts
from ..data.charts import ACCENT, Line
from .sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RETAIN = "#7f96ad"
WIDTH, HEIGHT = 12.0, 8.6
EVERY = 2
"""A frame of the moving picture for every so many-th dose."""


@dataclass(frozen=True)
class Drawing:
    """What is drawn, at whatever dose."""

    forgotten: str
    note: str
    classes: Sequence[str]
    mine: Sequence[int]
    """The forgotten ones."""
    labels: Sequence[str]
    """Of the doses."""
    unit: str
    sweep: Sweep


def png(drawing: Drawing, at: int) -> bytes:
    """The figure at one position of the dose."""
    return charts.png(lambda: _draw(drawing, at))


def gif(drawing: Drawing) -> bytes:
    """The figure while the dose grows."""
    places = sorted({*range(0, len(drawing.labels), EVERY), len(drawing.labels) - 1})
    return charts.gif(lambda: _draw(drawing, 0), [_mover(drawing, at) for at in places])


def _told(drawing: Drawing, at: int) -> str:
    found = drawing.sweep
    return (
        f"{found.forget[at]:.1%} of {drawing.forgotten} still named, {found.retain[at]:.1%} of all others right; dose "
        f"{drawing.labels[at]} {drawing.unit}, {found.pairs[at]} pairs of {found.in_use}"
    )


def _draw(drawing: Drawing, at: int) -> Figure:
    figure = charts.figure(WIDTH, HEIGHT, f"{drawing.forgotten} forgotten by a mask", drawing.note)
    told = charts.plain(_told(drawing, at))
    figure.text(0.04, 1 - 1.2 / HEIGHT, told, size=12, weight="bold", color=charts.TEXT, va="top", gid="told")
    axes = charts.place(figure, 1.0, 2.2, 10.5, 3.0)
    charts.lines(axes, _lines(drawing), f"dose, {drawing.unit}", "right, percent")
    last = len(drawing.labels) - 1
    ticks = sorted({round(last * part / 4) for part in range(5)})
    axes.set_xticks(ticks, [charts.plain(drawing.labels[place]) for place in ticks])
    axes.set_xlim(0, max(1, last))
    axes.axvline(at, color=charts.SUBDUED, alpha=0.6, linewidth=2, gid="now")
    axes = charts.place(figure, 1.0, 6.3, 10.5, 1.5)
    colours = [ACCENT if place in drawing.mine else RETAIN for place in range(len(drawing.classes))]
    bars = axes.bar(range(len(drawing.classes)), drawing.sweep.by_class[at], 0.7, color=colours)
    for place, bar in enumerate(bars):
        bar.set_gid(f"bar-{place}")
    axes.set_xticks(range(len(drawing.classes)), list(map(charts.plain, drawing.classes)))
    axes.set(xlim=(-0.6, len(drawing.classes) - 0.4), ylim=(0, 1.02))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    axes.set_title("right, percent, by class", size=11, color=charts.TEXT, loc="left")
    return figure


def _lines(drawing: Drawing) -> list[Line]:
    found = drawing.sweep
    x, ends = range(len(drawing.labels)), (0, len(drawing.labels) - 1)
    return [
        Line(drawing.forgotten, x, found.forget, ACCENT, "solid", 3),
        Line("random pairs, as many", found.random_at, found.random_forget, ACCENT, "dash", 1.5),
        Line("retrained without it", ends, [found.retrained[0]] * 2, ACCENT, "dot", 1.5),
        Line("all others", x, found.retain, RETAIN, "solid", 3),
        Line("others, random pairs", found.random_at, found.random_retain, RETAIN, "dash", 1.5),
        Line("others, retrained", ends, [found.retrained[1]] * 2, RETAIN, "dot", 1.5),
    ]


def _mover(drawing: Drawing, at: int) -> Callable[[Figure], None]:
    """Moves what `_draw` has drawn to another dose."""
    heights = {f"bar-{place}": value for place, value in enumerate(drawing.sweep.by_class[at])}

    def move(figure: Figure) -> None:
        for artist in figure.findobj(lambda one: bool(one.get_gid())):
            name = artist.get_gid() or ""
            if name in heights:
                artist.set_height(heights[name])  # type: ignore[attr-defined]
            elif name == "told":
                artist.set_text(charts.plain(_told(drawing, at)))  # type: ignore[attr-defined]
            elif name == "now":
                artist.set_xdata([at, at])  # type: ignore[attr-defined]

    return move

"""Restore's figure as a picture: what the models say, where features fire, and the class against alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ..data import charts
from ..data.charts import ACCENT, ORIGINAL, UNLEARNED, Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"original": ORIGINAL, "unlearned": UNLEARNED, "restored": ACCENT}
WIDTH, HEIGHT = 12.0, 11.2
_MARKERS = {"circle": "o", "triangle-up": "^", "diamond": "D", "square": "s"}
_MARKERS |= {"x-thin": "x", "asterisk": "*", "cross-thin": "+"}


@dataclass(frozen=True)
class Moment:
    """What alpha moves."""

    alpha: float
    probabilities: Sequence[float]
    """Of the shown classes, in the restored model."""
    heat: Sequence[float]
    """[N], row by row."""


@dataclass(frozen=True)
class Drawing:
    """What is drawn, whatever alpha is."""

    title: str
    note: str
    classes: Sequence[str]
    """The shown ones."""
    target: int
    """The forgotten class, by its place among the shown."""
    probabilities: Mapping[str, Sequence[float]]
    """{original, unlearned: of the shown classes}"""
    heat_title: str
    heat: Mapping[str, Sequence[float]]
    """{original, unlearned: [N]}"""
    top: float
    """Where the colour scale ends."""
    scale: str
    """One of charts.SCALES."""
    grid: int
    """Patches in a row."""
    picture: Image.Image
    curves: Sequence[Line]


def png(drawing: Drawing, moment: Moment) -> bytes:
    """The figure at one alpha."""
    return charts.png(lambda: _draw(drawing, moment))


def gif(drawing: Drawing, moments: Sequence[Moment]) -> bytes:
    """The figure while alpha moves."""
    moves = [_mover(drawing, moment) for moment in moments]
    return charts.gif(lambda: _draw(drawing, moments[0]), moves)


def _draw(drawing: Drawing, moment: Moment) -> Figure:
    figure = charts.figure(WIDTH, HEIGHT, drawing.title, drawing.note)
    _bars(figure, drawing, moment)
    figure.text(
        0.04, 1 - 4.85 / HEIGHT, charts.plain(drawing.heat_title), size=12, weight="bold", color=charts.TEXT, va="top"
    )
    for place, (which, values) in enumerate({**drawing.heat, "restored": moment.heat}.items()):
        axes = charts.place(figure, 0.48 + 3.75 * place, 5.2, 2.55, 2.55)
        axes.imshow(_heat(drawing, values), gid="heat" if which == "restored" else None)
        axes.set_title(which, size=11, color=charts.TEXT, y=-0.12)
        axes.axis("off")
    _scale_bar(figure, drawing)
    axes = charts.place(figure, 1.0, 9.05, 10.5, 1.5)
    charts.lines(axes, drawing.curves, "alpha", f"{drawing.classes[drawing.target]}, percent")
    axes.axvline(moment.alpha, color=ACCENT, alpha=0.6, linewidth=2, gid="now")
    axes.set_xlim(0, 10)
    return figure


def _bars(figure: Figure, drawing: Drawing, moment: Moment) -> None:
    axes = charts.place(figure, 1.0, 1.55, 10.5, 2.2)
    shown = {**drawing.probabilities, "restored": moment.probabilities}
    for place, (which, values) in enumerate(shown.items()):
        at = [i + 0.28 * (place - 1) for i in range(len(values))]
        for i, bar in enumerate(axes.bar(at, values, 0.26, color=COLOURS[which], label=which)):
            bar.set_gid(f"bar-{i}" if which == "restored" else None)
        for i, value in enumerate(values):
            axes.text(
                i, -0.24 - 0.1 * place, f"{100 * value:.1f}", ha="center", size=9, color=COLOURS[which], weight="bold",
                gid=f"text-{i}" if which == "restored" else None,
            )  # fmt: skip
    axes.axvspan(drawing.target - 0.5, drawing.target + 0.5, color=ACCENT, alpha=0.09, linewidth=0, zorder=0)
    names = [f"▸ {name}" if i == drawing.target else name for i, name in enumerate(drawing.classes)]
    axes.set_xticks(range(len(names)), list(map(charts.plain, names)), color=charts.TEXT)
    axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.02))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    axes.legend(ncols=3, fontsize=10, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), labelcolor=charts.TEXT)


def _scale_bar(figure: Figure, drawing: Drawing) -> None:
    axes = charts.place(figure, 1.0, 8.18, 10.0, 0.11)
    axes.imshow([charts.scale(drawing.scale)], aspect="auto")
    axes.axis("off")
    for x, text, side in ((0.9, "0", "right"), (11.1, f"{drawing.top:.2g}", "left")):
        figure.text(x / WIDTH, 1 - 8.235 / HEIGHT, text, size=10, ha=side, va="center", color=charts.SUBDUED)


def _heat(drawing: Drawing, values: Sequence[float]) -> Image.Image:
    return charts.heat_over(drawing.picture, values, drawing.grid, drawing.top, drawing.scale)


def _mover(drawing: Drawing, moment: Moment) -> Callable[[Figure], None]:
    """Moves what `_draw` has drawn to another alpha."""
    moving = {f"bar-{i}": value for i, value in enumerate(moment.probabilities)}
    words = {f"text-{i}": f"{100 * value:.1f}" for i, value in enumerate(moment.probabilities)}

    def move(figure: Figure) -> None:
        for artist in figure.findobj(lambda one: bool(one.get_gid())):
            name = artist.get_gid() or ""
            if name in moving:
                artist.set_height(moving[name])  # type: ignore[attr-defined]
            elif name in words:
                artist.set_text(words[name])  # type: ignore[attr-defined]
            elif name == "heat":
                artist.set_data(_heat(drawing, moment.heat))  # type: ignore[attr-defined]
            elif name == "now":
                artist.set_xdata([moment.alpha, moment.alpha])  # type: ignore[attr-defined]

    return move


@dataclass(frozen=True)
class Point:
    """One model of a scoreboard."""

    verdict: str
    retain: float
    """Its retain accuracy..."""
    r: tuple[float, float, float]
    """...and the experts' R: value, and both ends of its interval."""
    colour: str
    symbol: str
    """Plotly's name."""


def board(title: str, note: str, points: Sequence[Point]) -> bytes:
    """R of the experts against retain accuracy, a point a model, with its interval; a PNG."""
    return charts.png(lambda: _board(title, note, points))


def _board(title: str, note: str, points: Sequence[Point]) -> Figure:
    figure = charts.figure(WIDTH, 7.0, title, note)
    axes = charts.place(figure, 1.0, 2.0, 10.5, 4.2)
    for verdict in dict.fromkeys(point.verdict for point in points):
        some = [point for point in points if point.verdict == verdict]
        colour, symbol = some[0].colour, some[0].symbol
        axes.errorbar(
            [point.retain for point in some],
            [point.r[0] for point in some],
            [[max(0.0, p.r[0] - p.r[1]) for p in some], [max(0.0, p.r[2] - p.r[0]) for p in some]],
            fmt=_MARKERS[symbol.removesuffix("-open")],
            color=colour,
            markerfacecolor="none" if symbol.endswith("-open") else colour,
            markersize=9,
            elinewidth=1,
            label=charts.plain(verdict),
        )
    axes.set(xlabel="retain accuracy", ylabel="R of the experts", ylim=(-0.15, 1.15))
    axes.legend(ncols=4, fontsize=10, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), labelcolor=charts.TEXT)
    return figure

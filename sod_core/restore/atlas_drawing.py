"""The atlas's figure as a picture: every latent in the original against the unlearned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data import charts
from ..data.charts import ACCENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OTHER = "#7f96ad"
SIDE = 9.0


def png(
    title: str, note: str, points: Sequence[tuple[float, float, bool]], names: tuple[str, str], share: bool
) -> bytes:
    """Points are (original, unlearned, whether it is an expert); `share`: they end at 1. `names` of the axes."""
    return charts.png(lambda: _draw(title, note, points, names, share))


def _draw(
    title: str, note: str, points: Sequence[tuple[float, float, bool]], names: tuple[str, str], share: bool
) -> Figure:
    figure = charts.figure(SIDE, SIDE, title, note)
    axes = charts.place(figure, 1.0, 1.7, SIDE - 1.5, SIDE - 2.5)
    positive = [value for point in points for value in point[:2] if value > 0]
    least, most = min(positive, default=0.001), 1.0 if share else max(positive, default=1.0)
    for expert, name, colour, size in ((False, "other latents", OTHER, 22), (True, "the class's experts", ACCENT, 48)):
        some = [point for point in points if point[2] == expert]
        x, y = [point[0] for point in some], [point[1] for point in some]
        axes.scatter(x, y, s=size, color=colour, alpha=0.7, linewidths=0, label=name, clip_on=False)
    for scale, limits in ((axes.set_xscale, axes.set_xlim), (axes.set_yscale, axes.set_ylim)):
        scale("symlog", linthresh=least)  # 0 has a place on it, too
        limits(0, most * (1.0 if share else 1.3))
    axes.plot([0, most], [0, most], color=charts.GRID, zorder=0)
    axes.set_xlabel(charts.plain(names[0]), color=charts.SUBDUED)
    axes.set_ylabel(charts.plain(names[1]), color=charts.SUBDUED)
    axes.legend(ncols=2, fontsize=10, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), labelcolor=charts.TEXT)
    return figure

"""The Clamp tab's Plotly figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from ..theme import ACCENT, ORIGINAL, UNLEARNED, calm
from .shown import CONTROLS, LETTERS, PRIME, REFUSAL, TITLES, UNTOUCHED, Answered

COLOURS = {UNTOUCHED: ORIGINAL, PRIME: ACCENT, REFUSAL: "#e8a06c"}
STYLES = {  # colour, dash, width
    PRIME: (ACCENT, "solid", 4),
    REFUSAL: ("#e8a06c", "solid", 4),
    "random": ("#8499b0", "dot", 2),
    "matched": ("#6f8aa6", "dash", 2),
}
METRICS = {"forget": "forget accuracy", "retain": "retain accuracy", "alignment": "alignment"}
CHANCE = 0.25
_LONGEST = 26
"""Characters of an option that fit under its bars."""


class Point(NamedTuple):
    """One edit at one coefficient, judged."""

    value: float
    forget: float
    retain: float
    alignment: float
    collapse: float
    """The share of the letter that is given most often: 1 is a model that gives no other."""


def named(key: str) -> str:
    """What a line of STYLES is called."""
    return TITLES.get(key) or CONTROLS[key]


def legend(keys: Sequence[str]) -> str:
    """The lines of the curves by name, once for the three of them."""
    dashes = {"solid": "", "dot": "2 4", "dash": "8 5"}
    found = []
    for key in keys:
        colour, dash, width = STYLES[key]
        stroke = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes[dash]}"'
        line = f'<svg width="30" height="12" aria-hidden="true"><line x1="0" x2="30" y1="6" y2="6" {stroke}/></svg>'
        found.append(f"<span>{line} {named(key)}</span>")
    return f'<p class="sod-legend">{"".join(found)}</p>'


def options(answered: Answered) -> go.Figure | None:
    """Each column's probabilities of the options; the right answer is marked. None for any other question."""
    columns = [column for column in answered.columns if column.scores]
    if not columns:
        return None
    labels = [_label(i, text, i == answered.right) for i, text in enumerate(answered.options)]
    figure = go.Figure()
    for column in columns:
        figure.add_bar(
            name=column.title,
            x=labels,
            y=[round(score, 4) for score in column.scores],
            marker_color=COLOURS.get(column.key, UNLEARNED),
            hovertemplate="%{x}: %{y:.1%}<extra>" + column.title + "</extra>",
        )
    if answered.right is not None:
        at = answered.right
        figure.add_vrect(x0=at - 0.5, x1=at + 0.5, fillcolor=ACCENT, opacity=0.08, line_width=0, layer="below")
    figure.update_layout(barmode="group", bargap=0.22, bargroupgap=0.04, height=270)
    figure.update_yaxes(range=[0, 1], tickformat=".0%", tickvals=[0, 0.5, 1])
    return calm(figure)


def _label(place: int, text: str, right: bool) -> str:
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1].rstrip()}…"
    short = short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # Plotly reads a few tags
    return f"<b>▸ {LETTERS[place]} {short}</b>" if right else f"{LETTERS[place]} {short}"


def curve(
    metric: str,
    stored: Mapping[str, Sequence[Point]],
    measured: Mapping[str, Sequence[Point]],
    at: Mapping[str, float],
    untouched: Point | None,
) -> go.Figure:
    """One of METRICS against the coefficient: stored lines, what was measured here as diamonds, the sliders upright."""
    figure = go.Figure()
    for key in ("matched", "random", REFUSAL, PRIME):
        colour, dash, width = STYLES[key]
        looks = {"mode": "lines", "line": {"color": colour, "dash": dash, "width": width}}
        _add(figure, metric, stored.get(key, ()), named(key), looks)
        mark = {"color": colour, "symbol": "diamond", "size": 11, "line": {"width": 1, "color": "#808890"}}
        _add(figure, metric, measured.get(key, ()), f"{named(key)}, measured here", {"mode": "markers", "marker": mark})
    for key, value in at.items():
        figure.add_vline(
            x=value, line_width=2, line_color=STYLES[key][0], opacity=0.6, line_dash="solid" if key == PRIME else "dot"
        )
    if untouched is not None and metric != "alignment":
        figure.add_hline(y=getattr(untouched, metric), line_width=1, line_color=ORIGINAL, line_dash="dot")
    figure.update_layout(
        height=250, showlegend=False, font_size=13, title={"text": METRICS[metric], "font": {"size": 15}, "x": 0.02}
    )
    figure.update_xaxes(title={"text": "coefficient", "font": {"size": 13}})
    figure.update_yaxes(range=[-0.03, 1.03], tickvals=[0, 0.25, 0.5, 0.75, 1])
    return calm(figure)


def _add(figure: go.Figure, metric: str, points: Sequence[Point], name: str, looks: dict) -> None:
    if points:
        figure.add_scatter(
            x=[point.value for point in points],
            y=[round(getattr(point, metric), 4) for point in points],
            name=name,
            hovertemplate="%{x:g}: %{y:.3f}<extra>" + name + "</extra>",
            **looks,
        )

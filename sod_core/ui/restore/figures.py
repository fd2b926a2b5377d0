"""The Plotly figures. Text and grid take their colours from the page's style sheet (light or dark)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ...restore import scores, working
from ...restore.spread import figure as figure_of
from ...restore.spread import kind
from ...unlearn import TITLES
from ..theme import ACCENT, calm
from .visitor import ALPHAS, Curve

_CONTROL_STYLES = {  # one family of blue-greys, light enough for a dark page and dark enough for a light one
    "random": ("random features", "#8499b0", "dot"),
    "matched": ("random, equally active", "#6f8aa6", "dash"),
    "patches": ("experts on patches only", "#94a6b8", "dashdot"),
    "cls_copy": ("copied CLS, no features", "#5f7f9f", "longdash"),
    "retrained": ("retrained without the class", "#7b8794", "solid"),
    "own": ("your selection", "#e8a06c", "solid"),
}


def style(key: str) -> tuple[str, str, str, int]:
    """A curve's name, colour, dash and width."""
    return ("experts", ACCENT, "solid", 4) if key == "experts" else (*_CONTROL_STYLES[key], 2)


def alpha_curves(curves: Sequence[Curve], target_name: str) -> go.Figure:
    """Probability of the forgotten class against alpha: experts in the accent colour, controls in one family.

    The page's script (stage.js) marks the slider's alpha on it.
    """
    figure = go.Figure()
    for curve in reversed(curves):
        name, colour, dash, width = style(curve.key)
        figure.add_scatter(
            x=ALPHAS,
            y=[round(p, 4) for p in curve.probability],
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash, "width": width},
            hovertemplate="alpha %{x}: %{y:.1%}<extra>" + name + "</extra>",
        )
    figure.update_layout(height=320, legend_traceorder="reversed")
    figure.update_xaxes(title="alpha", range=[0, ALPHAS[-1]])
    figure.update_yaxes(
        title=f"probability of {target_name}", range=[-0.02, 1.02], tickformat=".0%", tickvals=[0, 0.5, 1]
    )
    figure.update_yaxes(title_standoff=6)
    return calm(figure)


_VERDICTS = {  # colour, symbol: told apart without colour too
    "suppressed": (ACCENT, "circle"),
    scores.SUPPRESSED_AFTER: (ACCENT, "triangle-up"),
    "partly": ("#e8a06c", "diamond"),
    "deleted": ("#5d7590", "square"),
    scores.UNDECIDED: ("#8499b0", "diamond-open"),
    scores.CANNOT_TELL: ("#a3b5c8", "circle-open"),
    working.NO_VERDICT: ("#8a8f96", "x-thin-open"),
    working.NO_ORIGINAL: ("#8a8f96", "asterisk-open"),
    working.OTHER_ORDER: ("#8a8f96", "cross-thin-open"),
}


def looks(verdict: str) -> tuple[str, str]:
    """A verdict's colour and symbol."""
    return _VERDICTS[kind(verdict)]


def scoreboard(rows: Sequence[dict]) -> go.Figure:
    """R of the experts against retain accuracy, a point a model, with its bootstrap interval. Rows as stored."""
    figure = go.Figure()
    for verdict, (colour, symbol) in _VERDICTS.items():
        chosen = [
            row for row in rows if kind(row["verdict"]) == verdict and row["scores"]["experts"]["value"] is not None
        ]
        if not chosen:
            continue
        r = [row["scores"]["experts"] for row in chosen]
        figure.add_scatter(
            name=verdict,
            x=[row["retain_unlearned"] for row in chosen],
            y=[score["value"] for score in r],
            error_y={
                "array": [max(0, score["high"] - score["value"]) for score in r],
                "arrayminus": [max(0, score["value"] - score["low"]) for score in r],
                "thickness": 1,
            },
            text=[row["id"] for row in chosen],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 12},
            hovertemplate="%{text}: R %{y:.2f}, retain %{x:.1%}<extra>" + verdict + "</extra>",
        )
    figure.update_layout(height=380)
    figure.update_xaxes(title="retain accuracy", tickformat=".0%")
    figure.update_yaxes(title="R of the experts", range=[-0.15, 1.15], tickvals=[0, 0.5, 1])
    return calm(figure)


def spread(rows: Sequence[dict], others: Mapping[str, Sequence[dict]] | None = None) -> go.Figure:
    """R of the experts and of equally active random features, a box a method and every run a dot. Rows with seeds.

    `others`: {pack: rows} of single runs of the same methods, a diamond each for their experts.
    """
    figure = go.Figure()
    for name, colour in (("R experts", ACCENT), ("R matched", "#8499b0")):
        known = [(row, value) for row in rows if (value := figure_of(row, name)) is not None]
        figure.add_box(
            name=name,
            x=[TITLES.get(row["method"], row["method"]) for row, _ in known],
            y=[value for _, value in known],
            text=[f"{row['target']}, seed {row['seed']}: {row['verdict']}" for row, _ in known],
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            marker={"color": colour, "size": 5, "opacity": 0.7},
            line={"color": colour, "width": 1.5},
            hovertemplate="%{text}<br>%{y:.2f}<extra>" + name + "</extra>",
        )
    methods = {row["method"] for row in rows}
    for pack, single in (others or {}).items():
        both = [row for row in single if row["method"] in methods]
        known = [(row, value) for row in both if (value := figure_of(row, "R experts")) is not None]
        figure.add_scatter(
            name=f"R experts, {pack}",
            x=[TITLES.get(row["method"], row["method"]) for row, _ in known],
            y=[value for _, value in known],
            text=[f"{row['target']}: {row['verdict']}" for row, _ in known],
            mode="markers",
            marker={"color": "#c7892f", "symbol": "diamond", "size": 9},
            hovertemplate="%{text}<br>%{y:.2f}<extra>" + pack + "</extra>",
        )
    figure.update_layout(boxmode="group", height=420)
    figure.update_yaxes(title="R", range=[-0.15, 1.15], tickvals=[0, 0.5, 1])
    return calm(figure)

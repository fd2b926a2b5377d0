"""The look that every figure has."""

from __future__ import annotations

import plotly.graph_objects as go

from ..data.charts import ACCENT as ACCENT
from ..data.charts import ORIGINAL as ORIGINAL
from ..data.charts import UNLEARNED as UNLEARNED


def calm(figure: go.Figure) -> go.Figure:
    """The page's look: no background, no zooming, large type."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 58, "r": 12, "t": 34, "b": 44},
        font={"size": 15, "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 14}},
        uirevision="keep",
        dragmode=False,
    )
    figure.update_xaxes(fixedrange=True, showgrid=False, automargin=True)
    figure.update_yaxes(fixedrange=True, gridcolor="rgba(128,140,155,0.25)", zeroline=False, automargin=True)
    return figure

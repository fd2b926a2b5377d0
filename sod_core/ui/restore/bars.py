"""What the three models say of the image: bars over the classes, and the same as numbers; alpha moves the last."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .visitor import Probabilities


def html(names: Sequence[str], found: Probabilities, target: int, shown: Sequence[int], marks: str) -> str:
    """A table: a group of bars a class, and a row of percentages a model. The forgotten class `target` is marked.

    `marks`: attributes that tell the page's script what is shown, and where the slider stood.
    """
    columns = range(len(shown))
    mine = [" class=mine" if i == target else "" for i in shown]
    groups = "".join(f"<td{mine[c]}><div>{_three(found, shown[c])}</div></td>" for c in columns)
    heads = "".join(
        f'<th scope="col"{mine[c]}>{"▸ " if shown[c] == target else ""}{escape(names[shown[c]])}</th>' for c in columns
    )
    rows = "".join(_row(which, values[list(shown)].tolist(), mine) for which, values in found._asdict().items())
    classes = ",".join(map(str, shown))
    return (
        f'<table class="sod-bars" data-classes="{classes}" {marks}>'
        f'<caption>Probability of each class, in percent</caption><tbody><tr class="plot" aria-hidden="true">'
        f"<th><span>100</span><span>50</span><span>0</span></th>{groups}</tr><tr><td></td>{heads}</tr>{rows}"
        "</tbody></table>"
    )


def _three(found: Probabilities, index: int) -> str:
    return "".join(
        f'<i class="{which}" style="transform:scaleY({values[index].item():.4f})"></i>'
        for which, values in found._asdict().items()
    )


def _row(which: str, values: Sequence[float], mine: Sequence[str]) -> str:
    cells = "".join(f"<td{mark}>{100 * value:.1f}</td>" for value, mark in zip(values, mine))
    return f'<tr class="{which}"><th scope="row">{which}</th>{cells}</tr>'

"""Many evaluations of one pack's recipe, over classes and seeds: how much the figures of each method vary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..unlearn import TITLES
from . import report, scores
from .pack import Pack

FILE = "results.json"
FIGURES = {
    "forget": ("unlearned",),
    "retain": ("retain_unlearned",),
    "R experts": ("scores", "experts", "value"),
    "R random": ("scores", "random", "value"),
    "R matched": ("scores", "matched", "value"),
    "R copied CLS": ("scores", "cls_copy", "value"),
    "readout": ("readout",),
    "probe": ("probe",),
    "overshoot": ("overshoot",),
}
"""Column -> where a row has it."""


class Spread(NamedTuple):
    """Of one method, over all its runs."""

    method: str
    runs: int
    figures: dict[str, tuple[float, float, float] | None]
    """{column: median, lower and upper quartile} over the runs that have it; None where none has."""
    verdicts: dict[str, int]
    """How often each came, the most frequent first."""


def read(pack: Pack) -> dict[str, Any] | None:
    """The pack's stored results over classes and seeds; None where it has none.

    Raises ValueError for damaged ones, and for those that another version stored: its verdicts follow other rules.
    """
    path = pack.manifest.folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all({"seed", "class", "rows"} <= unit.keys() for unit in found["units"]):
            raise KeyError
        verdicts = found["verdicts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"what is stored in {FILE} of pack {pack.manifest.name} cannot be read") from error
    if verdicts != report.FORMAT:
        raise ValueError(f"{FILE} of pack {pack.manifest.name} follows the rules of another version's verdicts")
    return found


def beside(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """{pack: its stored rows} of the packs next to the one in `folder`: single runs, to hold beside many."""
    found = {}
    for path in sorted(folder.parent.glob(f"*/{report.SCOREBOARD}")):
        if path.parent.name == folder.name:
            continue
        try:
            board = report.read(path.parent)
        except ValueError:  # its own tab says so
            continue
        if board is not None and board["rows"]:
            found[path.parent.name] = board["rows"]
    return found


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every run: a row as `Row.as_dict` gives it, with the seed."""
    return [row | {"seed": unit["seed"]} for unit in found["units"] for row in unit["rows"]]


def spreads(found: dict[str, Any]) -> list[Spread]:
    """A line a method, in the order of TITLES."""
    every = rows(found)
    return [_spread(how, [row for row in every if row["method"] == how]) for how in TITLES if _has(every, how)]


def figure(row: dict[str, Any], column: str) -> float | None:
    """What a run has in a column of FIGURES."""
    value: Any = row
    for key in FIGURES[column]:
        value = value[key]
    return value


def kind(verdict: str) -> str:
    """A verdict without how many images left it undecided."""
    return scores.UNDECIDED if verdict.startswith(scores.UNDECIDED) else verdict


def _has(every: Sequence[dict[str, Any]], how: str) -> bool:
    return any(row["method"] == how for row in every)


def _spread(how: str, runs: Sequence[dict[str, Any]]) -> Spread:
    figures: dict[str, tuple[float, float, float] | None] = {}
    for column in FIGURES:
        values = [value for row in runs if (value := figure(row, column)) is not None]
        if not values:
            figures[column] = None
            continue
        low, median, high = np.percentile(values, [25, 50, 75])
        figures[column] = float(median), float(low), float(high)
    verdicts = Counter(kind(row["verdict"]) for row in runs)
    return Spread(how, len(runs), figures, dict(verdicts.most_common()))


def table(found: dict[str, Any]) -> str:
    """Markdown: median and quartiles of each method, and how often each verdict came."""
    lines = [f"| method | runs | {' | '.join(FIGURES)} | verdicts |", "|---" * (len(FIGURES) + 3) + "|"]
    for one in spreads(found):
        cells = [TITLES[one.method], str(one.runs)]
        cells += ["–" if value is None else "{:.2f} [{:.2f}, {:.2f}]".format(*value) for value in one.figures.values()]
        cells.append("; ".join(f"{name} {count}" for name, count in one.verdicts.items()))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared(found: dict[str, Any], other: str, rows_of_other: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each method that both have, R of the experts and the verdicts here and in pack `other`."""
    lines = ["| method | R experts | verdicts | " + f"R experts, {other} | verdicts, {other} |", "|---" * 5 + "|"]
    for one in spreads(found):
        single = [row for row in rows_of_other if row["method"] == one.method]
        if not single:
            continue
        here = one.figures["R experts"]
        r = [(row["target"], row["scores"]["experts"]["value"]) for row in single]
        cells = [
            TITLES[one.method],
            "–" if here is None else "{:.2f} [{:.2f}, {:.2f}]".format(*here),
            "; ".join(f"{name} {count}" for name, count in one.verdicts.items()),
            "; ".join(f"{target} {'–' if value is None else f'{value:.2f}'}" for target, value in r),
            "; ".join(f"{row['target']} {kind(row['verdict'])}" for row in single),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(found: dict[str, Any]) -> str:
    """Which runs these are, in a sentence."""
    seeds = sorted({unit["seed"] for unit in found["units"]})
    classes = list(dict.fromkeys(unit["class"] for unit in found["units"]))
    return (
        f"{sum(len(unit['rows']) for unit in found['units'])} models: {len(found['units'])} times every method and "
        f"retraining, on {', '.join(classes)}; seeds {', '.join(map(str, seeds))} (original, SAE, unlearning and the "
        "division into training and test images differ). Median and quartiles over all runs."
    )

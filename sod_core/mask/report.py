"""What was measured as a table to read and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

COLUMNS = (
    "bottleneck encoder encoder_saw keys values forget seeds state way value low high recovered recovered_low "
    "recovered_high verdict lifted"
).split()


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line a state and way; `rows` as `lines` gives them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _plain(row.get(name)) for name in COLUMNS})
    return text.getvalue()


def lines(about: Mapping[str, Any], case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one case. `about`: the bottleneck's id, encoder, keys and values."""
    shared = {
        "bottleneck": about["id"],
        "encoder": about["encoder"],
        "keys": about["keys"],
        "values": about["values"],
        "encoder_saw": case["encoder_saw"],
        "forget": " ".join(case["forget"]),
        "seeds": case["seeds"],
    }
    for id, state in case["states"].items():
        said = state["verdict"] or {}
        row = shared | {"state": id, "verdict": said.get("verdict"), "lifted": said.get("lifted")}
        for name in ("forget", "retain", "confidence", "entropy", "agreement"):
            yield row | {"way": f"{name} accuracy" if name in ("forget", "retain") else name, **_spread(state[name])}
        for way, found in state["ways"].items():
            if found["value"] is None:
                continue
            back = found["recovered"] or {}
            recovered = {"recovered": back.get("mean"), "recovered_low": back.get("low")}
            yield row | {"way": way, **_spread(found["value"]), **recovered, "recovered_high": back.get("high")}
    for side, found in case["random"].items():
        yield shared | {"state": "random mask", "way": f"{side} accuracy", **_spread(found)}
    for id, rival in case["rivals"].items():
        for name in ("forget", "retain", "epochs", "multiply_adds"):
            if rival[name] is not None:
                yield shared | {"state": id, "way": name, "value": rival[name]}


def all_lines(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of every case of `board.run`."""
    for about in results["bottlenecks"]:
        for case in about["cases"]:
            yield from lines(about, case)


def table(case: Mapping[str, Any]) -> str:
    """States down, ways across, to read on a terminal; values in percent."""
    names = list(next(iter(case["states"].values()))["ways"])
    head = [f"{place}: {name}" for place, name in enumerate(names, 1)]
    rows = [["state", *(str(place) for place in range(1, len(names) + 1)), "others", "verdict"]]
    for state in case["states"].values():
        said = state["verdict"]
        verdict = "" if said is None else said["verdict"]
        if said is not None and said["lifted"]:
            verdict += f"; lifted: {said['lifted']}"
        cells = [_percent(found["value"]) for found in state["ways"].values()]
        rows.append([state["title"], *cells, _percent(state["retain"]), verdict])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    share = case["share"]
    masked = "" if share is None else f"{share['mean']:.0%} of the pairs that the class touches, "
    pairs = f"masked: {masked}{case['of_pairs_in_use']['mean']:.1%} of all pairs in use; {case['seeds']} seeds"
    return "\n".join([", ".join(case["forget"]), pairs, *head, *body])


def _percent(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "–"
    if spread["low"] == spread["high"]:
        return f"{spread['mean']:.1%}"
    return f"{spread['mean']:.1%} [{spread['low']:.1%}, {spread['high']:.1%}]"


def _spread(found: Mapping[str, float]) -> dict[str, float]:
    return {"value": found["mean"], "low": found["low"], "high": found["high"]}


def _plain(value: Any) -> Any:
    return "" if value is None else value

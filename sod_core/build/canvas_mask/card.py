"""Writes pack.json and README.md of `canvas-mask`, every figure from the stages' own records."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from ...unlearn.data import CANVAS_SEEDS
from ...worlds import canvas
from .plan import BOTTLENECKS, ENCODERS


def write(out: Path) -> None:
    """Writes both files as far as the stages' figures are there; without features there is nothing to say."""
    figures = {path.stem: json.loads(path.read_text()) for path in sorted((out / "figures").glob("*.json"))}
    if not {"hidden-state", "features-original"} <= figures.keys():
        return
    (out / "pack.json").write_text(json.dumps(_manifest(figures), indent=1) + "\n")
    (out / "README.md").write_text(_readme(figures))


def _manifest(figures: dict[str, Any]) -> dict[str, Any]:
    recipe = figures["hidden-state"]["chosen"]
    return {
        "format": 1,
        "kind": "mask",
        "name": "canvas-mask",
        "title": "Canvas, bottlenecks on three ViTs",
        "note": "Features of the drawn world's images, by the ViT that saw all ten classes and by two that each never "
        "saw one; key-value bottlenecks on them.",
        "examples": {"world": "canvas", "seed": CANVAS_SEEDS["test"]},
        "results": "results.json",
        "classes": list(canvas.OBJECTS),
        "styles": list(canvas.STYLES),
        "encoders": [
            {
                "id": encoder.id,
                "title": encoder.title,
                "never_saw": list(encoder.never_saw),
                "encoder": {"pack": "canvas", "file": encoder.file, **recipe},
                "features": f"features/{encoder.id}.safetensors",
            }
            for encoder in ENCODERS
            if f"features-{encoder.id}" in figures
        ],
        "bottlenecks": [
            {
                "id": made.id,
                "title": f"{made.encoder}: {_keys(made.keys, made.without)}, {_values(made.values)}",
                "encoder": made.encoder,
                "keys": made.keys,
                "without": list(made.without),
                "values": made.values,
                "seed": 0,
                "file": f"bottlenecks/{made.id}.safetensors",
            }
            for made in BOTTLENECKS
            if f"bottleneck-{made.id}" in figures
        ],
    }


def _readme(figures: dict[str, Any]) -> str:
    recipe = figures["hidden-state"]["chosen"]
    token = "CLS token" if recipe["token"] == "cls" else "mean of the patch tokens"
    scale = "as it is" if recipe["scale"] == "raw" else "centred and whitened on the classes that every encoder saw"
    lines = [
        "# The canvas-mask pack\n",
        "Made by `python -m sod_core build canvas-mask`; this page is written by that command from its own records "
        "(`figures/`).\n",
        f"Features: the {token} after block {recipe['layer']}, counted from 0, {scale}. On check images this has the "
        "best nearest-mean accuracy, of the encoder it suits least, among the hidden states whose linear probe is "
        "within a point of the best.\n",
        "| bottleneck | accuracy | nearest mean | linear probe | of the probe |",
        "|---|---|---|---|---|",
    ]
    for made in BOTTLENECKS:
        if record := figures.get(f"bottleneck-{made.id}"):
            cells = [f"{record[key]:.1%}" for key in ("accuracy", "nearest_mean", "linear_probe", "of_the_probe")]
            lines.append(f"| {made.id} | {' | '.join(cells)} |")
    if "classes" in figures:
        lines += ["", *_classes(figures["classes"])]
    return "\n".join(lines) + "\n"


def _classes(record: dict[str, Any]) -> list[str]:
    """A row for each encoder and class: means over the seeds, and the lowest and highest where they say something."""
    seeds = len({row["seed"] for row in record["rows"]})
    goal = record["goal"]["forget"]
    lines = [
        f"The smallest mask by activations after which at most {goal:.0%} of a class's 200 test images are right; keys "
        f"on all images, values by counts. Means over {seeds} seeds of projections and keys, in brackets lowest and "
        "highest.\n",
        "| encoder | class | before | share of its pairs masked | of all pairs | after | others before | "
        "others lose, points | random masks: class | others |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def place(row: dict[str, Any]) -> tuple[str, int]:
        return row["encoder"], canvas.OBJECTS.index(row["class"])

    for (encoder, _), group in groupby(sorted(record["rows"], key=place), place):
        rows = list(group)
        cells = [encoder, rows[0]["class"], f"{_mean(rows, 'forget_before'):.1%}"]
        done = [row for row in rows if row["share"] is not None]
        if len(done) < len(rows):
            cells.append(f"none does it in {len(rows) - len(done)} of {len(rows)}")
        else:
            shares, losses = ([round(100 * row[key], 1) + 0.0 for row in rows] for key in ("share", "retain_loss"))
            chance = {
                side: [row["random"][f"{side}_accuracy"]["mean"] for row in rows] for side in ("forget", "retain")
            }
            cells += [
                f"{sum(shares) / len(shares):.0f} % [{min(shares):.0f}, {max(shares):.0f}]",
                f"{_mean(rows, 'of_pairs_in_use'):.1%}",
                f"{_mean(rows, 'forget'):.1%}",
                f"{_mean(rows, 'retain_before'):.1%}",
                f"{round(sum(losses) / len(losses), 1) + 0.0:.1f} [{min(losses):.1f}, {max(losses):.1f}]",
                *(f"{sum(values) / len(values):.1%}" for values in chance.values()),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _keys(keys: str, without: tuple[str, ...]) -> str:
    return "keys on all images" if keys == "all" else f"keys without {' and '.join(without)}"


def _values(values: str) -> str:
    return "values by counts" if values == "counts" else "values by SGD"

"""Writes pack.json and README.md of `canvas-mask`, every figure from the stages' own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    for stage, record in figures.items():
        if stage.startswith("bottleneck-"):
            cells = [f"{record[key]:.1%}" for key in ("accuracy", "nearest_mean", "linear_probe", "of_the_probe")]
            lines.append(f"| {stage.removeprefix('bottleneck-')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _keys(keys: str, without: tuple[str, ...]) -> str:
    return "keys on all images" if keys == "all" else f"keys without {' and '.join(without)}"


def _values(values: str) -> str:
    return "values by counts" if values == "counts" else "values by SGD"

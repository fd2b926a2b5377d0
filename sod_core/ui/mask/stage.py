"""The figure that the slider moves: what the page's script draws from, in one answer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...mask import evaluate, sweep
from ...mask.manifest import MaskPackManifest
from ...mask.sweep import Sweep

SCRIPT = (Path(__file__).parent / "stage.js").read_text(encoding="utf-8")


def html(m: MaskPackManifest, key: Sequence[Any], classes: Sequence[int], found: Sweep, at: int) -> str:
    """The figure's element. A new `key`, of the menus, opens at the position `at`."""
    said = data(m, key, classes, found) | {"at": at}
    return f'<div class="sod-mask" data-sweep="{escape(json.dumps(said))}"></div>'


def start(found: Sweep) -> int:
    """The position that a new figure opens at."""
    return sweep.opening(found, evaluate.FORGET_GOAL)


def data(m: MaskPackManifest, key: Sequence[Any], classes: Sequence[int], found: Sweep) -> dict[str, Any]:
    """Everything that the figure shows at any position; accuracies to the ten thousandth."""
    if any(dose.examples for dose in found.doses):
        unit = "images of each class"
    elif any(dose.per_codebook for dose in found.doses):
        unit = "pairs of each codebook"
    else:
        unit = "of the pairs that it touches"
    return {
        "key": "|".join(map(str, key)),
        "start": start(found),
        "title": " and ".join(m.classes[c] for c in classes),
        "mine": list(classes),
        "classes": list(m.classes),
        "styles": [] if found.by_style is None else list(m.styles),
        "unit": unit,
        "abstained": _short(found.abstained),
        "labels": [label(dose) for dose in found.doses],
        "pairs": found.pairs,
        "inUse": found.in_use,
        "forget": _short(found.forget),
        "retain": _short(found.retain),
        "byClass": [_short(row) for row in found.by_class],
        "cells": None if found.by_style is None else [[_short(row) for row in each] for each in found.by_style],
        "called": [_short(row) for row in found.called],
        "random": {
            "at": found.random_at,
            "forget": _short(found.random_forget),
            "retain": _short(found.random_retain),
        },
        "retrained": _short(found.retrained),
        "logit": _short(found.logit),
    }


def label(dose: sweep.Dose) -> str:
    """How much is masked, as the page says it."""
    number = dose.examples or dose.pairs
    return f"{100 * (dose.share or 0):.0f} %" if number is None else str(number)


def _short(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else round(value, 4) for value in values]

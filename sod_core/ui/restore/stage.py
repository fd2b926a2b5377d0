"""What the page draws from while alpha moves: the whole sweep in one answer, and the script that draws it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from ...restore.sweep import STEP

SCRIPT = (Path(__file__).parent / "stage.js").read_text(encoding="utf-8")


def marks(drawn: str, alpha: float) -> str:
    """Attributes that tell the script what an element shows, and at which alpha the server drew it."""
    return f'data-drawn="{escape(drawn)}" data-alpha="{alpha!r}"'


def sweep(drawn: str, classes: Sequence[int], stride: int, probabilities: Tensor, heat: Tensor, top: float) -> str:
    """The data's element: every stride-th position of probabilities [201, shown classes] and heat [201, N].

    `drawn` tells what they are of; `top` is where the colour scale ends.
    """
    said = {
        "drawn": drawn,
        "classes": ",".join(map(str, classes)),
        "every": STEP * stride,
        "top": top,
    }
    found = {"probabilities": _floats(probabilities[::stride]), "heat": _floats(heat[::stride])}
    return f'<div data-sweep="{escape(json.dumps(said | found))}"></div>'


def series(drawn: str, patch: int, values: Tensor) -> str:
    """The element of one patch's latents in the restored model: values [201, rows of the table]."""
    said = {"drawn": f"{drawn} {patch}", "every": STEP, "values": _floats(values)}
    return f'<div data-series="{escape(json.dumps(said))}"></div>'


def _floats(values: Tensor) -> str:
    """float32, little-endian, row by row, in base64."""
    return base64.b64encode(values.to(torch.float32).contiguous().numpy().astype("<f4").tobytes()).decode()

"""The drawn pair that a pack stores, so that a page can open with it: written by `build`, read with care."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..machine import files
from ..packs import safe
from ..packs.errors import PackError
from ..packs.figures import read_json
from .edit import Settings
from .generate import Generated
from .pack import ErasePack

FIGURES, FOLDER = "figures/opening.json", "opening"
"""What was measured; the images beside it, and `heat.npy`, [steps, 1, H, W] in half precision."""


class Pair(NamedTuple):
    """What was asked and measured, as `erase image` writes it; and one image before and after."""

    result: dict[str, Any]
    drawn: Generated


def write(pair: Pair, pack: Path) -> None:
    """The images and the heat into the pack's folder; what was measured is the figures of a stage of `build`."""
    folder = pack / FOLDER
    folder.mkdir(exist_ok=True)
    for name, images in (("before", pair.drawn.before), ("after", pair.drawn.after)):
        with files.whole(folder / f"{name}.png") as part:
            images[0].save(part, "PNG")
    if pair.drawn.heat is not None:
        with files.whole(folder / "heat.npy") as part, part.open("wb") as out:
            np.save(out, pair.drawn.heat.astype(np.float16))


def read(pack: ErasePack) -> Pair | None:
    """The pair; None where the pack stores none. Raises PackError for files that cannot be read."""
    figures, folder = pack.manifest.path(FIGURES), pack.manifest.path(FOLDER)
    if not figures.is_file():
        return None
    try:
        before, after = (Image.open(folder / f"{name}.png").convert("RGB") for name in ("before", "after"))
    except OSError as error:
        raise PackError(f"the stored pair of pack {pack.manifest.name} cannot be read: {error}") from error
    heat = np.asarray(safe.read_npy(folder / "heat.npy"), np.float32)
    if heat.ndim != 4 or heat.shape[1] != 1 or not np.isfinite(heat).all():
        raise PackError(f"heat.npy of pack {pack.manifest.name} is no heat of one image, step by step")
    return Pair(read_json(figures), Generated([before], [after], heat))


def is_of(
    result: Mapping[str, Any], how: Settings, sae: str, prompt: str, steps: int, guidance: float, seed: int
) -> bool:
    """Whether these settings are those that the pair was drawn by."""
    asked = {"sae": sae, "prompt": prompt, "steps": steps, "guidance": guidance, "seed": seed}
    same = json.loads(json.dumps(asdict(how))) == result.get("settings")
    return same and all(result.get(key) == value for key, value in asked.items())

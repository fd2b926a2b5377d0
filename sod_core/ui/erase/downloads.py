"""The files that a visitor may take away from the Erase tab."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from . import figures
from .shown import Shown


def picture(shown: Shown, kind: str, *pairs: list[Image.Image]) -> str | None:
    """A picture of before and after side by side, or an animation of several."""
    if not pairs:
        return None
    path, frames = Path(shown.folder.name, f"erased.{kind}"), [_side_by_side(*pair) for pair in pairs]
    more = {"save_all": True, "append_images": frames[1:], "duration": 120, "loop": 0} if kind == "gif" else {}
    frames[0].save(path, None, **more)
    return str(path)


def _side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    left, right = figures.enlarged(before), figures.enlarged(after)
    found = Image.new("RGB", (left.width + right.width, left.height))
    found.paste(left, (0, 0))
    found.paste(right, (left.width, 0))
    return found


def as_json(shown: Shown) -> str:
    """Everything that draws the same images again, and what was measured on them."""
    asking = asdict(shown.asking)
    data = {"pack": shown.pack_name} | {name: asking[name] for name in ("prompt", "sae", "steps", "guidance", "seed")}
    data |= {
        "left_out": shown.left_out,
        "settings": asdict(shown.how),
        "judged": {w: dict(zip(("before", "after"), r)) for w, r in shown.judged.items()},
    }
    if shown.drawn.heat is not None:
        data["latent_by_step"] = [round(v, 5) for v in shown.drawn.heat[:, 0].mean((1, 2)).tolist()]
    path = Path(shown.folder.name, "erased.json")
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return str(path)

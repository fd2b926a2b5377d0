"""Files of what the Erase tab shows: pictures, moving picture, the latents' curve, and what the command line needs."""

from __future__ import annotations

from dataclasses import asdict
from io import BytesIO

from PIL import Image

from ...data import charts
from .. import exports
from . import figures
from .shown import Shown

FRAME_MS = 120


def make(kind: str, scale: str, shown: Shown | None) -> tuple[str, bytes]:
    """As `exports.Make`: of what was drawn last."""
    if shown is None:
        raise ValueError("nothing is drawn yet: press “Generate”, then export")
    if kind == "csv":
        content = _csv(shown)
    elif kind == "json":
        content = _json(shown, scale)
    else:
        content = _png(shown, scale) if kind == "png" else _gif(shown)
    asking, factors = shown.asking, dict.fromkeys(shown.how.each("factor") or shown.how.each("multiplier"))
    scaled = ["factor" + "_".join(f"{one:.4g}" for one in factors)] if shown.how.concepts else []
    said = [*shown.how.concepts, *scaled, f"seed{asking.seed}"]
    return exports.name(kind, "erase", shown.pack_name, asking.sae, *said), content


def _png(shown: Shown, scale: str) -> bytes:
    """Before, after, and where the concept's latents fired most, at the step at which they did, over the first."""
    pictures = [figures.enlarged(image) for image in (shown.drawn.before[0], shown.drawn.after[0])]
    if shown.drawn.heat is not None:
        maps = shown.drawn.heat[:, 0]
        hottest, top = maps[figures.hottest(shown)], float(maps.max()) or 1.0
        over = charts.heat_over(shown.drawn.before[0], hottest.flatten().tolist(), hottest.shape[1], top, scale)
        pictures.append(over.resize(pictures[0].size, Image.Resampling.NEAREST))
    out = BytesIO()
    _side_by_side(pictures).save(out, "PNG")
    return out.getvalue()


def _gif(shown: Shown) -> bytes:
    """Before and after as they were denoised."""
    if not shown.frames:
        raise ValueError("nothing moves here: press “Generate”, with more than a few denoising steps, then export")
    return charts.loop([_side_by_side([figures.enlarged(one) for one in pair]) for pair in shown.frames], FRAME_MS)


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    found = Image.new("RGB", (sum(one.width for one in pictures), pictures[0].height))
    x = 0
    for one in pictures:
        found.paste(one, (x, 0))
        x += one.width
    return found


def _csv(shown: Shown) -> bytes:
    """A row a denoising step: the concept's latents over the picture, before the edit."""
    if shown.drawn.heat is None:
        raise ValueError("no concept was erased, so that no latent was looked at: choose one, then draw and export")
    maps = shown.drawn.heat[:, 0]
    mean, share = maps.mean((1, 2)).tolist(), (maps > 0).mean((1, 2)).tolist()
    rows = [(step, *pair, int(step >= shown.how.start_step)) for step, pair in enumerate(zip(mean, share))]
    return exports.table(["step", "mean_latent", "share_of_picture", "edited"], rows)


def _json(shown: Shown, scale: str) -> bytes:
    """Everything that draws the same images again, and what was measured on them."""
    asking, how = shown.asking, shown.how
    options = {
        "pack": shown.pack_name,
        "prompt": asking.prompt,
        "concept": list(how.concepts) or None,
        "sae": asking.sae,
        "fidelity": how.fidelity,
        "factor": how.factor,
        "multiplier": how.multiplier,
        "percentile": how.percentile,
        "start-step": how.start_step,
        "beta": how.beta or None,
        "steps": asking.steps,
        "guidance": asking.guidance,
        "seed": asking.seed,
    }
    figures = {
        "left_out": shown.left_out,
        "settings": asdict(how),
        "judged": {what: dict(zip(("before", "after"), row)) for what, row in shown.judged.items()},
    }
    if shown.drawn.heat is not None:
        figures["latent_by_step"] = shown.drawn.heat[:, 0].mean((1, 2)).tolist()
    page = {"pack": shown.pack_name, "heat": scale} | asdict(asking)
    return exports.for_command(["erase", "image"], options, figures, "erase", page)

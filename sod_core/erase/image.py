"""One prompt drawn with and without concepts: what a command or an endpoint asks, completed by what the pack says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..models import diffusion
from . import drawings, edit, generate
from .generate import Generated
from .pack import ConceptSetting, ErasePack

MOST_STEPS = 1000


@dataclass(frozen=True)
class Scale:
    """How concepts are erased; None takes what was found best for each of them."""

    factor: edit.Each | None = None
    multiplier: edit.Each | None = None
    percentile: float | None = None
    fidelity: edit.Fidelity = "exact"
    start_step: int = 0
    beta: bool = False


def draw(
    pack: ErasePack,
    id: str,
    prompt: str,
    how: edit.Settings,
    steps: int,
    guidance: float,
    seed: int,
) -> tuple[dict[str, Any], Generated]:
    """(what was measured, as `erase image` writes it to result.json; the images)."""
    order = diffusion.Order((prompt,), (seed,), steps, guidance)
    left_out = diffusion.left_out(pack.pipeline(), prompt)
    drawn = generate.generate(pack.pipeline(), order, drawings.erasing(pack, id, how))
    result = {
        "pack": pack.manifest.name,
        "sae": id,
        "prompt": prompt,
        "left_out": left_out,
        "concepts": list(how.concepts),
        "settings": asdict(how),
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "judged": drawings.judged(pack, [drawn.before[0], drawn.after[0]]),
        "latent_by_step": [] if drawn.heat is None else drawn.heat[:, 0].mean((1, 2)).tolist(),
    }
    return result, drawn


def sae(pack: ErasePack, id: str | None) -> str:
    """The SAE's id; the pack's first for None. Raises PackError."""
    return pack.manifest.sae(id).id if id else pack.manifest.saes[0].id


def sampling(pack: ErasePack, steps: int | None, guidance: float | None, most: int = MOST_STEPS) -> tuple[int, float]:
    """The pack's where nothing is asked for. Raises ValueError."""
    steps = pack.manifest.steps if steps is None else steps
    guidance = pack.manifest.guidance if guidance is None else guidance
    if not 1 <= steps <= most:
        raise ValueError(f"steps {steps}: give 1 to {most}")
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance {guidance}: give a finite number from 0")
    return steps, guidance


def settings(
    pack: ErasePack,
    id: str,
    names: tuple[str, ...],
    scale: Scale,
    steps: int,
    known: Mapping[str, ConceptSetting] | None = None,
) -> edit.Settings:
    """Of `known`, or else the pack, each concept's setting, with what else `scale` says. Raises ValueError."""
    if scale.factor is not None and scale.multiplier is not None:
        raise ValueError("give a factor or a multiplier, not both")
    known = pack.settings(id) if known is None else known
    factors, multipliers = (_each(getattr(scale, name), name, names) for name in ("factor", "multiplier"))
    given = scale.factor is not None or scale.multiplier is not None
    chosen = []
    for name, factor, multiplier in zip(names, factors, multipliers):
        best = known.get(name)
        if given:
            best = ConceptSetting(best.percentile if best else edit.PERCENTILE, factor, multiplier)
        if best is None:
            raise ValueError(f"no setting is known for {name}: give a factor or a multiplier, or --params")
        chosen.append(best if scale.percentile is None else replace(best, percentile=scale.percentile))
    found = drawings.settings(pack, id, names, scale.fidelity, chosen)
    found = replace(found, start_step=scale.start_step, beta=scale.beta)
    edit.check_start(found, steps)
    return found


def _each(value: edit.Each | None, what: str, names: tuple[str, ...]) -> tuple[float | None, ...]:
    """A number for every concept. Raises ValueError where there are more or fewer, but for one for all."""
    found = value if isinstance(value, tuple) else (value,)
    if len(found) not in (1, len(names)):
        raise ValueError(f"{len(found)} {what}s for {len(names)} concepts: give one for all, or one for each")
    return found if len(found) == len(names) else found * len(names)

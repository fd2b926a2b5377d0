"""Draws the images that a diffusion pack is asked for, with concepts erased or not, in batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from PIL import Image

from ..models import diffusion
from ..packs.errors import PackError
from . import edit as erase
from . import generate
from .pack import ConceptSetting, ErasePack
from .unlearncanvas import Asked, asked

BATCH = 60
"""Images at most that go through the UNet together."""


def settings(
    pack: ErasePack,
    id: str,
    concepts: tuple[str, ...],
    fidelity: erase.Fidelity,
    setting: ConceptSetting | Sequence[ConceptSetting] | None = None,
    beta: bool = False,
) -> erase.Settings:
    """How `concepts` are erased with the SAE `id`: by `setting`, one for all or one for each, or else each as was found
    best for it.

    In reference fidelity a factor becomes the multiplier that has it on average, since the released code knows
    multipliers only; so it does under `beta`, and beside a concept with a multiplier. Raises PackError where the pack
    has no statistics or no setting.
    """
    statistics, best = _statistics(pack, id), pack.settings(id)
    if isinstance(setting, ConceptSetting):
        setting = [setting] * len(concepts)
    lacking = [name for name in concepts if name not in best] if setting is None else []
    if lacking:
        raise PackError(f"pack {pack.manifest.name} has no setting for {lacking[0]}; give a factor or a multiplier")
    known = [best[name] for name in concepts] if setting is None else list(setting)
    multiplied = fidelity == "reference" or beta or any(one.multiplier is not None for one in known)
    if multiplied:
        known = [_multiplied(statistics, name, one) for name, one in zip(concepts, known)]
    return erase.Settings(
        concepts=concepts,
        percentile=_same([one.percentile for one in known]),
        factor=None if multiplied else _same([one.factor for one in known if one.factor is not None]),
        multiplier=_same([one.multiplier for one in known if one.multiplier is not None]) if multiplied else None,
        beta=beta,
        residual=pack.manifest.sae(id).residual,
        fidelity=fidelity,
    )


def _multiplied(statistics: erase.ConceptStatistics, concept: str, setting: ConceptSetting) -> ConceptSetting:
    if setting.factor is None:
        return setting
    multiplier = erase.multiplier_for(statistics, concept, setting.factor, setting.percentile)
    return ConceptSetting(setting.percentile, multiplier=multiplier)


def _same(numbers: list[float]) -> erase.Each:
    """One number where all are the same."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def draw(
    pack: ErasePack,
    wanted: list[Asked],
    steps: int,
    guidance: float,
    id: str | None = None,
    how: erase.Settings | None = None,
    cancel: threading.Event | None = None,
) -> list[Image.Image]:
    """The images of `wanted`; with `how`, erased by the SAE `id`. An image does not depend on its batch.

    Batches are halved where memory does not hold them. Raises diffusion.Cancelled where `cancel` is set, and
    diffusion.NotFinite for a batch with a drawing that is no picture.
    """
    m, size = pack.manifest, BATCH
    found: list[Image.Image] = []
    edit = None if how is None or id is None else _edit(pack, id, how, steps)
    while len(found) < len(wanted):
        batch = wanted[len(found) : len(found) + size]
        prompts = tuple(m.prompt(item.object, item.style) for item in batch)
        order = diffusion.Order(prompts, tuple(noise_seed(pack, item) for item in batch), steps, guidance)
        try:
            found += diffusion.draw(pack.pipeline(), order, edit, m.hook_point, cancel=cancel)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                raise
            size = len(batch) // 2
    return found


def _edit(pack: ErasePack, id: str, how: erase.Settings, steps: int) -> diffusion.Edit:
    eraser, plans = pack.eraser(id), erase.working_plan(_statistics(pack, id), how, steps)
    return lambda tokens, step, given: eraser.step(tokens, plans[step], how, given).tokens


def erasing(pack: ErasePack, id: str, how: erase.Settings) -> generate.Erasing:
    """What diffusion.generate is told. Raises PackError where the pack has no statistics."""
    return generate.Erasing(pack.eraser(id), _statistics(pack, id), how, pack.manifest.hook_point)


def _statistics(pack: ErasePack, id: str) -> erase.ConceptStatistics:
    found = pack.statistics(id)
    if found is None:
        command = f"python -m sod_core erase statistics --pack {pack.manifest.name} --sae {id}"
        raise PackError(f"the statistics of {id} are missing: `{command}` makes them")
    return found


def noise_seed(pack: ErasePack, item: Asked) -> int:
    """Every image of a benchmark has noise of its own: else all objects would share one composition."""
    m = pack.manifest
    style = 0 if item.style is None else 1 + m.styles.index(item.style)
    return (item.seed * (len(m.styles) + 1) + style) * len(m.concepts) + m.concepts.index(item.object)


def statistics_prompts(pack: ErasePack, seeds: int, first: int = 5000) -> dict[str, list[tuple[str, int]]]:
    """Concept -> (prompt, noise seed) pairs: in every style and without one, `seeds` times."""
    m = pack.manifest
    wanted: dict[str, list[tuple[str, int]]] = {name: [] for name in m.concepts}
    for item in asked(m.concepts, m.styles, tuple(range(first, first + seeds))):
        wanted[item.object].append((m.prompt(item.object, item.style), noise_seed(pack, item)))
    return wanted


def judged(pack: ErasePack, images: list[Image.Image]) -> dict[str, list[dict[str, float]]]:
    """For "object" and "style", where the pack has the judge: each image's probability of every name."""
    found = {}
    for what in ("object", "style"):
        judge = pack.judge(what)
        if judge is not None:
            rows = judge.probabilities(images).tolist()
            found[what] = [dict(zip(judge.names, (round(p, 4) for p in row))) for row in rows]
    return found

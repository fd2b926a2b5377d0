"""Every dose at once: what each does to the whole test set, for a slider that never waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..sparse.bottleneck import nearest, vote
from . import edit, evaluate, evidence, states
from .session import Dose, Figures, MaskSession, figures

SHARES = tuple(step / 100 for step in range(101))
MOST_EXAMPLES = 100
"""Of the forget classes' images, one more at each position."""
EACH = "activations, each codebook"
"""Beside the session's methods: so many pairs of each codebook."""
MOST_STEPS = 100
RANDOM_EVERY = 5
"""Random masks are drawn at every so many positions..."""
RANDOM_MASKS = 3
"""...so many at each."""


class Sweep(NamedTuple):
    """Figures at each position. Lists run over positions."""

    doses: list[Dose]
    pairs: list[int]
    """How many are masked."""
    in_use: int
    """Pairs that could be."""
    touched: int
    """Pairs that the forget set chooses, all of which the last position masks."""
    forget: list[float]
    retain: list[float]
    by_class: list[list[float]]
    """[P][V]."""
    by_style: list[list[list[float]]] | None
    """[P][V][styles]."""
    called: list[list[float]]
    """[P][V]: what the forgotten classes' test images are called, in shares; an image without any vote is none."""
    abstained: list[float]
    random_at: list[int]
    """Positions with random masks of the same size..."""
    random_forget: list[float]
    random_retain: list[float]
    """...and the mean accuracies under them."""
    retrained: tuple[float, float]
    """Forget and retain accuracy of values made without the classes, on the same keys."""
    logit: tuple[float, float]
    """Of the untouched bottleneck with the classes' logits at minus infinity."""


def doses(session: MaskSession, classes: Sequence[int], method: str) -> list[Dose]:
    """The slider's positions, from nothing to all that the classes touch, or to MOST_EXAMPLES images of each."""
    if method == EACH:
        return [Dose("activations", pairs=number, per_codebook=True) for number in _numbers(session, classes)]
    if method != "examples":
        return [Dose(method, share=share) for share in SHARES]
    there = torch.bincount(session.train.labels, minlength=session.bottleneck.classes)
    most = min(MOST_EXAMPLES, int(there[list(classes)].min())) if classes else 0
    return [Dose("activations", share=0.0), *(Dose("examples", examples=n) for n in range(1, most + 1))]


def _numbers(session: MaskSession, classes: Sequence[int]) -> list[int]:
    """Of pairs of a codebook: 0 to the most that every class touches in one, at most MOST_STEPS above 0."""
    base = session.bottleneck
    chosen = base.select(session.train.features, session.train_nearest).chosen
    touched = [edit.touched(chosen[session.train.labels == c], base.pairs) > 0 for c in classes]
    most = min((int(found.sum(1).max()) for found in touched), default=0)
    steps = min(most, MOST_STEPS)
    return [round(most * step / max(1, steps)) for step in range(steps + 1)]


def sweep(session: MaskSession, classes: Sequence[int], method: str, seed: int = 0) -> Sweep:
    """Raises ValueError as `MaskSession.forget`."""
    steps = doses(session, classes, method)
    masks = [session.forget(classes, dose, seed) for dose in steps]
    found = [session.figures(mask, classes) for mask in masks]
    at = sorted({*range(0, len(steps), RANDOM_EVERY), len(steps) - 1})
    chance = [_random(session, masks[place], classes, seed) for place in at]
    mine = torch.isin(session.test.labels, torch.tensor(list(classes)))
    styles = [figures.by_style for figures in found]
    return Sweep(
        steps,
        [int(mask.sum()) for mask in masks],
        int(session.bottleneck.allowed.sum()),
        int(session.forget(classes, Dose(share=1.0)).sum()),
        [one.forget or 0.0 for one in found],
        [one.retain or 0.0 for one in found],
        [list(one.by_class) for one in found],
        None if styles[0] is None else [one.tolist() for one in styles if one is not None],
        [(one.confusion[list(classes)].sum(0) / max(1, int(mine.sum()))).tolist() for one in found],
        [one.abstained for one in found],
        at,
        [forget for forget, _ in chance],
        [retain for _, retain in chance],
        *_baselines(session, classes),
    )


def opening(found: Sweep, goal: float) -> int:
    """The first position at which the classes are forgotten as well as `goal` asks; the last if none is."""
    return next((place for place, value in enumerate(found.forget) if value <= goal), len(found.forget) - 1)


def _random(session: MaskSession, mask: Tensor, classes: Sequence[int], seed: int) -> tuple[float, float]:
    found = evaluate.random_masks(session, mask, classes, seed, RANDOM_MASKS)
    forget, retain = (found[f"{side}_accuracy"] for side in ("forget", "retain"))
    return forget["mean"] if forget else 0.0, retain["mean"] if retain else 0.0


def _baselines(session: MaskSession, classes: Sequence[int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Forget and retain accuracy of the retrained bottleneck, and of the untouched one with silenced logits."""
    base = session.bottleneck
    kept = ~torch.isin(session.train.labels, torch.tensor(list(classes)))
    chosen = base.select(session.train.features[kept], session.train_nearest[kept]).chosen
    retrained = session.figures_of(states.retrained(base, chosen, session.train.labels[kept]), classes)
    selected = base.select(session.test.features, session.test_nearest)
    logits = vote(selected.chosen, base.values).index_fill(1, torch.tensor(list(classes)), -torch.inf)
    silenced = figures(logits, session.test, classes, selected.abstained)
    return _sides(retrained), _sides(silenced)


def _sides(found: Figures) -> tuple[float, float]:
    return found.forget or 0.0, found.retain or 0.0


class Vote(NamedTuple):
    """What one codebook does with one image."""

    pair: int
    """-1 where it abstains."""
    called: int
    """The class that the pair votes for most; -1 for none."""
    rank: int
    """The pair's place among the nearest; 0 is the nearest of all, which is then not masked."""
    share: float
    """Of the pair's vote for its class among all positive ones."""


def votes(session: MaskSession, mask: Tensor, features: Tensor) -> tuple[list[Vote], list[float]]:
    """Each codebook's vote on an image [M] under a mask [C, J], and the classes' probabilities [V].

    Probabilities: softmax of four times the logits over their largest without a mask: counted votes have no scale.
    """
    base = session.bottleneck
    masked = base.with_mask(base.masked | mask)
    near = nearest(base, features[None])
    selected = masked.select(features[None], near)
    chosen, ranks = selected.chosen[0, :, 0].tolist(), selected.rank[0, :, 0].tolist()
    found = []
    for codebook, (pair, rank) in enumerate(zip(chosen, ranks)):
        if pair < 0:
            found.append(Vote(-1, -1, -1, 0.0))
            continue
        values = base.values[codebook, pair]
        positive = values.clamp(min=0)
        share = (positive.max() / positive.sum()).item() if positive.sum() > 0 else 0.0
        found.append(Vote(pair, int(values.argmax()) if share else -1, rank, share))
    logits = masked.logits(features[None], near)[0]
    scale = base.logits(features[None], near)[0].abs().max().clamp(min=1e-12)
    return found, (4 * logits / scale).softmax(0).tolist()


def relearning(
    session: MaskSession, classes: Sequence[int], mask: Tensor, images: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{state: {title, forget, retain}} after so many images of each class were counted again. Raises ValueError."""
    seen = states.views(session, classes, mask)
    unit = evidence.unit_of(seen[states.UNTOUCHED], session.train.labels)
    found = {}
    for id in (states.MASKED, states.ERASED, states.REMOVED, states.RETRAINED):
        if id in seen:
            forget, retain = evidence.relearned(session, seen[id], classes, images, seed, unit)
            found[id] = {"title": states.TITLES[id], "forget": forget, "retain": retain}
    return found

"""How much of a class a mask takes, and what it costs: forget and retain accuracy over doses, random masks beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import edit
from .session import Dose, Figures, MaskSession

SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
FORGET_GOAL = 0.02
"""A class counts as forgotten at this test accuracy or below..."""
RETAIN_LOSS = 0.02
"""...and at no more than its price where the others lose no more than this."""
RANDOM_MASKS = 5


def evaluate(
    session: MaskSession,
    classes: Sequence[int],
    doses: Sequence[Dose],
    names: Sequence[str],
    seed: int = 0,
    shown: Callable = lambda dose: None,
) -> dict[str, Any]:
    """Figures without a mask and for every dose. `seed` draws examples and random masks. Raises ValueError."""
    before = session.figures(torch.zeros_like(session.bottleneck.masked), classes)
    forgotten = torch.isin(session.test.labels, torch.tensor(list(classes)))
    rows = []
    for dose in doses:
        shown(dose)
        rows.append(_row(session, classes, dose, names, seed))
    return {
        "forget": [names[c] for c in classes],
        "images": {"forget": int(forgotten.sum()), "retain": int((~forgotten).sum())},
        "goal": {"forget": FORGET_GOAL, "retain_loss": RETAIN_LOSS},
        "before": _said(before, names),
        "doses": rows,
        "smallest": smallest(rows),
    }


def smallest(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the fewest pairs that forgets as FORGET_GOAL says; None if none does."""
    enough = [row for row in rows if row["forget_accuracy"] is not None and row["forget_accuracy"] <= FORGET_GOAL]
    return min(enough, key=lambda row: row["pairs"], default=None)


def random_masks(
    session: MaskSession, mask: Tensor, classes: Sequence[int], seed: int, masks: int = RANDOM_MASKS
) -> dict[str, Any]:
    """So many masks of as many pairs in use: mean, lowest and highest accuracies."""
    draws = range(seed, seed + masks)
    allowed = session.bottleneck.allowed
    found = [session.figures(edit.random_mask(mask, allowed, number), classes) for number in draws]
    return {"masks": len(found)} | {
        f"{side}_accuracy": _spread([getattr(one, side) for one in found]) for side in ("forget", "retain")
    }


def _row(session: MaskSession, classes: Sequence[int], dose: Dose, names: Sequence[str], seed: int) -> dict[str, Any]:
    mask = session.forget(classes, dose, seed)
    pairs = int(mask.sum())
    said: dict[str, Any] = {"method": dose.method, "share": dose.share, "examples": dose.examples, "pairs": pairs}
    said["of_pairs_in_use"] = pairs / int(session.bottleneck.allowed.sum())
    said |= _said(session.figures(mask, classes), names)
    return said | {"random": random_masks(session, mask, classes, seed)}


def _said(found: Figures, names: Sequence[str]) -> dict[str, Any]:
    by_class = {name: None if math.isnan(value) else value for name, value in zip(names, found.by_class)}
    return {
        "forget_accuracy": found.forget,
        "retain_accuracy": found.retain,
        "abstained": found.abstained,
        "by_class": by_class,
    }


def _spread(values: list[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": sum(known) / len(known), "lowest": min(known), "highest": max(known)}

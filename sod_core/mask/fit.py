"""A bottleneck fitted to features: projections drawn, keys fitted without labels, values counted or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..sparse import key_fitting, pair_values
from ..sparse.bottleneck import Bottleneck, make_projection, nearest
from ..sparse.key_fitting import Fitting
from ..sparse.pair_values import Descent
from . import edit
from .session import Images

VALUES = ("counts", "sgd")


@dataclass(frozen=True)
class Plan:
    """How large a bottleneck is and how it is made. The sizes are those of the embedded pack."""

    codebooks: int = 64
    pairs: int = 256
    """Of a codebook: about a twelfth of the training images, as published, or somewhat fewer."""
    key_width: int = 14
    values: str = "counts"
    """One of VALUES."""
    without: tuple[int, ...] = ()
    """Classes whose images take no part in fitting the keys. The values are always made on all training images."""
    reference: bool = False
    """Keys by the released code's rule."""
    key_epochs: int = 10
    epochs: int = 100
    """Of values by SGD."""
    seed: int = 0
    about: dict[str, str] = field(default_factory=dict)

    def check(self, images: Images) -> None:
        """Raises ValueError in one sentence."""
        if min(self.codebooks, self.pairs, self.key_width, self.key_epochs, self.epochs) < 1:
            raise ValueError("a bottleneck needs codebooks, pairs, a key width and epochs above 0")
        if self.values not in VALUES:
            raise ValueError(f"values {self.values!r} are unknown: take one of {', '.join(VALUES)}")
        known = images.labels.unique().tolist()
        if len(known) < 2:
            raise ValueError("the training images are all of one class: there is nothing to tell apart")
        if not set(known) - set(self.without):
            raise ValueError("the keys need images: at least one class has to take part in fitting them")


def fit(train: Images, classes: int, plan: Plan, shown: Callable = lambda part, step: None) -> Bottleneck:
    """The bottleneck of training images. `shown(part, step)` tells how far it is. Raises ValueError.

    Projections and keys are rounded to half precision before anything is chosen by them, so that their file is small.
    """
    plan.check(train)
    features = train.features.float()
    projection = make_projection(plan.codebooks, features.shape[1], plan.key_width, plan.seed).half().float()
    kept = ~torch.isin(train.labels, torch.tensor(plan.without, dtype=torch.long))
    how = Fitting(pairs=plan.pairs, epochs=plan.key_epochs, seed=plan.seed)
    keys = key_fitting.fit(features[kept], projection, how, plan.reference, lambda c: shown("keys", c))
    if not keys.half().isfinite().all():
        raise ValueError("the keys go beyond half precision: scale the features down, or whiten them")
    shape = (plan.codebooks, plan.pairs)
    blank = Bottleneck(
        projection,
        keys.half().float(),
        torch.zeros(*shape, classes),
        used=torch.ones(shape, dtype=torch.bool),
        masked=torch.zeros(shape, dtype=torch.bool),
        about=plan.about | _about(plan),
    )
    chosen = nearest(blank, features, 1).long()
    return replace(blank, **_values(chosen, train.labels, classes, plan, shown))


def _values(chosen: Tensor, labels: Tensor, classes: int, plan: Plan, shown: Callable) -> dict[str, Any]:
    if plan.values == "counts":
        counts = pair_values.count(chosen, labels, plan.pairs, classes)
        return {"counts": counts, "values": pair_values.of_counts(counts), "used": counts.sum(-1) > 0}
    how = Descent(epochs=plan.epochs, seed=plan.seed)
    values = pair_values.descend(chosen, labels, plan.pairs, classes, how, lambda epoch: shown("values", epoch))
    return {"values": values, "used": edit.touched(chosen, plan.pairs) > 0}


def _about(plan: Plan) -> dict[str, str]:
    return {
        "keys_without": " ".join(map(str, plan.without)),
        "key_rule": "reference" if plan.reference else "ema",
        "key_epochs": str(plan.key_epochs),
        "values": plan.values if plan.values == "counts" else f"sgd, {plan.epochs} epochs",
        "seed": str(plan.seed),
    }

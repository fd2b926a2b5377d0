"""The numbers an evaluation ends in: R with its interval, the verdict, the linear probe. No models in here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SUPPRESSED, DELETED = 0.5, 0.1
"""Margin (see `Margin`): from 0.5 on "suppressed", below 0.1 "deleted", between them "partly". Margin of the readout
over the retrained model's: from 0.5 on the class is still in the hidden state. R of an edit below 0.1: it restores
nothing."""
SMALLEST_DROP = 0.05
"""R is not defined where unlearning cost the class less accuracy than this."""
RESAMPLES, CONFIDENCE = 1000, 0.95
"""Of the bootstrap over the class's images."""
PROBE_FOLDS = 2
FEW = 30
"""Fewer images of the class than this make a verdict that comes with a warning."""
SUPPRESSED_AFTER, CANNOT_TELL = "suppressed after this layer", "cannot tell at this layer"
UNDECIDED = "undecided"
"""Opens the verdict where the margin's interval reaches over a threshold; how many images there were follows."""


class Score(NamedTuple):
    """R of one edit; all None where unlearning took nothing away, or what it took shows in no resample."""

    value: float | None
    low: float | None
    high: float | None
    """The bootstrap interval."""
    alpha: float | None
    """The smallest alpha that restores most."""


class Margin(NamedTuple):
    """The experts' R less the better of the two random controls', less what the same is in a retrained model.

    All None where R is not defined.
    """

    value: float | None
    low: float | None
    """Of the bootstrap interval. None where so many resamples leave R undefined that there is no lower end..."""
    high: float | None
    """...and no upper one."""
    yardstick: float | None
    """What was taken off for the other models that were retrained without the class: the largest of their own margins,
    at least 0. None where there are none, and 0 is taken off."""


class Drawn(NamedTuple):
    """R of one edit, and of every resample of the class's images; NaN where it is not defined."""

    value: float | None
    resamples: np.ndarray
    """[RESAMPLES]."""


def restoration(original: float, unlearned: float, restored: float) -> float | None:
    """R = (restored - unlearned) / (original - unlearned) on the class (Suppression or Deletion).

    None where unlearning cost less than SMALLEST_DROP.
    """
    drop = original - unlearned
    return None if drop < SMALLEST_DROP else (restored - unlearned) / drop


def score(original: np.ndarray, unlearned: np.ndarray, restored: np.ndarray, alphas: list[float], seed: int) -> Score:
    """R at the alpha that suits the edit best, and its interval.

    original, unlearned [n], restored [S, A, n], bool: whether each image of the class is named rightly; S seeds of a
    random edit (each at its own best alpha, then averaged), or 1. The interval is the bootstrap's over images: every
    resample takes all three from the same images and looks for the best alpha again.
    """
    value, found = draw(original, unlearned, restored, seed)
    defined = found[~np.isnan(found)]
    if value is None or not len(defined):
        return Score(None, None, None, None)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    alpha = alphas[int(restored.mean((0, 2)).argmax())]
    return Score(value, float(low), float(high), alpha)


def draw(original: np.ndarray, unlearned: np.ndarray, restored: np.ndarray, seed: int) -> Drawn:
    """R as in `score`, and that of each resample: the same images for the same seed and as many images."""
    value = _best(original.mean(), unlearned.mean(), restored.mean(2))
    size = len(original)
    rows = np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))
    times = np.zeros((size, RESAMPLES))  # that a resample has each image
    for number, row in enumerate(rows):
        times[:, number] = np.bincount(row, minlength=size)
    accuracies = (original @ times / size, unlearned @ times / size, np.moveaxis(restored @ times / size, 2, 0))
    found = [_best(*one) for one in zip(*accuracies)]
    return Drawn(value, np.array([np.nan if one is None else one for one in found]))


def margin(drawn: dict[str, Drawn], retrained: list[Margined]) -> Margin:
    """Of one model. `drawn`: R of its experts, random and matched features; `retrained`: of the other retrained models.

    A resample in which the class lost too little for R to be defined says nothing of the margin: it counts as lying
    below the lower end as well as above the upper one, so that near that threshold no verdict is certain.
    """
    mine = margined(drawn)
    if mine is None:
        return Margin(None, None, None, None)
    taken = max((max(0.0, other.value) for other in retrained), default=None)
    found = mine.resamples
    if retrained:
        others = np.nan_to_num(np.stack([other.resamples for other in retrained])).max(0)
        found = found - np.maximum(others, 0)
    tail = 100 * (1 - CONFIDENCE) / 2
    low = np.percentile(np.where(np.isnan(found), -np.inf, found), tail, method="lower")
    high = np.percentile(np.where(np.isnan(found), np.inf, found), 100 - tail, method="higher")
    first, last = (float(end) if np.isfinite(end) else None for end in (low, high))
    return Margin(mine.value - (taken or 0.0), first, last, taken)


class Margined(NamedTuple):
    """The experts' R less the better random control's, of one model alone."""

    value: float
    resamples: np.ndarray
    """[RESAMPLES], NaN where R is not defined."""


def margined(drawn: dict[str, Drawn]) -> Margined | None:
    """None where R is not defined."""
    experts, random, matched = (drawn[name] for name in ("experts", "random", "matched"))
    if experts.value is None or random.value is None or matched.value is None:
        return None
    chance = np.maximum(random.resamples, matched.resamples)
    return Margined(experts.value - max(random.value, matched.value), experts.resamples - chance)


def _best(original: float, unlearned: float, restored: np.ndarray) -> float | None:
    """restored [S, A]: accuracies."""
    found = restoration(float(original), float(unlearned), float(restored.max(1).mean()))
    return None if found is None else float(found)


def readout(named: np.ndarray, labels: np.ndarray, target: int) -> float:
    """How well the original's later blocks find the class in the unlearned model's hidden state, -1 to 1; chance is 0.

    named [n]: what they name each image's state; labels [n]. Share of the class's images that they name rightly, less
    the share of the others that they take for the class.
    """
    members = labels == target
    return float((named[members] == target).mean() - (named[~members] == target).mean())


def verdict(r: dict[str, float | None], margin: Margin, readout: float, yardstick: float, images: int) -> str:
    """What the margin says, where its whole interval says the same; else what the hidden state still holds.

    `r`: of the experts and of every control; `readout` of the model, `yardstick` that of a model retrained without the
    class, 0 where there is none; `images` of the class. A state in which the original's own tail finds the class has
    lost nothing that an edit could put back: later layers hide it. Where neither that is so nor any edit restores
    anything, an edit at this layer shows nothing; nor does one where random features bring the class back as the
    experts do (`direct_injection` copies CLS whatever the features are).
    """
    experts, shown = r["experts"], {name: value for name, value in r.items() if value is not None}
    if experts is None or margin.value is None:
        return "not forgotten"
    low = -np.inf if margin.low is None else margin.low
    high = np.inf if margin.high is None else margin.high
    if low >= SUPPRESSED:
        return "suppressed"
    if readout - max(0.0, yardstick) >= SUPPRESSED:
        return SUPPRESSED_AFTER
    if low >= DELETED and high < SUPPRESSED:
        return "partly"
    alone = experts - max(shown["random"], shown["matched"])
    silent, unspecific = max(shown.values()) < DELETED, experts >= DELETED > alone
    if silent or unspecific:
        return CANNOT_TELL
    return "deleted" if high < DELETED else f"{UNDECIDED}, {images} images"


def probe(cls: Tensor, labels: Tensor, target: int) -> float | None:
    """Balanced accuracy, 0.5 to 1, of a linear classifier that reads "is it the class" in CLS tokens.

    cls [n, D] of one layer; labels [n]. Logistic regression on standardised tokens (both sides weigh a half, L2 of
    1e-3), trained on a random half of the images (always the same one) and tested on the other, and the other way
    round. None for fewer than two images of the class, or of the others, in a half, and for tokens that are not numbers
    or too large to be standardised.
    """
    wanted = (labels == target).float()
    halves = _halves(wanted)
    if min(int((wanted[half] == kind).sum()) for half in halves for kind in (0, 1)) < 2:
        return None
    found = []
    for train, test in (halves, halves[::-1]):
        mean, std = cls[train].mean(0), cls[train].std(0).clamp(min=1e-6)
        standard = (cls - mean) / std
        if not standard.isfinite().all():
            return None
        scores = _fit(standard[train], wanted[train])(standard[test])
        said = scores > 0
        hits = [(said[wanted[test] == kind] == bool(kind)).float().mean().item() for kind in (0, 1)]
        found.append(sum(hits) / 2)
    return sum(found) / len(found)


def _halves(wanted: Tensor) -> list[Tensor]:
    """Half of the class's images and half of the rest, at random: a test set may have its styles in turn."""
    generator = torch.Generator().manual_seed(0)
    sides = [(wanted == kind).nonzero().flatten() for kind in (1, 0)]
    order = torch.cat([side[torch.randperm(len(side), generator=generator)] for side in sides])
    return [order[0::PROBE_FOLDS], order[1::PROBE_FOLDS]]


def _fit(x: Tensor, y: Tensor):
    """Weighted logistic regression by L-BFGS; gives the function x -> logits."""
    weight = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    with torch.inference_mode(False), torch.enable_grad():
        x, y, weight = x.clone(), y.clone(), weight.clone()
        coefficients = torch.zeros(x.shape[1] + 1, requires_grad=True)
        optimiser = torch.optim.LBFGS([coefficients], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            logits = x @ coefficients[1:] + coefficients[0]
            value = F.binary_cross_entropy_with_logits(logits, y, weight) + 1e-3 * coefficients[1:].square().sum()
            value.backward()
            return value

        optimiser.step(loss)
        found = coefficients.detach()
    return lambda test: test @ found[1:] + found[0]

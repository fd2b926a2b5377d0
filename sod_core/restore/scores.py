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
nothing. Each where the whole interval says so."""
SMALLEST_DROP = 0.05
"""R is not defined where unlearning cost the class less accuracy than this."""
RESAMPLES, CONFIDENCE = 1000, 0.95
"""Of the bootstrap over the class's images."""
TAIL = 100 * (1 - CONFIDENCE) / 2
"""Per cent of the resamples beyond either end of an interval."""
PROBE_FOLDS = 2
FEW = 30
"""Fewer images of the class than this make a verdict that comes with a warning."""
SUPPRESSED_AFTER, CANNOT_TELL = "suppressed after this layer", "cannot tell at this layer"
UNDECIDED = "undecided"
"""Opens the verdict where an interval reaches over a threshold; how many images there were follows."""


class Score(NamedTuple):
    """R of one edit; all None where unlearning took nothing away, or what it took shows in no resample."""

    value: float | None
    low: float | None
    high: float | None
    """The bootstrap interval."""
    alpha: float | None
    """The smallest alpha that restores most."""


class Margin(NamedTuple):
    """By how much a model exceeds those retrained without the class: in what the experts restore more than the two
    random controls do (`margin`; all None where R is not defined), or in the readout (`readout_margin`).
    """

    value: float | None
    low: float | None
    """Of the bootstrap interval. None where so many resamples leave R undefined that there is no lower end..."""
    high: float | None
    """...and no upper one."""
    yardstick: float | None
    """What was taken off for the other models that were retrained without the class: the largest of their own, at
    least 0. None where there are none, and 0 is taken off."""


class Drawn(NamedTuple):
    """A figure, such as R of one edit, and the same of every resample of the images; NaN where it is not defined."""

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
    """R at the alpha that suits the edit best, and its interval: of what `draw` finds."""
    return scored(draw(original, unlearned, restored, seed), restored, alphas)


def scored(drawn: Drawn, restored: np.ndarray, alphas: list[float]) -> Score:
    """Of an edit that is drawn already, `restored` as there. The interval is of the resamples that have an R."""
    defined = drawn.resamples[~np.isnan(drawn.resamples)]
    if drawn.value is None or not len(defined):
        return Score(None, None, None, None)
    low, high = np.percentile(defined, [TAIL, 100 - TAIL])
    return Score(drawn.value, float(low), float(high), alphas[int(restored.mean((0, 2)).argmax())])


def draw(original: np.ndarray, unlearned: np.ndarray, restored: np.ndarray, seed: int) -> Drawn:
    """R at the alpha that suits the edit best, of all images of the class and of every resample.

    original, unlearned [n], restored [S, A, n], bool: whether each image of the class is named rightly; S seeds of a
    random edit (each at its own best alpha, then averaged), or 1. Every resample takes all three from the same images,
    the same for the same seed and as many images, and looks for the best alpha again.
    """
    value = _best(original.mean(), unlearned.mean(), restored.mean(2))
    size = len(original)
    times = _times(size, np.random.default_rng(seed))
    accuracies = (original @ times / size, unlearned @ times / size, np.moveaxis(restored @ times / size, 2, 0))
    found = [_best(*one) for one in zip(*accuracies)]
    return Drawn(value, np.array([np.nan if one is None else one for one in found]))


def _times(size: int, rng: np.random.Generator) -> np.ndarray:
    """[size, RESAMPLES]: how often each resample of `size` images has each of them."""
    times = np.zeros((size, RESAMPLES))
    for number, row in enumerate(rng.integers(0, size, (RESAMPLES, size))):
        times[:, number] = np.bincount(row, minlength=size)
    return times


def margin(drawn: dict[str, Drawn], retrained: list[Margined]) -> Margin:
    """Of one model. `drawn`: R of its experts, random and matched features; `retrained`: of the other retrained models.

    A resample in which the class lost too little for R to be defined says nothing of the margin: it counts as lying
    below the lower end as well as above the upper one, so that near that threshold no verdict is certain.
    """
    mine = margined(drawn)
    return Margin(None, None, None, None) if mine is None else _above(mine, retrained)


def readout_margin(of: Margined, retrained: list[Margined]) -> Margin:
    """A model's readout (`draw_readout`) less the largest of the other retrained models', at least 0."""
    return _above(of, retrained)


def _above(mine: Margined, retrained: list[Margined]) -> Margin:
    taken = max((max(0.0, other.value) for other in retrained), default=None)
    found = mine.resamples
    if retrained:
        others = np.nan_to_num(np.stack([other.resamples for other in retrained])).max(0)
        found = found - np.maximum(others, 0)
    low = np.percentile(np.where(np.isnan(found), -np.inf, found), TAIL, method="lower")
    high = np.percentile(np.where(np.isnan(found), np.inf, found), 100 - TAIL, method="higher")
    first, last = (float(end) if np.isfinite(end) else None for end in (low, high))
    return Margin(mine.value - (taken or 0.0), first, last, taken)


class Margined(NamedTuple):
    """What a margin is made of, of one model alone: the experts' R less the better random control's, or the readout."""

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


def draw_readout(named: np.ndarray, labels: np.ndarray, target: int, seed: int) -> Margined:
    """`readout`, and that of every resample: of the class's images and, apart, of the others."""
    members = labels == target
    rng = np.random.default_rng(seed)
    hits, taken = named[members] == target, named[~members] == target
    resamples = hits @ _times(len(hits), rng) / len(hits) - taken @ _times(len(taken), rng) / len(taken)
    return Margined(readout(named, labels, target), resamples)


def verdict(r: dict[str, Score], margin: Margin, readout: Margin, images: int) -> str:
    """What the margin says, where its whole interval says the same; else what the hidden state still holds.

    `r`: of the experts and of every control; `margin` of the experts' R, `readout` that of the readout; `images` of the
    class. A state in which the original's own tail finds the class has lost nothing that an edit could put back: later
    layers hide it. Where neither that is so nor any edit restores anything, an edit at this layer shows nothing;
    nor does one where random features bring the class back as the experts do (`direct_injection` copies CLS whatever
    the features are).
    """
    experts, random, matched = (r[name].value for name in ("experts", "random", "matched"))
    if experts is None or random is None or matched is None or margin.value is None:
        return "not forgotten"
    low, high = _ends(margin)
    holds_low, holds_high = _ends(readout)
    if low >= SUPPRESSED:
        return "suppressed"
    if holds_low >= SUPPRESSED:
        return SUPPRESSED_AFTER
    if holds_high < SUPPRESSED:
        if low >= DELETED and high < SUPPRESSED:
            return "partly"
        ends = [(score.low, score.high) for score in r.values() if score.low is not None and score.high is not None]
        silent = all(last < DELETED for _, last in ends)
        unspecific = experts >= DELETED > experts - max(random, matched)
        if silent or unspecific:
            return CANNOT_TELL
        if high < DELETED and any(first >= DELETED for first, _ in ends):
            return "deleted"
    return f"{UNDECIDED}, {images} images"


def _ends(of: Margin) -> tuple[float, float]:
    """An end that is not known is as far out as can be."""
    return -np.inf if of.low is None else of.low, np.inf if of.high is None else of.high


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

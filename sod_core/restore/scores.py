"""The numbers an evaluation ends in: R with its interval, the verdict, the linear probe. No models in here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SUPPRESSED, DELETED = 0.5, 0.1
"""Margin of the experts' R over the better of the two random controls: from 0.5 on "suppressed", below 0.1
"deleted", between them "partly". Margin of the readout over the retrained model's: from 0.5 on the class is still in
the hidden state. R of an edit below 0.1: it restores nothing."""
SMALLEST_DROP = 0.05
"""R is not defined where unlearning cost the class less accuracy than this."""
RESAMPLES, CONFIDENCE = 1000, 0.95
"""Of the bootstrap over the class's images."""
PROBE_FOLDS = 2
FEW = 30
"""Fewer images of the class than this make a verdict that comes with a warning."""
SUPPRESSED_AFTER, CANNOT_TELL = "suppressed after this layer", "cannot tell at this layer"


class Score(NamedTuple):
    """R of one edit; all None where unlearning took nothing away, or what it took shows in no resample."""

    value: float | None
    low: float | None
    high: float | None
    """The bootstrap interval."""
    alpha: float | None
    """The smallest alpha that restores most."""


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
    value = _best(original.mean(), unlearned.mean(), restored.mean(2))
    if value is None:
        return Score(None, None, None, None)
    size = len(original)
    rows = np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))
    times = np.zeros((size, RESAMPLES))  # that a resample has each image
    for number, row in enumerate(rows):
        times[:, number] = np.bincount(row, minlength=size)
    accuracies = (original @ times / size, unlearned @ times / size, np.moveaxis(restored @ times / size, 2, 0))
    drawn = [found for one in zip(*accuracies) if (found := _best(*one)) is not None]
    if not drawn:
        return Score(None, None, None, None)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    alpha = alphas[int(restored.mean((0, 2)).argmax())]
    return Score(value, float(low), float(high), alpha)


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


def verdict(r: dict[str, float | None], readout: float, yardstick: float) -> str:
    """What R of the "experts" and of every control says; where they are silent, what the hidden state still holds.

    `readout` of the model, `yardstick` that of a model retrained without the class, 0 where there is none. A state in
    which the original's own tail finds the class has lost nothing that an edit could put back: later layers hide it.
    Where neither that is so nor any edit restores anything, an edit at this layer shows nothing; nor does one where
    random features bring the class back as the experts do (`direct_injection` copies CLS whatever the features are).
    """
    experts, shown = r["experts"], {name: value for name, value in r.items() if value is not None}
    if experts is None:
        return "not forgotten"
    margin = experts - max(shown["random"], shown["matched"])
    if margin >= SUPPRESSED:
        return "suppressed"
    if readout - max(0.0, yardstick) >= SUPPRESSED:
        return SUPPRESSED_AFTER
    if margin >= DELETED:
        return "partly"
    silent, unspecific = max(shown.values()) < DELETED, experts >= DELETED
    return CANNOT_TELL if silent or unspecific else "deleted"


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

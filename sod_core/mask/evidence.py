"""Ways by which a forgotten class may still come out of a bottleneck; one function each, on tensors.

What the figures mean together is said in `verdicts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..sparse import pair_values
from ..sparse.bottleneck import Bottleneck, vote
from . import edit, probe
from .session import Images, MaskSession
from .states import View

SMOOTHING = 1.0
"""Added to every count of the naive Bayes probe."""


class Named(NamedTuple):
    """Which class a set of pairs points at."""

    cosine: float
    """Of the prototype made from the pairs with the class's own, both less what all classes have in common."""
    auc: float
    """Test images of the class against all others, by their features' product with the prototype."""
    rank: int
    """The class's place among all when their means are ordered by that product; 1 is the first."""


class Certainty(NamedTuple):
    confidence: float
    """Mean of the largest probability."""
    entropy: float
    """Mean, in nats."""


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: how often a positive scores higher than another, ties half. scores [N], positive [N]
    bool. Raises ValueError without both kinds."""
    ours, others = scores[positive].double(), scores[~positive].double()
    if not len(ours) or not len(others):
        raise ValueError("an area under the curve needs images of both kinds")
    others = others.sort().values
    below = torch.searchsorted(others, ours)
    up_to = torch.searchsorted(others, ours, right=True)
    return ((below + up_to).double().mean() / (2 * len(others))).item()


def output_leak(view: View, train: Tensor, test: Tensor, silenced: Sequence[int] = ()) -> float:
    """AUC of a logistic regression that reads the forgotten class off the logits.

    train, test [N] bool: whether an image is of the class. Fitted on the training images' logits, judged on the test
    images'; logits at minus infinity are left out.
    """
    kept = [index for index in range(view.train_logits.shape[1]) if index not in silenced]
    logits = view.train_logits[:, kept]
    weight = probe.fit_linear(Images(logits, train.long()))
    scores = probe.standardised(logits, view.test_logits[:, kept]) @ weight
    return auc(scores[:, 1] - scores[:, 0], test)


def selection_leak(view: View, pairs: int, train: Tensor, test: Tensor) -> float:
    """AUC of naive Bayes on the chosen pairs: sum over codebooks of log P(pair | class) - log P(pair | other).

    Counted on the training images, judged on the test images. train, test [N] bool. A codebook that abstains says
    nothing.
    """
    log = []
    for rows in (train, ~train):
        counts = edit.touched(view.train_chosen[rows], pairs).double() + SMOOTHING
        log.append((counts / counts.sum(1, keepdim=True)).log())
    odds = (log[0] - log[1]).float()[..., None]
    return auc(vote(view.test_chosen, odds)[:, 0], test)


def prototype(bottleneck: Bottleneck, pairs: Tensor) -> Tensor | None:
    """The direction [M] in the encoder's output that a set of pairs [C, J] points at, from projection and keys alone.

    In every codebook that has some of them and some others: the mean of their keys less the mean of all keys. Those
    are what the direction's projections should be; least squares over the codebooks. None where no codebook says
    anything.
    """
    rows, aims = [], []
    for c in range(bottleneck.codebooks):
        mine = pairs[c]
        if mine.any() and not mine.all():
            rows.append(bottleneck.projection[c].T)
            aims.append(bottleneck.keys[c][mine].mean(0) - bottleneck.keys[c].mean(0))
    if not rows:
        return None
    matrix, aim = torch.cat(rows).double(), torch.cat(aims).double()
    return torch.linalg.lstsq(matrix, aim[:, None], driver="gelsd").solution[:, 0].float()


def names_class(view: View, test: Images, classes: Sequence[int]) -> Named | None:
    """What the pairs that the file shows as forbidden, out of use or silent say of the class. None: there are none."""
    return named_by(prototype(view.bottleneck, view.silent), test, classes)


def named_by(direction: Tensor | None, test: Images, classes: Sequence[int]) -> Named | None:
    """How well a direction [M] points at the class, by the test images. None for none."""
    if direction is None:
        return None
    features = test.features.float()
    scores = class_scores(direction, test)
    mine = torch.isin(test.labels, torch.tensor(list(classes)))
    names = [name for name in scores if name not in classes]
    own = features[mine].mean(0)
    rank = 1 + sum(scores[name] > (own @ direction).item() for name in names)
    means = torch.stack([features[test.labels == name].mean(0) for name in names])
    centre = torch.cat([means, own[None]]).mean(0)
    cosine = functional.cosine_similarity(direction, own - centre, dim=0).item()
    return Named(cosine, auc(features @ direction, mine), rank)


def class_scores(direction: Tensor, test: Images) -> dict[int, float]:
    """The product of a direction [M] with the mean of each class's test images."""
    features = test.features.float()
    return {c: (features[test.labels == c].mean(0) @ direction).item() for c in test.labels.unique().tolist()}


def certainty(logits: Tensor, scale: float) -> Certainty:
    """Of softmax(scale * logits). [N, V]; minus infinity has no probability."""
    probabilities = (scale * logits).softmax(1)
    entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(1)
    return Certainty(probabilities.amax(1).mean().item(), entropy.mean().item())


def scale_of(logits: Tensor, labels: Tensor) -> float:
    """The factor on the logits with the smallest cross-entropy: counted votes have no scale of their own."""
    normal = logits / logits.abs().max().clamp(min=1e-12)
    log = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = functional.cross_entropy(normal * log.exp(), labels)
        found.backward()
        return found

    optimizer.step(loss)
    return (log.detach().exp() / logits.abs().max().clamp(min=1e-12)).item()


def agreement(logits: Tensor, others: Tensor) -> float:
    """Share of images that two states call by the same name. Both [N, V]."""
    return (logits.argmax(1) == others.argmax(1)).double().mean().item()


def relearned(
    session: MaskSession, view: View, classes: Sequence[int], images: int, seed: int, unit: float = 1.0
) -> tuple[float, float]:
    """Forget and retain accuracy after `images` training images of each forgotten class were counted again.

    Values only, and the mask stays: the images add n_cjy - n_cj / V to the values, as in counting, times `unit`
    (`unit_of`). Pairs that nobody uses may be chosen, unless they are forbidden: whoever learns again may use them.
    Raises ValueError where a class has fewer training images.
    """
    open_again = replace(view.bottleneck, used=torch.ones_like(view.bottleneck.used))
    added = torch.zeros_like(open_again.values)
    for c in classes:
        rows = (session.train.labels == c).nonzero()[:, 0]
        if not 1 <= images <= len(rows):
            raise ValueError(f"{images} images of a class with {len(rows)} training images cannot be learned again")
        drawn = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:images]]
        chosen = open_again.select(session.train.features[drawn], session.train_nearest[drawn]).chosen
        counts = pair_values.count(chosen, session.train.labels[drawn], open_again.pairs, open_again.classes)
        added += pair_values.of_counts(counts)
    learned = replace(open_again, values=view.bottleneck.values + unit * added)
    used = view.bottleneck.used | added.any(-1)
    learned = replace(learned, used=used)
    found = session.figures_of(learned, classes)
    return found.forget or 0.0, found.retain or 0.0


def unit_of(view: View, labels: Tensor) -> float:
    """What one count is worth in the values: 1 for counted ones, else the factor of a least-squares fit to counts."""
    b = view.bottleneck
    if b.counts is not None:
        return 1.0
    counted = pair_values.of_counts(pair_values.count(view.train_chosen, labels, b.pairs, b.classes))
    return ((counted * b.values).sum() / counted.square().sum()).item()


class Overlap(NamedTuple):
    """Which pairs the classes share."""

    shared: Tensor
    """[V, V]: sum over pairs of the smaller of both classes' shares of selections; 1 on the diagonal."""
    purity: Tensor
    """[V]: of the pairs that a class's images choose, the share of choosers that are of the class, on average."""
    exclusive: Tensor
    """[V]: of the pairs that a class touches, the share that no other class touches."""


def overlap(chosen: Tensor, labels: Tensor, pairs: int, classes: int) -> Overlap:
    """Of training images: chosen [N, C, k], labels [N].

    That classes have pairs of their own is what the paper's argument rests on.
    """
    counts = pair_values.count(chosen, labels, pairs, classes).flatten(0, 1).double()
    shares = counts / counts.sum(0).clamp(min=1)
    shared = torch.stack([torch.minimum(shares, shares[:, [c]]).sum(0) for c in range(classes)])
    whole = counts.sum(1, keepdim=True).clamp(min=1)
    purity = (shares * (counts / whole)).sum(0)
    touched = counts > 0
    alone = touched & (touched.sum(1, keepdim=True) == 1)
    return Overlap(shared, purity, alone.sum(0) / touched.sum(0).clamp(min=1))

"""One bottleneck and its images: the nearest pairs found once, and then any mask on the whole test set at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..sparse.bottleneck import NEAREST, Bottleneck, nearest, vote
from . import edit

KEPT = 48 << 20
"""Bytes for the nearest pairs of the training or of the test images, at 2 a pair; NEAREST of each in any case."""
METHODS = ("activations", "examples", "enrichment")


class Images(NamedTuple):
    """What an encoder made of images, with what is on them."""

    features: Tensor
    """[N, M]."""
    labels: Tensor
    """[N], their classes."""
    styles: Tensor | None = None
    """[N]; None where there are none."""


@dataclass(frozen=True)
class Dose:
    """How a class is forgotten, and how much of it. One of share, pairs and examples says how much."""

    method: str = "activations"
    """One of METHODS."""
    share: float | None = None
    """Of the pairs that the forget set touches, by "activations" and "enrichment"."""
    pairs: int | None = None
    """N_a, in place of a share."""
    examples: int | None = None
    """N_e, by "examples"."""
    per_codebook: bool = False
    """N_a pairs of every codebook, not of all together."""
    style: int | None = None
    """Only the class's images in this style are the forget set."""

    def check(self) -> None:
        """Raises ValueError in one sentence."""
        if self.method not in METHODS:
            raise ValueError(f"the method {self.method!r} is unknown: take one of {', '.join(METHODS)}")
        by_examples = self.method == "examples"
        given = [name for name in ("share", "pairs", "examples") if getattr(self, name) is not None]
        if len(given) != 1 or (given == ["examples"]) != by_examples:
            wanted = "examples" if by_examples else "a share or pairs"
            raise ValueError(f"the method {self.method} takes {wanted}, and nothing else that says how much")
        if self.examples is not None and self.examples < 1:
            raise ValueError("the forget set is empty: give at least one example")


class Figures(NamedTuple):
    """What a mask does to the test set."""

    forget: float | None
    """Accuracy on the forgotten classes' images; None where there are none of them."""
    retain: float | None
    """On all others'."""
    by_class: tuple[float, ...]
    """NaN for a class without images."""
    by_style: Tensor | None
    """[V, styles], accuracy in every cell; None without styles."""
    confusion: Tensor
    """[V, V] int64: true class by what it is called."""
    abstained: float
    """Share of (image, codebook) that had no pair left to choose."""


class MaskSession:
    """Heavy once (the nearest pairs of every image), light often: a mask is a look-up."""

    def __init__(self, bottleneck: Bottleneck, train: Images, test: Images):
        """Raises ValueError for features of another width, or none at all."""
        if not len(train.labels) or not len(test.labels):
            raise ValueError("a bottleneck needs training images and test images")
        if len(train.labels.unique()) < 2:
            raise ValueError("the images are all of one class: there is nothing to keep beside it")
        self.bottleneck, self.train, self.test = bottleneck, train, test

    @cached_property
    def train_nearest(self) -> Tensor:
        return self._nearest(self.train)

    @cached_property
    def test_nearest(self) -> Tensor:
        return self._nearest(self.test)

    def _nearest(self, images: Images) -> Tensor:
        """As many as fit into KEPT: where a mask covers all of an image's, its distances are computed anew."""
        b = self.bottleneck
        depth = max(NEAREST, KEPT // (2 * b.codebooks * len(images.labels)))
        return nearest(b, images.features, min(depth, b.pairs))

    def with_bottleneck(self, bottleneck: Bottleneck) -> MaskSession:
        """The same images on other values, or another mask, of the same keys: nothing is searched for again."""
        other = MaskSession(bottleneck, self.train, self.test)
        other.train_nearest, other.test_nearest = self.train_nearest, self.test_nearest
        return other

    def forget(self, classes: Sequence[int], dose: Dose, seed: int = 0) -> Tensor:
        """The mask [C, J] that forgets the classes one after another: each chooses among what the last one left.

        `seed` draws the examples. Raises ValueError.
        """
        dose.check()
        if not classes or not all(0 <= c < self.bottleneck.classes for c in classes):
            raise ValueError(f"name the classes to forget, from 0 to {self.bottleneck.classes - 1}")
        if set(range(self.bottleneck.classes)) <= set(classes):
            raise ValueError("all classes are to be forgotten: leave at least one")
        after = self.bottleneck
        for class_index in classes:
            after = edit.forbid(after, self._one(after, class_index, dose, seed))
        return after.masked & ~self.bottleneck.masked

    def figures(self, mask: Tensor, classes: Sequence[int]) -> Figures:
        """The test set's accuracies under a mask [C, J]; `classes` are those that count as forgotten."""
        return self.figures_of(self.bottleneck.with_mask(self.bottleneck.masked | mask), classes)

    def figures_of(self, bottleneck: Bottleneck, classes: Sequence[int]) -> Figures:
        """The test set's accuracies by another bottleneck on the same keys: other values, other pairs in use."""
        selected = bottleneck.select(self.test.features, self.test_nearest)
        return figures(vote(selected.chosen, bottleneck.values), self.test, classes, selected.abstained)

    def _one(self, after: Bottleneck, class_index: int, dose: Dose, seed: int) -> Tensor:
        mine = self.train.labels == class_index
        if dose.style is not None:
            if self.train.styles is None:
                raise ValueError("these images have no styles")
            mine = mine & (self.train.styles == dose.style)
        rows = mine.nonzero()[:, 0]
        if not len(rows):
            raise ValueError(f"there are no training images of class {class_index} to forget")
        if dose.examples is not None:
            if dose.examples > len(rows):
                raise ValueError(f"{dose.examples} examples of {len(rows)} images cannot be taken")
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: dose.examples]
            return edit.by_examples(self._chosen(after, rows[drawn]), after.pairs)
        counts = edit.touched(self._chosen(after, rows), after.pairs)
        number = dose.pairs if dose.pairs is not None else edit.number_of(dose.share or 0.0, counts)
        if dose.method == "activations":
            return edit.by_activations(counts, number, dose.per_codebook)
        return edit.by_enrichment(counts, self._everything(after), number, dose.per_codebook)

    def _everything(self, after: Bottleneck) -> Tensor:
        """[C, J]: how often all training images choose each pair."""
        if after is self.bottleneck:
            return self._touched
        return edit.touched(self._chosen(after, torch.arange(len(self.train.labels))), after.pairs)

    @cached_property
    def _touched(self) -> Tensor:
        return edit.touched(self._chosen(self.bottleneck, torch.arange(len(self.train.labels))), self.bottleneck.pairs)

    def _chosen(self, bottleneck: Bottleneck, rows: Tensor) -> Tensor:
        return bottleneck.select(self.train.features[rows], self.train_nearest[rows]).chosen


def figures(logits: Tensor, images: Images, classes: Sequence[int], abstained: Tensor) -> Figures:
    """Figures of logits [N, V]. An image whose codebooks all abstain is called by no name, so it is never right."""
    called, voting = logits.argmax(1), ~abstained.all(1)
    right = (called == images.labels) & voting
    forgotten = torch.isin(images.labels, torch.tensor(list(classes)))
    count = logits.shape[1]
    cells = None
    if images.styles is not None:
        styles = int(images.styles.max()) + 1
        cells = _shares(right, images.labels * styles + images.styles, count * styles).view(count, styles)
    confusion = torch.bincount((images.labels * count + called)[voting], minlength=count * count).view(count, count)
    return Figures(
        _share(right[forgotten]),
        _share(right[~forgotten]),
        tuple(_shares(right, images.labels, count).tolist()),
        cells,
        confusion,
        abstained.float().mean().item(),
    )


def _share(right: Tensor) -> float | None:
    return right.float().mean().item() if len(right) else None


def _shares(right: Tensor, groups: Tensor, count: int) -> Tensor:
    """[count]: the share that is right in each group; NaN for an empty one."""
    return torch.bincount(groups, right.double(), count) / torch.bincount(groups, minlength=count)

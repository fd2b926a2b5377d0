"""Whether a model works at all: only of one that does is there anything to say of what it forgot. No models in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..models import head_rows

LEAST_RETAINED = 0.5
"""Share of the original's retain accuracy: a model that has less does not work, and gets no verdict."""
NO_VERDICT = "no verdict: the model does not work"
LEAST_KNOWN = 0.25
"""Of the original: with a lower accuracy on the class, or on the others, there is nothing to compare with."""
NO_ORIGINAL = "no verdict: the original does not know these images"
ONE_CLASS, ONE_CLASS_TRUE = 0.95, 0.8
"""A model that names one class on at least the first share of the others' images, of which less than the second show
it, does not work, however many are right by that."""
OTHER_ORDER = "no verdict: its outputs seem to be in another order"
CANNOT_SCORE = "cannot be scored"
"""Opens the verdict of a model without figures; why follows a colon."""
RENAMED, CLEARLY = 0.8, 0.05
"""Another order of the outputs is offered where it names at least so many of the images rightly, and so many more than
the order at hand."""
IMAGES_A_CLASS = 3
"""Fewer images of a class do not tell which output stands for it."""
CAUSES = (
    "Usual causes: its classes are in another order, its weights are quantised and were read without their scales, it "
    "wants its images normalised otherwise, or the file is damaged"
)


def works(original: float | None, unlearned: float | None) -> bool:
    """Whether a model still knows what it was not told to forget, by its retain accuracy and the original's (shares).

    Where one was not measured nothing speaks against it.
    """
    return original is None or unlearned is None or unlearned >= LEAST_RETAINED * original


def not_numbers(model: str) -> str:
    """The sentence for a model ("the unlearned model") whose outputs are NaN or infinite."""
    return (
        f"the outputs of {model} are not numbers (NaN or infinite): its training diverged, or its file is damaged or "
        "was read as something else"
    )


def known(original: float, retain_original: float) -> bool:
    """Whether the original knows the forgotten class and the others, by its accuracies (shares) on both."""
    return min(original, retain_original) >= LEAST_KNOWN


def unknown_line(original: float, retain_original: float) -> str:
    """What is said where it does not."""
    return (
        f"the original itself names {original:.1%} of the class's images rightly and {retain_original:.1%} of the "
        "others: either the images or their classes are not what the pack's models were made for, or they are "
        "normalised otherwise."
    )


class Renamed(NamedTuple):
    """Another order of a model's outputs, in which what it names is right."""

    order: list[int]
    """[classes]: the class that each output stands for."""
    accuracy: float
    """In that order, on the images that it was found on."""


def renamed(named: np.ndarray, labels: np.ndarray, target: int | None, classes: int) -> Renamed | None:
    """The order of a model's outputs that explains best what it names; None where its own does about as well.

    named, labels [n]: the outputs named (below 0 for none) and the true classes. The order is found on the images of
    other classes than `target`, the forgotten one (None: not known), and has to be the better one on all of them: the
    outputs of a healthy unlearned model, which names the others rightly and the forgotten class anyhow, are in order.
    None also where the best order is right on less than RENAMED of the others, and where more than one class has no
    images that tell: the one that is left has the output that is left.
    """
    import networkx

    others = np.ones(len(labels), bool) if target is None else labels != target
    counts = np.zeros((classes, classes), int)  # [output, class]
    told = others & (named >= 0) & (np.bincount(labels, minlength=classes) >= IMAGES_A_CLASS)[labels]
    np.add.at(counts, (named[told], labels[told]), 1)
    if counts.max(0).sum() < RENAMED * others.sum():  # no order is right on more
        return None
    graph = networkx.Graph()
    for output, label in np.argwhere(counts):
        graph.add_edge(int(output), classes + int(label), weight=int(counts[output, label]))
    pairs = [sorted(pair) for pair in networkx.max_weight_matching(graph)]
    order = {output: label - classes for output, label in pairs}
    if len(order) < classes - 1:
        return None
    for output in set(range(classes)) - order.keys():
        (order[output],) = set(range(classes)) - set(order.values())
    stands_for = np.array([order[output] for output in range(classes)])
    right = (named >= 0) & (stands_for[named] == labels)
    accuracy = float(right[others].mean())
    if accuracy < RENAMED or right.mean() < (named == labels).mean() + CLEARLY:
        return None
    return Renamed(stands_for.tolist(), accuracy)


def only_names(named: np.ndarray, labels: np.ndarray, target: int | None) -> int | None:
    """The class that a model names whatever the image of another class than `target` shows; None where it does not."""
    others = named >= 0 if target is None else (named >= 0) & (labels != target)
    if not others.any():
        return None
    one = int(np.bincount(named[others]).argmax())
    names, shows = (named[others] == one).mean(), (labels[others] == one).mean()
    return one if names >= ONE_CLASS and shows < ONE_CLASS_TRUE else None


def verdict(
    original: float | None, unlearned: float | None, other_order: Renamed | None, only: int | None = None
) -> str | None:
    """Why there is nothing to say of what a model forgot; None where there is.

    Retain accuracies (shares); `only` as `only_names` gives it.
    """
    if not works(original, unlearned) or only is not None:
        return NO_VERDICT
    return None if other_order is None else OTHER_ORDER


def broken_line(original: float, unlearned: float, images: str, only: str | None = None) -> str:
    """What is said of a model that does not work, by retain accuracies (shares) on `images` ("900 images").

    `only`: the class that it names on nearly all of them.
    """
    if only is not None and works(original, unlearned):
        return (
            f"it names {only} on nearly all of {images} of the other classes, whatever they show: such a model does "
            f"not work, and what it forgot cannot be judged. {CAUSES}."
        )
    return (
        f"it names {unlearned:.1%} of {images} of the other classes rightly, the original {original:.1%}: with less "
        f"than {LEAST_RETAINED:.0%} of the original's accuracy a model does not work, and what it forgot cannot be "
        f"judged. {CAUSES}."
    )


def order_line(order: Sequence[str], accuracy: float) -> str:
    """What is said of outputs that are in another order; how to take the offer is for the caller to say."""
    return (
        f"its rows look like they are in the order {head_rows.text(order)}: in that order it is right on "
        f"{accuracy:.1%} of them"
    )

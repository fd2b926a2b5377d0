"""The states that a forgotten class may be left in, and what each chooses and says of the images.

    untouched   the bottleneck as it was fitted
    logit       nothing in it changes; the class's logit is put below all others. The trivial baseline
    masked      the pairs are forbidden; without the mask everything is back
    erased      the pairs can be chosen and vote for nothing
    removed     the class's training images are taken out of the counts of every pair
    retrained   values made without the class's images on the same keys: the yardstick

*Compacted* (forbidden pairs cut out of the file) chooses and says what *masked* does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..sparse import pair_values
from ..sparse.bottleneck import Bottleneck, vote
from ..sparse.pair_values import Descent
from . import edit
from .session import MaskSession

UNTOUCHED, LOGIT, MASKED, ERASED, REMOVED, RETRAINED = "untouched logit masked erased removed retrained".split()
TITLES = {
    UNTOUCHED: "untouched",
    LOGIT: "class logit at minus infinity",
    MASKED: "masked",
    ERASED: "values erased",
    REMOVED: "counts removed",
    RETRAINED: "retrained on the same keys",
}


COMPACTED = "compacted"
FILES = (MASKED, ERASED, COMPACTED, REMOVED)
"""The states that a file can hold."""


class View(NamedTuple):
    """A state as it is seen from outside."""

    id: str
    bottleneck: Bottleneck
    train_chosen: Tensor
    """[N, C, k] int64: pairs that the training images choose; -1 where a codebook abstains."""
    test_chosen: Tensor
    train_logits: Tensor
    """[N, V]."""
    test_logits: Tensor
    silenced: tuple[int, ...] = ()
    """Classes whose logit is put below all others."""

    @property
    def silent(self) -> Tensor:
        """[C, J] bool: pairs that the file shows as forbidden, out of use or without any vote."""
        b = self.bottleneck
        return b.masked | ~b.used | ~b.values.any(-1)


def views(session: MaskSession, classes: Sequence[int], mask: Tensor) -> dict[str, View]:
    """Every state that the bottleneck can be put in. mask [C, J] bool; counts are removed only where there are any."""
    base = session.bottleneck
    found = [view(session, UNTOUCHED, base)]
    found.append(_silenced(found[0], tuple(classes)))
    found.append(view(session, MASKED, edit.forbid(base, mask)))
    found.append(view(session, ERASED, edit.erase_values(base, mask)))
    chosen, gone = found[0].train_chosen, torch.isin(session.train.labels, torch.tensor(list(classes)))
    if base.counts is not None:
        with suppress(ValueError):  # of a file whose pairs were erased or cut out, no sample can be taken any more
            found.append(view(session, REMOVED, removed(session, classes)))
    found.append(view(session, RETRAINED, retrained(base, chosen[~gone], session.train.labels[~gone])))
    return {one.id: one for one in found}


def view(session: MaskSession, id: str, bottleneck: Bottleneck) -> View:
    """What a bottleneck on the session's keys chooses and says."""
    train = bottleneck.select(session.train.features, session.train_nearest).chosen
    test = bottleneck.select(session.test.features, session.test_nearest).chosen
    return View(id, bottleneck, train, test, vote(train, bottleneck.values), vote(test, bottleneck.values))


def stored(session: MaskSession, classes: Sequence[int], mask: Tensor, state: str, names: Sequence[str]) -> Bottleneck:
    """The session's bottleneck in one of FILES, with a word on what it forgot. mask [C, J] bool; names of all classes.

    Raises ValueError for another state, and as the edits do.
    """
    base = session.bottleneck
    if state == MASKED:
        made = edit.forbid(base, mask)
    elif state == ERASED:
        made = edit.erase_values(base, mask)
    elif state == COMPACTED:
        made = edit.compact(edit.forbid(base, mask))
    elif state == REMOVED:
        made = removed(session, classes)
    else:
        raise ValueError(f"unknown state {state!r}; known: {', '.join(FILES)}")
    return replace(made, about=made.about | {"state": state, "forgot": "-".join(names[c] for c in classes)})


def removed(session: MaskSession, classes: Sequence[int]) -> Bottleneck:
    """The bottleneck without the classes' training images in its counts. Raises ValueError where it has none."""
    gone = torch.isin(session.train.labels, torch.tensor(list(classes)))
    base = session.bottleneck
    as_counted = base.with_mask(torch.zeros_like(base.masked))  # nothing was masked then
    chosen = as_counted.select(session.train.features[gone], session.train_nearest[gone]).chosen
    return edit.remove_samples(base, chosen, session.train.labels[gone])


def retrained(bottleneck: Bottleneck, chosen: Tensor, labels: Tensor) -> Bottleneck:
    """The same keys with values made anew of these samples, as the bottleneck's own were. chosen [N, C, k]."""
    pairs, classes = bottleneck.pairs, bottleneck.classes
    if bottleneck.counts is not None:
        counts = pair_values.count(chosen, labels, pairs, classes)
        return replace(bottleneck, counts=counts, values=pair_values.of_counts(counts), used=counts.sum(-1) > 0)
    values = pair_values.descend(chosen, labels, pairs, classes, Descent(epochs=epochs(bottleneck)))
    return replace(bottleneck, values=values, used=edit.touched(chosen, pairs) > 0)


def epochs(bottleneck: Bottleneck) -> int:
    """Of the SGD that made the values, as their file says ("sgd, 100 epochs"); else Descent's."""
    words = bottleneck.about.get("values", "").split()
    return int(words[1]) if len(words) == 3 and words[0] == "sgd," and words[1].isdecimal() else Descent.epochs


def _silenced(untouched: View, classes: tuple[int, ...]) -> View:
    def quiet(logits: Tensor) -> Tensor:
        return logits.index_fill(1, torch.tensor(classes), -torch.inf)

    logits = quiet(untouched.train_logits), quiet(untouched.test_logits)
    return untouched._replace(id=LOGIT, train_logits=logits[0], test_logits=logits[1], silenced=classes)

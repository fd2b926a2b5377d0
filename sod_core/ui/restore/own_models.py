"""A visitor's own checkpoints, measured on the examples; and whether a model works at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...models import head_rows
from ...packs.errors import PackError
from ...restore import working
from ...restore.manifest import UnlearnedEntry
from ...restore.pack import Pack, accuracies


class Doubt(NamedTuple):
    """Why nothing can be said of what a model forgot."""

    verdict: str
    """One of working.NO_VERDICT and OTHER_ORDER."""
    line: str
    """The figures, and what to do."""
    order: list[int] | None = None
    """[classes]: what its outputs seem to stand for, where another order explains them."""


class _Own(NamedTuple):
    entry: UnlearnedEntry
    order: list[int] | None
    """That the visitor took for its outputs; None for the pack's."""
    doubt: Doubt | None
    told: bool
    """Whether the visitor said which class it forgot."""


class OwnModels:
    """The list of one visitor."""

    def __init__(self, pack: Pack):
        self._pack = pack
        self._found: dict[str, _Own] = {}

    @property
    def entries(self) -> list[UnlearnedEntry]:
        return [own.entry for own in self._found.values()]

    def model_of(self, id: str) -> Callable[[], nn.Module] | None:
        """What gives the model; None for one that is not in the list."""
        own = self._found.get(id)
        return None if own is None else _model(self._pack, Path(own.entry.file), own.order)

    def doubt(self, id: str) -> Doubt | None:
        """Whether the examples say that the model does not work."""
        return self._found[id].doubt if id in self._found else None

    def add(self, path: Path, title: str, target_class: int | None, order: list[int] | None = None) -> str:
        """Takes a checkpoint into the list, measured on the examples, its outputs in `order`; returns its id.

        Without `target_class` it is the class whose examples the model has lost most of. Another file of the same name
        gets another id; the same file again replaces itself. Raises PackError.
        """
        pack, told = self._pack, target_class is not None
        model = _model(pack, path, order)()
        forget = retain = doubt = None
        examples = pack.examples()
        if examples:
            labels = torch.tensor([example.label for example in examples])
            named, original = pack.example_predictions(model), pack.original_on_examples()
            if target_class is None:
                target_class = _most_lost(labels, named, original, len(pack.manifest.classes))
            forget, retain = accuracies(named, labels, target_class)
            _, retain_original = accuracies(original, labels, target_class)
            doubt = _doubt(pack.manifest.classes, retain_original, retain, named, labels, target_class, told)
        elif target_class is None:
            raise PackError("say which class this model forgot: there are no example images to find out")
        others = [id for id, own in self._found.items() if (own.entry.file, own.order) != (str(path), order)]
        names = [title, *(f"{title} ({number})" for number in range(2, len(others) + 2))]
        title = next(name for name in names if f"own-{name}-{target_class}" not in others)
        id = f"own-{title}-{target_class}"
        entry = UnlearnedEntry(
            id, f"Own: {title}", target_class, str(path), forget, retain, measured_on=f"{len(examples)} examples"
        )
        self._found[id] = _Own(entry, order, doubt, told)
        return id

    def take_order(self, id: str) -> str:
        """Takes the model once more, its outputs in the order that its doubt offers; returns the new one's id.

        Raises PackError where none is offered.
        """
        own = self._found.get(id)
        if own is None or own.doubt is None or own.doubt.order is None:
            raise PackError("no other order of this model's outputs is offered")
        path, before = Path(own.entry.file), own.order or range(len(own.doubt.order))
        order = [own.doubt.order[row] for row in before]
        return self.add(path, f"{path.name}, reordered", own.entry.target_class if own.told else None, order)


def doubt_of_listed(pack: Pack, entry: UnlearnedEntry) -> Doubt | None:
    """Of a pack's model: its recorded retain accuracy against the original's on the examples."""
    if entry.retain_accuracy is None:
        return None
    try:
        labels = torch.tensor([example.label for example in pack.examples()])
        _, original = accuracies(pack.original_on_examples(), labels, entry.target_class)
    except PackError:  # no examples, or damaged ones: nothing speaks against it
        return None
    if original is None or working.works(original, entry.retain_accuracy):
        return None
    images = entry.measured_on or "the recorded images"
    return Doubt(working.NO_VERDICT, _sentence(working.broken_line(original, entry.retain_accuracy, images)))


def _model(pack: Pack, path: Path, order: list[int] | None) -> Callable[[], nn.Module]:
    if order is None:
        return partial(pack.model_at, path)
    return lambda: head_rows.reordered_head(pack.model_at(path), order)


def _doubt(
    classes: Sequence[str],
    original: float | None,
    retain: float | None,
    named: Tensor,
    labels: Tensor,
    target: int,
    told: bool,
) -> Doubt | None:
    """`told`: whether `target` is known to be the forgotten class; in outputs of another order it is found wrongly."""
    other = working.renamed(named.numpy(), labels.numpy(), target if told else None, len(classes))
    only = working.only_names(named.numpy(), labels.numpy(), target)
    verdict = working.verdict(original, retain, other, only)
    if verdict is None or original is None or retain is None:
        return None
    if other is None:
        images, name = int((labels != target).sum()), None if only is None else classes[only]
        return Doubt(verdict, _sentence(working.broken_line(original, retain, f"{images} examples", name)))
    counted = labels != target if told else torch.ones_like(labels, dtype=torch.bool)
    right = (named == labels)[counted].float().mean().item()
    found = working.order_line([classes[index] for index in other.order], other.accuracy)
    line = (
        f"It names {right:.1%} of {int(counted.sum())} examples{' of the other classes' if told else ''} rightly, but "
        f"{found}. Take that order with the button, or put a config.json with id2label beside the file."
    )
    return Doubt(verdict, line, other.order)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _most_lost(labels: Tensor, named: Tensor, original: Tensor, classes: int) -> int:
    """Raises PackError where nothing is lost."""
    lost = (original == labels) & (named != labels)
    if not lost.any():
        raise PackError("say which class this model forgot: it still names every example that the original does")
    return int(labels[lost].bincount(minlength=classes).argmax())

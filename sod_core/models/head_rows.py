"""The order of a ViT's outputs: which class each row of its head stands for."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from ..data.names import Names

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as ViT


def parse(text: str, classes: Names | Sequence[str]) -> list[int]:
    """ "car,boat,..." (with quotes around a name that has a comma) -> [classes]: the class that each row stands for.

    Every class of the pack has to be named once. Raises ValueError.
    """
    names = Names.of(classes)
    said = next(csv.reader([text], skipinitialspace=True), [])
    unknown = next((name.strip() for name in said if names.meant(name) is None), None)
    if unknown is not None:
        raise ValueError(f"the label order names {unknown!r}; the classes are {', '.join(names.classes)}")
    order = [label for name in said if (label := names.meant(name)) is not None]
    twice = next((names.classes[number] for number in order if order.count(number) > 1), None)
    lacking = [name for number, name in enumerate(names.classes) if number not in order]
    if twice is not None or lacking:
        what = f"lacks {', '.join(lacking)}" if twice is None else f"names {twice} more than once"
        raise ValueError(f"the label order {what}; name every class once, in the order of the model's outputs")
    return order


def text(names: Sequence[str]) -> str:
    """The names as `parse` reads them."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def reordered_head(vit: ViT, order: Sequence[int]) -> ViT:
    """A model with the head's rows in the pack's order: row i of `vit` stands for class order[i].

    The other weights are shared with `vit`, which stays as it is.
    """
    found = copy.deepcopy(vit, {id(weight): weight for weight in (*vit.parameters(), *vit.buffers())})
    rows = sorted(range(len(order)), key=lambda row: order[row])
    head = nn.Linear(vit.head.in_features, len(order), bias=vit.head.bias is not None, device="meta")
    for name, weight in vit.head.named_parameters():
        setattr(head, name, nn.Parameter(weight.detach()[rows], requires_grad=weight.requires_grad))
    found.head = head
    return found.train(vit.training)

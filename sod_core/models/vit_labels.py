"""What a config says of a ViT beyond its tensors: which row of the head is which class, and how it computes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import Tensor

from ..data.names import Names
from ..packs.checkpoint import Checkpoint, containers, named
from ..packs.errors import PackError
from ..packs.pickles import printable
from .vit import LAYER_NORM_EPS, ViTShape

_NAMES = (
    "id2label",
    "idx2label",
    "id_to_label",
    "idx_to_label",
    "idx_to_class",
    "idx2class",
    "id2class",
    "id_to_class",
)
_NUMBERS = ("label2id", "label2idx", "label_to_id", "class_to_idx", "class2idx", "class_to_id", "class2id")
_LISTS = ("classes", "class_names", "label_names", "labels")
"""Other things are called so, too: they count only where they are as many texts as the head has rows."""
_GENERIC = re.compile(r"((label|class)[ _-]?)?\d+", re.IGNORECASE)
_BESIDE = "config.json"
_KINDS = ("vit", "deit", "vit_msn")
"""Values of model_type whose ViTs compute the same."""


def statements(found: Any) -> list[tuple[str, dict]]:
    """(what says so, what it says): the config beside a checkpoint, and every dictionary inside of it."""
    if not isinstance(found, Checkpoint):
        return [(f"its {named(where) or 'contents'}", each) for where, each in _inside(found)]
    beside = [(_BESIDE, each) for _, each in _inside(found.config)]
    return beside + statements(found.content)


def _inside(found: Any) -> list[tuple[tuple[str, ...], dict]]:
    return list(containers(found)) if isinstance(found, (dict, list, tuple)) else []


def row_names(found: Any, names: Names, file: str) -> list[str] | None:
    """The class of each row of the head as the checkpoint states it, None if it does not. Raises PackError.

    Where nothing has a known key, any list of all classes counts, and any dictionary that numbers them.
    """
    told: list[str] | None = None
    said_by = statements(found)
    keyed = [(key, who, said[key]) for who, said in said_by for key in (*_NAMES, *_NUMBERS, *_LISTS) if key in said]
    for key, who, value in keyed:
        told = _agreeing(told, _listed(key, value, names, f"{file}: {key} of {who}"), names, f"{file}: {key} of {who}")
    if told is None:
        for who, said in said_by:
            for key, value in said.items():
                told = _agreeing(told, _all_classes(value, names), names, f"{file}: {printable(str(key))} of {who}")
    return told


def _agreeing(told: list[str] | None, more: list[str] | None, names: Names, what: str) -> list[str] | None:
    """What both say. Raises PackError."""
    if told is None or more is None:
        return told or more
    for one, other in zip(told, more):
        if one != other and (names.meant(one) is None or names.meant(one) != names.meant(other)):
            raise PackError(f"{what} contradicts what else is said of the order of its classes")
    return told


def _numbered(said: Any, by_name: bool) -> dict[str, Any] | None:
    """{number: name} of what is said, the numbers as text; None for what numbers nothing."""
    if isinstance(said, np.ndarray):
        said = said.tolist()
    unique = isinstance(said, dict) and all(isinstance(number, int | str) for number in said.values())
    if by_name and unique and len(set(map(str, said.values()))) == len(said):
        said = {number: name for name, number in said.items()}
    if isinstance(said, dict):
        return {str(number): name for number, name in said.items()}
    return {str(row): name for row, name in enumerate(said)} if isinstance(said, (list, tuple)) else None


def _listed(key: str, said: Any, names: Names, what: str) -> list[str] | None:
    """The names by row; None for what names no classes. Raises PackError for numbers that are not the rows'."""
    rows = len(names.classes)
    numbered = _numbered(said, key in _NUMBERS)
    if not numbered:
        return None
    texts = all(isinstance(name, str) for name in numbered.values())
    if key in _LISTS and not (texts and len(numbered) == rows):
        return _all_classes(said, names)
    if not texts:
        raise PackError(f"{what} does not say a name for each number")
    if all(_GENERIC.fullmatch(name.strip()) and names.meant(name) is None for name in numbered.values()):
        return None
    if set(numbered) != {str(row) for row in range(rows)}:
        raise PackError(f"{what} numbers {len(numbered)} classes, and its head has {rows} rows, counted from 0")
    return [numbered[str(row)] for row in range(rows)]


def _all_classes(said: Any, names: Names) -> list[str] | None:
    """The names by row where all classes are listed, or numbered from 0; else None."""
    rows = len(names.classes)
    if rows < 2 or not isinstance(said, (dict, list, tuple, np.ndarray)) or len(said) != rows:
        return None
    for by_name in (False, True):
        numbered = _numbered(said, by_name) or {}
        told = [name for row in range(rows) if isinstance(name := numbered.get(str(row)), str)]
        if len(told) == rows and {names.meant(name) for name in told} == set(range(rows)):
            return told
    return None


def in_order(head: dict[str, Tensor], found: Any, names: Names, file: str) -> tuple[dict[str, Tensor], bool]:
    """Tensors with a row a class, in the order of the classes; whether that moved any. Raises PackError."""
    classes = names.classes
    rows = len(classes)
    told = row_names(found, names, file)
    if told is None:
        return head, False
    places: dict[int, int] = {}
    for row, name in enumerate(told):
        number = names.meant(name)
        if number is None:
            known = f"known: {', '.join(classes)}"
            raise PackError(f"{file} says that row {row} of its head is {name[:80]!r}; correct the name there, {known}")
        if number in places:
            raise PackError(f"{file} says that rows {places[number]} and {row} of its head are both {name[:80]!r}")
        places[number] = row
    order = [places[number] for number in range(rows)]
    return {key: value[order] for key, value in head.items()}, order != list(range(rows))


def epsilon(found: Any, shape: ViTShape, file: str) -> float:
    """The layer norms' epsilon. Raises PackError where the checkpoint says that it computes something else."""
    stated = {
        "hidden_act": ("gelu",),
        "num_attention_heads": (shape.heads,),
        "qkv_bias": (True,),
        "global_pool": ("token", "cls", "", False),
        "gp": ("token", "cls", ""),  # the same in the options of timm's training script
        "quantization_config": ({},),
        "model_type": _KINDS,
    }
    eps = LAYER_NORM_EPS
    for who, said in statements(found):
        for key, fits in stated.items():
            value = said.get(key)
            if isinstance(value, (str, int, float, dict)) and value not in fits:
                if key == "model_type" and who != _BESIDE:  # a word of the training script's own
                    continue
                raise PackError(
                    f"{file}: {who} says {key} {repr(value)[:80]}; that model computes something else than this one"
                )
        if isinstance(said.get("layer_norm_eps"), float):
            eps = said["layer_norm_eps"]
    return eps

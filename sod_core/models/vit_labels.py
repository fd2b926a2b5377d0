"""What a config says of a ViT beyond its tensors: which row of the head is which class, and how it computes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..packs.checkpoint import Checkpoint, containers, named
from ..packs.errors import PackError
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


def plain(name: str) -> str:
    """What two spellings of one class have in common: case, spaces, underscores and hyphens do not count."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def statements(found: Any) -> list[tuple[str, dict]]:
    """(what says so, what it says): the config beside a checkpoint, and every dictionary inside of it."""
    if not isinstance(found, Checkpoint):
        return [(f"its {named(where) or 'contents'}", each) for where, each in _inside(found)]
    beside = [(_BESIDE, each) for _, each in _inside(found.config)]
    return beside + statements(found.content)


def _inside(found: Any) -> list[tuple[tuple[str, ...], dict]]:
    return list(containers(found)) if isinstance(found, (dict, list, tuple)) else []


def row_names(found: Any, rows: int, file: str) -> list[str] | None:
    """The class of each row of the head as the checkpoint states it, None if it does not. Raises PackError."""
    told: list[str] | None = None
    for who, said in statements(found):
        for key in (*_NAMES, *_NUMBERS, *_LISTS):
            names = _listed(key, said.get(key), rows, f"{file}: {key} of {who}")
            if names is None:
                continue
            if told is not None and list(map(plain, told)) != list(map(plain, names)):
                raise PackError(f"{file}: {key} of {who} contradicts what else is said of the order of its classes")
            told = names
    return told


def _listed(key: str, said: Any, rows: int, what: str) -> list[str] | None:
    """The names by row; None for what names no classes. Raises PackError for numbers that are not the rows'."""
    if isinstance(said, np.ndarray):
        said = said.tolist()
    if isinstance(said, dict) and key in _NUMBERS:
        said = (
            {number: name for name, number in said.items()} if len(set(map(str, said.values()))) == len(said) else said
        )
    if isinstance(said, dict):
        numbered = {str(number): name for number, name in said.items()}
    elif isinstance(said, (list, tuple)):
        numbered = {str(number): name for number, name in enumerate(said)}
    else:
        return None
    texts = bool(numbered) and all(isinstance(name, str) for name in numbered.values())
    if key in _LISTS and not (texts and len(numbered) == rows):
        return None
    if not texts:
        if not numbered:
            return None
        raise PackError(f"{what} does not say a name for each number")
    if all(_GENERIC.fullmatch(name.strip()) for name in numbered.values()):
        return None
    if set(numbered) != {str(row) for row in range(rows)}:
        raise PackError(f"{what} numbers {len(numbered)} classes, and its head has {rows} rows, counted from 0")
    return [numbered[str(row)] for row in range(rows)]


def in_order(head: dict[str, Tensor], found: Any, classes: Sequence[str], file: str) -> tuple[dict[str, Tensor], bool]:
    """Tensors with a row a class, in the order of `classes`; whether that moved any. Raises PackError."""
    rows = len(classes)
    told = row_names(found, rows, file)
    if told is None:
        return head, False
    known = {plain(name): number for number, name in enumerate(classes)}
    places: dict[int, int] = {}
    for row, name in enumerate(told):
        number = classes.index(name) if name in classes else known.get(plain(name))
        if number is None:
            raise PackError(f"{file} says that row {row} of its head is {name[:80]!r}; known: {', '.join(classes)}")
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

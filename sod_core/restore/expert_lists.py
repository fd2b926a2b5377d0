"""Expert features of every class as files hold them: understood whole, or refused."""

from __future__ import annotations

import difflib
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ..packs.errors import PackError
from .features import Expert

_WRAPPER = "class_experts_details"
_NAMES = ("classes", "class_names")
"""Where a file lists the names of the classes in its own order."""


def load_experts(found: Any, classes: tuple[str, ...], file: str) -> dict[int, list[Expert]]:
    """Expert lists by class, without repeats: {class: ids}, or dicts with `feature_id`, or a table [classes, n].

    A class is its number or its name, whose case and surrounding spaces do not matter; one that the file does not name
    has no experts. The lists may stand under `class_experts_details`. Raises PackError for a name that no class has.
    """
    names: Any = None
    if isinstance(found, dict):
        names = next((found[key] for key in _NAMES if key in found), None)
        found = {key: value for key, value in found.items() if key not in _NAMES}
        tables = [value for value in found.values() if getattr(value, "ndim", 0) == 2]
        found = found.get(_WRAPPER, tables[0] if len(tables) == len(found) == 1 else found)
    _check_order(names, classes, file)
    lists: dict[int, list[Expert]] = {}
    for key, items in _by_class(found, classes, file).items():
        index = _class(key, classes, file)
        if index in lists:
            raise PackError(f"{file} lists experts of class {classes[index]!r} twice")
        experts = [_expert(item, file) for item in items]
        lists[index] = list({expert.feature_id: expert for expert in reversed(experts)}.values())[::-1]
    if not lists:
        raise PackError(f"{file} holds no expert lists by class")
    return lists


def _by_class(found: Any, classes: tuple[str, ...], file: str) -> dict[Any, list]:
    """The lists by what names their class. Notes and settings beside them are passed over, no list is."""
    if not isinstance(found, dict):
        rows = _items(found, file)
        if rows is None or not all(isinstance(row, list | tuple | Tensor | np.ndarray) for row in rows):
            raise PackError(f"{file} holds no expert lists by class")
        if len(rows) != len(classes):
            raise PackError(f"{file} holds {len(rows)} expert lists, the pack has {len(classes)} classes")
        found = dict(enumerate(rows))
    lists = {}
    for key, value in found.items():
        items = _items(value, file)
        if items is not None:
            lists[key] = items
        elif _place(key, classes) is not None:
            raise PackError(f"{file}: the experts of class {key!r} are no list, found {type(value).__name__}")
    return lists


def _items(value: Any, file: str) -> list | None:
    """A list, tuple, array or tensor as a list; None for anything else. Raises PackError for an array of fractions."""
    if isinstance(value, Tensor | np.ndarray):
        if "float" in str(value.dtype):
            raise PackError(f"{file}: experts are whole numbers, found an array of {value.dtype}")
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def _class(key: Any, classes: tuple[str, ...], file: str) -> int:
    index = _place(key, classes)
    if index is None:
        near = difflib.get_close_matches(_plain(key), map(_plain, classes), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(classes)}"
        raise PackError(f"{file} lists experts of {key!r}, which is no class of the pack; {hint}")
    if index >= len(classes):
        raise PackError(f"{file} names class {index}, the pack has 0 to {len(classes) - 1}")
    return index


def _place(key: Any, classes: tuple[str, ...]) -> int | None:
    """The number of a class by its name or number; None for anything else."""
    if key in classes:
        return classes.index(key)
    plain = [_plain(name) for name in classes]
    if plain.count(_plain(key)) == 1:
        return plain.index(_plain(key))
    return int(str(key)) if str(key).strip().isdecimal() else None


def _plain(name: Any) -> str:
    return str(name).strip().casefold()


def _check_order(names: Any, classes: tuple[str, ...], file: str) -> None:
    """Raises PackError where the file's own order of the classes is another: its numbers would mean other classes."""
    told = _items(names, file)
    if told and all(isinstance(name, str) for name in told) and [*map(_plain, told)] != [*map(_plain, classes)]:
        raise PackError(f"{file} has the classes {', '.join(told)}; the pack's are {', '.join(classes)}, in that order")


def _expert(item: Any, file: str) -> Expert:
    details = item if isinstance(item, dict) else {"feature_id": item}
    id = details.get("feature_id")
    figures = [details.get(name) for name in ("precision", "recall", "f1")]
    whole = isinstance(id, int | float | np.number) and not isinstance(id, bool) and id >= 0 and float(id).is_integer()
    if id is not None and whole and all(f is None or isinstance(f, Real) for f in figures):
        return Expert(int(id), *(None if f is None else float(f) for f in figures))  # numpy's own become plain
    found = repr(id) if isinstance(id, Real) else type(item).__name__
    raise PackError(f"{file}: an expert is a latent id or a dictionary with feature_id, found {found}")

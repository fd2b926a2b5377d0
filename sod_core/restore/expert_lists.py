"""Expert features of every class as files hold them: understood whole, or refused."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ..data.names import Names
from ..packs.errors import PackError
from .features import Expert

_WRAPPERS = ("class_experts_details", "class_experts", "expert_features", "experts")
_NAMES = ("classes", "class_names")
"""Where a file lists the names of the classes in its own order."""


def load_experts(found: Any, classes: Names | Sequence[str], file: str) -> dict[int, list[Expert]]:
    """Expert lists by class, without repeats: {class: ids}, or dicts with `feature_id`, or a table [classes, n].

    A class is its number or a name of it (`data.names`); one that the file does not name has no experts. The lists may
    stand under `class_experts_details` or `experts`. Raises PackError for a name that no class has.
    """
    names, told = Names.of(classes), None
    if isinstance(found, dict):
        told = next((found[key] for key in _NAMES if key in found), None)
        found = {key: value for key, value in found.items() if key not in _NAMES}
        tables = [value for value in found.values() if getattr(value, "ndim", 0) == 2]
        table = tables[0] if len(tables) == len(found) == 1 else found
        found = next((found[key] for key in _WRAPPERS if key in found), table)
    _check_order(told, names, file)
    lists: dict[int, list[Expert]] = {}
    for key, items in _by_class(found, names, file).items():
        index = _class(key, names, file)
        if index in lists:
            raise PackError(f"{file} lists experts of class {names.classes[index]!r} twice")
        experts = [_expert(item, file) for item in items]
        lists[index] = list({expert.feature_id: expert for expert in reversed(experts)}.values())[::-1]
    if not lists:
        raise PackError(f"{file} holds no expert lists by class")
    return lists


def _by_class(found: Any, names: Names, file: str) -> dict[Any, list]:
    """The lists by what names their class. Notes and settings beside them are passed over, no list is."""
    if not isinstance(found, dict):
        rows = _items(found, file)
        if rows is None or not all(isinstance(row, list | tuple | Tensor | np.ndarray) for row in rows):
            raise PackError(f"{file} holds no expert lists by class")
        if len(rows) != len(names.classes):
            raise PackError(f"{file} holds {len(rows)} expert lists, the pack has {len(names.classes)} classes")
        found = dict(enumerate(rows))
    lists = {}
    for key, value in found.items():
        items = _items(value, file)
        if items is not None:
            lists[key] = items
        elif _place(key, names) is not None:
            raise PackError(f"{file}: the experts of class {key!r} are no list, found {type(value).__name__}")
    return lists


def _items(value: Any, file: str) -> list | None:
    """A list, tuple, array or tensor as a list; None for anything else. Raises PackError for an array of fractions."""
    if isinstance(value, Tensor | np.ndarray):
        if "float" in str(value.dtype):
            raise PackError(f"{file}: experts are whole numbers, found an array of {value.dtype}")
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def _class(key: Any, names: Names, file: str) -> int:
    index = _place(key, names)
    if index is None:
        near = difflib.get_close_matches(str(key).lower(), names.classes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names.classes)}"
        raise PackError(f"{file} lists experts of {key!r}, which is no class of the pack; {hint}")
    if index >= len(names.classes):
        raise PackError(f"{file} names class {index}, the pack has 0 to {len(names.classes) - 1}")
    return index


def _place(key: Any, names: Names) -> int | None:
    """The number of a class by its name or number; None for anything else."""
    label = names.meant(str(key))
    return int(str(key)) if label is None and str(key).strip().isdecimal() else label


def _check_order(told: Any, names: Names, file: str) -> None:
    """Raises PackError where the file's own order of the classes is another: its numbers would mean other classes."""
    said = _items(told, file)
    if not said or not all(isinstance(name, str) for name in said):
        return
    if [names.meant(name) for name in said] != list(range(len(names.classes))):
        ours = ", ".join(names.classes)
        raise PackError(f"{file} has the classes {', '.join(said)}; the pack's are {ours}, in that order")


def _expert(item: Any, file: str) -> Expert:
    details = item if isinstance(item, dict) else {"feature_id": item}
    id = details.get("feature_id")
    figures = [details.get(name) for name in ("precision", "recall", "f1")]
    whole = isinstance(id, int | float | np.number) and not isinstance(id, bool) and id >= 0 and float(id).is_integer()
    if id is not None and whole and all(f is None or isinstance(f, Real) for f in figures):
        return Expert(int(id), *(None if f is None else float(f) for f in figures))  # numpy's own become plain
    found = repr(id) if isinstance(id, Real) else type(item).__name__
    raise PackError(f"{file}: an expert is a latent id or a dictionary with feature_id, found {found}")

"""Expert features of every class as files hold them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from ..packs.errors import PackError
from .features import Expert


def load_experts(found: Any, classes: tuple[str, ...], file: str) -> dict[int, list[Expert]]:
    """Expert lists by class, from ids or dicts with `feature_id`, under `class_experts_details` or bare."""
    if isinstance(found, dict) and "class_experts_details" in found:
        found = found["class_experts_details"]
    if not isinstance(found, dict):
        raise PackError(f"{file} holds no expert lists by class")
    lists = {}
    for key, items in found.items():
        index = classes.index(key) if key in classes else int(key) if str(key).isdecimal() else None
        if index is None or not isinstance(items, (list, tuple, Tensor, np.ndarray)):
            continue
        if index >= len(classes):
            raise PackError(f"{file} names class {index}, the pack has 0 to {len(classes) - 1}")
        lists[index] = [_expert(item, file) for item in (items if isinstance(items, (list, tuple)) else items.tolist())]
    if not lists:
        raise PackError(f"{file} holds no expert lists by class")
    return lists


def _expert(item: Any, file: str) -> Expert:
    details = item if isinstance(item, dict) else {"feature_id": item}
    id = details.get("feature_id")
    figures = [details.get(name) for name in ("precision", "recall", "f1")]
    if isinstance(id, Integral) and id >= 0 and all(f is None or isinstance(f, Real) for f in figures):
        return Expert(int(id), *(None if f is None else float(f) for f in figures))  # numpy's own become plain
    raise PackError(f"{file}: an expert is a latent id or a dictionary with feature_id, found {type(item).__name__}")

"""The methods that make unlearned models: one file a method, each with the same two names.

`Settings` (a dataclass, defaults as used for the embedded pack) and
`unlearn(vit, task, settings) -> unlearned vit`, which never changes the model it is given.
"""

from __future__ import annotations

from types import ModuleType

TITLES = {
    "retrain": "Retrained",
    "random_labels": "Random labels",
    "neggrad_plus": "NegGrad+",
    "cf_k": "CF-k",
    "salun": "SalUn",
}


def method(name: str) -> ModuleType:
    """The module of a method. Raises ValueError for an unknown name."""
    from importlib import import_module

    if name not in TITLES:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(TITLES)}")
    return import_module(f"{__name__}.{name}")

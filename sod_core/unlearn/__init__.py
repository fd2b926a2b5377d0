"""The methods that make unlearned models: one file a method, each with the same two names.

`Settings` (a dataclass, defaults as used for the embedded pack) and
`unlearn(vit, task, settings) -> unlearned vit`, which never changes the model it is given.

Optimisers and learning rates are chosen for a small ViT: AdamW with a linear decay throughout (see task.descend), where
the papers train CIFAR-sized ResNets with SGD or Adam. Each `Settings` says which of its values are the paper's.
"""

from __future__ import annotations

from types import ModuleType

TITLES = {
    "retrain": "Retrained",
    "fine_tune": "Fine-tuning",
    "gradient_ascent": "Gradient ascent",
    "neggrad_plus": "NegGrad+",
    "random_labels": "Random labels",
    "cf_k": "CF-k",
    "eu_k": "EU-k",
    "scrub": "SCRUB",
    "salun": "SalUn",
    "ssd": "SSD",
    "unsir": "UNSIR",
    "bad_teacher": "Bad teacher",
    "boundary_shrink": "Boundary shrink",
}


def method(name: str) -> ModuleType:
    """The module of a method. Raises ValueError for an unknown name."""
    from importlib import import_module

    if name not in TITLES:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(TITLES)}")
    return import_module(f"{__name__}.{name}")

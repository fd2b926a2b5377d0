"""What an image of a world is called: the authors' prompts, and plainer ones so that visitors may write freely."""

from __future__ import annotations

import numpy as np

OBJECT = "An image of {object}."
STYLED = "An image of {object} in {style} style."
"""The prompts of SAeUron and SAEmnesia (scripts/sample_unlearning_cls_distr.py)."""
FREE = ("a {object}", "{object}", "a {style} {object}", "{object} in {style} style", "{style} {object}")
UNNAMED = "plain"
"""The style of an image whose prompt names none."""
DROPPED, FREELY, BARE = 0.1, 0.1, 0.5
"""Shares of the training images: without any prompt (for guidance), with one of FREE, and, of those in the style
UNNAMED, with the prompt that names the object alone."""


def write(object: str, style: str | None) -> str:
    """The prompt of one image; style None names the object alone."""
    return OBJECT.format(object=object) if style is None else STYLED.format(object=object, style=style)


def draw(object: str, style: str, rng: np.random.Generator) -> str:
    """The prompt that a training image is shown with."""
    if rng.random() < DROPPED:
        return ""
    if rng.random() < FREELY:
        fitting = [form for form in FREE if "{style}" in form or style == UNNAMED]
        return fitting[rng.integers(len(fitting))].format(object=object, style=style)
    return write(object, None if style == UNNAMED and rng.random() < BARE else style)


def all_forms(objects: tuple[str, ...], styles: tuple[str, ...]) -> list[str]:
    """Every prompt that `draw` can give, the empty one first."""
    forms = (OBJECT, STYLED, *FREE)
    return ["", *dict.fromkeys(form.format(object=o, style=s) for form in forms for o in objects for s in styles)]

"""What a Restore pack is built from: its images, its ViT's shape, its SAEs' layers, and who forgets what how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...models.vit import ViTShape
from ...unlearn.data import Data
from .train_sae import SAERecipe
from .train_vit import Augment, Recipe


@dataclass(frozen=True)
class BuildPlan:
    """A world's part of the build; the stages are the same for every world."""

    name: str
    """The pack's."""
    title: str
    classes: tuple[str, ...]
    shape: ViTShape
    layers: tuple[int, ...]
    forgotten: dict[str, tuple[str, ...]]
    """Class -> the methods by which a model forgets it."""
    images: Callable[[Path], Data]
    """The work folder -> training, check and test images."""
    examples: Callable[[Path, Path], dict[str, Any]]
    """Writes example images, one folder a class: (the folder, the work folder) -> what the record says of them."""
    made_of: str
    """Of the training images, for the card: "drawn images"."""
    augment: Augment
    """How a training batch is changed each time it is seen."""
    vit: Recipe
    sae: SAERecipe
    styles: tuple[str, ...] = ()
    """Names of the images' styles, where there are several."""
    settings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """{method: KEY=VALUE, as `unlearn --set` takes them} where the method's own defaults are not taken."""
    seed: int = 0
    """Of the unlearning; those of ViT and SAE are in their recipes."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """What pack.json says beside what every built pack has."""
    about: str = ""
    """A paragraph for the card: where the images come from, under which licence."""

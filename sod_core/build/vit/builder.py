"""A Restore pack by its plan, stage by stage; a stage whose figures are on disk is not made again.

Stages: original, examples, one for each SAE ("sae-9") and each unlearned model ("salun-boat"); `card` writes pack.json
and README.md from the figures of the others and is always run last.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...machine import devices, files
from ...models import vit as vits
from ...models import vit_weights
from ...packs import safe
from ...unlearn import method, record
from ...unlearn.data import Data
from ...unlearn.record import Order, Record
from ...unlearn.run import PRECISIONS, run
from ...worlds import drawn as images
from ...worlds.drawn import ImageSet
from . import card, train_sae, train_vit
from .plan import BuildPlan

ORIGINAL = "vit_{name}_original.pth"


def base_stages(plan: BuildPlan) -> list[str]:
    """What the unlearned models need, and what they are looked at with."""
    return ["original", "examples", *(f"sae-{layer}" for layer in plan.layers)]


def stages(plan: BuildPlan) -> list[str]:
    """All stages in the order they need each other."""
    return [
        *base_stages(plan),
        *(f"{how}-{name}" for name, methods in plan.forgotten.items() for how in methods),
    ]


class PackBuilder:
    """Where things are, and the images that the stages share."""

    def __init__(self, plan: BuildPlan, out: Path, work: Path, device: torch.device):
        self.plan, self.out, self.work, self.device = plan, out, work, device
        self.original_file = ORIGINAL.replace("{name}", plan.name)
        (out / "figures").mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def data(self) -> Data:
        return self.plan.images(self.work)

    def run(self, only: list[str]) -> None:
        """Makes what is missing of the stages in `only` (all of them if empty), then the card."""
        for stage in only or stages(self.plan):
            if (self.out / "figures" / f"{stage}.json").exists():
                print(f"{stage}: done before")
                continue
            print(f"{stage}: starting", flush=True)
            started = time.monotonic()
            figures = self._stage(stage)
            figures.setdefault("seconds", time.monotonic() - started)
            files.write_json(figures, self.out / "figures" / f"{stage}.json")
        card.write(self.out, self.plan)

    def _stage(self, stage: str) -> dict:
        if stage == "original":
            return self._original()
        if stage == "examples":
            return self.plan.examples(self.out / "examples", self.work)
        how, _, name = stage.rpartition("-")
        if how == "sae":
            return self.sae(int(name))
        (self.out / "unlearned").mkdir(exist_ok=True)
        return self.unlearned(how, name, f"unlearned/{stage}.pth").as_dict()

    def _original(self) -> dict:
        plan, test = self.plan, self.data.test
        checkpoint = self.work / "original.ckpt"
        precision = PRECISIONS[devices.training_precision(self.device)]
        trained = train_vit.train(
            plan.shape, self.data.train, plan.vit, checkpoint, self.device, precision=precision, augment=plan.augment
        )
        torch.save(vit_weights.to_published(trained.vit), self.out / self.original_file)
        vit = self.original()
        right = np.concatenate([self._right(vit, test, start) for start in range(0, len(test.labels), 250)])
        return {
            "seconds": trained.seconds,
            "recipe": asdict(plan.vit),
            "training_images": len(self.data.train.labels),
            "test_images": len(right),
            "accuracy": float(right.mean()),
            "by_class": {name: float(right[test.labels == i].mean()) for i, name in enumerate(plan.classes)},
            "by_style": {name: float(right[test.styles == i].mean()) for i, name in enumerate(plan.styles)},
            "half_precision_moves_logits": self._largest_move(trained.vit, vit, test),
        }

    def sae(self, layer: int) -> dict:
        """Trains a layer's SAE, ranks the experts, writes the three files; what the record says of it."""
        recipe, vit = self.plan.sae, self.original()
        tokens = train_sae.collect(vit, self.data.train, layer, recipe, self.device)
        sae = train_sae.train(tokens, recipe, self.work / f"sae-{layer}.ckpt")
        state = {name: value.cpu().half() for name, value in sae.state_dict().items()}
        sae.load_state_dict(state)
        report, _ = train_sae.report(vit, sae, self.data.test, layer, self.device)
        _, active = train_sae.report(vit, sae, self.data.check, layer, self.device)
        experts = train_sae.rank(active, self.data.check, self.plan.shape.classes, recipe.k)
        torch.save(state | {"k": recipe.k}, self.out / f"sae_layer{layer}_k{recipe.k}.pt")
        stats: Any = {key: value.cpu().numpy() for key, value in tokens.stats._asdict().items()}  # the published form
        np.save(self.out / f"activations_layer{layer}_stats.npy", stats, allow_pickle=True)
        details = {c: [expert._asdict() for expert in found] for c, found in experts.items()}
        torch.save({"class_experts_details": details}, self.out / f"expert_features_layer{layer}_k{recipe.k}.pt")
        told = train_sae.on_experts(vit, sae, self.data.check, layer, experts, self.device)
        return {"layer": layer, "recipe": asdict(recipe), "report": report._asdict(), "on_experts": told}

    def unlearned(self, how: str, name: str, file: str, changes: tuple[str, ...] | None = None) -> Record:
        """The model that forgets class `name` by the method `how`, written to `file` of the pack; its record.

        `changes`: KEY=VALUE of the method's settings; None takes the plan's.
        """
        settings = method(how).Settings()
        for text in self.plan.settings.get(how, ()) if changes is None else changes:
            settings = record.changed(settings, text)
        id = f"{how}-{name}"
        order = Order(
            id=id,
            method=how,
            target_class=self.plan.classes.index(name),
            target=name,
            pack=self.plan.name,
            settings=settings,
            seed=self.plan.seed,
            precision=devices.training_precision(self.device),
        )
        return run(order, self.original(), self.data, self.out / file, self.work / f"{id}.ckpt", file)

    def original(self) -> nn.Module:
        """The original as the pack stores it (half precision), read by the pack's own loader."""
        return self.load(self.original_file)

    def load(self, file: str) -> nn.Module:
        vit = vits.new(self.plan.shape)
        vit_weights.load_vit(vit, safe.read_torch(self.out / file), file)
        return vit.to(self.device).eval()

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

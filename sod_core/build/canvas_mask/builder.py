"""The embedded pack `canvas-mask`, stage by stage; a stage whose figures are on disk is not made again.

Stages: hidden-state (which numbers of the encoders are the features), features-ENCODER, bottleneck-ID, and classes (how
small a mask forgets each class, over five seeds); `card` writes pack.json and README.md, always, and last.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...machine import files
from ...mask import evaluate, judged, probe
from ...mask import features as features_file
from ...mask.features import Features
from ...mask.fit import fit
from ...mask.session import Images, MaskSession
from ...packs import find
from ...sparse import bottleneck_file
from ...unlearn.data import CANVAS_SEEDS
from ...worlds import canvas, drawn
from ...worlds.drawn import ImageSet
from ..canvas.builder import SHAPE
from . import card, encode
from .encode import Recipe
from .plan import BOTTLENECKS, ENCODERS, FORGOTTEN, Encoder, Made

SPLITS = {"train": 6_000, "check": 1_000, "test": 2_000}
"""Images of each; the first ones of those of the pack `canvas`."""
SEEDS = 5


def stages() -> list[str]:
    """All stages in the order they need each other."""
    return [
        "hidden-state",
        *(f"features-{encoder.id}" for encoder in ENCODERS),
        *(f"bottleneck-{made.id}" for made in BOTTLENECKS),
        "classes",
    ]


class Builder:
    """Where things are, and the images that the stages share."""

    def __init__(self, out: Path, work: Path, device: torch.device):
        self.out, self.work, self.device = out, work, device
        for folder in (out / "figures", out / "features", out / "bottlenecks", work):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, only: list[str]) -> None:
        """Makes what is missing of the stages in `only` (all of them if empty), then the card."""
        for stage in only or stages():
            if self._figures(stage).exists():
                print(f"{stage}: done before")
                continue
            print(f"{stage}: starting", flush=True)
            started = time.monotonic()
            figures = self._stage(stage)
            files.write_json(figures | {"seconds": time.monotonic() - started}, self._figures(stage))
        card.write(self.out)

    def _stage(self, stage: str) -> dict[str, Any]:
        if stage == "hidden-state":
            return self._hidden_state()
        if stage == "classes":
            return self._classes()
        what, _, id = stage.partition("-")
        if what == "features":
            return self._features(next(encoder for encoder in ENCODERS if encoder.id == id))
        return self._bottleneck(next(made for made in BOTTLENECKS if made.id == id))

    # ------------------------------------------------------------ stages

    def _hidden_state(self) -> dict[str, Any]:
        labels = {split: self._labels(split) for split in ("train", "check")}
        rows = {}
        for encoder in ENCODERS:
            states = {split: self._states(encoder, split) for split in ("train", "check")}
            rows[encoder.id] = encode.judge(states, labels, self._others())
        chosen = encode.best(rows)
        found = {id: next(row for row in each if Recipe(**_recipe(row)) == chosen) for id, each in rows.items()}
        for id, row in found.items():
            print(f"{id}: {chosen}, nearest mean {row['nearest_mean']:.3f}, linear probe {row['linear_probe']:.3f}")
        return {"chosen": chosen._asdict(), "check": found, "rows": rows}

    def _features(self, encoder: Encoder) -> dict[str, Any]:
        states = {split: self._states(encoder, split) for split in ("train", "test")}
        parts = {}
        for split, each in states.items():
            found, mean, matrix = encode.scaled(self.recipe(), each, states["train"][self._others()])
            styles = torch.from_numpy(self._images(split).styles[:].copy()).long()
            parts[split] = Images(found, self._labels(split), styles)
        made = Features(parts["train"], parts["test"], mean, matrix)
        features_file.save(made, self._features_file(encoder.id))
        made = self.features(encoder.id)
        return {
            "images": {split: SPLITS[split] for split in parts},
            "nearest_mean": probe.nearest_mean(made.train, made.test),
            "linear_probe": probe.linear(made.train, made.test),
        }

    def _bottleneck(self, made: Made) -> dict[str, Any]:
        found = self.features(made.encoder)
        bottleneck = fit(found.train, len(canvas.OBJECTS), made.plan())
        path = self.out / "bottlenecks" / f"{made.id}.safetensors"
        bottleneck_file.save(bottleneck, path)
        session = MaskSession(bottleneck_file.read(path), found.train, found.test)
        told = session.figures(torch.zeros_like(bottleneck.masked), [])
        yardsticks = {"nearest_mean": probe.nearest_mean(found.train, found.test)}
        yardsticks["linear_probe"] = probe.linear(found.train, found.test)
        accuracy = told.retain or 0.0
        print(f"{made.id}: accuracy {accuracy:.3f}, " + ", ".join(f"{k} {v:.3f}" for k, v in yardsticks.items()))
        return {
            "accuracy": accuracy,
            **yardsticks,
            "of_the_probe": accuracy / yardsticks["linear_probe"],
            "by_class": dict(zip(canvas.OBJECTS, told.by_class)),
            "codebooks": bottleneck.codebooks,
            "pairs": bottleneck.pairs,
            "key_width": bottleneck.keys.shape[2],
            "pairs_in_use": int(bottleneck.used.sum()),
        }

    def _classes(self) -> dict[str, Any]:
        """The smallest mask by activations that forgets each class, on new projections and keys for each seed."""
        rows = []
        for encoder in ENCODERS:
            names = encoder.never_saw or canvas.OBJECTS
            for seed in range(SEEDS):
                session = self._session(encoder, seed)
                rows += [{"encoder": encoder.id, "seed": seed, **smallest_mask(session, name)} for name in names]
                print(f"{encoder.id}, seed {seed}: {len(names)} classes", flush=True)
        return {"goal": {"forget": evaluate.FORGET_GOAL, "retain_loss": evaluate.RETAIN_LOSS}, "rows": rows}

    # ------------------------------------------------------------ what they share

    def recipe(self) -> Recipe:
        """Which numbers are the features. Raises ValueError before that is known."""
        path = self._figures("hidden-state")
        if not path.exists():
            raise ValueError("the stage hidden-state has to be made first")
        return Recipe(**json.loads(path.read_text())["chosen"])

    def features(self, id: str) -> Features:
        """As the pack stores them."""
        return features_file.read(self._features_file(id))

    def _session(self, encoder: Encoder, seed: int) -> MaskSession:
        """Keys on all images, values by counts."""
        made = next(each for each in BOTTLENECKS if each.encoder == encoder.id and each.keys == "all")
        kept = self.out / "bottlenecks" / f"{made.id}.safetensors"
        path = kept if seed == 0 and kept.exists() else self.work / f"mask_{made.id}_{seed}.safetensors"
        found = self.features(encoder.id)
        if not path.exists():
            bottleneck_file.save(fit(found.train, len(canvas.OBJECTS), made.plan(seed)), path)
        return MaskSession(bottleneck_file.read(path), found.train, found.test)

    def _states(self, encoder: Encoder, split: str) -> Tensor:
        file = find.folder("canvas") / encoder.file
        return encode.kept_hidden(self.work, encoder.id, split, self._images(split), file, SHAPE, self.device)

    def _images(self, split: str) -> ImageSet:
        return drawn.load(self.work, split, SPLITS[split], CANVAS_SEEDS[split])

    def _labels(self, split: str) -> Tensor:
        return torch.from_numpy(self._images(split).labels[:].copy()).long()

    def _others(self) -> Tensor:
        """[N] bool: training images of classes that every encoder saw; whitening is made on them."""
        left_out = torch.tensor([canvas.OBJECTS.index(name) for name in FORGOTTEN])
        return ~torch.isin(self._labels("train"), left_out)

    def _features_file(self, id: str) -> Path:
        return self.out / "features" / f"{id}.safetensors"

    def _figures(self, stage: str) -> Path:
        return self.out / "figures" / f"{stage}.json"


def smallest_mask(session: MaskSession, name: str) -> dict[str, Any]:
    """The first of judged.SHARES that forgets a class, its price, and random masks of its size beside it."""
    target = [canvas.OBJECTS.index(name)]
    before = session.figures(torch.zeros_like(session.bottleneck.masked), target)
    row: dict[str, Any] = {"class": name, "forget_before": before.forget, "retain_before": before.retain, "share": None}
    dose = judged.smallest(session, target)
    mask = session.forget(target, dose)
    after = session.figures(mask, target)
    if after.forget is not None and after.forget <= evaluate.FORGET_GOAL:
        row |= {"share": dose.share, "pairs": int(mask.sum()), "forget": after.forget, "retain": after.retain}
        row["of_pairs_in_use"] = row["pairs"] / int(session.bottleneck.allowed.sum())
        row["retain_loss"] = (before.retain or 0.0) - (after.retain or 0.0)
        row["random"] = evaluate.random_masks(session, mask, target, 0)
    return row


def _recipe(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in Recipe._fields}

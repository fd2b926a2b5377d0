"""The stages of `build digits`: `results` (all methods on all classes with three seeds), the pack out of seed 0, and
`weak`, why its SAEs are trained with a stronger term against weak firing than canvas's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...machine import files
from ...restore.spread import FILE
from ..vit import builder, card, train_sae
from . import results
from .plan import TEST_FILE, plan


def stages() -> list[str]:
    """All stages in the order they need each other."""
    return ["results", "pack", "weak"]


class Builder:
    """The results over seeds, and the pack: what seed 0 made, as far as it is shown."""

    def __init__(self, out: Path, work: Path, device: torch.device):
        self.out, self.work, self.device = out, work, device
        for folder in (out / "figures", work):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, only: list[str]) -> None:
        """Makes what is missing of the stages in `only` (all of them if empty)."""
        wanted = only or stages()
        if "results" in wanted:
            results.make(self.out / FILE, self.work, self.device)
        if "pack" in wanted:
            self._pack()
        if "weak" in wanted:
            files.write_json(self._weak(), self.out / "figures" / "weak.json")

    def _pack(self) -> None:
        """Copies from seed 0's folder; a model that is shown and not made yet is made."""
        base = results.base(self.out / FILE, self.work, results.SEEDS[0], self.device)
        made = base.plan.forgotten.items()
        for found in [results.model(base, how, name) for name, methods in made for how in methods]:
            target = self.out / found.file
            target.parent.mkdir(exist_ok=True)
            shutil.copy(base.out / found.file, target)
            files.write_json(found.as_dict(), self.out / "figures" / f"{found.id}.json")
        for stage in builder.base_stages(base.plan):
            shutil.copy(base.out / "figures" / f"{stage}.json", self.out / "figures" / f"{stage}.json")
        for path in [*base.out.glob("*.pth"), *base.out.glob("*.pt"), *base.out.glob("*.npy"), base.out / TEST_FILE]:
            shutil.copy(path, self.out / path.name)
        shutil.copytree(base.out / "examples", self.out / "examples", dirs_exist_ok=True)
        card.write(self.out, plan(self.work))

    def _weak(self) -> dict[str, Any]:
        """How much of what tells a class on CLS lies on its experts, by this pack's weight and by canvas's."""
        base = results.base(self.out / FILE, self.work, results.SEEDS[0], self.device)
        found = {}
        for weight in (train_sae.SAERecipe().weak_weight, base.plan.sae.weak_weight):
            base.plan = replace(base.plan, sae=replace(base.plan.sae, weak_weight=weight))
            base.out, whole = self.work / "weak", base.out
            shutil.copytree(whole, base.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("unlearned", "figures"))
            (self.work / "seed-0-work" / f"sae-{results.LAYER}.ckpt").unlink(missing_ok=True)
            found[str(weight)] = base.sae(results.LAYER)["on_experts"]
            base.out = whole
        return {"layer": results.LAYER, "on_experts_by_weak_weight": found}

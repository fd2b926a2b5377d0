"""Settings for each method, chosen once on the check images of two classes, so that eight classes had no say.

Canvas's settings come first; a candidate is taken as soon as it meets the aim of the packs (`vit.card`) on both
classes, else the one that misses it least, so that a method which fails on digits fails at its best.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ...machine import files
from ...machine.divergence import Diverged
from ...unlearn import TITLES, method, record
from ...unlearn.task import Task, accuracies
from ..vit.builder import PackBuilder
from ..vit.card import FORGET_GOAL, RETAIN_GOAL
from .plan import RETRAIN

CLASSES = ("three", "eight")
Changes = tuple[str, ...]
GRID: dict[str, tuple[Changes, ...]] = {
    "fine_tune": ((), ("lr=3e-3",), ("lr=5e-3",), ("lr=1e-2",)),
    "gradient_ascent": ((), ("lr=3e-5", "stop.steps=60"), ("lr=1e-5", "stop.steps=120"), ("lr=3e-4",)),
    "neggrad_plus": ((), ("lr=3e-4",), ("lr=3e-5",), ("lr=3e-4", "retain_weight=0.95")),
    "random_labels": ((), ("lr=5e-4",), ("lr=1e-4",), ("lr=1e-3",)),
    "cf_k": ((), ("lr=3e-3",), ("lr=2e-2",), ("k=4",)),
    "eu_k": ((), ("lr=3e-3",), ("lr=3e-4",), ("k=4",)),
    "scrub": ((), ("lr=1e-3",), ("lr=1e-4",), ("lr=5e-4", "max_steps=20")),
    "salun": ((), ("lr=1e-3",), ("lr=1e-4",), ("salient_share=0.8",)),
    "ssd": ((), ("alpha=2",), ("alpha=10",), ("alpha=1", "dampening=0.5"), ("alpha=0.5", "dampening=0.3")),
    "unsir": ((), ("lr=1e-3",), ("lr=5e-3",), ("lr=1e-3", "impair_steps=120")),
    "bad_teacher": ((), ("lr=3e-4",), ("lr=3e-5",), ("lr=1e-3",)),
    "boundary_shrink": ((), ("lr=1e-4",), ("lr=1e-5",), ("lr=1e-4", "bound=0.3")),
}
"""Method -> candidates, as `unlearn --set` takes them."""


def chosen(file: Path) -> dict[str, Changes]:
    """What `choose` wrote."""
    found = json.loads(file.read_text(encoding="utf-8"))["methods"]
    return {how: tuple(tried["chosen"]) for how, tried in found.items()} | {"retrain": RETRAIN}


def choose(builder: PackBuilder, file: Path) -> None:
    """Tries what is missing in `file` and writes it after every method, so that a killed run goes on."""
    methods = json.loads(file.read_text(encoding="utf-8"))["methods"] if file.exists() else {}
    for how in GRID:
        if how not in methods:
            methods[how] = _try_all(builder, how)
            files.write_json({"classes": list(CLASSES), "methods": methods}, file)


def _try_all(builder: PackBuilder, how: str) -> dict[str, Any]:
    tried = []
    for changes in GRID[how]:
        misses = [_try(builder, how, name, changes) for name in CLASSES]
        tried.append({"changes": list(changes), "on": misses, "miss": sum(one["miss"] for one in misses)})
        print(f"{how} {' '.join(changes) or '(as on canvas)'}: {misses}", flush=True)
        if tried[-1]["miss"] == 0:
            break
    best = min(tried, key=lambda one: one["miss"])
    return {"title": TITLES[how], "chosen": best["changes"], "miss": best["miss"], "tried": tried}


def _try(builder: PackBuilder, how: str, name: str, changes: Changes) -> dict[str, Any]:
    """Accuracies on the check images, and by how much both together miss the aim."""
    settings, original, check = method(how).Settings(), builder.original(), builder.data.check
    for text in changes:
        settings = record.changed(settings, text)
    target, started = builder.plan.classes.index(name), time.monotonic()
    checkpoint = builder.work / f"tuning-{how}-{name}.ckpt"
    task = Task(builder.data.train, check, target, checkpoint, builder.device, augment=builder.plan.augment)
    before = accuracies(original, check, target, builder.device)
    try:
        after = accuracies(method(how).unlearn(original, task, settings), check, target, builder.device)
    except Diverged as error:
        return {"class": name, "problem": str(error), "miss": 2.0}
    finally:
        checkpoint.unlink(missing_ok=True)
    miss = max(0.0, after.forget - FORGET_GOAL) + max(0.0, before.retain - after.retain - RETAIN_GOAL)
    return {
        "class": name,
        "forget": after.forget,
        "retain": after.retain,
        "original_retain": before.retain,
        "miss": miss,
        "seconds": time.monotonic() - started,
    }

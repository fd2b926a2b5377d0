"""The loop around a training: progress, a checkpoint every minute, and going on from it after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..machine import divergence, files

EVERY = 60
"""Seconds between two checkpoints."""


def train(
    step: Callable[[int], dict[str, str]],
    steps: int,
    checkpoint: Path,
    parts: dict[str, Any],
    made_from: dict,
) -> float:
    """Calls `step(i)` for the steps that the checkpoint lacks, and returns the seconds spent, resumed parts added up.

    `step` gives what the progress bar shows. `parts` (modules, optimisers: whatever has state_dict) are what the
    checkpoint holds; one whose `made_from` differs (other recipe, other data) is not used. A step's batch must depend
    on its number alone, so that a resumed run sees what an unbroken one sees. Raises Diverged where a module's weights
    are no finite numbers; the checkpoint is then the last sound state.
    """
    start, seconds = _resume(checkpoint, parts, made_from)
    saved = time.monotonic()
    progress = tqdm(range(start, steps), initial=start, total=steps, desc=checkpoint.stem, mininterval=10)
    for i in progress:
        shown = step(i)
        due = time.monotonic() - saved > EVERY or i + 1 == steps
        if i % 50 == 0:
            progress.set_postfix(shown)
        if i % 50 == 0 or due:
            modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
            weights = [weight for module in modules for weight in module.parameters()]
            divergence.check_weights(i, weights, "take a smaller learning rate")
        if due:
            seconds += time.monotonic() - saved
            saved = time.monotonic()
            _save(checkpoint, parts, made_from, i + 1, seconds)
    return seconds


def one_cycle(done: float, warmup: float) -> float:
    """Share of the peak learning rate at the share `done` of the training: up linearly, then down to 0."""
    return min(1.0, done / warmup) * (1 - max(0.0, (done - warmup) / (1 - warmup))) if warmup else 1 - done


def set_rate(optimisers: list[torch.optim.Optimizer], share: float) -> None:
    """Sets every group's learning rate to `share` of its `peak_lr`."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * share


def _resume(checkpoint: Path, parts: dict[str, Any], made_from: dict) -> tuple[int, float]:
    if not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["made_from"] != made_from:
        return 0, 0.0
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    return state["step"], state["seconds"]


def _save(checkpoint: Path, parts: dict[str, Any], made_from: dict, step: int, seconds: float) -> None:
    state: dict[str, Any] = {"parts": {name: part.state_dict() for name, part in parts.items()}}
    state |= {"made_from": made_from, "step": step, "seconds": seconds}
    with files.whole(checkpoint) as part:
        torch.save(state, part)

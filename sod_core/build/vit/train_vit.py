"""Trains a ViT from scratch on a world's images: the original, and the "retrained without a class" yardstick.

What makes a small ViT learn fast enough on two cores: token labels (every patch also predicts what
covers it; Jiang et al. 2021, "All Tokens Matter"), through the class head itself plus one output for the
background that is thrown away afterwards, so that a class lies in the same direction on CLS and on patches;
half of the patches left out during the first part (PatchDropout, Liu et al. 2022), the Muon optimiser for the
blocks' matrices, and sine-cosine initial position embeddings.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ...machine import divergence, files, processes
from ...models import vit as vits
from ...worlds.augment import Augment, mirrored
from ...worlds.drawn import MEAN, STD, ImageSet, normalise
from ..muon import Muon


@dataclass(frozen=True)
class Recipe:
    steps: int = 3000
    batch: int = 64
    sparse_share: float = 0.75
    """Share of the steps that see only half of the patches."""
    muon_lr: float = 0.008
    adam_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    token_weight: float = 0.5
    """Weight of the token labels' loss beside the class loss."""
    seed: int = 0


class Trained(NamedTuple):
    vit: nn.Module
    """In evaluation mode, without gradients."""
    seconds: float
    """Time spent training, resumed parts added up."""


def train(
    shape: vits.ViTShape,
    data: ImageSet,
    recipe: Recipe,
    checkpoint: Path,
    device: torch.device,
    without: int | None = None,
    mean: float | tuple[float, ...] = MEAN,
    std: float | tuple[float, ...] = STD,
    precision: torch.dtype = torch.bfloat16,
    augment: Augment = mirrored,
) -> Trained:
    """Trains with progress, never showing class `without`; every minute writes `checkpoint`, from which a
    killed run goes on.

    A step's batch depends on (seed, step) alone, so a resumed run sees what an unbroken one sees; several processes
    (sod_core.machine.processes) divide it. Images without masks are trained on by their class alone. Raises Diverged
    where the loss, a gradient or a weight is no finite number; `checkpoint` is then the last sound state.
    """
    allowed = np.arange(len(data.labels)) if without is None else np.flatnonzero(data.labels != without)
    torch.manual_seed(recipe.seed)
    vit = vits.new(shape)
    with torch.no_grad():
        vit.pos_embed[0, 1:] = _sincos(shape.grid, shape.dim)
    background = nn.Linear(shape.dim, 1)  # thrown away after training
    model = nn.ModuleDict({"vit": vit, "background": background}).to(device)
    vits.plain_attention_on_cpu(vit)
    optimisers = _optimisers(model, recipe)
    start, seconds = _resume(checkpoint, model, optimisers, recipe, device)
    saved = time.monotonic()
    remedy = f"take smaller learning rates than muon_lr={recipe.muon_lr:g} and adam_lr={recipe.adam_lr:g}"
    steps = range(start, recipe.steps)
    quiet = not processes.is_main()
    progress = tqdm(steps, initial=start, total=recipe.steps, desc=checkpoint.stem, mininterval=10, disable=quiet)
    for step in progress:
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * _one_cycle(step / recipe.steps, recipe.warmup)
        loss, accuracy = _step(model, data, allowed, recipe, step, device, (mean, std), precision, augment)
        loss.backward()
        loss, gradients = loss.detach(), [one.grad for one in model.parameters() if one.grad is not None]
        processes.average([*gradients, loss])
        divergence.check(step, loss, gradients, remedy)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", batch_accuracy=f"{accuracy:.2f}")
        if time.monotonic() - saved > 60 or step + 1 == recipe.steps:
            seconds += time.monotonic() - saved
            saved = time.monotonic()
            divergence.check_weights(step, model.parameters(), remedy)
            if processes.is_main():
                _save(checkpoint, model, optimisers, recipe, step + 1, seconds)
    return Trained(vit.requires_grad_(False).eval(), seconds)


def _step(
    model: nn.ModuleDict,
    data: ImageSet,
    allowed: np.ndarray,
    recipe: Recipe,
    step: int,
    device: torch.device,
    normalisation: tuple = (MEAN, STD),
    precision: torch.dtype = torch.bfloat16,
    augment: Augment = mirrored,
) -> tuple[Tensor, float]:
    """(loss, share named rightly) of this process's part of the step's batch."""
    rng = np.random.default_rng((recipe.seed, step))
    chosen = np.sort(allowed[rng.integers(0, len(allowed), recipe.batch)])
    pixels, coverage = augment(data.pixels[chosen], data.coverage[chosen], rng)
    labels = torch.as_tensor(data.labels[chosen])
    vit: Any = model["vit"]
    targets = token_targets(torch.as_tensor(np.ascontiguousarray(coverage)), labels, vit.num_classes)
    part = processes.part(recipe.batch)
    images, labels = normalise(pixels[part], *normalisation).to(device), labels[part].to(device)
    targets = targets.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        hidden = vit._pos_embed(vit.patch_embed(images))
        if step < recipe.sparse_share * recipe.steps:
            hidden, targets = _drop_half(hidden, targets, rng, part)
        hidden = vit.norm(vit.blocks(hidden)).float()
    scores = vit.head(hidden[:, 0])
    loss = F.cross_entropy(scores, labels)
    token_scores = torch.cat([vit.head(hidden[:, 1:]), model["background"](hidden[:, 1:])], dim=-1)
    known = max(1, int((targets >= 0).sum())) / processes.count()  # of the whole batch: parts may know more or less
    tokens = F.cross_entropy(token_scores.flatten(0, 1), targets[part].flatten(), ignore_index=-1, reduction="sum")
    tokens = tokens / known
    return loss + recipe.token_weight * tokens, (scores.argmax(1) == labels).float().mean().item()


def token_targets(coverage: Tensor, labels: Tensor, background: int) -> Tensor:
    """coverage [B, N] uint8, labels [B] -> [B, N]: the class, `background`, or -1 (ignored) for a patch between."""
    targets = torch.full(coverage.shape, -1)
    targets[coverage == 0] = background
    return torch.where(coverage > 77, labels[:, None], targets)  # 30 % of the patch


def _drop_half(
    hidden: Tensor, targets: Tensor, rng: np.random.Generator, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Keeps CLS and a random half of the patches, another half for every image.

    `targets` are of the whole batch, `hidden` of `part` of it; so are those returned.
    """
    count = targets.shape[1]
    drawn = np.argsort(rng.random(targets.shape), axis=1)[:, : count // 2]
    kept = torch.as_tensor(drawn, device=hidden.device)
    patches = hidden[:, 1:].gather(1, kept[part, :, None].expand(-1, -1, hidden.shape[2]))
    return torch.cat([hidden[:, :1], patches], dim=1), targets.gather(1, kept)


def _optimisers(model: nn.ModuleDict, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimisers = [
        Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)),
    ]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return optimisers


def _one_cycle(share: float, warmup: float) -> float:
    return share / warmup if share < warmup else max(0.0, (1 - share) / (1 - warmup))


def _sincos(grid: int, dim: int) -> Tensor:
    """[grid * grid, dim] two-dimensional sine-cosine embeddings, scaled to sit beside small patch embeddings."""
    from timm.layers import build_sincos2d_pos_embed

    return build_sincos2d_pos_embed([grid, grid], dim=dim) * 0.3


def _resume(
    checkpoint: Path, model: nn.Module, optimisers: list, recipe: Recipe, device: torch.device
) -> tuple[int, float]:
    """(the step to go on from, seconds spent before); a checkpoint of another recipe is not used."""

    def stored() -> dict | None:
        return torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.exists() else None

    state = processes.by_main(stored)  # other machines may not have the file
    if state is None or state.get("recipe") != asdict(recipe):
        return 0, 0.0
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"]):
        optimiser.load_state_dict(saved)
    return state["step"], state["seconds"]


def _save(checkpoint: Path, model: nn.Module, optimisers: list, recipe: Recipe, step: int, seconds: float) -> None:
    state = {
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "recipe": asdict(recipe),
        "step": step,
        "seconds": seconds,
    }
    with files.whole(checkpoint) as part:
        torch.save(state, part)

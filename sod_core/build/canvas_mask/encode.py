"""What the ViTs of the pack `canvas` make of images, and which hidden state serves a bottleneck."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...machine import files
from ...mask import probe
from ...mask.session import Images
from ...models import vit as vits
from ...models import vit_weights
from ...packs import safe
from ...worlds import drawn
from ...worlds.drawn import ImageSet

LAYERS = [6, 7, 8, 9, 10, 11]
TOKENS = ("cls", "patches")
SCALES = ("raw", "whitened")
SHRINKAGE = 0.01
"""Of the mean variance, added to every one before its square root divides."""
NEAR_BEST = 0.01
"""A hidden state can serve if its linear probe is so close to the best one's."""


class Recipe(NamedTuple):
    """Which numbers of the encoder are the features."""

    layer: int
    token: str
    """"cls", or "patches": the mean of all patches."""
    scale: str
    """"raw", or "whitened"."""


def hidden(vit: Any, images: ImageSet, device: torch.device) -> Tensor:
    """[N, layers, tokens, D] float16: both tokens after each of LAYERS."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(images.labels), 250):
            batch = drawn.normalise(images.pixels[start : start + 250]).to(device)
            states = vits.heads(vit, batch, LAYERS)
            both = [torch.stack([states[n][:, 0], states[n][:, 1:].mean(1)], 1) for n in LAYERS]
            found.append(torch.stack(both, 1).half().cpu())
    return torch.cat(found)


def kept_hidden(work: Path, id: str, split: str, images: ImageSet, file: Path, shape: Any, device: Any) -> Tensor:
    """As `hidden`, by the ViT in a checkpoint; from `work` if it was computed before."""
    path = work / f"mask_{id}_{split}_{len(images.labels)}.npy"
    if not path.exists():
        vit = vits.new(shape)
        vit_weights.load_vit(vit, safe.read_torch(file), file.name)
        found = hidden(vit.to(device).eval(), images, device).numpy()
        with files.whole(path) as part, part.open("wb") as opened:
            np.save(opened, found)
    return torch.from_numpy(np.load(path))


def whitening(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [M], and the symmetric [M, M] that makes the features' covariance about the identity. No labels."""
    features = features.double()
    mean = features.mean(0)
    variances, axes = torch.linalg.eigh((features - mean).T.cov())
    scale = (variances.clamp(min=0) + SHRINKAGE * variances.mean()).rsqrt()
    return mean.float(), (axes * scale @ axes.T).float()


def scaled(recipe: Recipe, states: Tensor, fitted_on: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Features [N, M] of hidden states, with mean and matrix, which are made on the states `fitted_on`."""
    features = chosen(recipe, states)
    if recipe.scale == "raw":
        return features, None, None
    mean, matrix = whitening(chosen(recipe, fitted_on))
    return (features - mean) @ matrix, mean, matrix


def chosen(recipe: Recipe, states: Tensor) -> Tensor:
    """[N, M] float32 of one layer and token."""
    return states[:, LAYERS.index(recipe.layer), TOKENS.index(recipe.token)].float()


def judge(states: dict[str, Tensor], labels: dict[str, Tensor], fitted_on: Tensor) -> list[dict[str, Any]]:
    """A row for every recipe: nearest mean and linear probe, learned on the training images, of the check images."""
    rows: list[dict[str, Any]] = []
    for layer in LAYERS:
        for token in TOKENS:
            for scale in SCALES:
                recipe = Recipe(layer, token, scale)
                train, check = (
                    Images(scaled(recipe, states[split], states["train"][fitted_on])[0], labels[split])
                    for split in ("train", "check")
                )
                if scale == "raw":
                    linear = probe.linear(train, check)  # whitening leaves to a linear probe what it had
                rows.append(
                    recipe._asdict() | {"nearest_mean": probe.nearest_mean(train, check), "linear_probe": linear}
                )
    return rows


def best(rows: dict[str, list[dict[str, Any]]]) -> Recipe:
    """One for all encoders: the best nearest mean, of the encoder it suits least, where the probe is near the best.

    `rows` are `judge`'s of each encoder; a recipe's probe has to be within NEAR_BEST of the encoder's best one.
    """
    fits = {}
    for place, row in enumerate(next(iter(rows.values()))):
        same = [each[place] for each in rows.values()]
        most = [max(other["linear_probe"] for other in each) for each in rows.values()]
        if all(one["linear_probe"] >= top - NEAR_BEST for one, top in zip(same, most)):
            fits[Recipe(*(row[name] for name in Recipe._fields))] = min(one["nearest_mean"] for one in same)
    if not fits:
        raise ValueError("no hidden state serves all encoders: choose one for each")
    return max(fits, key=lambda recipe: fits[recipe])

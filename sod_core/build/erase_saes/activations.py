"""Gathers what a hook point of a diffusion pipeline puts out while it draws, for an SAE to be trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...models import diffusion


class Prompted(NamedTuple):
    """One image to draw."""

    text: str
    concept: int
    """Index into the concepts."""
    seed: int


@dataclass(frozen=True)
class Gathering:
    steps: int = 25
    guidance: float = 4.0
    kept_steps: int = 25
    """Denoising steps kept of every image, drawn at random: all of a small model's, a few of a large one's."""
    unprompted: int = 8
    """Of so many images one is kept of the half without prompt, too."""
    batch: int = 64
    """Images drawn at once."""


class Activations(NamedTuple):
    """What a hook point put out; the arrays may be memory-mapped."""

    tokens: np.ndarray
    """[images, kept steps, N, D] half precision, of the half with the prompt."""
    concepts: np.ndarray
    """[images] int64: index into the concepts."""
    unprompted: np.ndarray
    """[m, kept steps, N, D], of the half without."""


def gather(pipeline: Any, hook_point: str, wanted: list[Prompted], how: Gathering, folder: Path) -> Activations:
    """Draws every image of `wanted` and keeps its activations in `folder`; a killed run goes on at its last batch.

    Which steps are kept depends on the image's place in `wanted` alone. Needs guidance above 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "record.json"
    made_from = asdict(how) | {"hook_point": hook_point, "images": [list(item) for item in wanted]}
    done = 0
    if record.exists():
        found = json.loads(record.read_text())
        done = found["done"] if found["made_from"] == json.loads(json.dumps(made_from)) else 0
    arrays: tuple[np.memmap, np.memmap] | None = None
    progress = tqdm(total=len(wanted), initial=done, desc="drawing", unit="image", mininterval=5)
    for start in range(done, len(wanted), how.batch):
        batch = wanted[start : start + how.batch]
        halves = _drawn(pipeline, hook_point, batch, how)
        if arrays is None:
            shape = (how.kept_steps, *halves.shape[3:])
            arrays = (
                _array(folder / "tokens.npy", (len(wanted), *shape), done),
                _array(folder / "unprompted.npy", (-(-len(wanted) // how.unprompted), *shape), done),
            )
        tokens, unprompted = arrays
        for row in range(len(batch)):
            place = start + row
            kept = np.sort(np.random.default_rng(place).permutation(how.steps)[: how.kept_steps])
            tokens[place] = halves[1, row, kept]
            if place % how.unprompted == 0:
                unprompted[place // how.unprompted] = halves[0, row, kept]
        tokens.flush()
        unprompted.flush()
        record.write_text(json.dumps({"done": start + len(batch), "made_from": made_from}))
        progress.update(len(batch))
    kept_tokens, kept_unprompted = (np.load(folder / name, mmap_mode="r") for name in ("tokens.npy", "unprompted.npy"))
    return Activations(kept_tokens, np.array([item.concept for item in wanted]), kept_unprompted)


def _drawn(pipeline: Any, hook_point: str, batch: list[Prompted], how: Gathering) -> np.ndarray:
    """[2, images, steps, N, D] half precision: without and with prompt."""
    seen: list[Tensor] = []

    def look(tokens: Tensor, step: int, given: Tensor | None) -> Tensor:
        seen.append(tokens.detach().to("cpu", torch.float16))
        return tokens

    texts, _, seeds = zip(*batch)
    diffusion.draw(pipeline, diffusion.Order(texts, seeds, how.steps, how.guidance), look, hook_point, decoded=False)
    return torch.stack(seen, dim=1).unflatten(0, (2, len(batch))).numpy()


def _array(path: Path, shape: tuple[int, ...], done: int) -> np.memmap:
    if done and path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def prompts(
    concepts: tuple[str, ...], styles: tuple[str, ...], write: Callable[[str, str | None], str], seeds: range
) -> Iterator[Prompted]:
    """Every concept in every style and without a style, once for each seed; no two images share their noise."""
    pairs = [(concept, style) for style in (None, *styles) for concept in range(len(concepts))]
    for seed in seeds:
        for place, (concept, style) in enumerate(pairs):
            yield Prompted(write(concepts[concept], style), concept, seed * len(pairs) + place)

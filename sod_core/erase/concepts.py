"""Concept statistics: what an SAE's latents do on average while a pipeline draws a concept, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..models import diffusion
from ..sparse.topk import TopKSAE
from . import edit

BATCH = 50


def gather(
    pipeline: Any,
    hook_point: str,
    saes: list[TopKSAE],
    prompts: dict[str, list[tuple[str, int]]],
    steps: int,
    guidance: float,
    residual: bool = False,
    told: Callable[[Iterable], Iterable] = lambda batches: batches,
) -> list[edit.ConceptStatistics]:
    """Statistics for each of several SAEs of one hook point, from one drawing of all images.

    prompts: concept -> its (prompt, noise seed) pairs. Latents are those of the half with the prompt, after the top k,
    averaged over tokens, as scripts/gather_sae_acts_ca_prompts_cls.py of SAeUron has them; only their means over
    samples are kept. `told` wraps the batches, to show progress.
    """
    batches = [
        (concept, pairs[start : start + BATCH])
        for concept, pairs in prompts.items()
        for start in range(0, len(pairs), BATCH)
    ]
    sums = [{concept: torch.zeros(steps, sae.latents) for concept in prompts} for sae in saes]
    for concept, pairs in told(batches):
        for total, found in zip(sums, _batch(pipeline, hook_point, saes, pairs, steps, guidance, residual)):
            total[concept] += found
    names = tuple(prompts)
    counts = torch.tensor([len(prompts[name]) for name in names])
    means = [torch.stack([total[name] / len(prompts[name]) for name in names]) for total in sums]
    if not all(bool(mean.isfinite().all()) for mean in means):
        raise ValueError("the latents are no finite numbers, so there are no statistics of them: is the SAE sound?")
    return [edit.ConceptStatistics(names, mean, counts) for mean in means]


@torch.inference_mode()
def _batch(
    pipeline: Any,
    hook_point: str,
    saes: list[TopKSAE],
    pairs: list[tuple[str, int]],
    steps: int,
    guidance: float,
    residual: bool,
) -> list[Tensor]:
    """For each SAE [steps, F]: latents averaged over tokens, summed over the images of `pairs`."""
    sums = [torch.zeros(steps, sae.latents) for sae in saes]

    def look(tokens: Tensor, step: int, given: Tensor | None) -> Tensor:
        if residual and given is None:
            raise ValueError("a residual SAE reads output minus input, and this block's input was not given")
        seen = tokens - given if residual and given is not None else tokens
        prompted = seen[len(seen) - len(pairs) :]  # with guidance the half without prompt comes first
        for total, sae in zip(sums, saes):
            total[step] += sae.encode(prompted.to(sae.pre_bias.dtype)).mean(1).sum(0).float().cpu()
        return tokens

    texts, seeds = zip(*pairs)
    diffusion.draw(pipeline, diffusion.Order(texts, seeds, steps, guidance), look, hook_point, decoded=False)
    return sums

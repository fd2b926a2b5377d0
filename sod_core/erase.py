"""Erasing a concept: the latents bound to it are scaled at every denoising step (SAeUron, SAEmnesia). Pure functions.

Formulas: utils/hooks.py (SAEMaskedUnlearningHook) and SAE/unlearning_utils.py of SAEmnesia's released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .sae import TopKSAE

FIDELITIES = ("exact", "reference")
EPSILON = 1e-8


class ConceptStatistics(NamedTuple):
    """What the latents do on average, concept by concept and step by step: all that the formulas need."""

    names: tuple[str, ...]
    means: Tensor
    """[C, T, F]: latents averaged over an image's tokens, then over the concept's images."""
    counts: Tensor
    """[C]: images of each concept."""

    def index(self, concept: str) -> int:
        """Raises ValueError for an unknown concept."""
        if concept not in self.names:
            raise ValueError(f"no statistics of {concept!r}; known: {', '.join(self.names)}")
        return self.names.index(concept)

    def at(self, step: int, steps: int) -> int:
        """The step of the statistics that is as far into the drawing as `step` of `steps`."""
        measured = self.means.shape[1]
        return step if steps == measured else round(step * (measured - 1) / max(1, steps - 1))


@dataclass(frozen=True)
class Settings:
    """What is erased, and how."""

    concepts: tuple[str, ...] = ()
    percentile: float = 99.9
    """Latents whose score lies above it are scaled."""
    factor: float | None = None
    """Ours: the selected latents are multiplied by it. 1 changes nothing."""
    multiplier: float | None = None
    """The authors': they are multiplied by it and by the concept's mean latent at that step."""
    start_step: int = 0
    """Earlier denoising steps are not edited."""
    beta: bool = False
    """Multiply by `multiplier` times the norm of the token's latents over that of the latent's decoder column."""
    residual: bool = False
    """The SAE reads the block's output minus its input."""
    fidelity: str = "exact"

    def check(self) -> None:
        """Raises ValueError, a sentence, for settings that mean nothing."""
        if self.concepts and (self.factor is None) == (self.multiplier is None):
            raise ValueError("give a factor or a multiplier, and not both")
        if self.beta and self.multiplier is None:
            raise ValueError("beta scaling needs a multiplier")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"the percentile must lie between 0 and 100, not {self.percentile:g}")
        if self.fidelity not in FIDELITIES:
            raise ValueError(f"unknown fidelity {self.fidelity!r}; known: {', '.join(FIDELITIES)}")


class StepPlan(NamedTuple):
    """What is done to which latents at one denoising step."""

    features: Tensor
    """[S] ids, each once."""
    thresholds: Tensor
    """[S]: a latent is scaled where it lies above its own."""
    scales: Tensor
    """[S]: factors; with beta, what the ratio of norms is multiplied by."""
    active: bool
    """Whether this step is edited at all."""


class Erased(NamedTuple):
    tokens: Tensor
    """[B, N, D], as the block should have put them out."""
    latents: Tensor | None
    """[B, N, S]: the selected latents before the edit, where they were asked for."""


def statistics(latents: dict[str, Tensor]) -> ConceptStatistics:
    """From what the released code gathers: concept -> [samples, T, F]."""
    means = torch.stack([value.float().mean(0) for value in latents.values()])
    return ConceptStatistics(tuple(latents), means, torch.tensor([len(value) for value in latents.values()]))


def scores(found: ConceptStatistics, concept: str, step: int) -> Tensor:
    """[F]: the share of the concept's mean activation that each latent holds, minus that over all other concepts.

    compute_feature_importance; the mean over the others is over all their samples. `step` is one of the statistics'.
    """
    this = found.index(concept)
    mean = found.means[this, step].float()
    if len(found.names) == 1:
        return mean
    weights = found.counts.to(mean).clone()
    weights[this] = 0
    others = (weights[:, None] * found.means[:, step].float()).sum(0) / weights.sum()
    return mean / (mean.sum() + EPSILON) - others / (others.sum() + EPSILON)


def selected(found: ConceptStatistics, concept: str, step: int, percentile: float) -> Tensor:
    """[S]: ids of the latents whose score lies above the percentile of all scores."""
    score = scores(found, concept, step)
    return (score > torch.quantile(score, percentile / 100)).nonzero().flatten()


def plan(found: ConceptStatistics, how: Settings, steps: int) -> list[StepPlan]:
    """What every one of `steps` denoising steps does. Raises ValueError for settings or concepts that mean nothing.

    Where two concepts select one latent, the one named last scales it, as in the released code.
    """
    how.check()
    plans = []
    for step in range(steps):
        t, scales = found.at(step, steps), {}
        for concept in how.concepts:
            ids = selected(found, concept, t, how.percentile)
            means = found.means[found.index(concept), t].float()[ids]
            scales |= dict(zip(ids.tolist(), _scales(means, how).tolist()))
        ids = torch.tensor(sorted(scales), dtype=torch.long)
        thresholds = found.means[:, t].float()[:, ids].mean(0)
        plans.append(StepPlan(ids, thresholds, torch.tensor([scales[i] for i in ids.tolist()]), step >= how.start_step))
    return plans


def _scales(means: Tensor, how: Settings) -> Tensor:
    if how.factor is not None:
        return torch.full_like(means, how.factor)
    return torch.full_like(means, how.multiplier) if how.beta else means * how.multiplier


def multiplier_for(found: ConceptStatistics, concept: str, factor: float, percentile: float) -> float:
    """The authors' multiplier whose factor, averaged over steps and selected latents, is `factor`."""
    return factor / _mean_latent(found, concept, percentile)


def factor_for(found: ConceptStatistics, concept: str, multiplier: float, percentile: float) -> float:
    """The other way round."""
    return multiplier * _mean_latent(found, concept, percentile)


def _mean_latent(found: ConceptStatistics, concept: str, percentile: float) -> float:
    means = found.means[found.index(concept)].float()
    each = [means[t, selected(found, concept, t, percentile)] for t in range(len(means))]
    return torch.cat(each).mean().item()


class Eraser:
    """An SAE with its decoder laid out row by row, so that a few latents are decoded without the others.

        reference  y = decode(edited) + (decode(latents) - x)
        exact      y = x + W_dec (edited - latents)

    where `edited` are the latents after the step's plan, and decode adds pre_bias. The reference has the sign of its
    error term reversed: that is what the released code computes.
    """

    def __init__(self, sae: TopKSAE):
        self.sae = sae
        self.rows = sae.decoder.weight.T.contiguous()
        """[F, D]: the decoder's columns."""

    @torch.no_grad()
    def erase_step(
        self, x: Tensor, step: StepPlan, how: Settings, given: Tensor | None = None, heat: bool = False
    ) -> Erased:
        """The block's output x [B, N, D], edited; `given`: the block's input, for a residual SAE.

        `heat`: also give the selected latents. Computed in the SAE's precision, given back in x's.
        """
        seen = (x - given if how.residual else x).to(self.rows.dtype)
        step = StepPlan(*(part.to(x.device) for part in step[:3]), step.active)
        if how.fidelity == "exact":
            return self._exact(x, seen, step, how, heat)
        edited, latents = self._reference(seen, step, how)
        edited = edited.to(x.dtype)
        return Erased(given + edited if how.residual else edited, latents)

    def _exact(self, x: Tensor, seen: Tensor, step: StepPlan, how: Settings, heat: bool) -> Erased:
        """Only tokens where a selected latent's own pre-activation passes its threshold are encoded whole."""
        ids = step.features
        nothing = not len(ids) or not step.active or (how.factor == 1 and not how.beta)
        if nothing and not heat:
            return Erased(x, None)
        flat = seen.flatten(0, 1)
        own = F.linear(flat - self.sae.pre_bias, self.sae.encoder.weight[ids], self.sae.latent_bias[ids])
        least = torch.zeros_like(step.thresholds) if heat else step.thresholds.clamp(min=0)
        places = (own > least).any(1).nonzero().flatten()
        found = own.new_zeros(own.shape)
        values, chosen, norms = self._encode(flat[places])
        found[places] = self._of(values, chosen, ids)
        latents = found.unflatten(0, seen.shape[:2]) if heat else None
        if nothing or not len(places):
            return Erased(x, latents)
        change = _change(found[places], step, self._ratios(norms, ids) if how.beta else None)
        y = x.flatten(0, 1).clone()
        y[places] += (change @ self.rows[ids]).to(x.dtype)
        return Erased(y.view_as(x), latents)

    def _reference(self, seen: Tensor, step: StepPlan, how: Settings) -> tuple[Tensor, Tensor]:
        """(the SAE's part of the output, the selected latents); only active rows of the decoder are added up."""
        ids, flat = step.features, seen.flatten(0, 1)
        values, chosen, norms = self._encode(flat)
        found = self._of(values, chosen, ids)
        recons = F.embedding_bag(chosen, self.rows, per_sample_weights=values, mode="sum") + self.sae.pre_bias
        y = 2 * recons - flat
        if step.active and len(ids):
            y += _change(found, step, self._ratios(norms, ids) if how.beta else None) @ self.rows[ids]
        return y.view_as(seen), found.unflatten(0, seen.shape[:2])

    def _encode(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [n, D] -> (the k largest latents [n, k], their ids [n, k], the norm of a token's latents [n, 1])."""
        pre = self.sae.pre_activations(flat)
        values, chosen = pre.topk(self.sae.k, dim=1, sorted=False)
        values = values.relu()
        return values, chosen, values.norm(dim=1, keepdim=True)

    def _of(self, values: Tensor, chosen: Tensor, ids: Tensor) -> Tensor:
        """[n, S]: the latents `ids`; 0 where they are not among the k largest."""
        place = torch.full((len(self.rows),), -1, device=ids.device)
        place[ids] = torch.arange(len(ids), device=ids.device)
        at = place[chosen]
        found = values.new_zeros(len(values), len(ids) + 1)
        found.scatter_(1, torch.where(at < 0, len(ids), at), values)
        return found[:, :-1]

    def _ratios(self, norms: Tensor, ids: Tensor) -> Tensor:
        """[n, S]: norm of a token's latents over the norm of each decoder column."""
        return norms / (self.rows[ids].norm(dim=1) + EPSILON)


def _change(latents: Tensor, step: StepPlan, ratios: Tensor | None) -> Tensor:
    """[n, S]: edited latents minus latents."""
    scales = step.scales.to(latents) if ratios is None else ratios * step.scales.to(latents)
    return torch.where(latents > step.thresholds.to(latents), latents * scales - latents, 0)

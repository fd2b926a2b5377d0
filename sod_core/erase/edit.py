"""Erase: scale the latents that are bound to a concept, at every denoising step, in a block's spatial tokens.

Tokens in, tokens out: nothing here knows of a diffusion pipeline (`diffusion.py` puts it on one).

Sources: SAEmnesia (arXiv 2509.21379) and SAeUron (2501.18052), and their released code: `SAEMaskedUnlearningHook`
in utils/hooks.py, and SAE/unlearning_utils.py. Fidelity "reference" does what that code computes, "exact" what the
method says; `Eraser` has both formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..sparse.topk import TopKSAE

Fidelity = Literal["exact", "reference"]
FIDELITIES: tuple[Fidelity, ...] = ("exact", "reference")
Each = float | tuple[float, ...]
"""One number for all concepts, or one for each."""
PERCENTILE = 99.999
"""Selects one latent a concept in SAEs of up to 100,000 latents."""
LARGEST = 3e38
"""A scale beyond it is infinite in float32."""
TINY = 1e-8
"""Added to every denominator, as the released code does."""


class ConceptStatistics(NamedTuple):
    """What the released code derives from each concept's tensor [samples, steps, F] of latents averaged over tokens."""

    names: tuple[str, ...]
    means: Tensor
    """[C, T, F]: mean over a concept's samples, at every denoising step."""
    counts: Tensor
    """[C]: how many samples each concept has."""

    def place(self, concept: str) -> int:
        """The concept's place. Raises ValueError, with the known names, for any other."""
        if concept not in self.names:
            raise ValueError(f"there are no statistics of the concept {concept!r}; known: {', '.join(self.names)}")
        return self.names.index(concept)

    def at(self, step: int, steps: int) -> int:
        """The index into T for a step of a run of `steps`, by its share of the run; the step itself where T = steps."""
        return round(step * (self.means.shape[1] - 1) / max(steps - 1, 1))

    def scores(self, concept: str, t: int) -> Tensor:
        """How much each latent belongs to the concept at the statistics' step t, [F] (`compute_feature_importance`).

            score_j = m_c[j] / (sum m_c + 1e-8) - m_o[j] / (sum m_o + 1e-8)

        m_c: the concept's mean; m_o: the mean over all samples of all other concepts together. With one concept
        only, the score is m_c itself.
        """
        c, means = self.place(concept), self.means[:, t]
        if len(self.names) == 1:
            return means[c]
        samples = self.counts.to(means).clone()
        samples[c] = 0
        others = samples @ means / samples.sum()
        return means[c] / (means[c].sum() + TINY) - others / (others.sum() + TINY)

    def selected(self, concept: str, t: int, percentile: float) -> Tensor:
        """Ids [S] of the latents whose score is above the percentile (0 to 100) of all scores, ascending."""
        scores = self.scores(concept, t).float()
        return (scores > torch.quantile(scores, percentile / 100)).nonzero().flatten()


def statistics(latents: Mapping[str, Tensor]) -> ConceptStatistics:
    """From each concept's tensor [samples, T, F] of latents averaged over tokens.

    Raises ValueError where there is none, one is empty, or their steps or widths differ.
    """
    if not latents:
        raise ValueError("no concepts: the statistics need at least one concept's latents")
    shapes = {name: tuple(found.shape) for name, found in latents.items()}
    if any(len(shape) != 3 or 0 in shape for shape in shapes.values()):
        raise ValueError(f"each concept needs latents [samples, steps, F], none of them 0; got {shapes}")
    if len({shape[1:] for shape in shapes.values()}) > 1:
        raise ValueError(f"the concepts' latents must have the same steps and width; got {shapes}")
    means = torch.stack([found.float().mean(0) for found in latents.values()])
    return ConceptStatistics(tuple(latents), means, torch.tensor([len(found) for found in latents.values()]))


@dataclass(frozen=True)
class Settings:
    """What to erase, and how. Raises ValueError for what cannot be."""

    concepts: tuple[str, ...]
    """Where two select the same latent, the later one's scaling counts, as in the released code."""
    percentile: Each = PERCENTILE
    """Of the scores, 0 to 100."""
    factor: Each | None = None
    """A number by which a concept's selected latents are multiplied, at every step. This, or `multiplier`."""
    multiplier: Each | None = None
    """The authors' scale: factor_j = the concept's mean of the latent at the step, times this."""
    start_step: int = 0
    """Steps before it are not edited."""
    beta: bool = False
    """Scale by ||latents of the token|| / (||decoder column j|| + 1e-8) * multiplier instead."""
    residual: bool = False
    """The SAE reads the block's output minus its input."""
    fidelity: Fidelity = "exact"

    def __post_init__(self):
        if self.fidelity not in FIDELITIES:
            raise ValueError(f"unknown fidelity {self.fidelity!r}; known: {', '.join(FIDELITIES)}")
        for name in ("percentile", "factor", "multiplier"):
            found = getattr(self, name)
            if isinstance(found, tuple) and len(found) != len(self.concepts):
                count = f"{len(found)} and {len(self.concepts)}"
                raise ValueError(f"give one {name} for all concepts, or one for each: {count} do not match")
        wrong = [found for found in self.each("percentile") if not 0 <= found <= 100]
        if wrong:
            raise ValueError(f"the percentile must be from 0 to 100, not {wrong[0]}")
        if self.start_step < 0:
            raise ValueError(f"the start step must be 0 or later, not {self.start_step}")
        if self.concepts and (self.factor is None) == (self.multiplier is None):
            raise ValueError("give either a factor or a multiplier, one of the two")
        if not all(abs(scale) <= LARGEST for scale in (*self.each("factor"), *self.each("multiplier"))):
            raise ValueError(f"the factor or multiplier must be a finite number of at most {LARGEST:.0g}")
        if self.beta and self.multiplier is None:
            raise ValueError("beta scaling is a multiple of a norm: give it a multiplier, not a factor")

    def each(self, name: str) -> tuple[float, ...]:
        """The percentile, factor or multiplier of every concept; empty where it is None."""
        found = getattr(self, name)
        if found is None or isinstance(found, tuple):
            return found or ()
        return (found,) * max(len(self.concepts), 1)


class StepPlan(NamedTuple):
    """The edit of one denoising step."""

    features: Tensor
    """[S]: ids of the selected latents, unique and ascending."""
    thresholds: Tensor
    """[S]: only a latent above it is scaled. The mean over concepts of their mean at the step."""
    scales: Tensor
    """[S]: the factors; under beta, the multiplier."""
    active: bool
    """False before the start step: nothing is scaled."""


def plan(statistics: ConceptStatistics, settings: Settings, steps: int) -> list[StepPlan]:
    """The edits of a run of `steps` denoising steps. Raises ValueError for a concept without statistics."""
    for concept in settings.concepts:
        statistics.place(concept)
    return [_step_plan(statistics, settings, step, statistics.at(step, steps)) for step in range(steps)]


def working_plan(statistics: ConceptStatistics, settings: Settings, steps: int) -> list[StepPlan]:
    """As `plan`. Raises ValueError for settings by which nothing would be edited, too: they would look like a failure
    to erase."""
    check_start(settings, steps)
    found = plan(statistics, settings, steps)
    if settings.concepts and not any(len(step.features) for step in found if step.active):
        raise ValueError(f"nothing would be edited: no latent's score is above percentile {settings.percentile}")
    return found


def check_start(settings: Settings, steps: int) -> None:
    """Raises ValueError where the first step that is edited lies behind the last of `steps`."""
    if settings.concepts and settings.start_step >= steps:
        raise ValueError(f"nothing would be edited: step {settings.start_step} is behind the last of {steps} steps")


def _step_plan(statistics: ConceptStatistics, settings: Settings, step: int, t: int) -> StepPlan:
    means = statistics.means[:, t].float()
    scales = torch.full_like(means[0], torch.nan)
    by_mean = settings.factor is None and not settings.beta
    numbers = settings.each("multiplier" if settings.factor is None else "factor")
    for concept, percentile, number in zip(settings.concepts, settings.each("percentile"), numbers):
        features = statistics.selected(concept, t, percentile)  # a later concept overwrites
        scales[features] = means[statistics.place(concept), features] * number if by_mean else number
    features = (~scales.isnan()).nonzero().flatten()
    return StepPlan(features, means.mean(0)[features], scales[features], active=step >= settings.start_step)


def multiplier_for(statistics: ConceptStatistics, concept: str, factor: float, percentile: float) -> float:
    """The authors' multiplier whose factor, averaged over steps and selected latents, is `factor`.

    Raises ValueError where the concept's selected latents never fire, or none is selected.
    """
    return factor / _mean_of_selected(statistics, concept, percentile)


def factor_for(statistics: ConceptStatistics, concept: str, multiplier: float, percentile: float) -> float:
    """The inverse: the factor, averaged over steps and selected latents, that the authors' multiplier makes."""
    return multiplier * _mean_of_selected(statistics, concept, percentile)


def _mean_of_selected(statistics: ConceptStatistics, concept: str, percentile: float) -> float:
    means = statistics.means[statistics.place(concept)]
    found = [means[t, statistics.selected(concept, t, percentile)] for t in range(len(means))]
    mean = torch.cat(found).double().mean().item()
    if not mean > 0:
        raise ValueError(
            f"no latent of {concept!r} above percentile {percentile} fires on it, so a multiplier has nothing to "
            "multiply: lower the percentile"
        )
    return mean


class Erased(NamedTuple):
    """A block's output after the edit of one step."""

    tokens: Tensor
    """[B, N, D], in the input's type."""
    latents: Tensor | None
    """[B, N, S]: the selected latents before the edit, after the top k; None unless asked for."""


class _Code(NamedTuple):
    """Tokens [n, D], encoded."""

    values: Tensor
    """[n, k]: the active latents, descending; 0 where fewer than k are positive."""
    indices: Tensor
    """[n, k]: their ids."""
    selected: Tensor
    """[n, S]: the latents that were asked for, 0 where they are not among the top k."""


class Eraser:
    """Edits a block's output x, tokens [B, N, D], by an SAE whose weights no longer change.

        latents   = ReLU(TopK((x - pre_bias) W_enc^T + latent_bias))
        edited_j  = latents_j * scale_j    where j is selected and latents_j > threshold_j, else latents_j
        exact     = x + (edited - latents) W_dec^T
        reference = (edited W_dec^T + pre_bias) + ((latents W_dec^T + pre_bias) - x)

    The reference's error term has its sign reversed in both released repositories. For a residual SAE, x is the
    block's output minus its input, and the input is added to what comes out.

    Only active latents are decoded. The exact mode encodes a token whole (which tells its top k) only where a selected
    latent's own pre-activation passes its threshold.
    """

    def __init__(self, sae: TopKSAE):
        """Raises ValueError for an SAE of normalised tokens: the statistics of CLS and patches mean nothing here."""
        if sae.normalised:
            raise ValueError("erase needs an SAE that reads raw tokens, and this one normalises them")
        self.sae = sae

    @torch.no_grad()
    def step(
        self, x: Tensor, plan: StepPlan, settings: Settings, input: Tensor | None = None, heat: bool = False
    ) -> Erased:
        """One step's edit of all rows of x [B, N, D]; `input` [B, N, D] is the block's, for a residual SAE.

        Computed in the SAE's type. Without concepts, and in the exact mode without anything to scale, the tokens
        are x itself. `heat` asks for the selected latents. Raises ValueError where x is not what the SAE reads.
        """
        if not settings.concepts:
            return Erased(x, x.new_zeros(*x.shape[:2], 0) if heat else None)
        if x.shape[-1] != self.sae.dim:
            raise ValueError(f"the SAE reads tokens of width {self.sae.dim}, and this block's have {x.shape[-1]}")
        if settings.residual and input is None:
            raise ValueError("a residual SAE reads output minus input, and this block's input was not given")
        here = self.sae.pre_bias
        plan = StepPlan(
            plan.features.to(here.device), plan.thresholds.to(here), plan.scales.to(here), active=plan.active
        )
        given = input.to(here) if settings.residual and input is not None else None
        read = x.to(here) if given is None else x.to(here) - given
        if settings.fidelity == "exact":
            return self._exact(x, read, plan, settings.beta, heat)
        erased = self._reference(read, plan, settings.beta, heat)
        tokens = erased.tokens if given is None else erased.tokens + given
        return Erased(tokens.to(x), erased.latents)

    def _exact(self, x: Tensor, read: Tensor, plan: StepPlan, beta: bool, heat: bool) -> Erased:
        scaled = plan.active and len(plan.features) > 0 and (beta or bool((plan.scales != 1).any()))
        if not scaled and not heat:
            return Erased(x, None)
        read = read.flatten(0, 1)
        floor = torch.zeros_like(plan.thresholds) if heat else plan.thresholds.clamp(min=0)
        hot = (self._pre_activations(read, plan.features) > floor).any(-1).nonzero().flatten()
        code = self._encode(read[hot], plan.features)
        latents = None
        if heat:
            latents = read.new_zeros(len(read), len(plan.features))
            latents[hot] = code.selected
            latents = latents.unflatten(0, x.shape[:2])
        if not scaled or not len(hot):
            return Erased(x, latents)
        scales = self._scales(plan, beta) * (code.values.norm(dim=-1, keepdim=True) if beta else 1)
        change = torch.where(code.selected > plan.thresholds, code.selected * (scales - 1), 0)
        tokens = x.flatten(0, 1).clone()
        tokens[hot] = (tokens[hot].to(read) + change @ self._columns(plan.features)).to(x)
        return Erased(tokens.view_as(x), latents)

    def _reference(self, read: Tensor, plan: StepPlan, beta: bool, heat: bool) -> Erased:
        flat = read.flatten(0, 1)
        code = self._encode(flat, plan.features if heat else plan.features[:0])
        edited = code.values
        if plan.active:
            thresholds = flat.new_full([self.sae.latents], torch.inf)
            scales = flat.new_ones(self.sae.latents)
            thresholds[plan.features], scales[plan.features] = plan.thresholds, self._scales(plan, beta)
            scaled = code.values * scales[code.indices] * (code.values.norm(dim=-1, keepdim=True) if beta else 1)
            edited = torch.where(code.values > thresholds[code.indices], scaled, code.values)
        weights = code.values + edited  # both decodings at once
        decoded = functional.embedding_bag(code.indices, self._rows, per_sample_weights=weights, mode="sum")
        tokens = (decoded + 2 * self.sae.pre_bias - flat).view_as(read)
        return Erased(tokens, code.selected.unflatten(0, read.shape[:2]) if heat else None)

    def _encode(self, tokens: Tensor, features: Tensor) -> _Code:
        """[n, D] -> the top k of every token, and the latents `features` [S]."""
        pre = self._pre_activations(tokens)
        values, indices = pre.topk(min(self.sae.k, self.sae.latents), dim=-1)
        own = pre[:, features]
        return _Code(values.relu(), indices, torch.where(own >= values[:, -1:], own, 0).relu())

    def _pre_activations(self, tokens: Tensor, features: Tensor | slice = slice(None)) -> Tensor:
        """[n, D] -> [n, F], or only the columns `features`."""
        sae = self.sae
        return functional.linear(tokens - sae.pre_bias, sae.encoder.weight[features], sae.latent_bias[features])

    def _scales(self, plan: StepPlan, beta: bool) -> Tensor:
        """[S]; under beta still to be multiplied by the norm of each token's latents."""
        return plan.scales / (self._columns(plan.features).norm(dim=-1) + TINY) if beta else plan.scales

    def _columns(self, features: Tensor) -> Tensor:
        """[S, D]: the decoder's columns of these latents."""
        return self.sae.decoder.weight[:, features].T

    @cached_property
    def _rows(self) -> Tensor:
        """[F, D]: the decoder's columns, each in one piece; made at the first reference step."""
        return self.sae.decoder.weight.detach().T.contiguous()

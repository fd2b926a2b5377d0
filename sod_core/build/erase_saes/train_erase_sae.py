"""Trains the SAE of a diffusion model's hook point, and binds its latents to concepts (SAEmnesia, arXiv 2509.21379).

First an ordinary TopK SAE learns to reconstruct. Then every concept is bound to the latent with its highest score, and
training goes on with a cross-entropy that makes the bound latent, averaged over an image's tokens, the largest of all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...erase import edit
from ...sparse.topk import TopKSAE
from .. import loop
from .activations import Activations


@dataclass(frozen=True)
class Recipe:
    latents: int = 1024
    k: int = 16
    steps: int = 2000
    images: int = 32
    """Images (at one denoising step each) in a batch: all their tokens are seen."""
    lr: float = 2e-3
    warmup: float = 0.05
    dead_after: int = 300
    """Steps without firing after which a latent counts as dead and learns from what the others leave over."""
    aux_weight: float = 1 / 32
    aux_k: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Supervision:
    steps: int = 1500
    lr: float = 1e-3
    weight: float = 0.1
    """Of the cross-entropy, beside the reconstruction error as a share of the variance."""
    sparsity: float = 1e-3
    """Of the mean latent."""
    batch_topk: bool = True
    """The k * n largest of a batch in training, the k largest of a token in use, as the authors do."""


class Report(NamedTuple):
    variance_unexplained: float
    dead_latents: int
    """Latents that fire on none of the tokens looked at."""
    concept_read: float
    """Share of images (at single denoising steps) whose concept is the bound latent with the largest mean
    pre-activation among the bound ones."""


def train(data: Activations, recipe: Recipe, checkpoint: Path) -> TopKSAE:
    """The SAE without supervision. Batch i depends on (seed, i) alone."""
    torch.manual_seed(recipe.seed)
    sae = TopKSAE(data.tokens.shape[-1], recipe.latents, recipe.k)
    with torch.no_grad():
        sae.decoder.weight.copy_(F.normalize(torch.randn_like(sae.decoder.weight), dim=0))
        sae.encoder.weight.copy_(sae.decoder.weight.T)
        sae.pre_bias.copy_(_some(data, recipe.seed).mean(0))
    return _train(sae, data, recipe, checkpoint, None)


def supervise(sae: TopKSAE, data: Activations, bound: Tensor, recipe: Recipe, how: Supervision, checkpoint: Path):
    """A copy of `sae`, trained on with the latents `bound` [C] each tied to its concept."""
    copy = TopKSAE(sae.dim, sae.latents, sae.k)
    copy.load_state_dict(sae.state_dict())
    return _train(copy, data, replace(recipe, steps=how.steps, lr=how.lr), checkpoint, (bound, how))


def bind(statistics: edit.ConceptStatistics) -> Tensor:
    """[C]: the latent with the highest score of every concept, averaged over the steps; no latent is bound twice.

    Concepts whose best latent stands out most choose first.
    """
    scores = torch.stack(
        [
            torch.stack([statistics.scores(name, step) for step in range(statistics.means.shape[1])]).mean(0)
            for name in statistics.names
        ]
    )
    bound = torch.full((len(scores),), -1)
    for _ in range(len(scores)):
        concept, latent = divmod(int(scores.argmax()), scores.shape[1])
        bound[concept] = latent
        scores[concept], scores[:, latent] = -torch.inf, -torch.inf
    return bound


@torch.inference_mode()
def report(sae: TopKSAE, data: Activations, bound: Tensor) -> Report:
    """Measured on activations that training did not see."""
    error = variance = 0.0
    ever = torch.zeros(sae.latents, dtype=torch.bool)
    right = []
    mean = _some(data, 1).mean(0)
    for image, concept in zip(data.tokens, data.concepts):
        x = torch.from_numpy(np.array(image)).float()
        pre = sae.pre_activations(x)
        latents = sae.activate(pre)
        ever |= (latents > 0).flatten(0, 1).any(0)
        error += (sae.decoder(latents) + sae.pre_bias - x).square().sum().item()
        variance += (x - mean).square().sum().item()
        right.append(pre.mean(1)[:, bound].argmax(1) == concept)
    return Report(error / variance, int((~ever).sum()), torch.cat(right).float().mean().item())


def _train(sae: TopKSAE, data: Activations, recipe: Recipe, checkpoint: Path, bound: tuple | None) -> TopKSAE:
    optimiser = torch.optim.Adam(sae.parameters(), lr=recipe.lr, betas=(0.9, 0.99))
    for group in optimiser.param_groups:
        group["peak_lr"] = recipe.lr
    idle = nn.ParameterDict({"steps": nn.Parameter(torch.zeros(sae.latents), requires_grad=False)})
    variance = _some(data, recipe.seed).var(0).sum()

    def step(i: int) -> dict[str, str]:
        loop.set_rate([optimiser], loop.one_cycle(i / recipe.steps, recipe.warmup))
        x, concepts = _batch(data, recipe, i)
        pre = sae.pre_activations(x)
        latents = _batch_topk(pre, sae.k) if bound and bound[1].batch_topk else sae.activate(pre)
        error = x - (sae.decoder(latents) + sae.pre_bias)
        loss = unexplained = error.square().sum(-1).mean() / variance
        fired = (latents > 0).flatten(0, 1).any(0)
        idle["steps"].copy_(torch.where(fired, 0, idle["steps"] + 1))
        dead = (idle["steps"] > recipe.dead_after).nonzero().flatten()
        if len(dead):
            loss = loss + recipe.aux_weight * _aux_loss(sae, pre, error, dead, recipe.aux_k) / variance
        shown = {"unexplained": f"{unexplained.item():.4f}", "dead": str(len(dead))}
        if bound:
            named = concepts >= 0
            read = F.cross_entropy(pre[named].mean(1), bound[0][concepts[named]])
            loss = loss + bound[1].weight * read + bound[1].sparsity * latents.mean()
            shown["concept"] = f"{read.item():.3f}"
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            sae.decoder.weight.copy_(F.normalize(sae.decoder.weight, dim=0))
        return shown

    made_from = asdict(recipe) | {"tokens": float(data.tokens[0].sum(dtype=np.float64))}
    made_from |= {"bound": bound[0].tolist()} | asdict(bound[1]) if bound else {}
    loop.train(step, recipe.steps, checkpoint, {"sae": sae, "optimiser": optimiser, "idle": idle}, made_from)
    return sae.requires_grad_(False).eval()


def _batch(data: Activations, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """(tokens [images, N, D], concepts [images]; -1 for the eighth of them that had no prompt)."""
    rng = np.random.default_rng((recipe.seed, step))
    without = recipe.images // 8
    steps = rng.integers(data.tokens.shape[1], size=recipe.images)
    chosen = rng.integers(len(data.tokens), size=recipe.images - without)
    empty = rng.integers(len(data.unprompted), size=without)
    tokens = np.concatenate([data.tokens[chosen, steps[without:]], data.unprompted[empty, steps[:without]]])
    return torch.from_numpy(tokens).float(), torch.as_tensor([*data.concepts[chosen], *[-1] * without])


def _batch_topk(pre: Tensor, k: int) -> Tensor:
    """The k * n largest pre-activations of the n tokens of a batch, wherever they are (Bussmann et al. 2024)."""
    flat = pre.flatten()
    least = flat.topk(k * pre.shape[0] * pre.shape[1], sorted=False).values.min()
    return torch.where(pre >= least, pre, 0).relu()


def _aux_loss(sae: TopKSAE, pre: Tensor, error: Tensor, dead: Tensor, aux_k: int) -> Tensor:
    """Dead latents are taught to explain what the live ones leave over (Gao et al. 2024, appendix A.2)."""
    top = pre[..., dead].topk(min(aux_k, len(dead)), dim=-1)
    values = torch.zeros_like(pre[..., dead]).scatter(-1, top.indices, top.values.relu())
    return (error.detach() - values @ sae.decoder.weight[:, dead].T).square().sum(-1).mean()


def _some(data: Activations, seed: int) -> Tensor:
    """[n, D]: the tokens of at most 500 images at one step each, for means and variances."""
    rng = np.random.default_rng((seed, 500))
    images = rng.integers(len(data.tokens), size=min(len(data.tokens), 500))
    steps = rng.integers(data.tokens.shape[1], size=len(images))
    return torch.from_numpy(data.tokens[images, steps]).float().flatten(0, 1)

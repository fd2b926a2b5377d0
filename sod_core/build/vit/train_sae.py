"""Trains a TopK SAE on the tokens of one layer: CLS and patches together, each normalised by its own statistics."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...machine import files
from ...models import vit as vits
from ...restore import features
from ...sparse.topk import TokenStats, TopKSAE, variance_unexplained
from ...worlds.drawn import ImageSet, normalise


@dataclass(frozen=True)
class SAERecipe:
    k: int = 16
    width: int = 4
    """Latents per dimension of a token."""
    images: int = 24_000
    patches_an_image: int = 12
    """Patch tokens drawn from each image; its CLS always comes along."""
    steps: int = 3000
    batch: int = 4096
    cls_share: float = 1 / 65
    """Share of CLS tokens in a batch: what it is in the data. With more, CLS gets latents of its own and class
    features stop being shared with the patches."""
    lr: float = 1e-3
    aux_weight: float = 1 / 32
    """Weight of the loss that revives dead latents (Gao et al. 2024, AuxK)."""
    aux_k: int = 32
    dead_after: int = 100
    """Steps without firing after which a latent counts as dead in training."""
    weak_weight: float = 0.01
    """Weight of the term against weak firing, see `train`."""
    weak_scale: float = 0.5
    seed: int = 0


class Tokens(NamedTuple):
    cls: Tensor
    """[images, D]"""
    patches: Tensor
    """[images * patches_an_image, D]"""
    stats: TokenStats


@torch.inference_mode()
def collect(vit: nn.Module, data: ImageSet, layer: int, recipe: SAERecipe, device: torch.device) -> Tokens:
    """Tokens of a layer on the first `recipe.images` images."""
    rng = torch.Generator().manual_seed(recipe.seed)
    summaries, drawn_patches = [], []
    for start in tqdm(range(0, recipe.images, 250), desc="hidden states", mininterval=5):
        hidden = vits.head(vit, normalise(data.pixels[start : start + 250]).to(device), layer)
        drawn = torch.rand(hidden.shape[0], hidden.shape[1] - 1, generator=rng).argsort(1)
        index = drawn[:, : recipe.patches_an_image, None].to(device) + 1
        summaries.append(hidden[:, 0])
        drawn_patches.append(hidden.gather(1, index.expand(-1, -1, hidden.shape[2])).flatten(0, 1))
    cls, patches = torch.cat(summaries), torch.cat(drawn_patches)
    return Tokens(cls, patches, TokenStats(patches.mean(0), patches.std(0), cls.mean(0), cls.std(0)))


def train(tokens: Tokens, recipe: SAERecipe, checkpoint: Path) -> TopKSAE:
    """Minimises the squared error of the reconstruction, plus AuxK, plus sum(tanh(latents / weak_scale)).

    The last term clears away weak firing. Top-16 alone fills every token's 16 places, so that a class's
    latent also fires faintly on other classes, where the expert ranking (which asks only whether a latent
    fires) takes it for one that is active everywhere. tanh leaves strong values as they are. Decoder
    columns keep unit length. Every half minute `checkpoint` is written, from which a killed run goes on; a
    step's batch depends on (seed, step) alone.
    """
    torch.manual_seed(recipe.seed)
    dim, device = tokens.cls.shape[1], tokens.cls.device
    sae = TopKSAE(dim, dim * recipe.width, recipe.k).to(device)
    with torch.no_grad():
        sae.decoder.weight.copy_(nn.functional.normalize(torch.randn_like(sae.decoder.weight), dim=0))
        sae.encoder.weight.copy_(sae.decoder.weight.T)
    stats = tokens.stats
    if stats.cls_mean is None or stats.cls_std is None:
        raise ValueError("the tokens have no statistics of CLS")
    cls = (tokens.cls - stats.cls_mean) / stats.cls_std
    patches = (tokens.patches - stats.patch_mean) / stats.patch_std
    optimiser = torch.optim.Adam(sae.parameters(), lr=recipe.lr)
    idle = torch.zeros(sae.latents, device=device)
    made_from = {"recipe": asdict(recipe), "tokens": stats.cls_mean.double().sum().item()}
    start, idle = _resume(checkpoint, sae, optimiser, idle, made_from)
    saved = time.monotonic()
    from_cls = int(recipe.batch * recipe.cls_share)
    progress = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=checkpoint.stem, mininterval=5)
    for step in progress:
        optimiser.param_groups[0]["lr"] = recipe.lr * min(1.0, 5 * (1 - step / recipe.steps))
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        x = torch.cat([_draw(cls, from_cls, rng), _draw(patches, recipe.batch - from_cls, rng)])
        pre = sae.pre_activations(x)
        latents = sae.activate(pre)
        error = x - (sae.decoder(latents) + sae.pre_bias)
        loss = error.square().mean() + recipe.weak_weight * (latents / recipe.weak_scale).tanh().sum(1).mean()
        idle = torch.where((latents > 0).any(0), 0, idle + 1)
        dead = (idle > recipe.dead_after).nonzero().flatten()
        if len(dead):
            loss = loss + recipe.aux_weight * _aux_loss(sae, pre, error, dead, recipe.aux_k)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            sae.decoder.weight.copy_(nn.functional.normalize(sae.decoder.weight, dim=0))
        if step % 100 == 0:
            progress.set_postfix(error=f"{error.square().mean().item():.3f}", dead=len(dead))
        if time.monotonic() - saved > 30:
            state = {"sae": sae.state_dict(), "optimiser": optimiser.state_dict(), "idle": idle, "step": step + 1}
            state["made_from"] = made_from
            with files.whole(checkpoint) as part:
                torch.save(state, part)
            saved = time.monotonic()
    sae.set_stats(stats)
    return sae.to(device).requires_grad_(False).eval()


def _resume(
    checkpoint: Path, sae: TopKSAE, optimiser: torch.optim.Optimizer, idle: Tensor, made_from: dict
) -> tuple[int, Tensor]:
    """(the step to go on from, how long each latent has been idle); one made from other tokens is not used."""
    if not checkpoint.exists():
        return 0, idle
    state = torch.load(checkpoint, map_location=idle.device, weights_only=True)
    if state["made_from"] != made_from:
        return 0, idle
    sae.load_state_dict(state["sae"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["idle"]


def _draw(pool: Tensor, count: int, rng: torch.Generator) -> Tensor:
    return pool[torch.randint(len(pool), (count,), generator=rng).to(pool.device)]


def _aux_loss(sae: TopKSAE, pre: Tensor, error: Tensor, dead: Tensor, aux_k: int) -> Tensor:
    """Dead latents are taught to explain what the live ones leave over."""
    top = pre[:, dead].topk(min(aux_k, len(dead)), dim=1)
    values = torch.zeros_like(pre[:, dead]).scatter(1, top.indices, top.values.relu())
    return (error.detach() - values @ sae.decoder.weight[:, dead].T).square().mean()


class SAEReport(NamedTuple):
    """Measured on fresh test images."""

    variance_unexplained: float
    """CLS and patches together."""
    variance_unexplained_cls: float
    dead_latents: int
    """Latents that fire on no token of any test image."""
    latents: int
    active_latents: float
    """Mean number of active latents on a token; at most k."""
    accuracy: float
    """The ViT's accuracy, untouched."""
    accuracy_reconstructed: float
    """The ViT's accuracy when every token of the layer is replaced by its reconstruction."""


@torch.inference_mode()
def report(vit: nn.Module, sae: TopKSAE, data: ImageSet, layer: int, device) -> tuple[SAEReport, Tensor]:
    """The report, and [images, F] whether a latent is active on at least one patch."""
    hidden, active, counts, right, right_reconstructed = [], [], [], [], []
    ever = torch.zeros(sae.latents, dtype=torch.bool, device=device)
    for start in range(0, len(data.labels), 250):
        part = slice(start, start + 250)
        labels = torch.as_tensor(np.array(data.labels[part])).to(device)
        states = vits.head(vit, normalise(data.pixels[part]).to(device), layer)
        latents = sae.encode(states)
        ever |= (latents > 0).flatten(0, 1).any(0)
        counts.append((latents > 0).sum(-1).float().mean())
        active.append((latents[:, 1:] > 0).any(1))
        right.append(vits.tail(vit, states, layer).argmax(1) == labels)
        right_reconstructed.append(vits.tail(vit, sae.decode(latents), layer).argmax(1) == labels)
        hidden.append(states)
    states = torch.cat(hidden)
    found = SAEReport(
        variance_unexplained=variance_unexplained(sae, states),
        variance_unexplained_cls=variance_unexplained(sae, states[:, :1]),
        dead_latents=int((~ever).sum()),
        latents=sae.latents,
        active_latents=torch.stack(counts).mean().item(),
        accuracy=torch.cat(right).float().mean().item(),
        accuracy_reconstructed=torch.cat(right_reconstructed).float().mean().item(),
    )
    return found, torch.cat(active)


@torch.inference_mode()
def on_experts(
    vit: nn.Module, sae: TopKSAE, data: ImageSet, layer: int, experts: dict[int, list[features.Expert]], device
) -> float:
    """How much of what tells a class on CLS lies on its experts: 0 to 1, the mean over classes.

    Of the difference between the class's mean latents on CLS and all images', the experts' share of the squares.
    """
    parts = [slice(start, start + 250) for start in range(0, len(data.labels), 250)]
    found = torch.cat(
        [sae.encode(vits.head(vit, normalise(data.pixels[p]).to(device), layer))[:, 0].cpu() for p in parts]
    )
    labels, shares = torch.as_tensor(np.array(data.labels)), []
    for label, of_class in experts.items():
        squares = (found[labels == label].mean(0) - found.mean(0)).square()
        shares.append((squares[[expert.feature_id for expert in of_class]].sum() / squares.sum()).item())
    return sum(shares) / len(shares)


def rank(active: Tensor, data: ImageSet, classes: int, k: int) -> dict[int, list[features.Expert]]:
    """Expert lists from the activity that `report` found."""
    return features.rank_experts(
        active.cpu(), torch.as_tensor(np.array(data.labels)), classes, features.experts_kept(k)
    )

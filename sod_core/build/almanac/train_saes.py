"""Trains a layer's SAEs on the hidden states of the almanac's texts: a JumpReLU and a TopK one.

They are trained on states scaled to a mean square of 1, and stored for the states as they are, with decoder rows of
norm 1: an activity is then a length in the residual stream, as in Gemma Scope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...sparse.jumprelu import JumpReLUSAE
from ...sparse.topk import TopKSAE
from .. import loop

KINDS = ("jumprelu", "topk")


@dataclass(frozen=True)
class Recipe:
    latents: int = 1024
    active: int = 12
    """Latents active on a token: TopK's k, and what JumpReLU's penalty aims at."""
    batch: int = 4096
    steps: int = 4000
    lr: float = 1e-3
    bandwidth: float = 0.5
    """Of the rectangle that the steps' derivatives are estimated with."""
    penalty: float = 50.0
    """Weight of JumpReLU's (L0 / active - 1)^2, beside the squared error summed over the width."""
    dead_after: int = 300
    """Steps without firing after which a TopK latent counts as dead."""
    aux_k: int = 64
    aux_weight: float = 1 / 16
    seed: int = 0


class _Step(torch.autograd.Function):
    """1 where pre > threshold; the threshold's gradient through a rectangle (Rajamanoharan et al. 2024, eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(pre.dtype)
        return None, (-near / ctx.bandwidth * gradient).sum(0), None


class _JumpReLU(torch.autograd.Function):
    """pre where pre > threshold, else 0 (eq. 10): the threshold's gradient is -threshold times that of the step."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(pre.dtype)
        return gradient * (pre > threshold), (-threshold * near / ctx.bandwidth * gradient).sum(0), None


class _SAE(nn.Module):
    """pre = x W_enc + b_enc; latents = JumpReLU or TopK of pre; recons = latents W_dec + b_dec."""

    idle: Tensor
    """[F]: steps since each latent fired."""

    def __init__(self, kind: str, mean: Tensor, recipe: Recipe):
        super().__init__()
        dim = len(mean)
        rows = F.normalize(torch.randn(recipe.latents, dim, device=mean.device), dim=1)
        self.kind, self.recipe, self.any_dead = kind, recipe, False
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.T.clone())
        self.b_dec = nn.Parameter(mean.clone())
        self.b_enc = nn.Parameter(-mean @ rows.T)
        self.log_threshold = nn.Parameter(torch.full((recipe.latents,), 0.5, device=mean.device).log())
        self.register_buffer("idle", torch.zeros(recipe.latents, device=mean.device))

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, D] -> (loss, variance unexplained, active latents a token)."""
        recipe = self.recipe
        pre = x @ self.W_enc + self.b_enc
        if self.kind == "topk":
            top = pre.topk(recipe.active, dim=1)
            latents = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        else:
            threshold = self.log_threshold.exp()
            latents = _JumpReLU.apply(pre, threshold, recipe.bandwidth)
        error = x - (latents @ self.W_dec + self.b_dec)
        loss = error.square().sum(1).mean()
        active = (latents > 0).float()
        if self.kind == "jumprelu":
            count = _Step.apply(pre, threshold, recipe.bandwidth).sum(1).mean()
            loss = loss + recipe.penalty * (count / recipe.active - 1).square()
        with torch.no_grad():
            self.idle.copy_(torch.where(active.any(0), 0, self.idle + 1))
        if self.any_dead:
            loss = loss + recipe.aux_weight * self._explains_the_rest(pre, error.detach())
        unexplained = error.square().sum() / (x - x.mean(0)).square().sum()
        return loss, unexplained, active.sum(1).mean()

    def _explains_the_rest(self, pre: Tensor, error: Tensor) -> Tensor:
        """Dead latents learn to explain the error (Gao et al. 2024, A.2)."""
        dead = pre.masked_fill(self.idle < self.recipe.dead_after, -torch.inf)
        top = dead.topk(min(self.recipe.aux_k, dead.shape[1]), dim=1)
        values = torch.where(top.values.isfinite(), top.values, 0).relu()
        latents = torch.zeros_like(pre).scatter(1, top.indices, values)
        return (error - latents @ self.W_dec).square().sum(1).mean()

    @torch.no_grad()
    def unit_rows(self) -> None:
        self.W_dec.copy_(F.normalize(self.W_dec, dim=1))


def train(kind: str, states: Tensor, recipe: Recipe, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """states [N, D] -> (W_enc [D, F], b_enc, W_dec [F, D], b_dec, threshold [F] of a JumpReLU; how well it fits)."""
    torch.manual_seed(recipe.seed)
    device = states.device
    scale = states.float().square().mean().sqrt()
    sae = _SAE(kind, states.float().mean(0) / scale, recipe).to(device)
    optimiser = torch.optim.Adam(sae.parameters(), lr=recipe.lr, betas=(0.9, 0.999), fused=device.type == "cuda")
    optimiser.param_groups[0]["peak_lr"] = recipe.lr
    fit: list[Tensor] = []

    def step(i: int) -> dict[str, str]:
        nonlocal fit
        loop.set_rate([optimiser], min(1.0, i / 200, 4 * (1 - i / recipe.steps)))
        rng = torch.Generator(device).manual_seed(recipe.seed * 1_000_003 + i)
        chosen = torch.randint(len(states), (recipe.batch,), generator=rng, device=device)
        loss, *fit = sae.loss(states[chosen].float() / scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        sae.unit_rows()
        if i % 50 == 0:
            sae.any_dead = bool((sae.idle > recipe.dead_after).any())
        return {"unexplained": f"{fit[0].item():.3f}", "active": f"{fit[1].item():.1f}"} if i % 50 == 0 else {}

    made_from = asdict(recipe) | {"kind": kind, "states": len(states), "scale": float(scale)}
    loop.train(step, recipe.steps, checkpoint, {"sae": sae, "optimiser": optimiser}, made_from)
    found = {
        "W_enc": sae.W_enc,
        "b_enc": sae.b_enc * scale,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec * scale,
        "threshold": sae.log_threshold.exp() * scale,
    }
    if kind == "topk":
        del found["threshold"]
    figures = {"variance_unexplained": fit[0].item(), "active_latents": float(fit[1])}
    figures["dead_latents"] = int((sae.idle > recipe.dead_after).sum())
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}, figures


def code(kind: str, tensors: dict[str, Tensor], recipe: Recipe) -> JumpReLUSAE | TopKSAE:
    """What was trained, as a sparse code."""
    dim = len(tensors["b_dec"])
    if kind == "topk":  # subtracts b_dec first
        topk = TopKSAE(dim, recipe.latents, recipe.active)
        bias = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
        state = {"encoder.weight": tensors["W_enc"].T, "decoder.weight": tensors["W_dec"].T, "latent_bias": bias}
        topk.load_state_dict(state | {"pre_bias": tensors["b_dec"]})
        return topk
    jumprelu = JumpReLUSAE(dim, recipe.latents)
    jumprelu.load_state_dict(tensors)
    return jumprelu


@torch.inference_mode()
def collect(model: Any, batches: list[Tensor], layer: int, keep: Callable[[Tensor], Tensor]) -> Tensor:
    """[N, D] float16: hidden states after block `layer` of the tokens that `keep` (ids [B, T] -> bool) names."""
    found: list[Tensor] = []
    taken: list[Tensor] = []
    hook = model.model.layers[layer].register_forward_hook(lambda module, given, out: found.append(_hidden(out)))
    try:
        for ids in batches:
            found.clear()
            model.model(input_ids=ids, use_cache=False)
            taken.append(found[0][keep(ids)].half())
    finally:
        hook.remove()
    return torch.cat(taken)


def _hidden(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]

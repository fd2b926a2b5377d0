"""Trains the embedded diffusion model's autoencoder: images to latents of a quarter of the side, and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...worlds.drawn import ImageSet, normalise
from .. import loop


@dataclass(frozen=True)
class Recipe:
    steps: int = 2200
    batch: int = 32
    lr: float = 3e-3
    channels: int = 32
    edge_weight: float = 1.0
    """Weight of the L1 error of differences between neighbouring pixels: thin lines stay thin."""
    latent_noise: float = 0.05
    """Standard deviation of noise on the latents in training, so that the decoder forgives a UNet's small errors."""
    latent_weight: float = 1e-3
    """Weight of the latents' mean square: they stay inside the decoder's soft clamp at 3."""
    warmup: float = 0.1
    seed: int = 0


class Trained(NamedTuple):
    vae: Any
    """diffusers.AutoencoderTiny in evaluation mode; scaling_factor makes its latents of unit variance."""
    seconds: float


def new(recipe: Recipe) -> nn.Module:
    """An untrained AutoencoderTiny: 64 px to 4 x 16 x 16."""
    from diffusers import AutoencoderTiny

    widths = (recipe.channels,) * 3
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
    )


def train(data: ImageSet, recipe: Recipe, checkpoint: Path) -> Trained:
    """L1 of pixels and of their differences; batch i depends on (seed, i) alone."""
    torch.manual_seed(recipe.seed)
    vae: Any = new(recipe).train()
    vae = vae.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=recipe.lr, weight_decay=1e-4)
    for group in optimiser.param_groups:
        group["peak_lr"] = recipe.lr

    def step(i: int) -> dict[str, str]:
        loop.set_rate([optimiser], loop.one_cycle(i / recipe.steps, recipe.warmup))
        rng = np.random.default_rng((recipe.seed, i))
        chosen = np.sort(rng.integers(0, len(data.labels), recipe.batch))
        images = normalise(data.pixels[chosen]).to(memory_format=torch.channels_last)
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + i)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encoder(images).float()
            moved = latents + recipe.latent_noise * torch.randn(latents.shape, generator=noise)
            recons = vae.decoder(moved).float()
        error = recons - images
        loss = error.abs().mean() + recipe.edge_weight * _edges(error)
        (loss + recipe.latent_weight * latents.square().mean()).backward()
        optimiser.step()
        optimiser.zero_grad()
        return {"loss": f"{loss.item():.4f}", "latents": f"{latents.std().item():.2f}"}

    seconds = loop.train(step, recipe.steps, checkpoint, {"vae": vae, "optimiser": optimiser}, asdict(recipe))
    vae = vae.requires_grad_(False).eval()
    vae.register_to_config(scaling_factor=round(1 / encode(vae, data, slice(0, 1000)).std().item(), 4))
    return Trained(vae, seconds)


def _edges(error: Tensor) -> Tensor:
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


@torch.inference_mode()
def encode(vae: Any, data: ImageSet, part: slice) -> Tensor:
    """Images `part` -> latents [n, 4, side / 4, side / 4], not yet scaled."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return vae.encoder(normalise(data.pixels[part]).to(memory_format=torch.channels_last)).float()


@torch.inference_mode()
def error(vae: Any, data: ImageSet) -> float:
    """Mean absolute error of the reconstruction, pixels in [0, 1]."""
    found = []
    for start in range(0, len(data.labels), 250):
        images = normalise(data.pixels[start : start + 250])
        found.append((vae.decoder(vae.encoder(images)) - images).abs().mean().item() / 2)
    return float(np.mean(found))

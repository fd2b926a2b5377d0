"""The gated sparse autoencoder: one path decides which latents fire, another how much."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .columns import ColumnSAE


class GatedSAE(ColumnSAE):
    """A gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014), its two paths sharing W_enc as in SAELens.

        z       = (x - b_dec) W_enc                    or x W_enc where b_dec is not subtracted
        latents = ReLU(z * exp(r_mag) + b_mag) where z + b_gate > 0, else 0
        recons  = latents W_dec + b_dec

    where x is a token [D].
    """

    def __init__(self, dim: int, latents: int, subtract_b_dec: bool = True):
        super().__init__(dim, latents, subtract_b_dec)
        self.b_gate = nn.Parameter(torch.zeros(latents))
        self.b_mag = nn.Parameter(torch.zeros(latents))
        self.r_mag = nn.Parameter(torch.zeros(latents))

    def fire(self, z: Tensor, ids: Tensor | slice) -> Tensor:
        """The magnitude where the gate is open."""
        magnitude = (z * self.r_mag[ids].exp() + self.b_mag[ids]).relu()
        return magnitude * (z + self.b_gate[ids] > 0)

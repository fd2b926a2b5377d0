"""The gated sparse autoencoder: one path decides which latents fire, another how much."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GatedSAE(nn.Module):
    """A gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014), its two paths sharing W_enc as in SAELens.

        z       = (x - b_dec) W_enc                    or x W_enc where b_dec is not subtracted
        latents = ReLU(z * exp(r_mag) + b_mag) * (z + b_gate > 0)
        recons  = latents W_dec + b_dec

    where x is a token [D]. A latent's activity needs its own column of W_enc only.
    """

    def __init__(self, dim: int, latents: int, subtract_b_dec: bool = True):
        super().__init__()
        self.subtract_b_dec = subtract_b_dec
        self.W_enc = nn.Parameter(torch.zeros(latents, dim).T)  # a column lies in one piece in memory
        self.b_gate = nn.Parameter(torch.zeros(latents))
        self.b_mag = nn.Parameter(torch.zeros(latents))
        self.r_mag = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, dim))
        self.b_dec = nn.Parameter(torch.zeros(dim))

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return self.W_enc.shape[0]

    @property
    def latents(self) -> int:
        """F, the number of latents."""
        return self.W_enc.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        """Tokens [..., D] -> latents [..., F]."""
        return self._gated(functional.linear(self.centred(x), self.W_enc.T), slice(None))

    def activity(self, x: Tensor, ids: Tensor) -> Tensor:
        """encode(x)[..., ids] by those columns alone: [..., D], [S] -> [..., S]."""
        return self._gated(functional.linear(self.centred(x), self.W_enc[:, ids].T), ids)

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """Latents [..., F] -> tokens [..., D]."""
        return latents @ self.W_dec + self.b_dec

    def delta(self, difference: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        """[..., S] of the latents ids [S] -> what it adds to a token [..., D], by those rows of W_dec alone."""
        return difference @ self.W_dec[ids]

    def centred(self, x: Tensor) -> Tensor:
        """[..., D] -> the same in float32, less b_dec where the SAE subtracts it."""
        return x.float() - self.b_dec if self.subtract_b_dec else x.float()

    def _gated(self, z: Tensor, ids: Tensor | slice) -> Tensor:
        magnitude = (z * self.r_mag[ids].exp() + self.b_mag[ids]).relu()
        return magnitude * (z + self.b_gate[ids] > 0)

"""The JumpReLU sparse autoencoder, and the plain ReLU one: a JumpReLU whose thresholds are 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class JumpReLUSAE(nn.Module):
    """A JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435; Gemma Scope, arXiv 2408.05147).

        pre     = x W_enc + b_enc                      or (x - b_dec) W_enc + b_enc where `subtract_b_dec`
        latents = ReLU(pre) * (pre > threshold)
        recons  = latents W_dec + b_dec

    where x is a token [D]. Gemma Scope does not subtract b_dec, SAELens does unless told otherwise.
    A latent's activity needs its own column of W_enc only.
    """

    def __init__(self, dim: int, latents: int, subtract_b_dec: bool = False):
        super().__init__()
        self.subtract_b_dec = subtract_b_dec
        self.W_enc = nn.Parameter(torch.zeros(latents, dim).T)  # a column lies in one piece in memory
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, dim))
        self.b_dec = nn.Parameter(torch.zeros(dim))
        self.threshold = nn.Parameter(torch.zeros(latents))

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
        return jump(functional.linear(self.centred(x), self.W_enc.T, self.b_enc), self.threshold)

    def activity(self, x: Tensor, ids: Tensor) -> Tensor:
        """encode(x)[..., ids] by those columns alone: [..., D], [S] -> [..., S]."""
        pre = functional.linear(self.centred(x), self.W_enc[:, ids].T, self.b_enc[ids])
        return jump(pre, self.threshold[ids])

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """Latents [..., F] -> tokens [..., D]."""
        return latents @ self.W_dec + self.b_dec

    def delta(self, difference: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        """[..., S] of the latents ids [S] -> what it adds to a token [..., D], by those rows of W_dec alone."""
        return difference @ self.W_dec[ids]

    def centred(self, x: Tensor) -> Tensor:
        """[..., D] -> the same in float32, less b_dec where the SAE subtracts it."""
        return x.float() - self.b_dec if self.subtract_b_dec else x.float()


def jump(pre_activations: Tensor, threshold: Tensor) -> Tensor:
    """ReLU(pre) where pre > threshold, strictly; else 0. [..., F], [F] -> [..., F]."""
    return pre_activations.relu() * (pre_activations > threshold)

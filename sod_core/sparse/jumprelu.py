"""The JumpReLU sparse autoencoder, and the plain ReLU one: a JumpReLU whose thresholds are 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .columns import ColumnSAE


class JumpReLUSAE(ColumnSAE):
    """A JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435; Gemma Scope, arXiv 2408.05147).

        pre     = x W_enc + b_enc                      or (x - b_dec) W_enc + b_enc where `subtract_b_dec`
        latents = ReLU(pre) where pre > threshold, else 0
        recons  = latents W_dec + b_dec

    where x is a token [D]. Gemma Scope does not subtract b_dec, SAELens does unless told otherwise.
    """

    def __init__(self, dim: int, latents: int, subtract_b_dec: bool = False):
        super().__init__(dim, latents, subtract_b_dec)
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.threshold = nn.Parameter(torch.zeros(latents))

    def fire(self, z: Tensor, ids: Tensor | slice) -> Tensor:
        """ReLU(pre) where pre > threshold, strictly."""
        pre = z + self.b_enc[ids]
        return pre.relu() * (pre > self.threshold[ids])

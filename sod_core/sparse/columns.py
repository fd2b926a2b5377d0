"""What sparse autoencoders share whose latents look at nothing but their own column of the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn


class ColumnSAE(nn.Module, ABC):
    """A `Code` with tensors in SAELens's layout.

        z       = x W_enc                   or (x - b_dec) W_enc where `subtract_b_dec`
        latents = f(z), latent by latent
        recons  = latents W_dec + b_dec

    where x is a token [D]. So a latent's activity needs its own column of W_enc only, and a change of it its own row of
    W_dec.
    """

    def __init__(self, dim: int, latents: int, subtract_b_dec: bool):
        super().__init__()
        self.subtract_b_dec = subtract_b_dec
        self.W_enc = nn.Parameter(torch.zeros(latents, dim).T)  # [D, F]; a column lies in one piece in memory
        self.W_dec = nn.Parameter(torch.zeros(latents, dim))
        self.b_dec = nn.Parameter(torch.zeros(dim))

    @abstractmethod
    def fire(self, z: Tensor, ids: Tensor | slice) -> Tensor:
        """f: z [..., S] of the latents `ids` -> their activity [..., S]."""

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
        return self.fire(self.centred(x) @ self.W_enc, slice(None))

    def activity(self, x: Tensor, ids: Tensor) -> Tensor:
        """encode(x)[..., ids] by those columns alone: [..., D], [S] -> [..., S]."""
        return self.fire(self.centred(x) @ self.W_enc.T[ids].T, ids)

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """Latents [..., F] -> tokens [..., D]."""
        return latents @ self.W_dec + self.b_dec

    def delta(self, difference: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        """[..., S] of the latents ids [S] -> what it adds to a token [..., D], by those rows of W_dec alone."""
        return difference @ self.W_dec[ids]

    def narrowed(self, ids: Tensor) -> Self:
        """The same with the latents ids [S] alone, which become 0 to S - 1: nothing is gathered when it is asked."""
        found = type(self)(self.dim, len(ids), self.subtract_b_dec)
        for name, value in self.named_parameters():
            of_latents = value if name == "b_dec" else value.T[ids].T if name == "W_enc" else value[ids]
            setattr(found, name, nn.Parameter(of_latents, requires_grad=False))
        return found

    def centred(self, x: Tensor) -> Tensor:
        """[..., D] -> the same in float32, less b_dec where the SAE subtracts it."""
        return x.float() - self.b_dec if self.subtract_b_dec else x.float()

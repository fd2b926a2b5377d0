"""What every sparse code of one token offers: encode it, decode it, and what a change of some latents adds to it."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor


class Code(Protocol):
    """A sparse code of tokens x [..., D] as latents [..., F]. All numbers inside are float32, whatever x is."""

    @property
    def dim(self) -> int:
        """D, the width of a token."""

    @property
    def latents(self) -> int:
        """F, the number of latents."""

    def to(self, device: torch.device, /) -> Self:
        """Itself, on a device."""

    def encode(self, x: Tensor) -> Tensor:
        """Tokens [..., D] -> latents [..., F], none below 0."""

    def activity(self, x: Tensor, ids: Tensor) -> Tensor:
        """encode(x)[..., ids] [..., S] for ids [S], at the cost of those latents where the code allows it."""

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """Latents [..., F] -> tokens [..., D]. A code that normalises every token needs those that were encoded: x."""

    def delta(self, difference: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        """What a change [..., S] of the latents ids [S] adds to the tokens x [..., D], in x's units.

        decode(a') - decode(a) where a' is a with `difference` added at `ids`: biases, and the error of the code, drop
        out.
        """

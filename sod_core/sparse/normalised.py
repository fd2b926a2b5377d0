"""A sparse code of normalised tokens, as SAELens's normalize_activations has it, in the tokens' own units outside."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .code import Code

CONSTANT_NORM, LAYER_NORM = "constant_norm_rescale", "layer_norm"
"""SAELens's names. The third, expected_average_only_in, is one factor for all tokens: `codes.py` folds it in."""
_EPSILON = 1e-5
"""SAELens adds it to the deviation by which tokens are divided, and not to the one that they get back."""
_TINY = 1e-20
"""A token of nothing but zeros has no norm: it stays what it is."""


class _Normalised(NamedTuple):
    tokens: Tensor
    """[..., D], what the code inside encodes."""
    scale: Tensor
    """[..., 1], what leads back from the units inside."""
    shift: Tensor | float
    """[..., 1], what is added after."""


class NormalisedCode(nn.Module):
    """A code of tokens that were normalised, each by itself (SAELens, sae_lens/saes/sae.py).

        constant_norm_rescale   u = x * sqrt(D) / |x|                      x = u * |x| / sqrt(D)
        layer_norm              u = (x - mean) / (deviation + 1e-5)        x = u * deviation + mean

    over a token's D numbers, the deviation with D - 1. A change of latents goes back through the same scale; means drop
    out of it.
    """

    def __init__(self, inside: Code, normalisation: str):
        """Raises ValueError for a normalisation that is none of the two."""
        super().__init__()
        if normalisation not in (CONSTANT_NORM, LAYER_NORM):
            raise ValueError(f"the normalisation {normalisation!r} is unknown: take {CONSTANT_NORM} or {LAYER_NORM}")
        self.inside = inside
        self.normalisation = normalisation

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return self.inside.dim

    @property
    def latents(self) -> int:
        """F, the number of latents."""
        return self.inside.latents

    def encode(self, x: Tensor) -> Tensor:
        """Tokens [..., D] -> latents [..., F]."""
        return self.inside.encode(self._normalised(x).tokens)

    def activity(self, x: Tensor, ids: Tensor) -> Tensor:
        """encode(x)[..., ids]: [..., D], [S] -> [..., S]."""
        return self.inside.activity(self._normalised(x).tokens, ids)

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """Latents [..., F] -> tokens [..., D], in the units of x [..., D]. Raises ValueError without x."""
        if x is None:
            raise ValueError("each token has a scale of its own here: decode needs the tokens that were encoded")
        back = self._normalised(x)
        return self.inside.decode(latents) * back.scale + back.shift

    def delta(self, difference: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        """[..., S] of the latents ids [S] -> what it adds to the tokens x [..., D], in their units."""
        back = self._normalised(x)
        return self.inside.delta(difference, ids, back.tokens) * back.scale

    def _normalised(self, x: Tensor) -> _Normalised:
        x = x.float()
        if self.normalisation == CONSTANT_NORM:
            scale = x.norm(dim=-1, keepdim=True) / self.dim**0.5
            return _Normalised(x / scale.clamp_min(_TINY), scale, 0.0)
        deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return _Normalised((x - mean) / (deviation + _EPSILON), deviation, mean)

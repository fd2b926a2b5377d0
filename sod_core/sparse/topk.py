"""The sparse code: encode an activation, and decode the difference that an edit of its latents makes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class TokenStats(NamedTuple):
    """Mean and standard deviation [D] by which an SAE's input was normalised."""

    patch_mean: Tensor
    patch_std: Tensor
    cls_mean: Tensor | None = None
    """None where the SAE never saw CLS tokens: CLS then takes the patches' statistics."""
    cls_std: Tensor | None = None


class TopKSAE(nn.Module):
    """A TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders").

        latents = ReLU(TopK((x - pre_bias) W_enc^T + latent_bias))
        recons  = latents W_dec^T + pre_bias

    where x is a token [D], normalised by `stats` if the SAE was trained on normalised tokens.
    Hidden states are [..., 1 + N, D] with CLS first; latents are [..., 1 + N, F].
    """

    mean: Tensor | None
    """[2, D]: of CLS and of patches; None for raw tokens."""
    std: Tensor | None

    def __init__(self, dim: int, latents: int, k: int, stats: TokenStats | None = None):
        super().__init__()
        self.k = k
        self.pre_bias = nn.Parameter(torch.zeros(dim))
        self.latent_bias = nn.Parameter(torch.zeros(latents))
        self.encoder = nn.Linear(dim, latents, bias=False)
        self.decoder = nn.Linear(latents, dim, bias=False)
        self.set_stats(stats)

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return self.decoder.out_features

    @property
    def latents(self) -> int:
        """F, the number of latents."""
        return self.decoder.in_features

    @property
    def normalised(self) -> bool:
        """Whether tokens are normalised before they are encoded."""
        return self.mean is not None

    def set_stats(self, stats: TokenStats | None) -> None:
        """Sets the normalisation; None encodes raw tokens."""
        mean = std = None
        if stats is not None:
            cls_mean = stats.patch_mean if stats.cls_mean is None else stats.cls_mean
            cls_std = stats.patch_std if stats.cls_std is None else stats.cls_std
            mean, std = torch.stack([cls_mean, stats.patch_mean]), torch.stack([cls_std, stats.patch_std])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def encode(self, hidden: Tensor) -> Tensor:
        """Hidden state [..., 1 + N, D] -> sparse latents [..., 1 + N, F]."""
        return self.activate(self.pre_activations(self.normalise(hidden)))

    def activity(self, x: Tensor, ids: Tensor) -> Tensor:
        """encode(x)[..., ids]: [..., D], [S] -> [..., S].

        A latent fires only where it is among the k largest, which all F pre-activations tell. So the columns of `ids`
        are looked at first, and only the tokens where one of them is above 0 are encoded.
        """
        x = self.normalise(x.float())
        columns = functional.linear(x - self.pre_bias, self.encoder.weight[ids], self.latent_bias[ids])
        candidates = (columns > 0).any(dim=-1)
        found = torch.zeros_like(columns)
        found[candidates] = self.activate(self.pre_activations(x[candidates]))[..., ids]
        return found

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """Latents [..., 1 + N, F] -> reconstructed hidden state [..., 1 + N, D]."""
        recons = self.decoder(latents) + self.pre_bias
        if self.mean is None or self.std is None:
            return recons
        return recons * self._by_token(self.std, recons) + self._by_token(self.mean, recons)

    def decode_difference(self, difference: Tensor, features: Tensor) -> Tensor:
        """What a change of some latents changes in the hidden state; biases and the SAE's error drop out.

        difference [..., 1 + N, S] of the latents `features` [S] -> [..., 1 + N, D], in the hidden state's units.
        """
        moved = difference @ self.decoder.weight[:, features].T
        return moved if self.std is None else moved * self._by_token(self.std, moved)

    def delta(self, difference: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        """[..., S] of the latents ids [S] -> what it adds to the tokens x [..., D]."""
        return self.decode_difference(difference, ids)

    def normalise(self, hidden: Tensor) -> Tensor:
        """[..., 1 + N, D] -> the same shape, CLS and patches each by their own statistics."""
        if self.mean is None or self.std is None:
            return hidden
        return (hidden - self._by_token(self.mean, hidden)) / self._by_token(self.std, hidden)

    def pre_activations(self, normalised: Tensor) -> Tensor:
        """(x - pre_bias) W_enc^T + latent_bias: [..., D] -> [..., F]."""
        return self.encoder(normalised - self.pre_bias) + self.latent_bias

    def projection(self, hidden: Tensor) -> Tensor:
        """(h - pre_bias) W_enc^T of the raw hidden state, without latent bias, ReLU, TopK or normalisation.

        What the released code of "Suppression or Deletion" calls its features. [..., D] -> [..., F].
        """
        return self.encoder(hidden - self.pre_bias)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Keeps every value that is at least the k-th largest of its token (ties stay), then ReLU."""
        kth = pre_activations.topk(min(self.k, pre_activations.shape[-1]), dim=-1).values[..., -1:]
        return torch.where(pre_activations >= kth, pre_activations, 0).relu()

    def _by_token(self, pair: Tensor, like: Tensor) -> Tensor:
        """[2, D] (CLS, patch) -> [1 + N, D] to go with `like` [..., 1 + N, D]."""
        return torch.cat([pair[:1], pair[1:].expand(like.shape[-2] - 1, -1)])


def variance_unexplained(sae: TopKSAE, hidden: Tensor, patches_only: bool = False) -> float:
    """Fraction of variance unexplained of a hidden state [B, 1 + N, D], over CLS and patches together, or patches only.

    Sum of squared errors over sum of squared distances from the mean, both in the space the SAE was
    trained in (normalised where it is), each token kind about its own mean.
    """
    x = sae.normalise(hidden)
    recons = sae.decoder(sae.activate(sae.pre_activations(x))) + sae.pre_bias
    error = (x - recons).square()
    kinds = [part for part in (slice(0, 0 if patches_only else 1), slice(1, None)) if x[:, part].shape[1]]
    variance = sum((x[:, part] - x[:, part].mean(dim=(0, 1))).square().sum() for part in kinds)
    return (sum(error[:, part].sum() for part in kinds) / variance).item()

"""Restore: pull an unlearned ViT's hidden state towards what the original knew, feature by feature.

Every edit here is a straight line in alpha, hidden(alpha) = start + (alpha - origin) * direction, so an
edit is computed once and a whole list of alphas goes through the tail of the model as one batch.

Source: "Suppression or Deletion" (arXiv 2602.18505) and its released code, utils/hook_utils.py. `direct_injection`
and `add` do what that code computes (fidelity "reference"); `inject` and `amplify` do what the method says (fidelity
"exact"); `cls_copy` and `state_copy` are controls that use no feature at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..sparse.topk import TopKSAE

MODES = ("inject", "amplify", "direct_injection", "add", "cls_copy", "state_copy")
FIDELITY = {
    "inject": "exact",
    "amplify": "exact",
    "direct_injection": "reference",
    "add": "reference",
    "cls_copy": "control",
    "state_copy": "control",
}
TOKENS = ("all", "patches", "cls")


class Line(NamedTuple):
    """An edit for every alpha: hidden(alpha) = start + (alpha - origin) * direction."""

    start: Tensor
    """[B, 1 + N, D]"""
    direction: Tensor
    """[B, 1 + N, D]"""
    origin: float
    """The alpha at which `start` itself comes out: the identity of the exact modes."""

    def at(self, alphas: Sequence[float]) -> Tensor:
        """[A, B, 1 + N, D]. At alpha = origin the start comes out bit for bit."""
        steps = torch.tensor([a - self.origin for a in alphas], dtype=self.start.dtype, device=self.start.device)
        return self.start + steps[:, None, None, None] * self.direction

    def only(self, tokens: str, u: Tensor) -> Line:
        """The same edit on one of TOKENS; the tokens left out stay as in `u` [B, 1 + N, D]."""
        if tokens == "all":
            return self
        kept = torch.full((u.shape[1], 1), tokens == "patches", device=u.device)
        kept[0] = tokens == "cls"
        return Line(torch.where(kept, self.start, u), torch.where(kept, self.direction, 0), self.origin)


def inject(u: Tensor, o: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Exact: h_u + alpha * std * ((f_o - f_u) restricted to S) W_dec^T.

    u, o [B, 1 + N, D]: hidden states of the unlearned and the original model; features [S]. f is the SAE as
    trained (normalised, biased, TopK), so the SAE's reconstruction error stays out of the edit.
    """
    difference = (sae.encode(o) - sae.encode(u))[..., features]
    return Line(u, sae.decode_difference(difference, features), origin=0.0)


def amplify(u: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Exact, needs no original model: h_u + (alpha - 1) * std * (f_u restricted to S) W_dec^T."""
    return Line(u, sae.decode_difference(sae.encode(u)[..., features], features), origin=1.0)


def direct_injection(u: Tensor, o: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Reference: patches become the whole reconstruction of z_u + alpha (z_o - z_u) on S; CLS is moved
    towards the original's CLS whatever the features do. Alpha 0 is not the identity.

    z = (h - pre_bias) W_enc^T: no latent bias, ReLU, TopK or normalisation.
    """
    z_u = sae.projection(u)
    start = sae.decoder(z_u) + sae.pre_bias
    direction = (sae.projection(o) - z_u)[..., features] @ sae.decoder.weight[:, features].T
    start = torch.cat([u[:, :1], start[:, 1:]], dim=1)
    direction = torch.cat([(o - u)[:, :1], direction[:, 1:]], dim=1)
    return Line(start, direction, origin=0.0)


def add(u: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Reference, all tokens: h_u + (alpha z_u restricted to S) W_dec^T + pre_bias, z as in `direct_injection`.

    The added pre_bias is the released code's: alpha 0 is not the identity.
    """
    direction = sae.projection(u)[..., features] @ sae.decoder.weight[:, features].T
    return Line(u + sae.pre_bias, direction, origin=0.0)


def cls_copy(u: Tensor, o: Tensor) -> Line:
    """Control: cls_u + alpha (cls_o - cls_u) and nothing else. At alpha 1 the original's CLS is transplanted."""
    return Line(u, o - u, origin=0.0).only("cls", u)


def state_copy(u: Tensor, o: Tensor) -> Line:
    """Control: u + alpha (o - u). At alpha 1 the unlearned model's tail runs on the original's whole hidden state."""
    return Line(u, o - u, origin=0.0)


def line(mode: str, u: Tensor, o: Tensor, sae: TopKSAE, features: Tensor, tokens: str = "all") -> Line:
    """The edit of one of MODES on the chosen TOKENS; `cls_copy` touches CLS alone whatever they are.

    Raises ValueError for an unknown mode or unknown tokens.
    """
    if tokens not in TOKENS:
        raise ValueError(f"unknown tokens {tokens!r}; known: {', '.join(TOKENS)}")
    if mode == "inject":
        return inject(u, o, sae, features).only(tokens, u)
    if mode == "amplify":
        return amplify(u, sae, features).only(tokens, u)
    if mode == "direct_injection":
        return direct_injection(u, o, sae, features).only(tokens, u)
    if mode == "add":
        return add(u, sae, features).only(tokens, u)
    if mode == "cls_copy":
        return cls_copy(u, o)
    if mode == "state_copy":
        return state_copy(u, o).only(tokens, u)
    raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")

"""Clamp: where a harmful latent fires, set it to a coefficient, or set the refusal latent, in a token's sparse code.

Tokens in, tokens out: nothing here knows of a language model. Source: "Don't Forget It! Conditional Sparse Autoencoder
Clamping Works for Unlearning" (arXiv 2503.11127) and its released code (AMindToThink/sae_jailbreak_unlearning). With
a = encode(x), the harmful latents H, the refusal latent r, the threshold t and the coefficients c_i, c_r:

    x' = x + sum_i (a'_i - a_i) W_dec[i]        so the code's error stays in the token, and b_dec drops out

    prime          a'_i = c_i where a_i > 0, for each i in H            Clamp Prime
    conditional    a'_i = c_i where a_i > t, for each i in H
    refusal        a'_r = c_r where a_i > t for any i in H              Refusal Clamp; H keeps its values
    both           conditional and refusal together

Fidelity "exact" leaves the tokens alone that its caller names (BOS, EOS, padding). "reference" edits every position, as
the released code does. "package" is decode(a') at every position, as a package that re-implements the method does
(jiveshj/ML_Unlearning): the code's error is lost, on tokens where nothing fires too.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..sparse.code import Code

METHODS = ("none", "prime", "conditional", "refusal", "both")
FIDELITIES = ("exact", "reference", "package")
LARGEST = 1e30
"""Of a coefficient. A sum of decoder rows so much larger than any hidden state may leave float32."""


@dataclass(frozen=True)
class Clamp:
    """What is edited, and how. Signs are taken as given: the released code's refusal coefficient is negative."""

    latents: tuple[int, ...]
    """H, the harmful latents."""
    method: str = "prime"
    """One of METHODS."""
    value: float | tuple[float, ...] = -300.0
    """c: one for all of H, or one for each, in their order."""
    threshold: float = 0.0
    """t, above which a latent counts as firing. "prime" takes 0 instead."""
    refusal: int | None = None
    """r; "refusal" and "both" need it."""
    refusal_value: float = -500.0
    """c_r."""
    fidelity: str = "exact"
    """One of FIDELITIES."""

    @property
    def refuses(self) -> bool:
        """Whether the refusal latent is set."""
        return self.method in ("refusal", "both")

    def values(self) -> tuple[float, ...]:
        """c_i for each latent of H. Raises ValueError where there are as many as there are latents, or one."""
        if not isinstance(self.value, tuple):
            return (self.value,) * len(self.latents)
        if len(self.value) != len(self.latents):
            raise ValueError(
                f"{len(self.value)} coefficients for {len(self.latents)} latents: give one, or one for each"
            )
        return self.value

    def check(self, code: Code) -> None:
        """Raises ValueError, in one sentence, for an edit that cannot be made with this code."""
        _check_words(self)
        if self.method == "none" and not self.latents:
            return
        _check_latents(self, code.latents)
        _check_numbers(self)


class Edited(NamedTuple):
    """Tokens after an edit, and what it saw."""

    hidden: Tensor
    """[..., T, D], of the input's dtype."""
    activity: Tensor
    """[..., T, H] float32: how strongly each harmful latent fired before the edit, on tokens left alone too."""
    changed: Tensor
    """[..., T] bool: where the clamp acted. ("package" rewrites the other tokens as well.)"""


def apply(hidden: Tensor, code: Code, clamp: Clamp, left_alone: Tensor) -> Edited:
    """The edit. hidden [..., T, D]; left_alone [..., T] bool, which tokens "exact" does not touch.

    A token on which nothing fires comes back bit for bit ("exact", "reference"). Everything is computed in float32 and
    cast once. `clamp.check(code)` first: here nothing is checked again.
    """
    ids = torch.tensor(clamp.latents, dtype=torch.long, device=hidden.device)
    if clamp.method == "none":
        return Edited(hidden, code.activity(hidden, ids), torch.zeros_like(left_alone))
    if clamp.refuses:
        ids = torch.cat([ids, ids.new_tensor([clamp.refusal])])
    x = hidden.float()
    found = code.activity(x, ids)
    difference, fires = _difference(found, clamp)
    if clamp.fidelity == "exact":
        fires = fires & ~left_alone
    activity = found[..., : len(clamp.latents)]
    if clamp.fidelity == "package":
        recons = code.decode(code.encode(x), x) + code.delta(difference, ids, x)
        return Edited(recons.to(hidden.dtype), activity, fires)
    edited, rows = hidden.clone(), fires.nonzero(as_tuple=True)
    firing = x[rows]
    edited[rows] = (firing + code.delta(difference[rows], ids, firing)).to(hidden.dtype)
    return Edited(edited, activity, fires)


def left_alone(ids: Tensor, special: Collection[int]) -> Tensor:
    """Which tokens "exact" leaves alone: those whose id is one of the special ones. [..., T] -> [..., T] bool.

    By id and not by position: with a cache every pass after the first holds one token, and padding stands before BOS.
    """
    return torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype, device=ids.device))


def _difference(found: Tensor, clamp: Clamp) -> tuple[Tensor, Tensor]:
    """a' - a of H, and of r as the last one where it is set [..., S], and where that is anything [...]."""
    harmful = found[..., : len(clamp.latents)]
    fires = harmful > (0.0 if clamp.method == "prime" else clamp.threshold)
    somewhere = fires.any(dim=-1)
    parts = [torch.where(fires, found.new_tensor(clamp.values()) - harmful, 0.0)]
    if clamp.method == "refusal":
        parts = [torch.zeros_like(harmful)]
    if clamp.refuses:
        parts.append(torch.where(somewhere, clamp.refusal_value - found[..., -1], 0.0)[..., None])
    return torch.cat(parts, dim=-1), somewhere


def _check_words(clamp: Clamp) -> None:
    if clamp.method not in METHODS:
        raise ValueError(f"the method {clamp.method!r} is unknown: take one of {', '.join(METHODS)}")
    if clamp.fidelity not in FIDELITIES:
        raise ValueError(f"the fidelity {clamp.fidelity!r} is unknown: take one of {', '.join(FIDELITIES)}")


def _check_latents(clamp: Clamp, count: int) -> None:
    if not clamp.latents:
        raise ValueError("no latents to clamp: name at least one")
    if clamp.refuses and clamp.refusal is None:
        raise ValueError(f"the method {clamp.method!r} needs a refusal latent: name one")
    for latent in (*clamp.latents, *([] if clamp.refusal is None else [clamp.refusal])):
        if not 0 <= latent < count:
            raise ValueError(f"latent {latent} does not exist: the code has {count}, counted from 0")
    twice = next((latent for latent in clamp.latents if clamp.latents.count(latent) > 1), None)
    if twice is not None:
        raise ValueError(f"latent {twice} is listed twice: name each once")
    if clamp.refuses and clamp.refusal in clamp.latents:
        raise ValueError(f"the refusal latent {clamp.refusal} is one of the harmful ones: take it out of them")


def _check_numbers(clamp: Clamp) -> None:
    numbers = {"a coefficient": clamp.values(), "the refusal coefficient": (clamp.refusal_value,)}
    for name, values in numbers.items():
        for value in values:
            if not (math.isfinite(value) and abs(value) <= LARGEST):
                raise ValueError(f"{name} is {value}: give a number between -{LARGEST:g} and {LARGEST:g}")
    if not (math.isfinite(clamp.threshold) and 0 <= clamp.threshold <= LARGEST):
        raise ValueError(f"the threshold is {clamp.threshold}: give a number from 0 to {LARGEST:g}")

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
from ..sparse.columns import ColumnSAE

METHODS = ("none", "prime", "conditional", "refusal", "both")
FIDELITIES = ("exact", "reference", "package")
LARGEST = 1e30
"""Of a coefficient. A sum of decoder rows so much larger than any hidden state may leave float32."""

FEW = 16
"""Tokens up to which all are edited and those kept where something fires; of more, those where it does are gathered."""


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
    return Editing(code, clamp, hidden.device).apply(hidden, left_alone)


class Editing:
    """A clamp made ready on a device: what does not depend on the tokens is gathered once.

    So that a pass of one token, as a KV cache has them, costs a few small operations.
    """

    def __init__(self, code: Code, clamp: Clamp, device: torch.device):
        self.code, self.clamp = code, clamp
        refusal = [clamp.refusal] if clamp.refuses else []
        with torch.inference_mode(False), torch.no_grad():  # an edit may be kept, and meet gradients later
            self.ids = torch.tensor([*clamp.latents, *refusal], dtype=torch.long, device=device)
            self.values = torch.tensor(clamp.values(), dtype=torch.float32, device=device)
            self.narrowed = code.narrowed(self.ids) if isinstance(code, ColumnSAE) else None

    def apply(self, hidden: Tensor, left_alone: Tensor) -> Edited:
        """As the function of that name."""
        clamp, x = self.clamp, hidden.float()
        found = self._activity(x)
        if clamp.method == "none":
            return Edited(hidden, found, torch.zeros_like(left_alone))
        difference, fires = self._difference(found)
        if clamp.fidelity == "exact":
            fires = fires & ~left_alone
        activity = found[..., : len(clamp.latents)]
        if clamp.fidelity == "package":
            recons = self.code.decode(self.code.encode(x), x) + self._delta(difference, x)
            return Edited(recons.to(hidden.dtype), activity, fires)
        if fires.numel() <= FEW:
            edited = (x + self._delta(difference, x)).to(hidden.dtype)
            return Edited(torch.where(fires[..., None], edited, hidden), activity, fires)
        edited, rows = hidden.clone(), fires.nonzero(as_tuple=True)
        firing = x[rows]
        edited[rows] = (firing + self._delta(difference[rows], firing)).to(hidden.dtype)
        return Edited(edited, activity, fires)

    def _activity(self, x: Tensor) -> Tensor:
        return self.code.activity(x, self.ids) if self.narrowed is None else self.narrowed.encode(x)

    def _delta(self, difference: Tensor, x: Tensor) -> Tensor:
        return self.code.delta(difference, self.ids, x) if self.narrowed is None else difference @ self.narrowed.W_dec

    def _difference(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """a' - a of H, and of r as the last one where it is set [..., S], and where that is anything [...]."""
        clamp = self.clamp
        harmful = found[..., : len(clamp.latents)]
        fires = harmful > (0.0 if clamp.method == "prime" else clamp.threshold)
        somewhere = fires.any(dim=-1)
        if clamp.method == "refusal":
            parts = [torch.zeros_like(harmful)]
        else:
            parts = [torch.where(fires, self.values - harmful, 0.0)]
        if clamp.refuses:
            parts.append(torch.where(somewhere, clamp.refusal_value - found[..., -1], 0.0)[..., None])
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0], somewhere


def left_alone(ids: Tensor, special: Collection[int]) -> Tensor:
    """Which tokens "exact" leaves alone: those whose id is one of the special ones. [..., T] -> [..., T] bool.

    By id and not by position: with a cache every pass after the first holds one token, and padding stands before BOS.
    """
    return torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype, device=ids.device))


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

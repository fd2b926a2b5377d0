"""Text, token by token: variants of one prompt side by side in a batch, each row with an edit of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .passes import Batch, Edits, Passes


class Sampling(NamedTuple):
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    seed: int = 0
    """Every row draws with the same, so rows differ by what their edits do and not by luck."""

    def check(self) -> Sampling:
        """Raises ValueError."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"the temperature must be a finite number from 0, not {self.temperature}")
        if not 0 <= self.seed < 2**63:
            raise ValueError("a seed must be a whole number from 0 to 2^63 - 1")
        return self


def generate(
    passes: Passes,
    prompt: list[int],
    layer: int | None,
    edits: Edits,
    tokens: int,
    sampling: Sampling,
    ends: frozenset[int],
    pad: int,
    cancelled: Callable[[], bool],
) -> Iterator[tuple[int | None, ...]]:
    """A tuple a token: the next id of each row, None for one that has come to its end (whose token is not given).

    `cancelled` is asked before each token; the pass alone holds the model's turn. Rows that have ended are fed `pad`,
    without their edit.
    """
    rows, device = len(edits), passes.device
    draws = [torch.Generator().manual_seed(sampling.seed) for _ in range(rows)]
    ids = torch.tensor([prompt] * rows, device=device)
    cache, acting = passes.new_cache(), list(edits)
    live = [True] * rows
    for _ in range(tokens):
        if cancelled():
            return
        batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), padded=False)
        logits = passes.logits(batch, 1, layer, acting, cache)[:, 0]
        chosen = choose(logits, sampling.temperature, draws)
        for row, id in enumerate(chosen):
            if live[row] and id in ends:
                live[row], acting[row] = False, None
        if not any(live):
            return
        yield tuple(id if alive else None for id, alive in zip(chosen, live))
        ids = torch.tensor([[id if alive else pad] for id, alive in zip(chosen, live)], device=device)


def choose(logits: Tensor, temperature: float, draws: list[torch.Generator]) -> list[int]:
    """The next id of each row, logits [B, V]. A row draws one number from 0 to 1 a token from its own generator."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    with torch.inference_mode():
        below = logits.double() - logits.amax(-1, keepdim=True)  # so that no quotient is inf: at 1e-320 it is greedy
        shares = torch.softmax(below / temperature, -1).cumsum(-1)
        drawn = torch.stack([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws]).to(logits.device)
        return (
            torch.searchsorted(shares, drawn * shares[:, -1:], right=True)[:, 0].clamp(max=logits.shape[1] - 1).tolist()
        )

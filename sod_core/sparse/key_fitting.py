"""Keys of a bottleneck, fitted to the heads of unlabelled features by moving averages; then they are frozen.

Both rules start from keys drawn from N(0, 1), take the nearest key (top 1, whatever k is used later), and in every
batch move each key towards the mean of the heads that chose it:

    N <- decay N + (1 - decay) n        m <- decay m + (1 - decay) s        key = m / N

with n how many heads chose the key and s their sum; m begins as the key, and in the last step N is smoothed to
(N + e) / (sum N + J e) sum N. Keys whose N falls below a tenth of an even share are set anew to random heads of the
batch.

`fit` does it with vector-quantize-pytorch (lucidrains), where N begins with 1 and a revived key gets a new N and m,
too. With `reference` it is the released code's rule (ftraeuble/discrete_key_value_bottleneck): N begins with 0, and
only the key itself is set, so that it falls back with the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bottleneck import check_features

EPSILON = 1e-5


@dataclass(frozen=True)
class Fitting:
    """How keys are fitted. The values here are the paper's."""

    pairs: int = 4096
    """J."""
    epochs: int = 10
    batch: int = 256
    decay: float = 0.95
    revived_below: float = 0.1
    """Of an even share of the batch, batch / J: keys that are chosen less often on average are set anew."""
    seed: int = 0

    def check(self, samples: int) -> None:
        """Raises ValueError in one sentence."""
        if self.pairs < 1 or self.epochs < 1 or self.batch < 1 or not 0 <= self.decay < 1:
            raise ValueError("key fitting needs pairs, epochs and a batch above 0, and a decay from 0 to below 1")
        if samples < 1:
            raise ValueError("there are no features to fit keys on")


def fit(
    features: Tensor, projection: Tensor, how: Fitting, reference: bool = False, shown: Callable = lambda c: None
) -> Tensor:
    """Keys [C, J, d] for features [N, M] and projections [C, M, d], a codebook at a time.

    `reference`: by the released code's rule. `shown(c)` is called before each codebook. Codebooks do not depend on one
    another: their random numbers come from (seed, codebook). Raises ValueError.
    """
    check_features(features, projection.shape[1])
    how.check(len(features))
    keys = []
    for c, matrix in enumerate(projection):
        shown(c)
        keys.append((_reference if reference else _by_library)(features.float() @ matrix, how, c))
    return torch.stack(keys)


def reference_step(keys: Tensor, sizes: Tensor, sums: Tensor, heads: Tensor, how: Fitting, draw: torch.Generator):
    """One batch of the released rule. keys [J, d], sizes N [J], sums m [J, d], heads [B, d] -> the three after it."""
    chosen = torch.cdist(heads, keys).argmin(1)
    hits = torch.bincount(chosen, minlength=len(keys)).to(heads)
    added = torch.zeros_like(sums).index_add_(0, chosen, heads)
    sizes = how.decay * sizes + (1 - how.decay) * hits
    sums = how.decay * sums + (1 - how.decay) * added
    total = sizes.sum()
    smoothed = (sizes + EPSILON) / (total + len(keys) * EPSILON) * total
    keys = sums / smoothed[:, None]
    idle = sizes < how.revived_below * how.batch / len(keys)
    fresh = heads[torch.randint(len(heads), (len(keys),), generator=draw)]
    return torch.where(idle[:, None], fresh, keys), sizes, sums


def _reference(heads: Tensor, how: Fitting, codebook: int) -> Tensor:
    draw = _generator(how.seed, codebook)
    keys = torch.randn(how.pairs, heads.shape[1], generator=draw)
    sums, sizes = keys.clone(), torch.zeros(how.pairs)
    for batch in _batches(heads, how, draw):
        keys, sizes, sums = reference_step(keys, sizes, sums, batch, how, draw)
    return keys


def _by_library(heads: Tensor, how: Fitting, codebook: int) -> Tensor:
    from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

    draw = _generator(how.seed, codebook)
    start = torch.randn(1, how.pairs, heads.shape[1], generator=draw)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # it draws revived keys from the global generator
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=draw)))
        book = Codebook(
            dim=heads.shape[1],
            codebook_size=how.pairs,
            decay=how.decay,
            eps=EPSILON,
            threshold_ema_dead_code=how.revived_below * how.batch / how.pairs,
        )
        book.embed.copy_(start)
        book.embed_avg.copy_(start)
        book.train()
        for batch in _batches(heads, how, draw):
            _library_step(book, batch)
    return book.embed[0].detach().clone()


def _library_step(book: Any, batch: Tensor) -> None:
    """What calling the Codebook with a batch [B, d] does to it, in a sixth of the time: it would make a [B, J] table of
    who chose whom, and two products with it. The moving averages, smoothing and revival stay the library's."""
    from vector_quantize_pytorch.vector_quantize_pytorch import ema_inplace

    keys = book.embed[0]
    chosen = torch.addmm(keys.square().sum(1), batch, keys.T, alpha=-2).argmin(1)
    hits = torch.bincount(chosen, minlength=len(keys)).to(batch)
    ema_inplace(book.cluster_size, hits[None], book.decay)
    ema_inplace(book.embed_avg, torch.zeros_like(keys).index_add_(0, chosen, batch)[None], book.decay)
    book.update_ema()
    book.expire_codes_(batch[None])


def _batches(heads: Tensor, how: Fitting, draw: torch.Generator) -> Iterator[Tensor]:
    for _ in range(how.epochs):
        yield from heads[torch.randperm(len(heads), generator=draw)].split(how.batch)


def _generator(seed: int, codebook: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + codebook)

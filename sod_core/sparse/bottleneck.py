"""The discrete key-value bottleneck: heads of a feature vector choose keys, the keys' values vote (arXiv 2207.11240).

With z [M] a frozen encoder's output, P_c [M, d] fixed projections, and J pairs of a key [d] and a value [V] a codebook:

    h_c    = z P_c
    S_c    = the k pairs of codebook c with the smallest |h_c - key|^2, ties to the lowest index
    logits = mean over c of (sum over S_c of the values)

A pair that is masked cannot be chosen: its distance is +inf. A codebook with fewer than k pairs left abstains: it drops
out of the mean. Which pairs lie nearest never changes, so they are found once; any mask is then a look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

NEAREST = 32
"""How many of each head's nearest pairs are kept; where all of them are masked, the search is made again."""
AT_ONCE = 1 << 20
"""Distances in memory at a time: 8 MB of them, which a processor's cache holds."""


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """Keys, values and what is forbidden. Nothing is changed in place: an edit gives another one (`with_mask` ...)."""

    projection: Tensor
    """P [C, M, d], columns of unit norm, fixed."""
    keys: Tensor
    """[C, J, d], fixed once fitted."""
    values: Tensor
    """[C, J, V], the only thing that is trained."""
    used: Tensor
    """[C, J] bool: chosen by some training sample. The others are as if they were not there."""
    masked: Tensor
    """[C, J] bool: forbidden."""
    counts: Tensor | None = None
    """[C, J, V] int64, where the values were made by counting: how many samples of class y chose the pair."""
    k: int = 1
    about: dict[str, str] = field(default_factory=dict)
    """Which encoder and preprocessing the keys belong to, what they were fitted on, how the values were made."""

    @property
    def codebooks(self) -> int:
        """C."""
        return self.keys.shape[0]

    @property
    def pairs(self) -> int:
        """J, of one codebook."""
        return self.keys.shape[1]

    @property
    def width(self) -> int:
        """M, of the encoder's output."""
        return self.projection.shape[1]

    @property
    def classes(self) -> int:
        """V."""
        return self.values.shape[2]

    @property
    def allowed(self) -> Tensor:
        """[C, J] bool: what can be chosen."""
        return self.used & ~self.masked

    def with_mask(self, masked: Tensor) -> Bottleneck:
        """The same with other pairs forbidden, [C, J] bool; the mask of before is gone."""
        return replace(self, masked=masked)

    def select(self, features: Tensor, nearest: Tensor) -> Selected:
        """The k nearest allowed pairs. features [N, M] and their `nearest` [N, C, n] -> Selected."""
        return select(nearest, self.allowed, self.k, lambda rows, c: self._ranking(features[rows], c))

    def logits(self, features: Tensor, nearest: Tensor) -> Tensor:
        """[N, M] and [N, C, n] -> [N, V]; zeros where every codebook abstains."""
        return vote(self.select(features, nearest).chosen, self.values)

    def _ranking(self, features: Tensor, codebook: int) -> Tensor:
        """Every pair of a codebook, nearest first. [R, M] -> [R, J]."""
        return order(distances(features, self.projection[codebook], self.keys[codebook]), self.pairs)


class Selected(NamedTuple):
    """What each codebook chose for each sample."""

    chosen: Tensor
    """[N, C, k] int64: pairs, nearest first; -1 throughout where the codebook abstains."""
    rank: Tensor
    """[N, C, k] int64: their places among all pairs of the codebook, forbidden ones too; 0 is the nearest of all."""

    @property
    def abstained(self) -> Tensor:
        """[N, C] bool."""
        return self.chosen[..., 0] < 0


def make_projection(codebooks: int, width: int, key_width: int, seed: int) -> Tensor:
    """P [C, M, d]: Gaussian, every column scaled to unit norm (discrete_key_value_bottleneck, random projection)."""
    drawn = torch.randn(codebooks, width, key_width, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn, dim=1)


def distances(features: Tensor, projection: Tensor, keys: Tensor) -> Tensor:
    """|h - key|^2 less |h|^2, which orders nothing. [N, M], [M, d], [J, d] -> [N, J] float64.

    float64, so that the order is that of the numbers and not of their rounding.
    """
    heads, keys = (features.float() @ projection).double(), keys.double()
    return torch.addmm(keys.square().sum(1), heads, keys.T, alpha=-2)


def order(found: Tensor, n: int) -> Tensor:
    """The n smallest of each row, smallest first, ties to the lowest index. [N, J] -> [N, n]."""
    if n == 1:
        return found.argmin(1, keepdim=True)  # of equal ones the first
    values, index = found.topk(min(n + 1, found.shape[1]), dim=1, largest=False)
    tied = (values[:, n:] == values[:, n - 1 : n]).any(1)  # which of the equal ones topk took is chance
    index, by_index = index[:, :n].sort(dim=1)
    values, by_value = values[:, :n].gather(1, by_index).sort(dim=1, stable=True)
    index = index.gather(1, by_value)
    if tied.any():
        index[tied] = found[tied].argsort(dim=1, stable=True)[:, :n]
    return index


def nearest(bottleneck: Bottleneck, features: Tensor, n: int = NEAREST, shown: Callable = lambda c: None) -> Tensor:
    """The n nearest pairs of each head, masked or not, nearest first. [N, M] -> [N, C, n] int16 or int32.

    Memory is bounded: one codebook, and a part of the samples, at a time. `shown(c)` is called before each codebook.
    Raises ValueError for features of another width, or that are not finite.
    """
    check_features(features, bottleneck.width)
    n = min(n, bottleneck.pairs)
    dtype = torch.int16 if bottleneck.pairs <= 1 << 15 else torch.int32
    found = torch.empty(len(features), bottleneck.codebooks, n, dtype=dtype)
    for c in range(bottleneck.codebooks):
        shown(c)
        for part in parts(len(features), max(1, AT_ONCE // bottleneck.pairs)):
            away = distances(features[part], bottleneck.projection[c], bottleneck.keys[c])
            found[part, c] = order(away, n).to(dtype)
    return found


def select(nearest: Tensor, allowed: Tensor, k: int, ranking: Callable[[Tensor, int], Tensor]) -> Selected:
    """The first k allowed pairs of each row. nearest [N, C, n], allowed [C, J] bool -> Selected.

    `ranking(samples [R], codebook)` gives all pairs, nearest first, [R, J]; it is asked where the n known ones do not
    suffice.
    """
    samples, codebooks, known = nearest.shape
    index = torch.full((samples * codebooks, k), -1)
    rank = torch.full((samples * codebooks, k), -1)
    flat, allowed_at = nearest.reshape(-1, known), allowed.flatten()
    enough = allowed.sum(1) >= k
    offset = (torch.arange(codebooks) * allowed.shape[1]).repeat(samples)
    waiting = enough.repeat(samples).nonzero()[:, 0]
    have = torch.zeros(samples * codebooks, dtype=torch.long)
    for place in range(known):
        pair = flat[waiting, place].long()
        fits = allowed_at[pair + offset[waiting]]
        taken = waiting[fits]
        index[taken, have[taken]], rank[taken, have[taken]] = pair[fits], place
        have[taken] += 1
        waiting = waiting[have[waiting] < k]
        if not len(waiting):
            break
    for codebook in (waiting % codebooks).unique().tolist():
        mine = waiting[waiting % codebooks == codebook]
        for part in parts(len(mine), max(1, AT_ONCE // allowed.shape[1])):
            ranked = ranking(mine[part] // codebooks, codebook)
            forbidden = ~allowed[codebook][ranked]
            places = forbidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :k]  # the allowed ones, nearest first
            index[mine[part]], rank[mine[part]] = ranked.gather(1, places), places
    shape = (samples, codebooks, k)
    return Selected(index.view(shape), rank.view(shape))


def vote(index: Tensor, values: Tensor) -> Tensor:
    """Mean over the codebooks that chose of the sum of their k values. [N, C, k], [C, J, V] -> logits [N, V]."""
    codebooks, pairs, classes = values.shape
    flat = torch.cat([values.reshape(-1, classes), values.new_zeros(1, classes)])  # the last row: nobody's vote
    rows = torch.where(index < 0, codebooks * pairs, index + (torch.arange(codebooks) * pairs)[:, None])
    total = functional.embedding_bag(rows.flatten(1), flat, mode="sum")
    return total / (index[..., 0] >= 0).sum(1, keepdim=True).clamp(min=1)


def check_features(features: Tensor, width: int) -> None:
    """Raises ValueError in one sentence for what is no [N, width] of finite numbers."""
    if features.ndim != 2 or features.shape[1] != width:
        shape = tuple(features.shape)
        raise ValueError(f"the features have shape {shape}, and the bottleneck takes (images, {width})")
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(1).nonzero()[0, 0])
        raise ValueError(f"the features of image {row} are not all finite numbers: compute them again")


def parts(samples: int, at_once: int) -> Iterator[slice]:
    """Slices of at most `at_once` that cover all samples."""
    return (slice(start, start + at_once) for start in range(0, samples, at_once))

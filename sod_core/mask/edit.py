"""Mask: which key-value pairs are forbidden, and what else can be done to the same pairs.

Source: "Unlearning via Sparse Representations" (arXiv 2311.15268), whose authors published no code. What it leaves open
is said where it is decided here: pairs are ranked over all codebooks together unless `per_codebook`.

All masks are [C, J] bool, True where a pair is forbidden. Ties go to the lower codebook, then to the lower pair.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..sparse import pair_values
from ..sparse.bottleneck import Bottleneck


def touched(index: Tensor, pairs: int) -> Tensor:
    """How often samples chose each pair. index [N, C, k] (-1: nobody) -> [C, J] int64, N C k less the -1s in all."""
    codebooks = index.shape[1]
    where = torch.arange(codebooks)[None, :, None] * pairs + index
    return torch.bincount(where[index >= 0], minlength=codebooks * pairs).view(codebooks, pairs)


def number_of(share: float, counts: Tensor) -> int:
    """How many pairs a share of those that the forget set touches is, rounded up. Raises ValueError."""
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise ValueError(f"the share is {share}: give a number from 0 to 1")
    return math.ceil(share * int((counts > 0).sum()))


def by_activations(counts: Tensor, number: int, per_codebook: bool = False) -> Tensor:
    """Unlearning via Activations: the `number` pairs that the forget set chose most often.

    counts [C, J] of the forget set. `per_codebook`: so many of each codebook that has so many, else all it has.
    Raises ValueError for a number that is negative, or more than were touched.
    """
    return _most(counts.double(), counts > 0, number, per_codebook)


def by_enrichment(counts: Tensor, everything: Tensor, number: int, per_codebook: bool = False) -> Tensor:
    """Ours: the `number` pairs with the largest share of forget samples among all that chose them.

    counts of the forget set and of all samples, forget ones too, [C, J]. Of equal shares the more frequent pair goes
    first. Raises ValueError as `by_activations`.
    """
    share = counts.double() / everything.clamp(min=1)
    rank = share + counts / (1 + counts.max()) * 1e-9  # shares of less than a million samples differ by more
    return _most(rank, counts > 0, number, per_codebook)


def by_examples(index: Tensor, pairs: int) -> Tensor:
    """Unlearning via Examples: every pair that one of N_e forget samples chooses. index [N_e, C, k] -> [C, J] bool.

    Raises ValueError without samples.
    """
    if not len(index):
        raise ValueError("the forget set is empty: give at least one example")
    return touched(index, pairs) > 0


def random_mask(like: Tensor, among: Tensor, seed: int) -> Tensor:
    """The control: as many pairs as `like` forbids, drawn from `among` (the pairs in use). Both [C, J] bool."""
    number = int(like.sum())
    candidates = among.flatten().nonzero()[:, 0]
    if number > len(candidates):
        raise ValueError(f"{number} pairs cannot be drawn from {len(candidates)}")
    drawn = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:number]]
    mask = torch.zeros(like.numel(), dtype=torch.bool)
    mask[drawn] = True
    return mask.view_as(like)


def forbid(bottleneck: Bottleneck, mask: Tensor) -> Bottleneck:
    """State *masked*: the pairs forbidden beside those that are already. Unmasking gives the same logits bit for bit.

    Raises ValueError where no pair would be left.
    """
    together = bottleneck.masked | mask
    if not (bottleneck.used & ~together).any():
        raise ValueError("the mask covers every pair in use: nothing would be left to vote")
    return bottleneck.with_mask(together)


def erase_values(bottleneck: Bottleneck, mask: Tensor) -> Bottleneck:
    """State *values erased*: the pairs can still be chosen, and vote for nothing."""
    counts = bottleneck.counts
    counts = None if counts is None else counts.masked_fill(mask[..., None], 0)
    return replace(bottleneck, values=bottleneck.values.masked_fill(mask[..., None], 0.0), counts=counts)


def compact(bottleneck: Bottleneck) -> Bottleneck:
    """State *compacted*: forbidden and unused pairs are gone, and so is the list of them. Logits stay bit for bit.

    Codebooks keep their pairs in order; the shorter ones are filled with zeros that count as unused.
    Raises ValueError where nothing is left.
    """
    allowed = bottleneck.allowed
    left = int(allowed.sum(1).max())
    if not left:
        raise ValueError("the mask covers every pair in use: nothing would be left to vote")
    order = (~allowed).to(torch.uint8).argsort(dim=1, stable=True)[:, :left]
    used = allowed.gather(1, order)

    def kept(rows: Tensor) -> Tensor:
        taken = rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))
        return taken.masked_fill(~used[..., None], 0)

    return replace(
        bottleneck,
        keys=kept(bottleneck.keys),
        values=kept(bottleneck.values),
        counts=None if bottleneck.counts is None else kept(bottleneck.counts),
        used=used,
        masked=torch.zeros_like(used),
    )


def remove_samples(bottleneck: Bottleneck, index: Tensor, labels: Tensor) -> Bottleneck:
    """State *counts removed*: the bottleneck as counted without these samples, on the same keys.

    index [N, C, k]: what the samples chose when they were counted; labels [N]. Raises ValueError where the values were
    not made by counting, or where these samples were not among those counted.
    """
    return _counted(bottleneck, index, labels, -1)


def add_samples(bottleneck: Bottleneck, index: Tensor, labels: Tensor) -> Bottleneck:
    """The bottleneck as counted with these samples, too: `remove_samples` backwards."""
    return _counted(bottleneck, index, labels, 1)


def _counted(bottleneck: Bottleneck, index: Tensor, labels: Tensor, sign: int) -> Bottleneck:
    if bottleneck.counts is None:
        raise ValueError("this bottleneck's values were not made by counting, so no sample can be taken out of them")
    counts = bottleneck.counts + sign * pair_values.count(index, labels, bottleneck.pairs, bottleneck.classes)
    if (counts < 0).any():
        raise ValueError("these samples were not counted by this bottleneck: they cannot be taken out of it")
    return replace(bottleneck, counts=counts, values=pair_values.of_counts(counts), used=counts.sum(-1) > 0)


def _most(rank: Tensor, candidates: Tensor, number: int, per_codebook: bool) -> Tensor:
    """The `number` candidates of highest rank, all [C, J]."""
    most = int(candidates.sum(1).max() if per_codebook else candidates.sum())
    if not 0 <= number <= most:
        where = "of a codebook" if per_codebook else "in all"
        raise ValueError(f"{number} pairs cannot be masked: the forget set touches {most} {where}")
    rows = rank.masked_fill(~candidates, -torch.inf)
    rows = rows if per_codebook else rows.reshape(1, -1)
    best = rows.argsort(dim=1, descending=True, stable=True)[:, :number]
    mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, best, True)
    return mask.view_as(candidates) & candidates

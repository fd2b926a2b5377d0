"""Values of a bottleneck's pairs, the only thing in it that is trained: by counting, or by gradient descent.

Values that start at 0 and learn slowly stay proportional to n_cjy - n_cj / V, with n_cjy how many samples of class y
chose pair j of codebook c: the gradient of the loss at zero. Counted values are just that. They are made in one pass,
and a sample is taken out of them exactly, by subtracting it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Descent:
    """How values are trained by gradient descent. The values here are those of the paper's code but for the epochs."""

    epochs: int = 100
    """The paper's code trains for up to 2,000."""
    batch: int = 256
    lr: float = 0.3
    smoothing: float = 0.1
    """Of the labels."""
    largest_norm: float = 1.0
    """The gradient is scaled down to it."""
    seed: int = 0


def count(index: Tensor, labels: Tensor, pairs: int, classes: int) -> Tensor:
    """[C, J, V] int64: how many samples of each class chose each pair. index [N, C, k] (-1: nobody), labels [N]."""
    samples, codebooks, k = index.shape
    where = (torch.arange(codebooks)[None, :, None] * pairs + index) * classes + labels[:, None, None]
    flat = torch.bincount(where[index >= 0], minlength=codebooks * pairs * classes)
    return flat.view(codebooks, pairs, classes)


def of_counts(counts: Tensor) -> Tensor:
    """[C, J, V] counts -> values n_cjy - n_cj / V, float32."""
    return (counts - counts.sum(-1, keepdim=True) / counts.shape[-1]).float()


def descend(
    index: Tensor, labels: Tensor, pairs: int, classes: int, how: Descent, shown: Callable = lambda epoch: None
) -> Tensor:
    """Values [C, J, V] after SGD on the cross-entropy of the votes. index [N, C, k], labels [N]. Raises ValueError.

    `shown(epoch)` is called before each epoch. Batches depend on (seed, epoch) alone.
    """
    samples, codebooks, k = index.shape
    if not samples:
        raise ValueError("there are no samples to train values on")
    values = torch.zeros(codebooks * pairs, classes)
    rows = (index + (torch.arange(codebooks) * pairs)[:, None]).flatten(1)
    for epoch in range(how.epochs):
        shown(epoch)
        draw = torch.Generator().manual_seed(how.seed * 1_000_003 + epoch)
        for batch in torch.randperm(samples, generator=draw).split(how.batch):
            touched, slope = gradient(values, rows[batch], labels[batch], codebooks, how.smoothing)
            norm = slope.norm()
            slope = slope * (how.largest_norm / norm.clamp(min=how.largest_norm))
            values.index_add_(0, touched, slope, alpha=-how.lr)
    return values.view(codebooks, pairs, classes)


def gradient(values: Tensor, rows: Tensor, labels: Tensor, codebooks: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy of softmax(votes): the rows it touches [R], each once, and their gradients [R, V].

    values [C J, V]; rows [B, C k] of them, chosen by each sample; labels [B].
    """
    logits = functional.embedding_bag(rows, values, mode="sum") / codebooks
    target = torch.full_like(logits, smoothing / logits.shape[1])
    target[torch.arange(len(labels)), labels] += 1 - smoothing
    each = (logits.softmax(1) - target) / (len(labels) * codebooks)
    touched, place = rows.flatten().unique(return_inverse=True)
    slope = torch.zeros(len(touched), values.shape[1])
    return touched, slope.index_add_(0, place, each.repeat_interleave(rows.shape[1], dim=0))

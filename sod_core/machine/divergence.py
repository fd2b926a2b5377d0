"""A training that diverges ends in one sentence: a loss, a gradient or a weight is no longer a finite number."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Diverged(ValueError):
    """One sentence: at which step, what is not finite, and what to do."""


def check(step: int, loss: Tensor, gradients: Iterable[Tensor], remedy: str) -> None:
    """Before an optimiser's step: raises Diverged unless the loss and all gradients are finite.

    `step` counts from 0 and is said from 1. Processes give what they have averaged, so that all of them stop.
    """
    if not loss.isfinite().all():
        raise Diverged(_sentence(step, "loss", remedy))
    if not torch.nn.utils.get_total_norm(gradients).isfinite():
        raise Diverged(_sentence(step, "gradient", remedy))


def check_weights(step: int, weights: Iterable[Tensor], remedy: str) -> None:
    """After an optimiser's step: raises Diverged unless all weights are finite."""
    if not are_finite(weights):
        raise Diverged(_sentence(step, "weights", remedy))


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite."""
    return all(tensor.isfinite().all() for tensor in tensors)


def _sentence(step: int, what: str, remedy: str) -> str:
    verb = "are" if what == "weights" else "is"
    return f"the training diverged at step {step + 1}: its {what} {verb} no finite number; {remedy}"

"""Muon for a model of many small matrices: those of one shape are stepped together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024 (kellerjordan.github.io/posts/muon), as torch.optim.Muon but for the order of the work:
    m <- momentum m + g; W <- (1 - lr decay) W - lr sqrt(max(1, rows / columns)) orthogonal(g + momentum m).

    On a GPU torch's own launches some forty kernels for every matrix; a model of two million weights waits for them.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for matrices in by_shape.values():
                self._step(matrices, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        gradients: list[Tensor] = [matrix.grad for matrix in matrices if matrix.grad is not None]
        kept = [self.state[m].setdefault("momentum_buffer", torch.zeros_like(m)) for m in matrices]
        torch._foreach_mul_(kept, momentum)
        torch._foreach_add_(kept, gradients)
        updates = orthogonal(torch.stack(torch._foreach_add(gradients, kept, alpha=momentum)))
        rows, columns = matrices[0].shape
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, list(updates.unbind()), alpha=-lr * max(1.0, rows / columns) ** 0.5)


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """[N, rows, columns], float32: each matrix with its singular values moved to about 1, by Newton and Schulz."""
    wide = x.bfloat16() if x.is_cuda else x
    tall = x.shape[1] > x.shape[2]
    wide = wide.mT if tall else wide
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide.mT if tall else wide).float()

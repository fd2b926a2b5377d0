"""The whole slider at once: what the restored model says, and where features fire, at every position of alpha.

Positions are filled in from coarse to fine, some at a time, so that where a model's tail is heavy a first sweep is
there soon and nobody waits for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .session import TAIL_BATCH, Session

STEP = 0.05
ALPHAS = [round(STEP * i, 2) for i in range(201)]
"""The slider's positions: 0 to 10."""
Edit = tuple[int, str, tuple[int, ...], str]
"""Layer, mode, features and tokens, as `Session.restore` takes them."""
STRIDES = (10, 5, 1)
"""Every so many-th position is known after the first, the second and the last round; the first are the curves'."""


class Sweep:
    """One edit of one image: probabilities at the positions, and the heat of any sums of latents."""

    def __init__(self, classes: int, patches: int):
        self._patches = patches
        self.probabilities = torch.full((len(ALPHAS), classes), torch.nan)
        """[201, classes]; NaN where not computed yet, inf where the edited model's output is no finite number."""
        self._heats: dict[tuple[int, ...], Tensor] = {}

    def heat(self, ids: Sequence[int]) -> Tensor:
        """[201, N]: the sum of these latents on each patch; NaN and inf as in `probabilities`."""
        return self._heats.setdefault(tuple(ids), torch.full((len(ALPHAS), self._patches), torch.nan))

    def stride(self, ids: Sequence[int]) -> int:
        """The smallest of STRIDES at which every position is known; 0 where none is."""
        return min((stride for stride in STRIDES if not self._missing(ids, stride)), default=0)

    def left(self, ids: Sequence[int], stride: int) -> list[list[int]]:
        """The positions still to compute for a stride, a handful at a time."""
        missing = self._missing(ids, stride)
        return [missing[i : i + TAIL_BATCH] for i in range(0, len(missing), TAIL_BATCH)]

    def fill(self, session: Session, edit: Edit, ids: Sequence[int], positions: Sequence[int]) -> None:
        """Computes what is missing at these positions."""
        heat = self.heat(ids)
        new = [i for i in positions if self.probabilities[i].isnan().all()]
        if new:
            logits = session.restore([ALPHAS[i] for i in new], *edit)[:, 0].float().cpu()
            found = logits.softmax(-1)
            self.probabilities[new] = torch.where(logits.isfinite().all(-1, keepdim=True), found, torch.inf)
        new = [i for i in positions if heat[i].isnan().all()]
        if new:
            found = session.restored_heat([ALPHAS[i] for i in new], *edit, ids)[:, 0].float().cpu()
            heat[new] = found.nan_to_num(torch.inf, torch.inf)

    def _missing(self, ids: Sequence[int], stride: int) -> list[int]:
        unknown = self.probabilities.isnan().all(1) | self.heat(ids).isnan().all(1)
        return [i for i in range(0, len(ALPHAS), stride) if unknown[i]]

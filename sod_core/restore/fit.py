"""How well an SAE explains the model that a pack uses it on."""

from __future__ import annotations

from typing import NamedTuple


class SAEFit(NamedTuple):
    """Fraction of variance unexplained on the pack's examples, with and without normalised input; None without any."""

    normalised: float | None
    raw: float | None
    saw_cls: bool
    """Whether the SAE's statistics know CLS: if not, it was trained on patches only, and is judged on them only."""

    @property
    def caution(self) -> str | None:
        """A sentence where the SAE explains nothing, either way: it was trained on something else."""
        if self.raw is None or self.normalised is None or min(self.normalised, self.raw) <= 1:
            return None
        return (
            f"this SAE does not fit this model (variance unexplained {self.normalised:.2f} with normalised input, "
            f"{self.raw:.2f} with raw; the mean alone gives 1), so what its latents do here says nothing"
        )

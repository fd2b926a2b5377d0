"""The figures that a pack stores, as the Clamp tab draws them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...clamp.pack import ClampPack
from .figures import Point


@dataclass(frozen=True)
class Stored:
    """What was measured once, on all judged questions of the pack."""

    curves: dict[str, list[Point]] = field(default_factory=dict)
    """prime, refusal, random, matched."""
    untouched: Point | None = None
    sae: str = ""
    forget_questions: int = 0
    retain_questions: int = 0
    ways: dict[str, Any] = field(default_factory=dict)

    def at(self, key: str, value: float) -> Point | None:
        """The measured point whose coefficient is nearest."""
        points = self.curves.get(key, [])
        return min(points, key=lambda point: abs(point.value - value), default=None)


def read(pack: ClampPack) -> Stored:
    """Empty where the pack stores nothing. Raises ValueError for figures that cannot be read."""
    found = pack.results()
    if not found:
        return Stored()
    return Stored()

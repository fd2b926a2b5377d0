"""What one page of the Clamp tab has open and has found; it lives in the page's gr.State, never in a global."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .figures import Point
from .shown import UNTOUCHED, Answered

if TYPE_CHECKING:
    from .asking import Asking
    from .scatter import Firing
    from .work import Measured


class Page:
    """Created empty: Gradio copies it for each page."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the pack that is open."""
        self.last: Answered | None = None
        """What the texts show."""
        self.measured: dict[str, list[Point]] = {}
        """What was measured here, for the curves."""
        self.firing: list[Firing] = []
        """Of the SAE that is chosen."""
        self.looked_at: int | None = None
        """A latent."""
        self.plain: dict[tuple[str, str], Asking] = {}
        """What the controls say by themselves, for a pack's name and an SAE."""
        self._asked: tuple[str, Asking] | None = None

    def shows(self, name: str, asking: Asking) -> bool:
        """Whether this was asked last."""
        return self._asked == (name, asking)

    @property
    def now(self) -> tuple[str, Asking] | None:
        """The pack's name and what was asked last; None before that, or after it was cancelled."""
        return self._asked

    def asked(self, name: str, asking: Asking) -> None:
        self._asked = (name, asking)

    def forget_asking(self) -> None:
        """After a cancelled answer the same may be asked again."""
        self._asked = None

    def answered(self, name: str, asking: Asking, found: Answered) -> None:
        self.last = found
        if self._asked is not None:
            self._asked = (name, asking)

    def add(self, found: Measured) -> None:
        """Keeps what was measured, for the curves."""
        for key, row in found.rows.items():
            if key != UNTOUCHED:
                kept = [one for one in self.measured.get(key, []) if one.value != row.value]
                self.measured[key] = sorted([*kept, row])

"""What the Clamp tab shows of a question: the columns, as far as their texts have grown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...clamp.edit import Clamp
    from ...clamp.session import Token

UNTOUCHED, PRIME, REFUSAL = "untouched", "prime", "refusal"
TITLES = {
    UNTOUCHED: "Untouched",
    PRIME: "Clamp Prime",
    REFUSAL: "Refusal Clamp",
    "conditional": "Conditional clamp",
    "both": "Both clamps",
}
CONTROLS = {"random": "random latents", "matched": "random, equally active"}
LETTERS = "ABCD"


@dataclass(frozen=True)
class Column:
    """One of the texts that stand side by side."""

    key: str
    """UNTOUCHED, the name of a method, or "other"."""
    title: str
    clamp: Clamp | None = None
    """What is edited; None for a model that is left as it is."""
    answer: tuple[Token, ...] = ()
    done: bool = False
    """Whether it has ended, by itself or at the longest answer."""
    scores: tuple[float, ...] = ()
    """Of the options of a multiple-choice question, which sum to 1; empty for any other question."""

    @property
    def choice(self) -> int | None:
        """The option that it gives; None for a question without options."""
        return max(range(len(self.scores)), key=self.scores.__getitem__) if self.scores else None


@dataclass(frozen=True)
class Answered:
    """A question and its columns."""

    prompt: tuple[Token, ...]
    columns: tuple[Column, ...]
    options: tuple[str, ...] = ()
    right: int | None = None
    """Of the options."""

    @property
    def hottest(self) -> float:
        """The largest activity on the page: where the colour is full."""
        texts = (self.prompt, *(column.answer for column in self.columns))
        return max((fired.activity for text in texts for token in text for fired in token.fired), default=0.0)

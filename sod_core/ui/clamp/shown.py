"""What the Clamp tab was asked, and what it shows: plain values, so that words and figures need no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

UNTOUCHED, PRIME, REFUSAL = "untouched", "prime", "refusal"
TITLES = {
    UNTOUCHED: "Untouched",
    PRIME: "Clamp Prime",
    REFUSAL: "Refusal Clamp",
    "conditional": "Conditional clamp",
    "both": "Clamp Prime and Refusal Clamp",
}
CONTROLS = {"random": "random latents", "matched": "random, equally active"}
LETTERS = "ABCD"


class Token(NamedTuple):
    """A piece of a text, and what fired on it before any edit."""

    text: str
    fired: tuple[tuple[int, float], ...] = ()
    """(latent, activity) of the chosen latents that fired, the strongest first."""
    changed: bool = False
    """Whether the edit changed the hidden state here."""


@dataclass(frozen=True)
class Edit:
    """What a column's edit does where it acts; for the words beside a token."""

    method: str = "none"
    values: tuple[tuple[int, float], ...] = ()
    """(harmful latent, what it is set to); empty where they stay."""
    refusal: int | None = None
    refusal_value: float = 0.0
    threshold: float = 0.0


@dataclass(frozen=True)
class Column:
    """One of the texts that stand side by side."""

    key: str
    title: str
    answer: tuple[Token, ...] = ()
    edit: Edit = Edit()
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
    """A question and its columns, as far as they have grown."""

    prompt: tuple[Token, ...]
    columns: tuple[Column, ...]
    options: tuple[str, ...] = ()
    right: int | None = None
    """Of the options."""

    @property
    def hottest(self) -> float:
        """The largest activity on the page: where the colour is full."""
        texts = (self.prompt, *(column.answer for column in self.columns))
        return max((value for text in texts for token in text for _, value in token.fired), default=0.0)

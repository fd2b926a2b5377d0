"""The sentences of the Clamp tab. Every figure in them was measured: here, or by the evaluation that the pack stores."""

from __future__ import annotations

from html import escape

from .shown import LETTERS, Answered, Column

FIDELITIES = [("Exact", "exact"), ("Reference (authors' code)", "reference"), ("Package (no error term)", "package")]
FIDELITY_NOTES = {
    "exact": "What the edit changes is added, nothing else. The tokens that begin, end and pad a text are left alone.",
    "reference": "As the authors' code: every position is edited, the beginning of the text too.",
    "package": "As a package that re-implements the method: every position becomes the SAE's reconstruction, whose error "
    "is dropped. That damages the model even where nothing fires; look at what it does to other questions.",
}
NO_PACK = (
    "There is no pack for this tab here: `python -m sod_core build almanac` makes one, and `make gemma` fetches a real "
    "Gemma."
)
_SHOWN = 90
"""Characters of an answer that the headline quotes."""


def answers(answered: Answered) -> str:
    """What each column says, in one line of HTML: the chosen option, or how its text begins."""
    said = (f"<b>{escape(column.title)}</b>: {escape(_said(column, answered))}" for column in answered.columns)
    return " · ".join(said)


def _said(column: Column, answered: Answered) -> str:
    if column.choice is not None:
        option, share = column.choice, column.scores[column.choice]
        text = answered.options[option] if option < len(answered.options) else ""
        right = "" if answered.right is None else (", right" if option == answered.right else ", wrong")
        return f"{LETTERS[option]} {text} ({share:.0%}{right})"
    text = " ".join("".join(token.text for token in column.answer).split())
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN].rstrip()} …"
    return f"“{short}”" if text else "nothing"

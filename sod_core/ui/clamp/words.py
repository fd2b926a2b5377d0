"""The sentences of the Clamp tab. Every figure in them was measured: here, or by the evaluation that a pack stores."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .. import overlays
from . import figures
from .shown import LETTERS, Answered, Column

if TYPE_CHECKING:
    from .asking import Asking
    from .figures import Point
    from .stored import Stored
    from .work import Measured

FIDELITIES = [("Exact", "exact"), ("Reference (authors' code)", "reference"), ("Package (no error term)", "package")]
FIDELITY_NOTES = {
    "exact": "What the edit changes is added, nothing else. The tokens that begin, end and pad a text are left alone.",
    "reference": "As the authors' code: every position is edited, the beginning of the text too.",
    "package": "As a package that re-implements the method: every position becomes the SAE's reconstruction, and what "
    "it misses is lost. That damages the model even where nothing fires; look at what it does to other questions.",
}
NO_PACK = (
    "There is no pack for this tab here: `python -m sod_core build almanac` makes one, and `make gemma` fetches a real "
    "Gemma."
)
CURVES = "What is forgotten, and what is kept, against the coefficient"
_SHOWN = 70
"""Characters of an answer that the headline quotes."""


def headline(found: Answered, line: str) -> str:
    """What each column says, and what the stored figures say of the same setting."""
    return f"<h3>{_contrast(found)}</h3><p>{answers(found)}</p>" + (f"<p>{escape(line)}</p>" if line else "")


def _contrast(found: Answered) -> str:
    """What the edits did to this answer, in a few words."""
    first, *others = found.columns
    if first.choice is not None and found.right is not None:
        right = [column.title for column in found.columns if column.choice == found.right]
        wrong = [column.title for column in found.columns if column.choice != found.right]
        said = [f"{_and(right)} {'knows' if len(right) == 1 else 'know'} it" if right else ""]
        said += [f"{_and(wrong)} {'does' if len(wrong) == 1 else 'do'} not" if wrong else ""]
        return escape("; ".join(part for part in said if part) + ".")
    same = [column.title for column in others if _text(column) == _text(first)]
    changed = [column.title for column in others if _text(column) != _text(first)]
    if not changed:
        return "Every column says the same."
    tail = f"; {_and(same)} {'does' if len(same) == 1 else 'do'} not" if same else ""
    return escape(f"{_and(changed)} {'changes' if len(changed) == 1 else 'change'} the answer{tail}.")


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _text(column: Column) -> str:
    return " ".join("".join(token.text for token in column.answer).split())


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
    text = _text(column)
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN].rstrip()} …"
    return f"“{short}”" if text else "nothing"


# ------------------------------------------------------------ what is missing, and what goes on


def waiting(text: str) -> str:
    return f'<div class="sod-preview">{overlays.progress_bar(text, None)}</div>'


def not_here(missing: Sequence[str]) -> str:
    """Stands where the headline would be."""
    lines = "".join(f"<p>{_code(line)}</p>" for line in missing)
    return f"<h3>This pack's model is not on this computer.</h3>{lines}"


def _code(line: str) -> str:
    """A sentence with commands in backticks, as HTML."""
    parts = escape(line).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def no_survey(pack: str, sae: str) -> str:
    return (
        f'<p class="sod-quiet">Nobody has looked yet on what the latents of {escape(sae)} fire: '
        f"<code>python -m sod_core clamp features --pack {escape(pack)} --help</code> says how.</p>"
    )


# ------------------------------------------------------------ figures


def no_curves(pack: str) -> str:
    return (
        f'<div class="sod-title">{CURVES}</div><p class="sod-quiet">Nothing is stored for this sparse autoencoder. '
        "“Measure here” judges a few questions with the controls as they are; "
        f"<code>python -m sod_core clamp evaluate --pack {escape(pack)} --help</code> says how to judge all.</p>"
    )


def curve_note(board: Stored, asking: Asking, measured: dict[str, list[Point]]) -> str:
    """Over the curves: what they are, and what they say at the sliders."""
    keys = [key for key in figures.STYLES if board.curves.get(key) or measured.get(key)]
    return f'<div class="sod-title">{CURVES}</div>{figures.legend(keys)}'


def stored_line(board: Stored, asking: Asking) -> str:
    return ""


def measured(found: Measured | None) -> str:
    return ""


def ways(board: Stored) -> str:
    return ""


def verdict(board: Stored) -> str:
    return ""

"""The sentences of the Clamp tab. Every figure in them was measured: here, or by the evaluation that a pack stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .. import overlays
from . import figures
from .shown import LETTERS, PRIME, REFUSAL, TITLES, Answered, Column

if TYPE_CHECKING:
    from ...clamp.manifest import Prompt
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
ABOUT = {"forget": "to forget", "retain": "to keep", "refused": "refused anyway"}
NO_PACK = (
    "There is no pack for this tab here: `python -m sod_core build almanac` makes one, and `make gemma` fetches a real "
    "Gemma."
)
CURVES = "What is forgotten, and what is kept, against the coefficient"
PRICE = "The price: judged questions to forget and on the rest, for every edit, its controls and the other models"
OTHER_SETTING = "The lines are of the pack's own setting; what you have set now, “Measure here” judges."
COLLAPSED = 0.9
"""As judge.COLLAPSED."""
DESTROYED = ", and the model is destroyed: it gives one letter whatever is asked"
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
        if not right or not wrong:
            return "Every column is right." if right else "No column is right."
        knows, does = "knows" if len(right) == 1 else "know", "does" if len(wrong) == 1 else "do"
        return escape(f"{_and(right)} {knows} it; {_and(wrong)} {does} not.")
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


def about(prompt: Prompt) -> str:
    """A question in the menu, with what should become of it."""
    text = " ".join(prompt.text.split())
    return f"{ABOUT[prompt.about]}: {text}" if prompt.about else text


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
    """Over the curves: which line is which, and what they say where the sliders stand."""
    keys = [key for key in figures.STYLES if board.curves.get(key) or measured.get(key)]
    said = [_here(key, value, board.nearest(key, value)) for key, value in _values(asking)] if board.curves else []
    caution = "" if own(board, asking) or not board.curves else OTHER_SETTING
    told = " ".join([*(line for line in said if line), caution])
    return f'<div class="sod-title">{CURVES}</div>{figures.legend(keys)}<p class="sod-quiet">{escape(told)}</p>'


def own(board: Stored, asking: Asking) -> bool:
    """Whether the stored figures are of the edit that is asked for, whatever its coefficients."""
    return board.sae == asking.sae and asking.rule == "preset" and asking.fidelity == "exact"


def _values(asking: Asking) -> list[tuple[str, float]]:
    refusal = [] if asking.refusal is None else [(REFUSAL, asking.refusal_value)]
    return [(PRIME, asking.value), *refusal]


def _here(key: str, value: float, point: Point | None) -> str:
    """ "Clamp Prime at -30: forget 5%, retain 96%, alignment 0.93." """
    if point is None:
        return ""
    near = "" if point.value == value else f" (measured at {point.value:g})"
    destroyed = DESTROYED if point.collapse > COLLAPSED else ""
    return (
        f"{TITLES[key]} at {value:g}{near}: forget {_percent(point.forget)}, retain {_percent(point.retain)}, "
        f"alignment {_number(point.alignment)}{destroyed}."
    )


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{share:.0%}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def stored_line(board: Stored, asking: Asking) -> str:
    """How many judged questions the untouched model and each clamp answer, as stored; empty for another setting."""
    first = board.untouched
    points = {key: board.nearest(key, value) for key, value in _values(asking)}
    known = [(f"{TITLES[key]} (at {point.value:g})", point) for key, point in points.items() if point is not None]
    if first is None or not known or not own(board, asking):
        return ""
    n, others = board.forget_questions, board.retain_questions
    forget = ", ".join(f"{title} {round(point.forget * n)}" for title, point in known)
    line = f"Right answers to {n} judged questions on {board.fields}: untouched {round(first.forget * n)}, {forget}"
    if others:
        retain = ", ".join(str(round(point.retain * others)) for _, point in known)
        line += f"; to {others} on the rest: {round(first.retain * others)}, {retain}"
    return line + "."


def measured(found: Measured | None) -> str:
    """What "Measure here" found, as a table."""
    if found is None:
        return ""
    title = (
        f"Measured here on {found.forget_questions} questions to forget and {found.retain_questions} others, "
        "with the controls as they are"
    )
    return f'<div class="sod-title">{title}</div>{_table([(figures.named(k), p) for k, p in found.rows.items()])}'


def _table(rows: Sequence[tuple[str, Point | None]], problems: Sequence[str] = ()) -> str:
    """Accuracies, alignment and collapse, a row a model."""
    body = []
    for number, (title, point) in enumerate(rows):
        if point is None:
            body.append(f'<tr><td>{escape(title)}</td><td colspan="4">{escape(problems[number])}</td></tr>')
            continue
        destroyed = " destroyed" if point.collapse > COLLAPSED else ""
        cells = [_percent(point.forget), _percent(point.retain), _number(point.alignment)]
        cells.append(f"{point.collapse:.2f}{destroyed}")
        body.append(f"<tr><td>{escape(title)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("", "forget", "retain", "alignment", "collapse"))
    return f'<table class="sod-ways"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def ways(board: Stored) -> str:
    """The ways back, a column for each edit and model, their verdicts first; then the price, a row each."""
    if not board.rows:
        return ""
    table = _table([(row.title, row.point) for row in board.rows], [row.problem for row in board.rows])
    defined = f"<details><summary>How these figures are defined</summary><p>{escape(board.definition)}</p></details>"
    price = f'<div class="sod-title">{PRICE}</div>{table}<div class="sod-quiet">{defined}</div>'
    if not board.ways:
        return price
    head = "".join(f"<th>{escape(title)}</th>" for title in board.subjects.values())
    rows = [("verdict", [_verdict(board, id, "verdict") for id in board.subjects])]
    rows += [("verdict, the edit off", [_verdict(board, id, "without_edit") for id in board.subjects])]
    rows += [(escape(way.title), [_percent(way.shares.get(id)) for id in board.subjects]) for way in board.ways]
    body = "".join(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows)
    title = f"Suppressed or deleted? The ways back to {board.fields}: share of right answers"
    return (
        f'<div class="sod-title">{escape(title)}</div><table class="sod-ways"><thead><tr><th></th>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table><ul class="sod-quiet">{_reasons(board)}</ul>{price}'
    )


def _verdict(board: Stored, id: str, which: str) -> str:
    said = getattr(board.verdicts.get(id), which, None)
    return "" if said is None else f"<b>{escape(said)}</b>"


def _reasons(board: Stored) -> str:
    """Why each verdict is what it is."""
    found = []
    for id, said in board.verdicts.items():
        line = " ".join(_sentence(part) for part in (f"{said.verdict}; {said.reason}", said.caution) if part)
        found.append(f"<b>{escape(board.subjects.get(id, id))}</b>: {escape(line)}")
    return "".join(f"<li>{line}</li>" for line in [*found, escape(_sentence(board.note))])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."

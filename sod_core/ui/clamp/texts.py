"""The texts of the Clamp tab as HTML: every token that made a chosen latent fire is coloured and tells what happened."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .shown import Answered, Column, Edit, Token

TELLS = """
const tell = (event) => {
  const token = event.target.closest('mark');
  if (!token) return;
  element.querySelector('.sod-told').textContent = token.getAttribute('aria-label');
  element.querySelectorAll('mark.on').forEach((other) => other.classList.remove('on'));
  token.classList.add('on');
};
for (const kind of ['mouseover', 'focusin', 'click']) element.addEventListener(kind, tell);
"""
"""js_on_load: a coloured word under the mouse, the finger or the keyboard tells what fired in the line below."""
HINT = "Point at a coloured word, or reach it with Tab: which latent fired, how much, and what the edit did."
QUIET = "None of the chosen latents fired on these texts, so no edit acted."
_FAINTEST, _FULLEST = 14, 62
"""Per cent of the accent colour behind a token."""
_NAMED = 4
"""Latents that a token names at most."""


def html(answered: Answered) -> str:
    """The question over the columns, and the line that tells of a word."""
    top, edits = answered.hottest or 1.0, [(column.title, column.edit) for column in answered.columns]
    asked = "".join(_token(token, top, edits) for token in answered.prompt)
    columns = "".join(_column(column, top) for column in answered.columns)
    hint = HINT if answered.hottest else QUIET
    return (
        f'<div class="sod-asked"><b>Asked</b> {asked}</div><div class="sod-texts">{columns}</div>'
        f'<p class="sod-told" role="status">{hint}</p>'
    )


def _column(column: Column, top: float) -> str:
    answer = "".join(_token(token, top, [("", column.edit)]) for token in column.answer)
    caret = "" if column.done else '<i class="sod-caret"></i>'
    return (
        f'<section class="sod-text sod-{escape(column.key)}"><h4>{escape(column.title)}</h4>'
        f'<p>{answer}{caret}</p><p class="sod-quiet">{escape(acted(column))}</p></section>'
    )


def acted(column: Column) -> str:
    """How often the edit acted on the answer, in words."""
    if column.edit.method == "none":
        fired = sum(bool(token.fired) for token in column.answer)
        return f"nothing is edited; a chosen latent fired on {fired} of {len(column.answer)} tokens"
    changed = sum(token.changed for token in column.answer)
    return f"{setting(column.edit)}; acted on {changed} of {len(column.answer)} tokens"


def setting(edit: Edit) -> str:
    """ "10 latents to -300"."""
    said = []
    if edit.values:
        numbers = sorted({value for _, value in edit.values})
        to = f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"
        said.append(f"{_count(len(edit.values), 'latent')} to {to}")
    if edit.refusal is not None:
        said.append(f"refusal latent {edit.refusal} to {edit.refusal_value:g}")
    return ", ".join(said) or "no latent is chosen"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _token(token: Token, top: float, edits: Sequence[tuple[str, Edit]]) -> str:
    """The token's text; coloured by its strongest latent, where one fired."""
    if not token.fired:
        return escape(token.text)
    share = min(token.fired[0][1] / top, 1.0)
    strength = round(_FAINTEST + (_FULLEST - _FAINTEST) * share)
    label = escape(told(token, edits), quote=True)
    refused = ' class="sod-changed"' if token.changed else ""
    return f'<mark tabindex="0" style="--heat:{strength}%" aria-label="{label}"{refused}>{escape(token.text)}</mark>'


def told(token: Token, edits: Sequence[tuple[str, Edit]]) -> str:
    """ "«potion»: latent 12 fired at 3.41, latent 9 at 1.02. Clamp Prime sets them to -30." for one or several edits."""
    named = token.fired[:_NAMED]
    latents = ", ".join(f"latent {latent} {'fired ' if i == 0 else ''}at {value:.3g}" for i, (latent, value) in enumerate(named))
    more = f" and {len(token.fired) - _NAMED} more" if len(token.fired) > _NAMED else ""
    does = [f"{title + ': ' if title else ''}{_done(token, edit)}" for title, edit in edits if edit.method != "none"]
    return f"“{token.text.strip()}”: {latents}{more}. {'; '.join(does) or 'Nothing is edited here'}."


def _done(token: Token, edit: Edit) -> str:
    """What one edit does to a token on which something fired."""
    above = any(value > edit.threshold for _, value in token.fired)
    values, fired = dict(edit.values), [latent for latent, value in token.fired if value > edit.threshold]
    to = sorted({values[latent] for latent in fired if latent in values})
    said = []
    if to:
        number = f"{to[0]:g}" if len(to) == 1 else f"{to[0]:g} to {to[-1]:g}"
        said.append(f"set to {number}")
    if edit.refusal is not None and above:
        said.append(f"refusal latent {edit.refusal} set to {edit.refusal_value:g}")
    return ", ".join(said) or f"not above the threshold {edit.threshold:g}, left as it is"

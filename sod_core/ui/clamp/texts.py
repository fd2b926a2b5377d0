"""The texts of the Clamp tab as HTML: a token that made a chosen latent fire is coloured, and tells what happened."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .shown import UNTOUCHED, Answered, Column

if TYPE_CHECKING:
    from ...clamp.edit import Clamp
    from ...clamp.session import Token

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
NOTHING = "None of the chosen latents fired on these texts, so that no edit acted."
_FAINTEST, _FULLEST = 14, 62
"""Per cent of the accent colour behind a token."""
_NAMED = 4
"""Latents that a token names at most."""


def html(answered: Answered) -> str:
    """The question over the columns, and the line that tells of a word."""
    top = answered.hottest or 1.0
    edits = [(column.title, column.clamp) for column in answered.columns if column.clamp is not None]
    asked = "".join(_token(token, top, told(token, edits)) for token in answered.prompt)
    columns = "".join(_column(column, top) for column in answered.columns)
    growing = any(not column.done for column in answered.columns)
    hint = HINT if answered.hottest else "" if growing else NOTHING
    return (
        f'<div class="sod-asked"><b>Asked</b>{asked}</div><div class="sod-texts">{columns}</div>'
        f'<p class="sod-told" role="status">{hint}</p>'
    )


def _column(column: Column, top: float) -> str:
    edits = [] if column.clamp is None else [("", column.clamp)]
    answer = "".join(_token(token, top, told(token, edits), column.clamp is not None) for token in column.answer)
    caret = "" if column.done else '<i class="sod-caret"></i>'
    return (
        f'<section class="sod-text sod-{escape(column.key)}"><h4>{escape(column.title)}</h4>'
        f'<p>{answer.lstrip()}{caret}</p><p class="sod-quiet">{escape(acted(column))}</p></section>'
    )


def acted(column: Column) -> str:
    """What the edit is, and how often it acted on the answer."""
    if column.clamp is None:
        if column.key != UNTOUCHED:
            return "another model, whose hidden states these latents were not made for"
        fired = sum(bool(token.fired) for token in column.answer)
        return f"nothing is edited; a chosen latent fired on {fired} of {len(column.answer)} tokens"
    changed = sum(token.changed for token in column.answer)
    return f"{setting(column.clamp)}; acted on {changed} of {len(column.answer)} tokens"


def setting(clamp: Clamp) -> str:
    """ "10 latents to -300, refusal latent 7 to -500"."""
    said = []
    count = f"{len(clamp.latents)} latent{'' if len(clamp.latents) == 1 else 's'}"
    if clamp.method != "refusal":
        said.append(f"{count} to {_numbers(clamp.values())}")
    if clamp.refuses:
        which = f"one of {count}" if len(clamp.latents) > 1 else f"latent {clamp.latents[0]}"
        where = f" where {which} fires" if clamp.method == "refusal" else ""
        said.append(f"refusal latent {clamp.refusal} to {clamp.refusal_value:g}{where}")
    return ", ".join(said)


def _numbers(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _token(token: Token, top: float, said: str, edited: bool = False) -> str:
    """The token's text; coloured by its strongest latent, where one fired."""
    bare = token.text.lstrip(" ")
    space = escape(token.text[: len(token.text) - len(bare)])
    if not token.fired:
        return space + escape(bare)
    share = min(token.fired[0].activity / top, 1.0)
    strength = round(_FAINTEST + (_FULLEST - _FAINTEST) * share)
    kind = ' class="sod-changed"' if edited and token.changed else ""
    return (
        f'{space}<mark tabindex="0" style="--heat:{strength}%" aria-label="{escape(said)}"{kind}>{escape(bare)}</mark>'
    )


def told(token: Token, edits: Sequence[tuple[str, Clamp]]) -> str:
    """ "“potion”: latent 12 fired at 3.41, latent 9 at 1.02. Clamp Prime: set to -30." """
    if not token.fired:
        return ""
    named = token.fired[:_NAMED]
    latents = f"latent {named[0].latent} fired at {named[0].activity:.3g}"
    latents += "".join(f", latent {one.latent} at {one.activity:.3g}" for one in named[1:])
    more = f" and {len(token.fired) - _NAMED} more" if len(token.fired) > _NAMED else ""
    does = "; ".join(f"{title + ': ' if title else ''}{_done(token, clamp)}" for title, clamp in edits)
    return f"“{token.text.strip()}”: {latents}{more}. {does or 'Nothing is edited here'}."


def _done(token: Token, clamp: Clamp) -> str:
    """What one edit does to a token on which something fired."""
    least = 0.0 if clamp.method == "prime" else clamp.threshold
    values = dict(zip(clamp.latents, clamp.values()))
    above = [one.latent for one in token.fired if one.activity > least and one.latent in values]
    if not above:
        return f"left as it is, since nothing fired above {least:g}"
    said = []
    if clamp.method != "refusal":
        said.append(f"set to {_numbers([values[latent] for latent in above])}")
    if clamp.refuses:
        said.append(f"refusal latent {clamp.refusal} set to {clamp.refusal_value:g}")
    return ", ".join(said)

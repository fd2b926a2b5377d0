"""What the Clamp tab's menus, curves and plots hold for a pack."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import gradio as gr

from ...clamp.pack import ClampPack, names, shared_pack
from ...packs.errors import PackError
from . import asking as asked
from . import figures, scatter, stored, words, work
from .asking import Asking
from .shown import PRIME, REFUSAL, TITLES
from .visitor import Page

if TYPE_CHECKING:
    pass

TOP = 10
TOKENS = 40
"""Of an answer, unless the visitor wants more."""
OPENING_VALUE = -30.0
"""A coefficient for packs that name none."""


def pack_choices() -> list[tuple[str, str]]:
    """(title, name) of every pack; what cannot be used on this computer says so."""
    found = []
    for name in names():
        try:
            pack = shared_pack(name)
            found.append((pack.manifest.title + ("" if pack.ready() else " (not here)"), name))
        except PackError:
            found.append((f"{name} (cannot be used)", name))
    return found


def opened(pack: ClampPack, page: Page, first: Asking | None = None) -> list:
    """The note, Panel.menus and Panel.about for a pack; `first` is what is asked, `opening`'s for None.

    Raises ValueError; the page's own things go only after that.
    """
    m, fields, first = pack.manifest, question_fields(pack), first or opening(pack)
    prompts = [(words.about(prompt), prompt.text) for prompt in m.prompts]
    chosen = first.prompt if first.prompt in [text for _, text in prompts] else None
    judged = [one for one in pack.questions("judge") if one.id == first.judged] if first.judged else []
    field = judged[0].field if judged else None
    menus = [
        gr.Dropdown(prompts, value=chosen, visible=bool(prompts)),
        gr.Dropdown(fields, value=field, visible=bool(fields)),
        judged_menu(pack, field, first.judged) if judged else gr.Dropdown([], value=None, visible=bool(fields)),
        first.prompt,
        gr.Dropdown(beside(pack), value=first.beside),
        gr.Dropdown([(entry.title, entry.id) for entry in m.saes], value=first.sae, visible=len(m.saes) > 1),
        words.ways(stored.read(pack)),
    ]
    page.measured, page.looked_at, page.last = {}, None, None
    about = sae_chosen(pack, first.sae, page, first)
    missing = pack.missing() if pack.ready() else []  # otherwise it stands where the answers would
    note = "\n".join([m.note, "", *(f"* {line}" for line in missing)]).strip()
    return [gr.Markdown(note, visible=bool(note)), *menus, *about]


def question_fields(pack: ClampPack) -> list[tuple[str, str]]:
    """(title, id) of the fields that have judged questions here; those to forget are marked."""
    try:
        there = {question.field for question in pack.questions("judge")}
    except ValueError:
        return []
    fields = [field for field in pack.manifest.fields if field.id in there]
    return [(field.title + (" (to forget)" if field.forget else ""), field.id) for field in fields]


def beside(pack: ClampPack) -> list[tuple[str, str]]:
    """(title, id) of what a fourth column can show."""
    found = [("nothing", ""), *((TITLES[method], method) for method in ("conditional", "both"))]
    return found + [(other.title, f"{work.MODEL}{other.id}") for other in pack.manifest.others]


def judged_menu(pack: ClampPack, field: str | None, id: str = "") -> gr.Dropdown:
    """A field's judged questions; `id` or else the first one chosen. Raises ValueError where there is none."""
    questions = [one for one in pack.questions("judge") if one.field == field]
    if not questions:
        raise ValueError("the pack has no judged question on this field")
    return gr.Dropdown([(one.question, one.id) for one in questions], value=id or questions[0].id)


def opening(pack: ClampPack, sae: str | None = None) -> Asking:
    """What is asked first: the pack's first question, with its own setting for an SAE."""
    m = pack.manifest
    sae = sae or m.opening_sae()
    prime, refusal = work.preset(pack, sae, PRIME), work.preset(pack, sae, REFUSAL)
    own = prime or refusal
    latents = own.latents if own is not None else _ruled(pack, sae)
    return Asking(
        prompt=m.prompts[0].text if m.prompts else "",
        judged="",
        value=_one(prime.value) if prime is not None else OPENING_VALUE,
        refusal_value=refusal.refusal_value if refusal is not None else OPENING_VALUE,
        threshold=refusal.threshold if refusal is not None else 0.0,
        beside="",
        sae=sae,
        rule="preset" if own is not None else "ratio" if latents else "own",
        latents=latents,
        refusal=None if refusal is None else refusal.refusal,
        fidelity="exact",
        tokens=TOKENS,
        seed=0,
    )


def _ruled(pack: ClampPack, sae: str) -> tuple[int, ...]:
    """For an SAE without a setting of its own: what a rule finds, if its latents were surveyed."""
    try:
        return tuple(work.rule_latents(pack, sae, "ratio", TOP, 0))
    except ValueError:
        return ()


def _one(value: float | tuple[float, ...]) -> float:
    """A coefficient for all latents, where the pack has one for each."""
    return sum(value) / len(value) if isinstance(value, tuple) else value


def sae_chosen(pack: ClampPack, sae: str, page: Page, first: Asking | None = None) -> list:
    """Panel.about for an SAE: `first`, or else the pack's own setting, and the curves. Raises ValueError."""
    first, board = first or opening(pack, sae), stored.read(pack)
    page.firing = []
    return [
        asked.listed(first.latents),
        first.rule,
        len(first.latents) or TOP,
        _slider(first.value, board, PRIME),
        _slider(first.refusal_value, board, REFUSAL),
        gr.Slider(value=first.threshold, maximum=max(2.0, 4 * first.threshold)),
        first.refusal,
        "",
        None,
        "",
        toggle(page, first.latents),
        *curves(pack, first, page),
    ]


def _slider(value: float, board: stored.Stored, key: str) -> gr.Slider:
    """A coefficient's slider, as long as the stored curve, and at least twice as long as the value is."""
    known = [2 * value, 0.0, *(point.value for point in board.curves.get(key, []))]
    least, most = min(known), max(known)
    step = 10.0 ** math.floor(math.log10(max(most - least, 1e-3) / 50))
    return gr.Slider(math.floor(least / step) * step, math.ceil(most / step) * step, value=value, step=step)


# ------------------------------------------------------------ latents


def scatter_of(pack: ClampPack, sae: str, chosen: Collection[int], page: Page) -> str:
    """The scatter plot; a sentence where nothing was surveyed, nothing where the model is not here."""
    if not pack.ready():
        return ""
    page.firing = page.firing or work.firing(pack, sae)
    if not page.firing:
        return words.no_survey(pack.manifest.name, sae)
    return scatter.html(page.firing, set(chosen), page.looked_at)


def toggle(page: Page, chosen: Collection[int]) -> gr.Button:
    """The button under the latent that is looked at."""
    if page.looked_at is None:
        return gr.Button(visible=False)
    if page.looked_at in chosen:
        return gr.Button(f"Take latent {page.looked_at} out of the edited ones", visible=True)
    return gr.Button(f"Add latent {page.looked_at} to the edited ones", visible=True)


# ------------------------------------------------------------ figures


def curves(pack: ClampPack, asking: Asking, page: Page) -> list:
    """The sentence over the curves, and the three of them, with the sliders' lines where they stand."""
    board = stored.read(pack)
    lines = board.curves if board.sae == asking.sae else {}
    at = {PRIME: asking.value} | ({} if asking.refusal is None else {REFUSAL: asking.refusal_value})
    if not lines and not page.measured:
        return [words.no_curves(pack.manifest.name), *[gr.Plot(visible=False)] * len(figures.METRICS)]
    drawn = [
        gr.Plot(figures.curve(metric, lines, page.measured, at, board.untouched), visible=True)
        for metric in figures.METRICS
    ]
    return [words.curve_note(board, asking, page.measured), *drawn]


def figures_line(pack: ClampPack, asking: Asking) -> str:
    """What the stored figures say of this setting; empty where they are of another."""
    return words.stored_line(stored.read(pack), asking)

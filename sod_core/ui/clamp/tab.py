"""The Clamp tab: a language model answers side by side, untouched and with each clamp."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import gradio as gr

from ...clamp.pack import ClampPack, names, shared_pack
from ...machine import environment
from ...packs.errors import PackError
from .. import handling, overlays
from ..running import Running, Watched
from . import asking as asked
from . import exports, filling, links, scatter, texts, words, work
from . import panel as panels
from .asking import Asking
from .panel import Panel
from .shown import Answered
from .visitor import Page

PREFERRED = "almanac"
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
LATEST = {"trigger_mode": "always_last", **QUIET}
ASKING = {"concurrency_limit": 20, "concurrency_id": "ask", "trigger_mode": "multiple", **QUIET}
MEASURING = {"concurrency_limit": 4, "concurrency_id": "measure", "trigger_mode": "multiple", **QUIET}


def build(tab: gr.Tab) -> None:
    """Fills the current tab, `tab`. Nothing where there is no pack."""
    known = list(names())
    if not known:
        gr.Markdown(words.NO_PACK)
        return
    panel = panels.layout(filling.pack_choices(), first_pack(known))
    page, running = gr.State(Page()), gr.State(Running())  # Gradio gives each visitor's page a copy
    opened = [panel.note, *panel.menus, *panel.about]
    again = _asks(panel, page, running, "again")
    further = [panel.pack, panel.fidelity, panel.tokens, panel.seed]
    first = tab.select(
        handling.kept(_first, len(further) + len(opened)), [page, panel.pack], [*further, *opened], **QUIET
    )
    written = [panel.pack, *panel.controls]
    link = handling.kept(_link, 1), [page, *written], panel.link
    gr.on([control.change for control in written], *link, **LATEST)
    other = panel.pack.input(
        handling.kept(_open, len(opened)), [page, panel.pack], opened, trigger_mode="multiple", **QUIET
    )
    plotted = handling.kept(_plotted, 4), [page, panel.pack, panel.sae, panel.latents], panel.looks
    for event in (first, other):
        event.then(**again).then(*plotted, **QUIET)
    _wire_questions(panel, page, running, again)
    _wire_edit(panel, page, again)
    _wire_measuring(panel, page)
    _wire_latents(panel, page, again)
    panel.export.wire(exports.make, [page])


def first_pack(known: Sequence[str]) -> str:
    """PREFERRED if it can be used here, else the first that can, else the first of all."""
    order = sorted(known, key=lambda name: name != PREFERRED)
    return next((name for name in order if _ready(name)), order[0])


def _ready(name: str) -> bool:
    try:
        return shared_pack(name).ready()
    except PackError:
        return False


def warm_up() -> None:
    """Answers the opening question once, so that the first visitor need not wait for the model.

    Not where SOD_DEFAULT_PACK names another verb's pack: that is what visitors come for then.
    """
    known = list(names())
    if known and environment.may_open_on(known) and _ready(name := first_pack(known)):
        pack = shared_pack(name)
        work.answer(pack, filling.opening(pack), lambda told: None, lambda: False)


# ------------------------------------------------------------ wiring


def _asks(panel: Panel, page: gr.State, running: gr.State, how: str) -> dict:
    """Arguments of an event that asks; "again": not where the same is shown already."""
    p = panel

    def undone(page: Page, running: Running, *_: Any) -> dict:
        return {p.texts: gr.skip()} if running.busy else _idle(p) | {p.texts: _last(page)}

    def ask(page: Page, running: Running, name: str, *values: Any) -> Iterator[dict]:
        yield from _ask(p, page, running, name, values, again=how == "again")

    return {
        "fn": handling.kept_stream(ask, undone),
        "inputs": [page, running, p.pack, *p.controls],
        "outputs": [p.ask, p.cancel, p.headline, p.texts, p.options, p.progress],
        **ASKING,
    }


def _wire_questions(panel: Panel, page: gr.State, running: gr.State, again: dict) -> None:
    p = panel
    gr.on([p.ask.click, p.prompt.submit], **_asks(p, page, running, "new"))
    p.cancel.click(lambda running: running.stop(), running, None, queue=False, **QUIET)
    p.prompts.input(lambda text: [text or gr.skip(), None], p.prompts, [p.prompt, p.judged], **LATEST).then(**again)
    p.field.input(handling.kept(_of_field, 2), [p.pack, p.field], [p.judged, p.prompt], **LATEST).then(**again)
    p.judged.input(handling.kept(_judged, 1), [p.pack, p.judged], p.prompt, **LATEST).then(**again)
    p.beside.input(**again)


def _wire_edit(panel: Panel, page: gr.State, again: dict) -> None:
    p = panel
    shown = handling.kept(_moved, 4), [page, p.pack, *p.controls], [p.curve_note, *p.curves]
    for slider in (p.value, p.refusal_value, p.threshold):
        slider.input(*shown, **LATEST)
        slider.release(*shown, **LATEST).then(**again)
    p.fidelity.input(words.FIDELITY_NOTES.get, p.fidelity, p.fidelity_note, **LATEST).then(*shown, **QUIET).then(
        **again
    )
    p.refusal.submit(*shown, **LATEST).then(**again)
    for event in (p.rule.input, p.top.release, p.seed.submit):
        ruled = [page, p.pack, p.sae, p.rule, p.top, p.seed], [p.latents, p.scatter, p.toggle]
        event(handling.kept(_ruled, 3), *ruled, **LATEST).then(*shown, **QUIET).then(**again)
    other_sae = handling.kept(_other_sae, len(p.about)), [page, p.pack, p.sae], p.about
    plotted = handling.kept(_plotted, 4), [page, p.pack, p.sae, p.latents], p.looks
    p.sae.input(*other_sae, **LATEST).then(**again).then(*plotted, **QUIET)
    written = [page, p.pack, p.sae, p.latents], [p.latents, p.rule, p.scatter, p.toggle]
    p.latents.submit(handling.kept(_written, 4), *written, **LATEST).then(*shown, **QUIET).then(**again)


def _wire_measuring(panel: Panel, page: gr.State) -> None:
    p, running = panel, gr.State(Running())

    def undone(page: Page, running: Running, *_: Any) -> dict:
        return {p.measuring: gr.skip()} if running.busy else _measure_idle(p) | {p.measuring: ""}

    p.measure.click(
        handling.kept_stream(lambda *values: _measure(p, *values), undone),
        [page, running, p.pack, p.measure_size, *p.controls],
        [p.measure, p.measure_cancel, p.measuring, p.curve_note, *p.curves],
        **MEASURING,
    )
    p.measure_cancel.click(lambda running: running.stop(), running, None, queue=False, **QUIET)


def _wire_latents(panel: Panel, page: gr.State, again: dict) -> None:
    p = panel
    inputs = [page, p.pack, p.sae, p.latents]
    p.scatter.click(handling.kept(_pick, 4), inputs, p.looks, trigger_mode="multiple", **QUIET)
    p.look.submit(handling.kept(_look, 4), [*inputs, p.look], p.looks, **LATEST)
    toggled = [p.latents, p.rule, p.scatter, p.toggle]
    shown = handling.kept(_moved, 4), [page, p.pack, *p.controls], [p.curve_note, *p.curves]
    p.toggle.click(handling.kept(_toggle, len(toggled)), inputs, toggled, **LATEST).then(*shown, **QUIET).then(**again)


# ------------------------------------------------------------ opening


def _first(request: gr.Request, page: Page, name: str) -> Any:
    """Fills the tab when it is looked at for the first time, as the address says."""
    if page.name is not None:
        return gr.skip()
    link = links.Link(dict(request.query_params), "clamp")
    name = link.pack(name)
    pack = shared_pack(name)
    default = filling.opening(pack, link.sae(pack, pack.manifest.opening_sae()))
    rules, beside = ([id for _, id in menu] for menu in (panels.RULES, filling.beside(pack)))
    first = link.opened(pack, default, rules, beside)
    filled = filling.opened(pack, page, first)
    page.name = name
    if link.problems:
        gr.Warning(link.sentence())
    return [name, first.fidelity, first.tokens, first.seed, *filled]


def _link(page: Page, name: str, *values: Any) -> Any:
    """How an address leads to what the controls say."""
    sae = values[links.KEYS.index("sae")]
    pack = shared_pack(name)
    if sae not in [entry.id for entry in pack.manifest.saes]:  # of the pack before, on its way
        return gr.skip()
    if (name, sae) not in page.plain:
        page.plain[name, sae] = filling.opening(pack, sae)
    return links.element(name, values, page.plain[name, sae])


def _open(page: Page, name: str) -> Any:
    """Fills the tab for a pack; as the visitor left it where it is open."""
    if name == page.name:
        return gr.skip()
    filled = filling.opened(shared_pack(name), page)
    page.name = name
    return filled


def _other_sae(page: Page, name: str, sae: str) -> list:
    page.measured.clear()
    page.looked_at = None
    return filling.sae_chosen(shared_pack(name), sae, page)


def _of_field(name: str, field: str) -> list:
    """The judged questions of a field, and the first of them as the question."""
    pack = shared_pack(name)
    menu = filling.judged_menu(pack, field)
    return [menu, next(one.question for one in pack.questions("judge") if one.field == field)]


def _judged(name: str, id: str | None) -> Any:
    return next((one.question for one in shared_pack(name).questions("judge") if one.id == id), gr.skip())


# ------------------------------------------------------------ asking


def _ask(p: Panel, page: Page, running: Running, name: str, values: Sequence, again: bool) -> Iterator[dict]:
    """Answers in every column at once, as the texts grow; the visitor may cancel at any token."""
    pack = shared_pack(name)
    if again and not pack.ready():
        yield {p.headline: words.not_here(pack.missing()), p.texts: ""}
        return
    question = asked.read(values)
    if again and page.shows(name, question):
        yield {p.texts: gr.skip()}
        return
    found = work.known(pack, question) if again else None
    if found is None:
        found = yield from _grown(p, page, running, pack, question)
    else:
        running.stop()
    if found is not None:
        page.answered(name, question, found)
        yield _idle(p) | _answered(p, pack, question, found)


def _grown(
    p: Panel, page: Page, running: Running, pack: ClampPack, question: Asking
) -> Generator[dict, None, Answered | None]:
    """Yields what has grown; gives the whole. None where the page asked for something else meanwhile."""
    cancel = running.begin()  # before the page can offer Cancel
    try:
        yield _busy(p) | {p.progress: words.waiting("The model reads the question")}
        page.asked(pack.manifest.name, question)
        thread = Watched(lambda tell: work.answer(pack, question, tell, cancel.is_set))
        first = True
        for told in thread.news():
            if told is None or not running.is_last(cancel):
                yield {p.texts: gr.skip()}
            else:
                bars = _bars(p, told) if first else {}
                first = False
                yield {p.texts: texts.html(told), p.progress: ""} | bars
        found: Answered = thread.result()
    finally:
        was_last = running.is_last(cancel)
        cancelled = cancel.is_set()
        cancel.set()
    if not was_last:
        yield {p.texts: gr.skip()}
        return None
    if cancelled:
        page.forget_asking()
    return found


def _answered(p: Panel, pack: ClampPack, question: Asking, found: Answered) -> dict:
    headline = words.headline(found, filling.figures_line(pack, question))
    return {p.headline: headline, p.texts: texts.html(found), p.progress: ""} | _bars(p, found)


def _bars(p: Panel, found: Answered) -> dict:
    from . import figures

    bars = figures.options(found)
    return {p.options: gr.Plot(bars, visible=bars is not None)}


def _last(page: Page) -> Any:
    return gr.skip() if page.last is None else texts.html(page.last)


def _busy(p: Panel) -> dict:
    return {p.ask: gr.Button(visible=False), p.cancel: gr.Button(visible=True)}


def _idle(p: Panel) -> dict:
    return {p.ask: gr.Button(visible=True), p.cancel: gr.Button(visible=False), p.progress: ""}


# ------------------------------------------------------------ the curves


def _moved(page: Page, name: str, *values: Any) -> list:
    """The curves with the sliders' lines where they stand now."""
    pack = shared_pack(name)
    return filling.curves(pack, asked.read(values, prompt="-"), page)


def _measure(p: Panel, page: Page, running: Running, name: str, size: int, *values: Any) -> Iterator[dict]:
    """Judges at the controls' settings, with progress; the visitor may cancel at any batch."""
    pack, question = shared_pack(name), asked.read(values, prompt="-")
    cancel = running.begin()
    try:
        yield {
            p.measure: gr.Button(visible=False),
            p.measure_cancel: gr.Button(visible=True),
            p.measuring: overlays.progress_bar("Loading the model", None),
        }
        thread = Watched(
            lambda tell: work.measure(pack, question, int(size), lambda share, what: tell((share, what)), cancel.is_set)
        )
        for told in thread.news():
            bar = (
                gr.skip() if told is None or cancel.is_set() else overlays.progress_bar(f"judging: {told[1]}", told[0])
            )
            yield {p.measuring: bar}
        found = thread.result()
    finally:
        was_last = running.is_last(cancel)
        cancel.set()
    if not was_last:
        yield {p.measuring: gr.skip()}
        return
    shown: dict = {}
    if found is not None:
        page.add(found)
        shown = dict(zip([p.curve_note, *p.curves], filling.curves(pack, question, page)))
    yield _measure_idle(p) | {p.measuring: words.measured(found)} | shown


def _measure_idle(p: Panel) -> dict:
    return {p.measure: gr.Button(visible=True), p.measure_cancel: gr.Button(visible=False)}


# ------------------------------------------------------------ latents


def _plotted(page: Page, name: str, sae: str, text: str) -> list:
    """The plot of latents, and the words of the first that is edited, where the pack's texts are here."""
    chosen = asked.ids(text or "")
    try:
        return _look(page, name, sae, text, chosen[0] if chosen else None)
    except ValueError:
        return _look(page, name, sae, text, None)


def _ruled(page: Page, name: str, sae: str, rule: str, top: int, seed: int) -> list:
    """The latents of a rule into the list; of one's own list as it is."""
    if rule == "own":
        return [gr.skip()] * 3
    pack = shared_pack(name)
    found = work.rule_latents(pack, sae, rule, int(top), int(seed or 0))
    return [asked.listed(found), filling.scatter_of(pack, sae, found, page), filling.toggle(page, found)]


def _written(page: Page, name: str, sae: str, text: str) -> list:
    found, pack = asked.ids(text or ""), shared_pack(name)
    return [asked.listed(found), "own", filling.scatter_of(pack, sae, found, page), filling.toggle(page, found)]


def _pick(event: gr.EventData, page: Page, name: str, sae: str, text: str) -> list:
    return _look(page, name, sae, text, int(event.pick))


def _look(page: Page, name: str, sae: str, text: str, latent: int | None) -> list:
    """What a latent fires on most."""
    chosen, pack = asked.ids(text or ""), shared_pack(name)
    if latent is None:
        page.looked_at = None
        return [filling.scatter_of(pack, sae, chosen, page), None, "", filling.toggle(page, chosen)]
    found = work.words(pack, sae, int(latent))
    page.looked_at = int(latent)
    plot = filling.scatter_of(pack, sae, chosen, page)
    point = next((one for one in page.firing if one.latent == latent), None)
    return [plot, int(latent), scatter.words(int(latent), point, found), filling.toggle(page, chosen)]


def _toggle(page: Page, name: str, sae: str, text: str) -> list:
    """Adds the latent that is looked at to the list, or takes it out."""
    latent, chosen = page.looked_at, asked.ids(text or "")
    if latent is None:
        raise ValueError("click a latent in the plot first")
    chosen = [one for one in chosen if one != latent] if latent in chosen else [*chosen, latent]
    return _written(page, name, sae, asked.listed(chosen))

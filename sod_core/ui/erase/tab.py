"""The Erase tab: a diffusion model draws a prompt with and without a concept."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import torch

from ...erase import drawings, edit, generate, stored
from ...erase.pack import ConceptSetting, ErasePack, folders, shared_erase_pack
from ...erase.unlearncanvas import Asked
from ...models import diffusion
from ...packs.errors import PackError
from .. import handling
from ..running import Running, Watched
from . import exports, figures, links, menus
from . import panel as panels
from .panel import NO_STYLE, Panel
from .shown import Asking, Shown

PREVIEW_STEPS, PREVIEWS = 2, 15
"""A preview is shown after so many denoising steps, and about so many times at most: a large autoencoder is slow."""
LONGEST_PROMPT = 2000
"""In characters; a text encoder reads about 350 of them."""
LARGEST_SEED = 2**31
PREFERRED = "canvas-diffusion"
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
LATEST = {"trigger_mode": "always_last", **QUIET}
DRAWING = {"concurrency_limit": 20, "concurrency_id": "draw", "trigger_mode": "multiple", **QUIET}
"""The pipeline's own lock has one drawing at a time; each that waits for it holds one of the server's threads."""


def build(app: gr.Blocks, tab: gr.Tab) -> None:
    """Fills the current tab, `tab` of `app`. Nothing where no diffusion pack is on this computer."""
    names = list(folders())
    if not names:
        gr.Markdown("There is no diffusion pack here: `python -m sod_core build canvas-diffusion` makes one.")
        return
    first = PREFERRED if PREFERRED in names else names[0]
    panel = panels.layout(first)
    state = gr.State(None)
    filled = [panel.note, panel.object, panel.style, panel.prompt, panel.concepts, panel.sae, panel.factor]
    filled += [
        panel.fidelity_note,
        panel.percentile,
        panel.steps,
        panel.guidance,
        panel.step,
        panel.grid,
        panel.factors,
    ]
    tab.select(_warm, panel.pack, None, **QUIET)
    asked = [gr.State(_Opened()), panel.pack]
    further = [panel.pack, panel.fidelity, panel.start_step, panel.beta, panel.seed]
    loaded = app.load(handling.kept(_first, len(further) + len(filled)), asked, [*further, *filled], **QUIET)
    written = [panel.pack, *panel.opening]
    gr.on(
        [control.change for control in written],
        lambda pack, *values: links.element(pack, links.Opening(*values)),
        written,
        panel.link,
        **LATEST,
    )
    other = panel.pack.input(handling.kept(_open, len(filled)), asked, filled, trigger_mode="multiple", **QUIET)
    pair = handling.kept(lambda *values: _stored_pair(panel, state, *values), 1)
    for opened in (loaded, other):
        opened.then(pair, [state, *asked], [state, *_figures(panel)], **QUIET)
    _wire_menus(panel)
    _wire_drawing(panel, state)
    moved = [panel.step.input, panel.step.release]  # release: what the slider's reset button sends
    gr.on(moved, handling.kept(_at_step, 2), [state, panel.step], [panel.heat, panel.curve], **LATEST)


def _wire_menus(panel: Panel) -> None:
    asked, written = [panel.pack, panel.object, panel.style], [panel.prompt, panel.concepts]
    for menu in (panel.object, panel.style):
        menu.input(handling.kept(menus.write, 2), asked, written, **LATEST).then(**_best(panel))
    for menu in (panel.concepts, panel.sae):
        menu.input(**_best(panel))
    panel.fidelity.input(menus.FIDELITY_NOTES.get, panel.fidelity, panel.fidelity_note, **LATEST)


def _best(panel: Panel) -> dict:
    inputs = [panel.pack, panel.sae, panel.concepts]
    return {
        "fn": handling.kept(menus.found_best, 3),
        "inputs": inputs,
        "outputs": [panel.factor, panel.percentile, panel.factors],
        **LATEST,
    }


def _wire_drawing(panel: Panel, state: gr.State) -> None:
    p = panel
    buttons, running = [p.generate, p.cancel, p.grid], gr.State(Running())  # Gradio gives each page a copy
    shown = [state, *buttons, p.preview, *_figures(p)]

    def undone(running: Running, *_: Any) -> dict:
        return _nothing(p) if running.busy else _idle(p) | {p.preview: ""}

    for button in (p.generate, p.grid):
        button.click(lambda: figures.waiting("waiting for a turn to draw"), None, p.preview, queue=False, **QUIET)
    drawing = gr.on(
        [p.generate.click, p.prompt.submit],
        handling.kept_stream(lambda *values: _generate(p, state, *values), undone),
        [running, p.pack, *p.controls],
        shown,
        **DRAWING,
    )
    all_objects = p.grid.click(
        handling.kept_stream(lambda *values: _all_objects(p, *values), undone),
        [running, p.pack, p.style, *p.controls],
        [*buttons, p.rows, p.preview],
        **DRAWING,
    )
    for refused in (drawing, all_objects):  # by Gradio, before the handler: a number beyond its limits
        refused.failure(lambda: "", None, p.preview, queue=False, **QUIET)
    p.cancel.click(lambda running: running.stop(), running, None, queue=False, **QUIET)
    p.export.wire(exports.make, [state])


# ------------------------------------------------------------ menus


class _Opened:
    """Which pack's menus a page shows, or has asked for last."""

    name: str | None = None
    says: links.Opening | None = None
    """What the controls said when it opened."""


def _first(request: gr.Request, opened: _Opened, name: str) -> Any:
    """Fills the menus when the page loads, as the address says, unless a pack was chosen before this came."""
    if opened.name is not None:
        return gr.skip()
    link = links.Link(dict(request.query_params), "erase")
    name = link.pack(name)
    opened.name = name
    try:
        pack = shared_erase_pack(name)
    except PackError:
        opened.name = ""
        raise
    opened.says = found = link.opened(pack, menus.opening(pack), NO_STYLE)
    if link.problems:
        gr.Warning(link.sentence())
    return [name, found.fidelity, found.start_step, found.beta, found.seed, *menus.filled(pack, found)]


def _open(opened: _Opened, name: str) -> Any:
    """Fills the menus for a pack; as the visitor left them where it is open, or where another was chosen meanwhile."""
    if name == opened.name:
        return gr.skip()
    if opened.name is not None:
        _warm(name)
    opened.name = name
    try:
        pack = shared_erase_pack(name)
        opened.says = menus.opening(pack)
        filled = menus.filled(pack, opened.says)
    except PackError:
        opened.name = ""
        raise
    return filled if opened.name == name else gr.skip()


def _warm(name: str) -> None:
    """Loads what the first drawing needs while the visitor looks at the menus; errors are told by that drawing."""

    def load() -> None:
        try:
            pack = shared_erase_pack(name)
            pack.eraser(pack.manifest.saes[0].id), pack.pipeline(), pack.judge("object"), pack.judge("style")
        except ValueError:
            return

    threading.Thread(target=load, daemon=True).start()


def _stored_pair(p: Panel, state: gr.State, shown: Shown | None, opened: _Opened, name: str) -> dict:
    """The pair that the pack stores, where the controls say what it was drawn by; else nothing of another pack's."""
    if shown is not None and shown.pack_name == name:
        return {state: gr.skip()}
    pack = shared_erase_pack(name)
    found = stored.read(pack)
    if found is not None and opened.says is not None:
        asking = read(opened.says.values())
        how = settings(pack, asking)
        if stored.is_of(found.result, how, asking.sae, asking.prompt, asking.steps, asking.guidance, asking.seed):
            shown = Shown(name, asking, how, found.drawn, found.result["judged"], [], found.result["left_out"])
            return {state: shown} | _drawn(p, shown)
    return {state: None} | dict(zip(_figures(p), ["", "", "", gr.Slider(visible=False), None, None], strict=True))


# ------------------------------------------------------------ drawing


def read(values: tuple) -> Asking:
    """The values of Panel.controls. Raises ValueError for what cannot be drawn."""
    prompt, concepts, sae, factor, fidelity, start_step, percentile, beta, steps, guidance, seed, factors = values
    if not (prompt or "").strip():
        raise ValueError("write a prompt, or choose an object")
    if len(prompt.strip()) > LONGEST_PROMPT:
        raise ValueError(f"the prompt has {len(prompt.strip())} characters: {LONGEST_PROMPT} at most are taken")
    numbers = {"factor": factor, "first step that is edited": start_step, "percentile": percentile}
    numbers |= {"number of steps": steps, "guidance": guidance, "seed": seed}
    empty = [name for name, value in numbers.items() if value is None]
    if empty:
        raise ValueError(f"give a number for the {empty[0]}")
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed {int(seed)} is out of range; take a whole number from 0 to {LARGEST_SEED}")
    steps = min(max(int(steps), 2), 100)
    each = menus.factors(factors or "", concepts) if len(concepts or ()) > 1 else float(factor)
    if concepts and start_step >= steps:
        raise ValueError(f"nothing would be edited: step {int(start_step)} is behind the last of {steps} steps")
    return Asking(
        prompt.strip(),
        tuple(concepts or ()),
        sae,
        each,
        fidelity,
        int(start_step),
        float(percentile),
        bool(beta),
        steps,
        float(guidance),
        int(seed),
    )


def settings(pack: ErasePack, asking: Asking) -> edit.Settings:
    """What the engine is told; with no concept nothing is edited."""
    if not asking.concepts:
        return edit.Settings((), fidelity=asking.fidelity)
    factors = asking.factor if isinstance(asking.factor, tuple) else (asking.factor,) * len(asking.concepts)
    chosen = [_setting(pack, asking, name, factor) for name, factor in zip(asking.concepts, factors)]
    found = drawings.settings(pack, asking.sae, asking.concepts, asking.fidelity, chosen, asking.beta)
    return replace(found, start_step=asking.start_step)


def _setting(pack: ErasePack, asking: Asking, concept: str, factor: float) -> ConceptSetting:
    """One concept's; left as it was found, the published multiplier itself, not what a factor makes of it."""
    best = pack.settings(asking.sae).get(concept)
    if best is not None and best.percentile == asking.percentile:
        multiplied = asking.fidelity == "reference" or asking.beta
        if multiplied and menus.factor_of(pack, asking.sae, concept, best) == factor:
            return best
    return ConceptSetting(asking.percentile, factor=factor)


def _generate(p: Panel, state: gr.State, running: Running, name: str, *values: Any) -> Iterator[dict]:
    """Draws before and after in one batch, with a preview; the visitor may cancel at any step."""
    pack, asking = shared_erase_pack(name), read(values)
    how = settings(pack, asking)
    shown = yield from _watched(p, running, lambda tell, cancel: draw(pack, asking, how, tell, cancel))
    if shown is None:
        return
    yield _idle(p) | {state: shown, p.preview: ""} | _drawn(p, shown)


def _figures(p: Panel) -> list:
    """The components of `_drawn`."""
    return [p.headline, p.pictures, p.heat, p.step, p.curve, p.bars]


def _drawn(p: Panel, shown: Shown) -> dict:
    """What is told of a drawing; its heat at the step at which it is largest."""
    best, pair = figures.hottest(shown), [shown.drawn.before[0], shown.drawn.after[0]]
    told = [
        figures.headline(shown),
        figures.compared(*map(figures.enlarged, pair)),
        figures.heat(shown, best),
        gr.Slider(maximum=shown.asking.steps - 1, value=best, visible=shown.drawn.heat is not None),
        figures.curve(shown, best),
        figures.judge_bars(shown.judged, shown.asking.concepts),
    ]
    return dict(zip(_figures(p), told, strict=True))


def draw(pack: ErasePack, asking: Asking, how: edit.Settings, tell: Callable, cancel: threading.Event) -> Shown:
    """Draws and judges; tells previews, which are decoded in this thread since it has the pipeline."""
    pipeline, frames = pack.pipeline(), []
    every = max(PREVIEW_STEPS, math.ceil(asking.steps / PREVIEWS))

    def preview(progress: generate.Progress) -> None:
        if progress.step % every == 0:
            known = [part for part in (progress.before, progress.after) if part is not None]
            pictures = diffusion.decode(pipeline, torch.cat(known))
            frames.append([pictures[0], pictures[-1]])
            tell(figures.preview(pictures, progress.step, progress.steps))

    order = diffusion.Order((asking.prompt,), (asking.seed,), asking.steps, asking.guidance)
    erasing = drawings.erasing(pack, asking.sae, how) if how.concepts else None
    drawn = generate.generate(pipeline, order, erasing, preview, cancel)
    judged = drawings.judged(pack, [drawn.before[0], drawn.after[0]])
    left_out = diffusion.left_out(pipeline, asking.prompt)
    return Shown(pack.manifest.name, asking, how, drawn, judged, frames, left_out)


def _all_objects(p: Panel, running: Running, name: str, style: str, *values: Any) -> Iterator[dict]:
    """Every object of the pack in one style, before and after: what is kept, and what is not."""
    pack, asking = shared_erase_pack(name), read(values)
    if not asking.concepts:
        raise ValueError("choose a concept to erase")
    how = settings(pack, asking)
    wanted = [Asked(object, None if style == NO_STYLE else style, asking.seed) for object in pack.manifest.concepts]

    def draw(tell: Callable, cancel: threading.Event) -> str:
        drawn = functools.partial(drawings.draw, pack, wanted, asking.steps, asking.guidance, cancel=cancel)
        tell(figures.waiting(f"drawing {len(wanted)} objects, without the edit"))
        before = drawn()
        tell(figures.waiting(f"drawing {len(wanted)} objects, with the edit"))
        after = drawn(id=asking.sae, how=how)
        judged = drawings.judged(pack, [*before, *after])
        return figures.object_rows(wanted, before, after, judged, asking.concepts)

    rows = yield from _watched(p, running, draw)
    if rows is not None:
        yield _idle(p) | {p.preview: "", p.rows: rows}


def _watched(
    p: Panel, running: Running, work: Callable[[Callable, threading.Event], Any]
) -> Generator[dict, None, Any]:
    """Yields what work(tell, cancel) tells as the preview, and gives what it returns.

    None where it was cancelled, or where the page began another drawing meanwhile: the buttons are that one's.
    """
    cancel, found = running.begin(), None  # before the page can offer Cancel
    try:
        yield _busy(p) | {p.preview: figures.waiting("loading the model")}
        thread = Watched(lambda tell: work(tell, cancel))
        for told in thread.news():
            yield _nothing(p) if told is None or cancel.is_set() else {p.preview: told}
        found = thread.result()
    except diffusion.Cancelled:
        pass
    finally:
        cancel.set()
    if not running.is_last(cancel):
        yield _nothing(p)
        return None
    if found is None:
        yield _idle(p) | {p.preview: ""}
    return found


def _nothing(p: Panel) -> dict:
    return {p.preview: gr.skip()}


def _busy(p: Panel) -> dict:
    return {p.generate: gr.Button(visible=False), p.cancel: gr.Button(visible=True), p.grid: gr.Button(visible=False)}


def _idle(p: Panel) -> dict:
    return {p.generate: gr.Button(visible=True), p.cancel: gr.Button(visible=False), p.grid: gr.Button(visible=True)}


def _at_step(shown: Shown | None, step: int) -> list:
    if shown is None or shown.drawn.heat is None:
        return [gr.skip(), gr.skip()]
    step = min(int(step), len(shown.drawn.heat) - 1)
    return [figures.heat(shown, step), figures.curve(shown, step)]

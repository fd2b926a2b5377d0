"""The Erase tab: a diffusion model draws a prompt with and without a concept."""

from __future__ import annotations

import functools
import json
import math
import queue
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from .. import diffusion, erase, erase_images
from ..packs.erase_pack import ConceptSetting, ErasePack
from ..packs.find import folders, shared_erase_pack
from ..unlearncanvas import Asked
from . import erase_figures as figures
from . import erase_panel as panels
from . import handling
from .erase_panel import NO_STYLE, Panel

PREVIEW_STEPS = 2
"""A preview is shown after every so many denoising steps."""
PREFERRED = "canvas-diffusion"
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
DRAWING = {"concurrency_limit": None, "trigger_mode": "multiple", **QUIET}
"""The pipeline's own lock has one drawing at a time."""
FIDELITY_NOTES = {
    "exact": "The block's output plus what the edit changes; a factor of 1 changes nothing.",
    "reference": "As the released code: the SAE's error enters with its sign reversed, so that even a factor of 1 "
    "changes the image. Compare with papers in this mode.",
}


@dataclass(frozen=True)
class Asking:
    """What the controls say."""

    prompt: str
    concepts: tuple[str, ...]
    sae: str
    factor: float
    fidelity: str
    start_step: int
    percentile: float
    beta: bool
    steps: int
    guidance: float
    seed: int


@dataclass(frozen=True)
class Shown:
    """What the page shows, kept for the step slider and the downloads."""

    pack_name: str
    asking: Asking
    how: erase.Settings
    drawn: diffusion.Generated
    judged: dict[str, list[dict[str, float]]]


def build(app: gr.Blocks, tab: gr.Tab) -> None:
    """Fills the current tab, `tab` of `app`. Nothing where no diffusion pack is on this computer."""
    names = list(folders("erase"))
    if not names:
        gr.Markdown("There is no diffusion pack here: `python -m sod_core build canvas-diffusion` makes one.")
        return
    first = PREFERRED if PREFERRED in names else names[0]
    panel = panels.layout(first)
    state, opened = gr.State(None), gr.State(None)
    menus = [panel.note, panel.object, panel.style, panel.prompt, panel.concepts, panel.sae, panel.factor]
    menus += [panel.fidelity_note, panel.percentile, panel.steps, panel.guidance, panel.step, panel.grid]
    menus += [panel.generate]
    tab.select(_warm, panel.pack, None, **QUIET)
    gr.on(
        [app.load, panel.pack.input],
        handling.kept(_open, 1 + len(menus)),
        [panel.pack, opened],
        [opened, *menus],
        trigger_mode="multiple",
        concurrency_limit=1,  # two at once would leave the server with one pack's menus and the page with the other's
        **QUIET,
    )
    _wire_menus(panel)
    _wire_drawing(panel, state)
    panel.step.input(handling.kept(_at_step, 2), [state, panel.step], [panel.heat, panel.curve], **QUIET)


def _wire_menus(panel: Panel) -> None:
    for menu in (panel.object, panel.style):
        menu.input(
            handling.kept(_write, 2), [panel.pack, panel.object, panel.style], [panel.prompt, panel.concepts], **QUIET
        ).then(**_best(panel))
    for menu in (panel.concepts, panel.sae):
        menu.input(**_best(panel))
    panel.fidelity.input(FIDELITY_NOTES.get, panel.fidelity, panel.fidelity_note, **QUIET)


def _best(panel: Panel) -> dict:
    inputs = [panel.pack, panel.sae, panel.concepts]
    return {"fn": handling.kept(_found_best, 2), "inputs": inputs, "outputs": [panel.factor, panel.percentile], **QUIET}


def _wire_drawing(panel: Panel, state: gr.State) -> None:
    p = panel
    buttons, running = [p.generate, p.cancel, p.grid], gr.State(_Running())  # Gradio gives each page a copy
    shown = [state, *buttons, p.headline, p.preview, p.pictures, p.heat, p.step, p.curve, p.bars, p.png, p.gif, p.json]

    def undone(*_: Any) -> dict:
        return {p.preview: ""} | _idle(p)

    for button in (p.generate, p.grid):
        button.click(lambda: figures.waiting("waiting for a turn to draw"), None, p.preview, queue=False, **QUIET)
    gr.on(
        [p.generate.click, p.prompt.submit],
        handling.kept_stream(lambda *values: _generate(p, state, *values), undone),
        [running, p.pack, *p.controls],
        shown,
        **DRAWING,
    )
    p.grid.click(
        handling.kept_stream(lambda *values: _all_objects(p, *values), undone),
        [running, p.pack, p.style, *p.controls],
        [*buttons, p.rows, p.preview],
        **DRAWING,
    )
    p.cancel.click(lambda running: running.stop(), running, None, queue=False, **QUIET)


# ------------------------------------------------------------ menus


def _open(name: str, opened: str | None) -> Any:
    """Fills the menus for a pack; as the visitor left them where it is open already."""
    if name == opened:
        return gr.skip()
    if opened is not None:
        _warm(name)
    return [name, *_filled(shared_erase_pack(name))]


def _filled(pack: ErasePack) -> list:
    """What the menus show first, in the order of `build`'s list."""
    m = pack.manifest
    missing = pack.missing()
    object, style = m.opening
    setting = pack.settings(m.saes[0].id).get(object, ConceptSetting(erase.Settings.percentile, factor=-1.0))
    return [
        "\n".join(f"* {line}" for line in missing),
        gr.Dropdown(list(m.concepts), value=object),
        gr.Dropdown([NO_STYLE, *m.styles], value=style or NO_STYLE),
        m.prompt(object, style),
        gr.Dropdown(list(m.concepts), value=[object]),
        gr.Dropdown(panels.sae_choices(m), value=m.saes[0].id),
        _factor(pack, m.saes[0].id, object, setting),
        FIDELITY_NOTES["exact"],
        setting.percentile,
        m.steps,
        m.guidance,
        gr.Slider(maximum=m.steps - 1, visible=False),
        panels.grid_label(m),
        gr.Button(interactive=not missing),
    ]


def _warm(name: str) -> None:
    """Loads what the first drawing needs while the visitor looks at the menus; errors are told by that drawing."""

    def load() -> None:
        try:
            pack = shared_erase_pack(name)
            if not pack.missing():
                pack.pipeline(), pack.eraser(pack.manifest.saes[0].id), pack.judge("object"), pack.judge("style")
        except ValueError:
            return

    threading.Thread(target=load, daemon=True).start()


def _write(name: str, object: str, style: str) -> list:
    """The prompt that the two menus stand for; the object is what is erased."""
    return [shared_erase_pack(name).manifest.prompt(object, None if style == NO_STYLE else style), [object]]


def _found_best(name: str, sae: str, concepts: list[str]) -> list:
    """The factor and percentile that the search found best for the first concept."""
    pack = shared_erase_pack(name)
    setting = pack.settings(sae).get(concepts[0]) if concepts else None
    if setting is None:
        return [gr.skip(), gr.skip()]
    return [_factor(pack, sae, concepts[0], setting), setting.percentile]


def _factor(pack: ErasePack, sae: str, concept: str, setting: ConceptSetting) -> gr.Slider:
    """The setting's factor, or the one that its multiplier has on average; the slider's scale reaches it."""
    factor, statistics = setting.factor, pack.statistics(sae)
    if factor is None and statistics is not None:
        factor = erase.factor_for(statistics, concept, setting.multiplier, setting.percentile)
    factor = -1.0 if factor is None else factor
    return gr.Slider(value=round(factor, 1), minimum=min(panels.LEAST, math.floor(factor)))


# ------------------------------------------------------------ drawing


def read(values: tuple) -> Asking:
    """The values of Panel.controls. Raises ValueError for what cannot be drawn."""
    prompt, concepts, sae, factor, fidelity, start_step, percentile, beta, steps, guidance, seed = values
    if not (prompt or "").strip():
        raise ValueError("write a prompt, or choose an object")
    numbers = {"percentile": percentile, "seed": seed, "factor": factor}
    empty = [name for name, value in numbers.items() if value is None]
    if empty:
        raise ValueError(f"give a number for the {empty[0]}")
    steps = min(max(int(steps), 2), 100)
    return Asking(
        prompt.strip()[:500],
        tuple(concepts or ()),
        sae,
        float(factor),
        fidelity,
        int(start_step),
        float(percentile),
        bool(beta),
        steps,
        float(guidance),
        int(seed),
    )


def settings(pack: ErasePack, asking: Asking) -> erase.Settings:
    """What the engine is told; with no concept nothing is edited."""
    if not asking.concepts:
        return erase.Settings((), fidelity=asking.fidelity)
    setting = ConceptSetting(asking.percentile, factor=asking.factor)
    found = erase_images.settings(pack, asking.sae, asking.concepts, asking.fidelity, setting)
    beta = asking.beta and found.multiplier is not None
    return replace(found, start_step=asking.start_step, beta=beta)


def _generate(p: Panel, state: gr.State, running: _Running, name: str, *values: Any) -> Iterator[dict]:
    """Draws before and after in one batch, with a preview; the visitor may cancel at any step."""
    pack, asking = shared_erase_pack(name), read(values)
    how = settings(pack, asking)
    cancel = running.begin()  # before the page can offer Cancel
    try:
        yield _busy(p) | {p.preview: figures.waiting("loading the model")}
        drawing = _Drawing(pack, asking, how, cancel)
        for progress in drawing.progress():
            if progress.step % PREVIEW_STEPS == 0:
                known = [part for part in (progress.before, progress.after) if part is not None]
                pictures = diffusion.decode(pack.pipeline(), torch.cat(known))
                drawing.frames.append([pictures[0], pictures[-1]])
                yield {p.preview: figures.preview(pictures, progress.step, progress.steps)}
        drawn = drawing.result()
    except diffusion.Cancelled:
        yield _idle(p) | {p.preview: ""}
        return
    finally:
        cancel.set()
    judged = erase_images.judged(pack, [drawn.before[0], drawn.after[0]])
    shown = Shown(name, asking, how, drawn, judged)
    best = figures.hottest(shown)
    yield _idle(p) | {
        state: shown,
        p.preview: "",
        p.headline: figures.headline(shown),
        p.pictures: (figures.enlarged(drawn.before[0]), figures.enlarged(drawn.after[0])),
        p.heat: figures.heat(shown, best),
        p.step: gr.Slider(maximum=asking.steps - 1, value=best, visible=drawn.heat is not None),
        p.curve: figures.curve(shown, best),
        p.bars: figures.judge_bars(judged, asking.concepts),
        p.png: gr.DownloadButton(value=_file("png", _side_by_side(drawn)), visible=True),
        p.gif: gr.DownloadButton(value=_file("gif", *map(_pair, drawing.frames)), visible=bool(drawing.frames)),
        p.json: gr.DownloadButton(value=_json(shown), visible=True),
    }


class _Running:
    """What a page draws at the moment, so that its Cancel button finds it."""

    _cancel: threading.Event | None = None

    def begin(self) -> threading.Event:
        """What stops the drawing that begins now, once it is set."""
        self._cancel = threading.Event()
        return self._cancel

    def stop(self) -> None:
        """Ends the drawing at its next step, if there is one."""
        if self._cancel is not None:
            self._cancel.set()


class _Drawing:
    """A drawing in a thread of its own, whose progress can be waited for."""

    def __init__(self, pack: ErasePack, asking: Asking, how: erase.Settings, cancel: threading.Event):
        self.frames: list[list[Image.Image]] = []
        self._told: queue.Queue = queue.Queue()
        order = diffusion.Order((asking.prompt,), (asking.seed,), asking.steps, asking.guidance)
        erasing = erase_images.erasing(pack, asking.sae, how) if how.concepts else None
        self._arguments = (pack.pipeline(), order, erasing, self._told.put, cancel)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._told.put(diffusion.generate(*self._arguments))
        except BaseException as error:  # told where it is waited for
            self._told.put(error)

    def progress(self) -> Iterator[diffusion.Progress]:
        """Every step as it is done; ends with the drawing. Raises what the drawing raised."""
        while isinstance(found := self._told.get(), diffusion.Progress):
            yield found
        if isinstance(found, BaseException):
            raise found
        self._found = found

    def result(self) -> diffusion.Generated:
        return self._found


def _all_objects(p: Panel, running: _Running, name: str, style: str, *values: Any) -> Iterator[dict]:
    """Every object of the pack in one style, before and after: what is kept, and what is not."""
    pack, asking = shared_erase_pack(name), read(values)
    if not asking.concepts:
        raise ValueError("choose a concept to erase")
    how, m = settings(pack, asking), pack.manifest
    wanted = [Asked(object, None if style == NO_STYLE else style, asking.seed) for object in m.concepts]
    cancel = running.begin()
    draw = functools.partial(erase_images.draw, pack, wanted, asking.steps, asking.guidance, cancel=cancel)
    try:
        yield _busy(p) | {p.preview: figures.waiting(f"drawing {len(wanted)} objects, without the edit")}
        before = draw()
        yield {p.preview: figures.waiting(f"drawing {len(wanted)} objects, with the edit")}
        after = draw(id=asking.sae, how=how)
    except diffusion.Cancelled:
        yield _idle(p) | {p.preview: ""}
        return
    judged = erase_images.judged(pack, [*before, *after])
    yield _idle(p) | {p.preview: "", p.rows: figures.object_rows(wanted, before, after, judged, asking.concepts)}


def _busy(p: Panel) -> dict:
    return {p.generate: gr.Button(visible=False), p.cancel: gr.Button(visible=True), p.grid: gr.Button(visible=False)}


def _idle(p: Panel) -> dict:
    return {p.generate: gr.Button(visible=True), p.cancel: gr.Button(visible=False), p.grid: gr.Button(visible=True)}


def _at_step(shown: Shown | None, step: int) -> list:
    if shown is None or shown.drawn.heat is None:
        return [gr.skip(), gr.skip()]
    step = min(int(step), len(shown.drawn.heat) - 1)
    return [figures.heat(shown, step), figures.curve(shown, step)]


# ------------------------------------------------------------ files


def _side_by_side(drawn: diffusion.Generated) -> Image.Image:
    return _pair([drawn.before[0], drawn.after[0]])


def _pair(images: list[Image.Image]) -> Image.Image:
    left, right = (figures.enlarged(image) for image in images)
    found = Image.new("RGB", (left.width + right.width, left.height))
    found.paste(left, (0, 0))
    found.paste(right, (left.width, 0))
    return found


def _file(kind: str, *frames: Image.Image) -> str | None:
    """A picture, or an animation, in a folder that Gradio may serve from."""
    if not frames:
        return None
    path = Path(tempfile.mkdtemp(prefix="sod-erased-"), f"erased.{kind}")
    more = {"save_all": True, "append_images": frames[1:], "duration": 120, "loop": 0} if kind == "gif" else {}
    frames[0].save(path, **more)
    return str(path)


def _json(shown: Shown) -> str:
    """Everything that draws the same images again, and what was measured on them."""
    asking = asdict(shown.asking)
    data = {"pack": shown.pack_name} | {name: asking[name] for name in ("prompt", "sae", "steps", "guidance", "seed")}
    data |= {
        "settings": asdict(shown.how),
        "judged": {w: dict(zip(("before", "after"), r)) for w, r in shown.judged.items()},
    }
    if shown.drawn.heat is not None:
        data["latent_by_step"] = [round(v, 5) for v in shown.drawn.heat[:, 0].mean((1, 2)).tolist()]
    path = Path(tempfile.mkdtemp(prefix="sod-erased-"), "erased.json")
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return str(path)

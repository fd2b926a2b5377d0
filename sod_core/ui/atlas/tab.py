"""The Atlas tab: all latents of a layer, original against unlearned, and a page of each; no visitor is needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
from torch import Tensor

from ...data.images import ImageError
from ...restore import fates
from ...restore.atlas import IMAGES, ORIGINAL
from ...restore.atlas_layers import Atlas, stale
from ...restore.manifest import UnlearnedEntry
from ...restore.pack import folders
from .. import handling, overlays
from ..restore.opening import Opener
from ..restore.panel import model_choices
from ..restore.visitor import Visitor
from ..running import Running, Watched
from . import exports, links, scatter, table, work
from . import latent as latents
from . import panel as panels
from .latent import Pictured
from .panel import Panel
from .visitor import FORGOTTEN, Controls, Page

QUIET = {"show_progress": "hidden", "api_visibility": "private"}
OWN = "Own: "
"""With which a visitor's own model is called in the menus."""
FILLED = 13
"""Components that opening fills."""
LATEST = {"trigger_mode": "always_last", **QUIET}


def build(tab: gr.Tab, opener: Opener, first: str) -> None:
    """Fills the current tab, `tab`. It needs no visitor: until one has come it shows pack `first`."""
    p = panels.layout(first)
    page, running = gr.State(Page()), gr.State(Running())  # Gradio gives each visitor's page a copy
    filled = [page, p.note, *p.controls, *p.figures]

    def select(request: gr.Request, *values: Any) -> list:  # Gradio looks for the request's type here
        return _open(first, request, *values)

    opened = {"fn": handling.kept(select, len(filled)), "outputs": filled}
    tab.select(**opened, inputs=[opener.visitor, page, *p.controls], **QUIET, queue=False).then(
        **(settled := _settled(p, page))
    )
    for event in (opener.loaded, opener.opened):
        followed = handling.kept(partial(_arrived, first), len(filled))
        event.then(followed, [opener.visitor, page, *p.controls], filled, **QUIET).then(**settled)
    for control in p.controls:
        control.input(handling.kept(_draw, 1 + len(p.figures)), [page, *p.controls], [page, *p.figures], **LATEST).then(
            **settled
        )
    shown = [page, p.latent, p.link]
    for clicked in (p.scatter, p.latent):
        clicked.click(handling.kept(_pick, 3), [page, *p.controls], shown, **LATEST).then(**settled)
    p.rows.select(handling.kept(_pick_row, 3), [page, *p.controls], shown, **LATEST).then(**settled)
    outputs = [page, p.note, p.progress, p.cancel, *p.figures]
    p.compute.click(
        handling.kept_stream(
            partial(_compute, p, page),
            lambda *_: {p.progress: "", p.cancel: gr.Button(visible=False), p.compute: gr.Button(visible=True)},
        ),
        [page, running, *p.controls],
        outputs,
        concurrency_limit=1,
        **QUIET,
    ).then(**settled)
    p.cancel.click(lambda running: running.stop(), running, None, queue=False, **QUIET)
    p.export.wire(exports.make, [page, *p.controls])


def _settled(p: Panel, page: gr.State) -> dict:
    """What runs after a latent's page is there: the heat of the unlearned model, which has to be computed."""
    fn = handling.kept(_settle, 1)
    return {"fn": fn, "inputs": [page, *p.controls], "outputs": p.latent, "concurrency_limit": 4, **LATEST}


# ------------------------------------------------------------ opening


def _read(values: tuple) -> Controls:
    model, layer, *rest = values
    return Controls(model or ORIGINAL, int(layer), *rest)


def _open(first: str, request: gr.Request, visitor: Visitor | None, page: Page, *values: Any) -> list:
    """The tab for the pack of the Restore tab; where the page has just come, as its address says."""
    controls, link = _read(values), None
    if not page.pack_name:
        link = links.Link(dict(request.query_params), "atlas")
        first = first if link.asked.get("pack") not in folders() else link.asked["pack"]
    before = page.pack_name
    page.follow(visitor, first)
    controls = _of_pack(page, controls, page.pack_name != before)
    if visitor is not None and visitor.entry.id != page.followed:
        page.followed = visitor.entry.id
        controls = controls._replace(model=visitor.entry.id)
    if link is not None:
        controls = link.opened(page, controls)
        if link.problems:
            gr.Warning(link.sentence())
    return _filled(page, controls)


def _arrived(first: str, visitor: Visitor | None, page: Page, *values: Any) -> list:
    """Fills the tab anew where a page has opened another pack than the tab shows."""
    if visitor is None or page.pack_name in ("", visitor.pack_name):
        return [gr.skip()] * FILLED
    page.follow(visitor, first)
    return _filled(page, _of_pack(page, _read(values), True))


def _of_pack(page: Page, controls: Controls, new: bool) -> Controls:
    """The controls, as far as the pack has what they name."""
    layers = page.pack.manifest.layers
    if new:
        controls = controls._replace(images=FORGOTTEN)
    if controls.layer not in layers:
        controls = controls._replace(layer=layers[len(layers) // 2])
    return controls._replace(model=page.entry(controls.model).id)


def _filled(page: Page, controls: Controls) -> list:
    m = page.pack.manifest
    menus = [
        gr.Dropdown(model_choices(page.entries, page.pack), value=controls.model),
        gr.Radio(list(m.layers), value=controls.layer),
        gr.Dropdown(panels.image_choices(m.classes), value=controls.images),
        controls.measure,
        controls.show,
    ]
    page_, *figures = _draw(page, *controls)
    return [page_, _note(page), *menus, *figures]


def _note(page: Page) -> str:
    title, atlas = page.pack.manifest.title, None
    try:
        atlas = page.atlas
    except ValueError:  # said where the figures are missing
        pass
    if atlas is None:
        return f"**{title}**"
    return f"**{title}**: every latent over {len(atlas.labels)} images ({atlas.data})."


# ------------------------------------------------------------ figures


def _draw(page: Page, *values: Any) -> list:
    """Panel.figures for what the controls say."""
    controls = _read(values)
    entry = page.entry(controls.model)
    try:
        atlas = page.atlas
        problem = "" if atlas is None else stale(atlas, page.pack, controls.layer, entry.id)
    except ValueError as error:
        atlas, problem = None, str(error)
    if atlas is None or problem or not page.has(entry):
        return [page, *_nothing(page, controls, atlas, problem)]
    found = table.chosen(atlas, page.pack, controls)
    order = table.strongest_first(found)
    if page.latent is None or page.latent >= atlas.layer(controls.layer).latents:
        page.latent = order[0] if order else None
    words = scatter.html(table.points(found, controls.measure), controls.measure, _on(atlas, controls), _called(entry))
    rows = table.cells(atlas, page.pack, controls, found)
    return [page, "", gr.Button(visible=False), words, rows, _latent(page, controls), links.element(page, controls)]


def _called(entry: UnlearnedEntry) -> str:
    """A model's id; of the visitor's own what its menu calls it."""
    return entry.method if entry.method.startswith(OWN) else entry.id


def _on(atlas: Atlas, controls: Controls) -> str:
    group = table.group(atlas, controls)
    return "all images" if group is None else f"the images of {atlas.classes[group]}"


def _nothing(page: Page, controls: Controls, atlas: Atlas | None, problem: str) -> list:
    """Where there are no figures: why, and what to do."""
    entry, name = page.entry(controls.model), page.pack.manifest.name
    command = f"`python -m sod_core atlas --pack {name}`"
    if problem:
        said = f"{problem[0].upper()}{problem[1:]}. {command} computes it anew."
    elif atlas is None:
        said = f"Nothing is stored for {page.pack.manifest.title}; {command} does it."
    else:
        said = f"The atlas does not have this model yet: it takes one pass over the same {len(atlas.labels)} images."
    can = not problem and page.here(entry)
    if atlas is None and can:
        said += f" Or compute it for this page, for the original and this model, on at most {IMAGES} images."
    missing = latents.empty("No latent is chosen.")
    return [said, gr.Button(visible=can), "", [], missing, links.element(page, controls)]


# ------------------------------------------------------------ one latent


def _pick(event: gr.EventData, page: Page, *values: Any) -> list:
    page.latent = int(event.pick)
    return _picked(page, values)


def _pick_row(event: gr.SelectData, page: Page, *values: Any) -> list:
    page.latent = int(event.row_value[0])
    return _picked(page, values)


def _picked(page: Page, values: tuple) -> list:
    controls = _read(values)
    return [page, _latent(page, controls), links.element(page, controls)]


def _latent(page: Page, controls: Controls, before: Tensor | None = None, after: Tensor | None = None) -> str:
    """The chosen latent's page; [images, N] each: the heat that is not stored, of the original and the other model."""
    atlas = page.atlas
    if atlas is None or page.latent is None:
        return latents.empty("No latent fires on these images.")
    pack, layer, entry = page.pack, atlas.layer(controls.layer), page.entry(controls.model)
    told = fates.told(atlas, controls.layer, page.latent, controls.model)
    numbers, notes = [image["image"] for image in told["strongest"]], []
    try:
        pictures = work.thumbs(pack, atlas, numbers)
    except (ValueError, ImageError) as error:
        pictures = [""] * len(numbers)
        notes.append(f"The images are not shown: {error}.")
    heat = layer.heat[page.latent] if before is None else before
    both = entry.id != ORIGINAL and page.here(entry) and not notes
    pictured = [
        Pictured(
            picture,
            heat[rank].tolist() if rank < len(heat) else [],
            ([] if after is None else after[rank].tolist()) if both else None,
            layer.peaks[page.latent, rank].item(),
            after[rank].max().item() if both and after is not None else None,
        )
        for rank, picture in enumerate(pictures)
    ]
    if entry.id != ORIGINAL and not page.here(entry):
        notes.append(f"{_called(entry)} is not on this computer, so its heat is not shown.")
    experts = table.experts(pack, controls.layer).get(page.latent, [])
    editable = entry in pack.manifest.unlearned or entry.id == ORIGINAL
    return scatter.marked(page.latent) + latents.html(told, pictured, experts, editable, _called(entry), notes)


def _settle(page: Page, *values: Any) -> Any:
    """The latent's page once more, with the heat that is not stored: the unlearned model's, and what did not fit."""
    if not page.pack_name or page.latent is None:
        return gr.skip()
    controls, latent = _read(values), page.latent
    entry, atlas, pack = page.entry(controls.model), page.atlas, page.pack
    if atlas is None or not page.has(entry) or not page.here(entry):
        return gr.skip()
    layer = atlas.layer(controls.layer)
    if latent >= layer.latents:
        return gr.skip()
    numbers = [number for number in layer.strongest[latent].tolist() if number >= 0]
    wanted = {"before": pack.original} if layer.heat.shape[1] < len(numbers) else {}
    wanted |= {} if entry.id == ORIGINAL else {"after": page.model_of(entry)}
    if not numbers or not wanted:
        return gr.skip()
    found = {
        which: work.heat_in(pack, atlas, model, controls.layer, latent, numbers) for which, model in wanted.items()
    }
    return gr.skip() if page.latent != latent else _latent(page, controls, **found)


# ------------------------------------------------------------ computing


def _compute(p: Panel, state: gr.State, page: Page, running: Running, *values: Any) -> Iterator[dict]:
    """Computes the chosen model's part of the atlas, with progress; the visitor may cancel at any batch."""
    controls, cancel = _read(values), running.begin()
    name, entry, pack, atlas = page.pack_name, page.entry(controls.model), page.pack, page.atlas
    model = page.model_of(entry)
    yield {
        p.compute: gr.Button(visible=False),
        p.cancel: gr.Button(visible=True),
        p.progress: overlays.progress_bar("Opening the images", None),
    }
    thread = Watched(lambda tell: work.compute(pack, atlas, entry, model, tell, cancel.is_set))
    try:
        for told in thread.news():
            if told is not None and not cancel.is_set():
                yield {p.progress: overlays.progress_bar(f"{told[0]} of {told[1]} images", told[0] / told[1])}
            else:
                yield {p.progress: gr.skip()}
        page.keep(name, thread.result())
    except work.Cancelled:
        pass
    finally:
        cancel.set()
    done = {p.progress: "", p.cancel: gr.Button(visible=False)}
    if page.pack_name == name:  # else another pack is shown by now
        done |= {p.note: _note(page)} | dict(zip([state, *p.figures], _draw(page, *values)))
    yield done

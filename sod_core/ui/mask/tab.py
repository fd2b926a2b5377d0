"""The Mask tab: one slider forbids a class's pairs, and shows what becomes of the class and of all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from ...data import images
from ...machine import environment
from ...mask import encoder, sweep
from ...mask.pack import MaskPack, folders, shared_mask_pack
from ...mask.sweep import Sweep
from .. import handling, overlays
from . import details, exports, links, stage, work
from . import panel as panels
from .panel import Panel
from .visitor import Page

PREFERRED = "canvas-mask"
OPENING = "retrain-boat-retain"
"""The bottleneck that a page opens on where the pack has it: neither encoder nor keys saw what is forgotten."""
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
LATEST = {"trigger_mode": "always_last", **QUIET}
NO_PACK = "There is no mask pack on this computer: make one with `python -m sod_core build canvas-mask`."


def build(tab: gr.Tab) -> None:
    """Fills the current tab, `tab`. Nothing where there is no pack."""
    known = list(folders())
    if not known:
        gr.Markdown(NO_PACK)
        return
    p = panels.layout(panels.pack_choices(), first_pack(known))
    page = gr.State(Page())  # Gradio gives each visitor's page a copy
    menus = [p.pack, p.note, p.bottleneck, p.classes, p.method, p.picker]
    moved: dict = {"fn": handling.kept_stream(lambda *values: _choose(p, page, *values), lambda *_: {p.progress: ""})}
    moved |= {"inputs": [page, *p.asked], "outputs": [page, *p.shown], "concurrency_limit": 4, **LATEST}
    for event in (tab.select, p.pack.input):
        event(handling.kept(_open, len(menus) + 1), [page, p.pack], [page, *menus], **QUIET).then(**moved)
    for menu in (p.bottleneck, p.classes, p.method):
        menu.input(**moved)
    settled = [page, *p.asked], [page, *p.settled]
    p.stage.click(handling.kept(_settle, 4), *settled, **LATEST)
    p.export.wire(exports.make, [page])
    p.picker.click(handling.kept(_pick, 3), [page, *p.asked], [page, p.picker, p.votes], **LATEST)
    p.own.upload(handling.kept(_own, 2), [page, *p.asked, p.own], [page, p.votes], **LATEST)
    p.own.clear(handling.kept(_own_gone, 2), [page, *p.asked], [page, p.votes], **LATEST)
    p.learn.click(handling.kept(_learn, 1), [page, *p.asked, p.images], p.learned, **LATEST)
    p.make.click(handling.kept(_make, 2), [page, *p.asked, p.state], [page, p.file], **LATEST)
    p.state.input(lambda: gr.DownloadButton(visible=False), None, p.file, **LATEST)


def first_pack(known: Sequence[str]) -> str:
    """PREFERRED, else the first."""
    return PREFERRED if PREFERRED in known else known[0]


def warm_up() -> None:
    """Computes the opening figure once, so that the first visitor need not wait.

    Not where SOD_DEFAULT_PACK names another verb's pack: that is what visitors come for then.
    """
    known = list(folders())
    if known and environment.may_open_on(known):
        pack = shared_mask_pack(first_pack(known))
        bottleneck, names = _opening(pack)
        work.swept(pack, bottleneck, work.class_indices(pack, names), "activations")


# ------------------------------------------------------------ menus


def _opening(pack: MaskPack) -> tuple[str, list[str]]:
    """The bottleneck and the class that a page opens on. Raises ValueError for a pack without bottlenecks."""
    m = pack.manifest
    if not m.bottlenecks:
        raise ValueError(f"pack {m.name} has no bottleneck: fit one with `python -m sod_core mask fit`")
    entry = next((one for one in m.bottlenecks if one.id == OPENING), m.bottlenecks[0])
    return entry.id, [next(iter(m.encoder(entry.encoder).never_saw), m.classes[0])]


def _ready(name: str) -> MaskPack:
    """A pack whose opening bottleneck and features are here. Raises ValueError."""
    pack = shared_mask_pack(name)
    pack.session(_opening(pack)[0])
    return pack


def _open(request: gr.Request, page: Page, name: str) -> list:
    """Fills the menus for a pack; as the visitor left them where it is open, as the address says where none was."""
    if name == page.pack:
        return [gr.skip()] * 7
    link = links.Link(dict(request.query_params) if page.pack is None else {}, "mask")
    name = link.pack(name)
    missed = ""
    try:
        pack = _ready(name)
    except ValueError as error:
        first = first_pack(list(folders()))
        if page.pack is None and name == first:
            raise
        missed = f"**{name} cannot be shown**: {error}."
        if page.pack is not None:  # the menu goes back to what is shown
            return [page, page.pack, missed, *[gr.skip()] * 4]
        name, pack = first, _ready(first)
    m = pack.manifest
    page.pack, page.picked, page.own, page.own_features = name, 3, None, {}
    bottleneck, names, method = link.opened(pack, page, *_opening(pack))
    if link.problems:
        gr.Warning(link.sentence())
    choices = [(entry.title, entry.id) for entry in m.bottlenecks]
    shown = work.pictures(pack)
    thumbnails = details.picker(shown, work.picture_names(pack, m.encoders[0].id), page.picked) if shown else ""
    menus = gr.update(choices=choices, value=bottleneck), gr.update(choices=list(m.classes), value=names)
    how = gr.skip() if "method" not in link.asked else method
    return [page, name, missed or m.note, *menus, how, thumbnails]


def _choose(
    p: Panel, state: gr.State, page: Page, name: str, bottleneck: str, names: list[str], method: str
) -> Iterator[dict]:
    """The figure for what the menus say, and all that hangs on it."""
    if not bottleneck or name != page.pack:  # before the menus are filled
        yield {p.stage: gr.skip()}
        return
    pack = shared_mask_pack(name)
    if bottleneck not in [entry.id for entry in pack.manifest.bottlenecks]:  # of the pack before, on its way
        yield {p.stage: gr.skip()}
        return
    classes = work.class_indices(pack, names)
    key = (name, bottleneck, tuple(classes), method)
    if key == page.key:
        yield {p.stage: gr.skip()}
        return
    if not work.known(pack, bottleneck, classes, method):
        yield {p.progress: overlays.progress_bar("Computing every dose, on the whole test set", None)}
    found = work.swept(pack, bottleneck, classes, method)
    at = stage.start(found) if page.dose is None else page.dose
    page.key, page.position, page.dose = key, at, None
    page.shown = name, bottleneck, tuple(names), method
    case, ways = work.case(pack, bottleneck, names, method)
    yield {
        state: page,
        p.saw: _saw(pack, bottleneck, names),
        p.progress: "",
        p.stage: stage.html(pack.manifest, key, classes, found, at),
        p.evidence: details.evidence(case, ways),
        p.overlap: details.overlap(pack.manifest.classes, work.shared_pairs(pack, bottleneck)),
        p.learned: "",
    } | dict(zip(p.settled, _rested(pack, page, bottleneck, classes, found)))


def _saw(pack: MaskPack, bottleneck: str, names: Sequence[str]) -> str:
    """Whether the encoder, and the keys, saw what is forgotten."""
    entry = pack.manifest.bottleneck(bottleneck)
    never, without = pack.manifest.encoder(entry.encoder).never_saw, entry.without
    said = []
    for name in names:
        seen = "never saw" if name in never else "saw"
        keys = "no image of it made a key" if name in without else "its images helped to make the keys"
        said.append(f"The encoder {seen} <b>{escape(name)}</b>; {keys}.")
    return f'<p class="sod-quiet">{" ".join(said)}</p>'


# ------------------------------------------------------------ where the slider rests


def _rested(pack: MaskPack, page: Page, bottleneck: str, classes: Sequence[int], found: Sweep) -> list:
    """Panel.settled at the page's position."""
    session = pack.session(bottleneck)
    mask = work.mask_at(session, classes, found, page.position)
    scores, how = work.named(session, mask, classes)
    told = details.named(pack.manifest.classes, classes, scores, how)
    return [told, _votes(pack, page, bottleneck, mask), gr.DownloadButton(visible=False)]


def _settle(event: gr.EventData, page: Page, name: str, bottleneck: str, names: list[str], method: str) -> list:
    pack = shared_mask_pack(name)
    classes = work.class_indices(pack, names)
    page.position = int(event.position)
    return [page, *_rested(pack, page, bottleneck, classes, work.swept(pack, bottleneck, classes, method))]


def _mask(page: Page, pack: MaskPack, bottleneck: str, names: list[str], method: str) -> tuple[list[int], Tensor]:
    classes = work.class_indices(pack, names)
    found = work.swept(pack, bottleneck, classes, method)
    return classes, work.mask_at(pack.session(bottleneck), classes, found, page.position)


def _votes(pack: MaskPack, page: Page, bottleneck: str, mask: Tensor) -> str:
    """The votes on the image that is looked at."""
    session, id = pack.session(bottleneck), pack.manifest.bottleneck(bottleneck).encoder
    shown = work.pictures(pack)
    if page.own is not None:
        if id not in page.own_features:
            page.own_features[id] = encoder.encode(pack, id, page.own)
        features, title = page.own_features[id], "your own"
        picture: Image.Image | None = page.own
    else:
        picked = min(page.picked, len(session.test.labels) - 1)
        features = session.test.features[picked]
        title = pack.manifest.classes[int(session.test.labels[picked])]
        picture = shown[picked] if picked < len(shown) else None
    before, after = (sweep.votes(session, each, features) for each in (torch.zeros_like(mask), mask))
    return details.votes(pack.manifest.classes, title, before, after, picture) + links.element(page)


def _pick(event: gr.EventData, page: Page, name: str, bottleneck: str, names: list[str], method: str) -> list:
    pack = shared_mask_pack(name)
    page.picked, page.own, page.own_features = int(event.pick), None, {}
    _, mask = _mask(page, pack, bottleneck, names, method)
    encoder_id = pack.manifest.bottleneck(bottleneck).encoder
    thumbnails = details.picker(work.pictures(pack), work.picture_names(pack, encoder_id), page.picked)
    return [page, thumbnails, _votes(pack, page, bottleneck, mask)]


def _own(page: Page, name: str, bottleneck: str, names: list[str], method: str, path: str | None) -> list:
    if path is None:
        return [gr.skip()] * 2
    pack = shared_mask_pack(name)
    own = images.to_rgb(images.read(path))
    features = encoder.encode(pack, pack.manifest.bottleneck(bottleneck).encoder, own)
    page.own = images.square(own, 128)
    page.own_features = {pack.manifest.bottleneck(bottleneck).encoder: features}
    _, mask = _mask(page, pack, bottleneck, names, method)
    return [page, _votes(pack, page, bottleneck, mask)]


def _own_gone(page: Page, name: str, bottleneck: str, names: list[str], method: str) -> list:
    pack = shared_mask_pack(name)
    page.own, page.own_features = None, {}
    _, mask = _mask(page, pack, bottleneck, names, method)
    return [page, _votes(pack, page, bottleneck, mask)]


def _learn(page: Page, name: str, bottleneck: str, names: list[str], method: str, number: int) -> str:
    pack = shared_mask_pack(name)
    classes, mask = _mask(page, pack, bottleneck, names, method)
    found = sweep.relearning(pack.session(bottleneck), classes, mask, int(number))
    return details.learned(found, int(number), " and ".join(names))


def _make(page: Page, name: str, bottleneck: str, names: list[str], method: str, state: str) -> list:
    pack = shared_mask_pack(name)
    classes, mask = _mask(page, pack, bottleneck, names, method)
    path = work.file_of(pack, bottleneck, classes, mask, state, page.place())
    return [page, gr.DownloadButton(value=path, visible=True)]

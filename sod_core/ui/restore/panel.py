"""The Restore tab's components and where they stand."""

from __future__ import annotations

import logging
from typing import NamedTuple

import gradio as gr

from ...packs.errors import PackError
from ...packs.source import Source
from ...restore.edit import MODES, TOKENS
from ...restore.manifest import UnlearnedEntry
from ...restore.pack import Pack, folders, shared_pack
from ...restore.sweep import STEP
from .. import exports, overlays, page
from ..intake import CHECKPOINT_SUFFIXES, ImageUpload, uploads_allowed
from . import stage, words

log = logging.getLogger(__name__)
FORGOTTEN = ("the forgotten class", "")
MOST_LOST = ("the class it lost most of", "")


class Panel(NamedTuple):
    """The tab's components."""

    pack: gr.Dropdown
    progress: gr.HTML
    model: gr.Dropdown
    model_note: gr.Markdown
    own_order: gr.Button
    own_model: gr.Textbox
    own_file: gr.File
    own_class: gr.Dropdown
    own_load: gr.Button
    picker: gr.HTML
    own: gr.Image
    layer: gr.Radio
    mode: gr.Dropdown
    mode_note: gr.Markdown
    alpha: gr.Slider
    play: gr.Button
    stop: gr.Button
    export: exports.Menu
    tokens: gr.Dropdown
    features: gr.Dropdown
    own_list: gr.Textbox
    expert_class: gr.Dropdown
    seed: gr.Number
    latent: gr.Number
    details: gr.Markdown
    verdict: gr.Markdown
    bars: gr.HTML
    picture: gr.HTML
    heat: gr.HTML
    heat_of: gr.Button
    curves: gr.Plot
    inspector: gr.HTML
    strongest: gr.HTML
    series: gr.HTML
    sweep: gr.HTML
    link: gr.HTML

    @property
    def controls(self) -> list:
        """What `answers.read` reads."""
        return [self.layer, self.mode, self.alpha, self.tokens, self.features, self.expert_class, self.seed]

    @property
    def moving(self) -> list:
        """What `shown.moving` fills: everything that alpha moves."""
        return [self.verdict, self.bars, self.heat, self.curves, self.inspector]

    @property
    def settled(self) -> list:
        """What `answers.settle` fills."""
        return [self.verdict, self.curves, self.bars, self.sweep, self.series]

    @property
    def menus(self) -> list:
        """What says the controls, and what is looked at: `Opener` fills it where a page opens."""
        return [*self.controls, self.own_list, self.latent]

    @property
    def everything(self) -> list:
        """What `shown.everything` fills."""
        still = [self.model_note, self.picker, self.mode_note, self.details, self.picture, self.heat_of, self.strongest]
        return [*self.moving, *still, self.own_order, self.link]


class Bounded(gr.Slider):
    """A gr.Slider whose number box may be empty, or beyond an end, while something is typed into it.

    Gradio refuses such values before a handler sees them; here the nearest end counts.
    """

    is_template = True  # the page draws it as a gr.Slider

    def preprocess(self, payload):
        """The value as a float, within the slider's ends."""
        return super().preprocess(self.minimum if payload is None else min(max(payload, self.minimum), self.maximum))


def layout(default_pack: str) -> Panel:
    """Lays the components out in the current Blocks, filled for the pack that is opened first."""
    manifest = shared_pack(default_pack).manifest
    with gr.Row(elem_classes="sod-main"):
        with gr.Column(scale=4, min_width=300):
            pack = gr.Dropdown(
                pack_choices(), value=default_pack, label="Pack", visible=len(folders()) > 1, elem_id="pack"
            )
            progress = gr.HTML(elem_id="progress", visible=False)
            choices = model_choices(list(manifest.unlearned), shared_pack(default_pack))
            first = choices[0][1] if choices else None
            model = gr.Dropdown(choices, value=first, label="Unlearned model", elem_id="model")
            model_note = gr.Markdown(elem_classes="sod-quiet sod-note-model")
            own_order = gr.Button("Use the order that is offered", size="sm", visible=False, elem_id="own-order")
            alpha = Bounded(0, 10, value=0, step=STEP, label=words.ALPHA, elem_id="alpha")
            with gr.Row(elem_id="play-row"):
                play = gr.Button("Play alpha 0 to 10", variant="primary", elem_id="play")
                stop = gr.Button("Stop", elem_id="stop")
            export = exports.Menu("restore")
            picker = gr.HTML(js_on_load=overlays.CLICKS, elem_id="picker")
            with gr.Accordion("Your own image", open=False):
                own = ImageUpload(
                    sources=["upload", "clipboard", "webcam"],
                    height=190,
                    show_label=False,
                    buttons=[],
                    elem_id="own",
                )
            with gr.Accordion("Your own unlearned model", open=False):
                own_model = gr.Textbox(
                    label="Checkpoint",
                    placeholder="hub:user/repo/file.pth, or a path",
                    max_lines=1,
                    elem_id="own-model",
                )
                own_file = gr.File(
                    label="Or upload it", file_types=CHECKPOINT_SUFFIXES, visible=uploads_allowed(), height=120
                )
                own_class = gr.Dropdown(
                    [MOST_LOST, *((name, name) for name in manifest.classes)], value="", label="It forgot"
                )
                own_load = gr.Button("Load and measure it", size="sm", elem_id="own-load")
            middle = manifest.layers[len(manifest.layers) // 2]
            layer = gr.Radio(
                list(manifest.layers), value=middle, label="Layer (the block whose output is edited)", elem_id="layer"
            )
            mode = gr.Dropdown([(words.MODE_TITLES[m], m) for m in MODES], value=MODES[0], label="Mode")
            mode_note = gr.Markdown(elem_classes="sod-quiet")
            with gr.Accordion("Advanced", open=False):
                tokens = gr.Dropdown([(words.TOKEN_TITLES[t], t) for t in TOKENS], value="all", label="Tokens edited")
                kinds = [(title, kind) for kind, title in words.FEATURE_TITLES.items()]
                features = gr.Dropdown(kinds, value="experts", label="Features edited")
                own_list = gr.Textbox(label="My list of latents", placeholder="1, 5, 9 then Enter", visible=False)
                classes = [FORGOTTEN, *((name, name) for name in manifest.classes)]
                expert_class = gr.Dropdown(classes, value="", label="Experts of which class")
                seed = gr.Number(0, precision=0, label="Seed of the random features")
                latent = gr.Number(None, precision=0, label="Show the heat of one latent (its id, then Enter)")
                details = gr.Markdown(elem_classes="sod-quiet")
        with gr.Column(scale=9, min_width=320):
            verdict = gr.Markdown(elem_id="verdict", elem_classes="sod-verdict")
            bars = gr.HTML(elem_id="bars")
            picture = gr.HTML(elem_classes="sod-hidden")
            heat = gr.HTML(js_on_load=overlays.CLICKS, elem_id="heat")
            heat_of = gr.Button("Back to the experts' heat", size="sm", visible=False)
            with gr.Row():
                with gr.Column(min_width=300):
                    inspector = gr.HTML(js_on_load=overlays.CLICKS, elem_id="inspector")
                with gr.Column(min_width=300):
                    strongest = gr.HTML(js_on_load=overlays.CLICKS, elem_id="strongest")
            curves = gr.Plot(show_label=False, elem_id="curves")
            series = gr.HTML(elem_id="series", elem_classes="sod-unseen")
            link = gr.HTML(js_on_load=page.LISTENS, elem_id="restore-link", elem_classes="sod-unseen")
            sweep = gr.HTML(js_on_load=stage.SCRIPT, elem_id="sweep", elem_classes="sod-unseen")
    return Panel(**{name: value for name, value in locals().items() if name in Panel._fields})


def pack_choices() -> list[tuple[str, str]]:
    """(title, name) of every pack; what is not on this computer, or cannot be used, says so."""
    found = []
    for name in folders():
        try:
            pack = shared_pack(name)
            away = _away(pack.manifest.source) if pack.lacking() else ""
            found.append((pack.manifest.title + away, name))
        except PackError as error:
            log.warning("pack %s: %s", name, error)
            found.append((f"{name} (cannot be used)", name))
    return found


def model_choices(entries: list[UnlearnedEntry], pack: Pack) -> list[tuple[str, str]]:
    """(title, id) of unlearned models; what is not on this computer says so."""
    found = []
    for entry in entries:
        away = any(entry.id == listed.id for listed in pack.manifest.unlearned) and pack.lacking(entry.id)
        found.append((words.model_name(entry, pack.manifest) + (_away(entry.source) if away else ""), entry.id))
    return found


def _away(source: Source | None) -> str:
    """ " (not here: 430 MB)": choosing it downloads it."""
    return f" (not here: {source.megabytes} MB)" if source and source.megabytes else " (not here)"

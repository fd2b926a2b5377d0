"""The Mask tab's components and where they stand."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from ...mask import states, sweep
from ...mask.pack import folders, shared_mask_pack
from ...packs.errors import PackError
from .. import exports, intake, overlays
from . import stage as stages

METHODS = [
    ("by activations: the pairs its images choose most", "activations"),
    ("by activations, equally many of each codebook", sweep.EACH),
    ("by examples: all pairs that some images choose", "examples"),
    ("by enrichment: the pairs that are most its own", "enrichment"),
]
DOWNLOADS = [
    ("masked (can be lifted)", states.MASKED),
    ("values erased", states.ERASED),
    ("compacted (pairs and list gone)", states.COMPACTED),
    ("counts removed", states.REMOVED),
]


class Menu(gr.Dropdown):
    """A gr.Dropdown whose choices follow another menu.

    What a page sends just before its new choices have come is of the old ones: Gradio would refuse it with a toast
    before a handler sees it, and the handlers know themselves what there is.
    """

    is_template = True  # the page draws it as a gr.Dropdown

    def preprocess(self, payload):
        """The value as it was sent."""
        return payload


class Panel(NamedTuple):
    """The tab's components."""

    pack: gr.Dropdown
    note: gr.Markdown
    bottleneck: gr.Dropdown
    classes: gr.Dropdown
    method: gr.Radio
    saw: gr.HTML
    export: exports.Menu
    own: gr.Image
    picker: gr.HTML
    state: gr.Dropdown
    make: gr.Button
    file: gr.DownloadButton
    images: gr.Slider
    learn: gr.Button
    progress: gr.HTML
    stage: gr.HTML
    named: gr.HTML
    votes: gr.HTML
    learned: gr.HTML
    evidence: gr.HTML
    overlap: gr.HTML

    @property
    def asked(self) -> list:
        """What says which sweep is shown."""
        return [self.pack, self.bottleneck, self.classes, self.method]

    @property
    def shown(self) -> list:
        """What follows the menus."""
        return [self.saw, self.progress, self.stage, self.evidence, self.overlap, self.learned, *self.settled]

    @property
    def settled(self) -> list:
        """What follows the dose once it rests."""
        return [self.named, self.votes, self.file]


def layout(choices: list[tuple[str, str]], first: str) -> Panel:
    """Lays the components out in the current tab; the menus are filled when it is looked at."""
    with gr.Row(elem_classes="sod-main-later"):
        with gr.Column(scale=4, min_width=300):
            pack = gr.Dropdown(choices, value=first, label="Pack", visible=len(choices) > 1, elem_id="mask-pack")
            note = gr.Markdown(elem_classes="sod-quiet")
            bottleneck = Menu([], label="Encoder, and which images made the keys", elem_id="mask-bottleneck")
            saw = gr.HTML(elem_id="mask-saw", elem_classes="sod-if-any")
            classes = Menu([], multiselect=True, label="Forget", elem_id="mask-classes")
            method = gr.Radio(METHODS, value="activations", label="Which pairs are masked", elem_id="mask-method")
            export = exports.Menu("mask")
            with gr.Column(elem_classes="sod-later"):
                picker = gr.HTML(js_on_load=overlays.CLICKS, elem_id="mask-picker")
                own = intake.ImageUpload(
                    label="Or an image of your own", sources=["upload", "clipboard"], height=170, elem_id="mask-own"
                )
                images = gr.Slider(1, 100, value=10, step=1, label="Learn again from so many images of the class")
                learn = gr.Button("Learn again", size="sm", elem_id="mask-learn")
                state = gr.Dropdown(
                    DOWNLOADS, value=states.MASKED, label="The bottleneck as a file", elem_id="mask-state"
                )
                with gr.Row():
                    make = gr.Button("Make the file", size="sm", elem_id="mask-make")
                    file = gr.DownloadButton("Download", size="sm", visible=False, elem_id="mask-file")
        with gr.Column(scale=9, min_width=320):
            progress = gr.HTML(elem_id="mask-progress", elem_classes="sod-if-any")
            stage = gr.HTML(js_on_load=stages.SCRIPT, elem_id="mask-stage")
            with gr.Row():
                with gr.Column(min_width=300):
                    named = gr.HTML(elem_id="mask-named")
                    learned = gr.HTML(elem_id="mask-learned", elem_classes="sod-if-any")
                with gr.Column(min_width=300):
                    votes = gr.HTML(elem_id="mask-votes")
            evidence = gr.HTML(elem_id="mask-evidence")
            overlap = gr.HTML(elem_id="mask-overlap")
    return Panel(**{name: value for name, value in locals().items() if name in Panel._fields})


def pack_choices() -> list[tuple[str, str]]:
    """(title, name) of every mask pack; what cannot be opened says so."""
    found = []
    for name in folders():
        try:
            found.append((shared_mask_pack(name).manifest.title, name))
        except PackError:
            found.append((f"{name} (cannot be used)", name))
    return found

"""The Atlas tab's components and where they stand."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from ...restore import fates
from ...restore.pack import shared_pack
from .. import exports, overlays
from ..restore.panel import model_choices
from . import table
from .scatter import MEASURES, OFTEN
from .visitor import ALL, EVERY, FILTERS, FORGOTTEN


class Panel(NamedTuple):
    """The tab's components."""

    note: gr.Markdown
    model: gr.Dropdown
    layer: gr.Radio
    images: gr.Dropdown
    measure: gr.Radio
    show: gr.Dropdown
    export: exports.Menu
    missing: gr.Markdown
    compute: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    scatter: gr.HTML
    latent: gr.HTML
    rows: gr.Dataframe
    link: gr.HTML

    @property
    def controls(self) -> list:
        """What `visitor.Controls` holds."""
        return [self.model, self.layer, self.images, self.measure, self.show]

    @property
    def figures(self) -> list:
        """What a change of the controls fills."""
        return [self.missing, self.compute, self.scatter, self.rows, self.latent, self.link]


def layout(default_pack: str) -> Panel:
    """Lays the components out in the current tab, for the pack that is opened first."""
    manifest = shared_pack(default_pack).manifest
    choices = model_choices(list(manifest.unlearned), shared_pack(default_pack))
    note = gr.Markdown(elem_classes="sod-quiet", elem_id="atlas-note")
    with gr.Row(elem_classes="sod-atlas"):
        with gr.Column(scale=5, min_width=320):
            model = gr.Dropdown(
                choices, value=choices[0][1] if choices else None, label="Unlearned model", elem_id="atlas-model"
            )
            with gr.Row():
                layers = list(manifest.layers)
                layer = gr.Radio(layers, value=layers[len(layers) // 2], label="Layer", elem_id="atlas-layer")
                kinds = [(title, kind) for kind, title in MEASURES.items()]
                measure = gr.Radio(kinds, value=OFTEN, label="Compared by", elem_id="atlas-measure")
            with gr.Row():
                images = gr.Dropdown(
                    image_choices(manifest.classes), value=FORGOTTEN, label="On", elem_id="atlas-images"
                )
                show = gr.Dropdown(list(FILTERS), value=EVERY, label="Show", elem_id="atlas-show")
            export = exports.Menu("atlas", ("png", "csv", "json"))
            missing = gr.Markdown(elem_id="atlas-missing", elem_classes="sod-quiet sod-if-any")
            compute = gr.Button("Compute it here", visible=False, size="sm", elem_id="atlas-compute")
            cancel = gr.Button("Cancel", visible=False, size="sm", elem_id="atlas-cancel")
            progress = gr.HTML(elem_id="atlas-progress", elem_classes="sod-if-any")
            scatter = gr.HTML(js_on_load=overlays.CLICKS, elem_id="atlas-scatter")
        with gr.Column(scale=7, min_width=320):
            latent = gr.HTML(js_on_load=overlays.CLICKS, elem_id="atlas-latent")
    rows = gr.Dataframe(
        headers=table.HEADERS,
        interactive=False,
        wrap=False,
        elem_id="atlas-rows",
        show_search="filter",
        max_height=460,
    )
    gr.Markdown(_rules(), elem_classes="sod-quiet")
    link = gr.HTML(elem_id="atlas-link", elem_classes="sod-unseen")
    return Panel(**{name: value for name, value in locals().items() if name in Panel._fields})


def image_choices(classes: tuple[str, ...]) -> list[tuple[str, str]]:
    """For the menu of images."""
    return [
        ("images of the forgotten class", FORGOTTEN),
        (ALL, ALL),
        *((f"images of {name}", name) for name in classes),
    ]


def _rules() -> str:
    return (
        "A latent *fires on* an image where it is among the k largest on a patch; its *strength* is its largest value "
        "on a patch, mean over all the images that are looked at; *after* is in the unlearned model, all else in the "
        f"original. **Fate**: *silenced*, less than {fates.SILENT:.0%} of the strength is *kept*; *weakened*, less "
        f"than {fates.WEAK:.0%}; *stronger*, more than {1 / fates.WEAK:.0%}; *left*, between; *no part*, in the "
        f"original it fires on less than {fates.TAKES_PART:.0%} of these images; *new*, in the unlearned model on "
        "more. **Label entropy**: in bits, 0 for a latent of one class. **On object**: the share of its values that "
        "lies there. A click on a row opens the latent's page; to sort, point at a column's head and open its ⋮."
    )

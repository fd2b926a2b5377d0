"""The Erase tab's components and where they stand."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from ...erase.edit import PERCENTILE
from ...erase.manifest import ErasePackManifest
from ...erase.pack import folders, shared_erase_pack
from ...packs.errors import PackError
from .. import exports

NO_STYLE = "no style"
FACTOR = "factor: the concept's latents are multiplied by it (1 nothing, 0 removed, below 0 turned against it)"
LEAST = -10
"""The slider's lower end, unless a pack's best factor lies below it."""
SIDE = 420
"""Pixels that a picture is shown with at least."""


COMPARES = """
element.addEventListener('input', ({target}) => target.parentElement.style.setProperty('--at', `${target.value}%`));
"""
"""js_on_load of what holds `figures.compared`."""


class Panel(NamedTuple):
    """The tab's components."""

    pack: gr.Dropdown
    note: gr.Markdown
    object: gr.Dropdown
    style: gr.Dropdown
    prompt: gr.Textbox
    concepts: gr.Dropdown
    sae: gr.Dropdown
    factor: gr.Slider
    factors: gr.Textbox
    generate: gr.Button
    cancel: gr.Button
    grid: gr.Button
    fidelity: gr.Radio
    fidelity_note: gr.Markdown
    start_step: gr.Slider
    percentile: gr.Number
    beta: gr.Checkbox
    steps: gr.Slider
    guidance: gr.Slider
    seed: gr.Number
    headline: gr.Markdown
    pictures: gr.HTML
    preview: gr.HTML
    heat: gr.HTML
    step: gr.Slider
    curve: gr.Plot
    bars: gr.Plot
    rows: gr.HTML
    export: exports.Menu
    link: gr.HTML
    """What the page's script makes the address of."""

    @property
    def opening(self) -> list:
        """What a link holds, in the order of `links.Opening`."""
        first = [self.object, self.style, self.prompt, self.concepts, self.sae, self.factor, self.fidelity]
        return [*first, self.start_step, self.percentile, self.beta, self.steps, self.guidance, self.seed, self.factors]

    @property
    def controls(self) -> list:
        """What `erase_tab.read` reads."""
        wanted = [self.prompt, self.concepts, self.sae, self.factor, self.fidelity, self.start_step, self.percentile]
        return [*wanted, self.beta, self.steps, self.guidance, self.seed, self.factors]


def layout(first: str) -> Panel:
    """Lays the components out in the current tab, filled for the pack that is opened first."""
    m = shared_erase_pack(first).manifest
    with gr.Row(elem_classes="sod-main-later"):
        with gr.Column(scale=4, min_width=300):
            choices = pack_choices()
            pack = gr.Dropdown(choices, value=first, label="Pack", visible=len(choices) > 1, elem_id="erase-pack")
            note = gr.Markdown(elem_classes="sod-quiet")
            with gr.Row():
                object = gr.Dropdown(list(m.concepts), label="Object", min_width=130, elem_id="erase-object")
                style = gr.Dropdown([NO_STYLE, *m.styles], label="Style", min_width=130, elem_id="erase-style")
            prompt = gr.Textbox(label="Prompt", max_lines=2, elem_id="erase-prompt")
            concepts = gr.Dropdown(
                list(m.concepts), multiselect=True, label="Concepts to erase", elem_id="erase-concepts"
            )
            factor = gr.Slider(LEAST, 1, value=-1, step=0.1, label=FACTOR, elem_id="erase-factor")
            factors = gr.Textbox(visible=False, max_lines=2, elem_id="erase-factors")
            with gr.Row():
                generate = gr.Button("Generate", variant="primary", elem_id="erase-generate")
                cancel = gr.Button("Cancel", elem_id="erase-cancel", visible=False)
            grid = gr.Button(grid_label(m), elem_id="erase-grid", size="sm")
            export = exports.Menu("erase")
            with gr.Column(elem_classes="sod-later"):
                sae = gr.Dropdown(sae_choices(m), value=m.saes[0].id, label="Sparse autoencoder", elem_id="erase-sae")
                fidelity = gr.Radio(
                    [("Exact", "exact"), ("Reference (released code)", "reference")], value="exact", label="Fidelity"
                )
                fidelity_note = gr.Markdown(elem_classes="sod-quiet")
                with gr.Accordion("Advanced", open=False):
                    start_step = gr.Slider(0, 49, value=0, step=1, label="First denoising step that is edited")
                    percentile = gr.Number(PERCENTILE, label="Percentile: latents whose score lies above count")
                    beta = gr.Checkbox(label="Scale by norms (beta) in place of the mean latent")
                    steps = gr.Slider(2, 100, value=m.steps, step=1, label="Denoising steps")
                    guidance = gr.Slider(0, 15, value=m.guidance, step=0.5, label="Guidance")
                    seed = gr.Number(0, precision=0, label="Seed")
        with gr.Column(scale=9, min_width=320):
            headline = gr.Markdown(elem_id="erase-headline", elem_classes="sod-verdict")
            with gr.Row():
                with gr.Column(min_width=300):
                    preview = gr.HTML(elem_id="erase-preview", elem_classes="sod-if-any")
                    pictures = gr.HTML(elem_id="erase-pictures", js_on_load=COMPARES)
                with gr.Column(min_width=300):
                    heat = gr.HTML(elem_id="erase-heat")
                    step = gr.Slider(0, m.steps - 1, value=0, step=1, label="Denoising step", visible=False)
            curve = gr.Plot(show_label=False, elem_id="erase-curve")
            bars = gr.Plot(show_label=False, elem_id="erase-bars")
            rows = gr.HTML(elem_id="erase-rows")
            link = gr.HTML(elem_id="erase-link", elem_classes="sod-if-any")
    return Panel(**{name: value for name, value in locals().items() if name in Panel._fields})


def pack_choices() -> list[tuple[str, str]]:
    """(title, name) of every diffusion pack; what cannot be used on this computer says so."""
    found = []
    for name in folders():
        try:
            pack = shared_erase_pack(name)
            found.append((pack.manifest.title + ("" if pack.ready() else " (not here)"), name))
        except PackError:
            found.append((f"{name} (cannot be used)", name))
    return found


def sae_choices(m: ErasePackManifest) -> list[tuple[str, str]]:
    return [(entry.title, entry.id) for entry in m.saes]


def grid_label(m: ErasePackManifest) -> str:
    return f"Erase it, and show all {len(m.concepts)} objects"

"""The Clamp tab's components and where they stand."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from .. import exports, overlays
from . import words
from .texts import TELLS

LONGEST_ANSWER = 200
"""Tokens."""
COEFFICIENT = "coefficient: what Clamp Prime sets a latent to where it fires"
REFUSAL_COEFFICIENT = "refusal coefficient: what Refusal Clamp sets the refusal latent to"
RULES = [
    ("the pack's own", "preset"),
    ("paper: rare on retain texts, frequent on forget texts", "paper"),
    ("farrell: the same, with a laxer limit", "farrell"),
    ("ratio: strength on forget over retain texts", "ratio"),
    ("random (control)", "random"),
    ("random, equally active (control)", "matched"),
    ("my list", "own"),
]


class Panel(NamedTuple):
    """The tab's components."""

    pack: gr.Dropdown
    note: gr.Markdown
    prompts: gr.Dropdown
    field: gr.Dropdown
    judged: gr.Dropdown
    prompt: gr.Textbox
    ask: gr.Button
    cancel: gr.Button
    export: exports.Menu
    value: gr.Slider
    refusal_value: gr.Slider
    threshold: gr.Slider
    beside: gr.Dropdown
    sae: gr.Dropdown
    rule: gr.Dropdown
    top: gr.Slider
    latents: gr.Textbox
    refusal: gr.Number
    fidelity: gr.Radio
    fidelity_note: gr.Markdown
    tokens: gr.Slider
    seed: gr.Number
    headline: gr.HTML
    progress: gr.HTML
    texts: gr.HTML
    options: gr.Plot
    forget: gr.Plot
    retain: gr.Plot
    alignment: gr.Plot
    curve_note: gr.HTML
    measure: gr.Button
    measure_cancel: gr.Button
    measure_size: gr.Slider
    measuring: gr.HTML
    scatter: gr.HTML
    look: gr.Number
    toggle: gr.Button
    firing: gr.HTML
    ways: gr.HTML
    link: gr.HTML
    """What the page's script makes the address of."""

    @property
    def controls(self) -> list:
        """What `asking.read` reads."""
        found = [self.prompt, self.judged, self.value, self.refusal_value, self.threshold, self.beside, self.sae]
        return [*found, self.rule, self.latents, self.refusal, self.fidelity, self.tokens, self.seed]

    @property
    def menus(self) -> list:
        """What `filling.opened` fills first: all that depends on the pack."""
        return [self.prompts, self.field, self.judged, self.prompt, self.beside, self.sae, self.ways]

    @property
    def about(self) -> list:
        """What `filling.sae_chosen` fills: all that depends on the SAE."""
        edit = [self.latents, self.rule, self.top, self.value, self.refusal_value, self.threshold, self.refusal]
        return [*edit, self.scatter, self.look, self.firing, self.toggle, self.curve_note, *self.curves]

    @property
    def looks(self) -> list:
        """What shows the latent that is looked at."""
        return [self.scatter, self.look, self.firing, self.toggle]

    @property
    def curves(self) -> list:
        return [self.forget, self.retain, self.alignment]


def layout(choices: list[tuple[str, str]], first: str) -> Panel:
    """Lays the components out in the current tab; `choices` are the packs, `first` the one that is opened first.

    All the menus that depend on a pack are empty until the tab is looked at.
    """
    with gr.Row(elem_classes="sod-main-later"):
        with gr.Column(scale=4, min_width=300):
            pack = gr.Dropdown(choices, value=first, label="Pack", visible=len(choices) > 1, elem_id="clamp-pack")
            note = gr.Markdown(elem_classes="sod-quiet", elem_id="clamp-note", visible=False)
            prompts = gr.Dropdown([], label="A question to begin with", elem_id="clamp-prompts")
            with gr.Row():
                field = gr.Dropdown([], label="Or a judged question on", min_width=130, elem_id="clamp-field")
                judged = gr.Dropdown([], label="Multiple choice", min_width=130, elem_id="clamp-judged")
            prompt = gr.Textbox(label="Question", max_lines=6, elem_id="clamp-prompt")
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="clamp-ask")
                cancel = gr.Button("Cancel", elem_id="clamp-cancel", visible=False)
            export = exports.Menu("clamp")
            value = gr.Slider(-300, 0, value=-30, step=1, label=COEFFICIENT, elem_id="clamp-value")
            refusal_value = gr.Slider(
                -300, 0, value=-30, step=1, label=REFUSAL_COEFFICIENT, elem_id="clamp-refusal-value"
            )
            with gr.Column(elem_classes="sod-later"):
                beside = gr.Dropdown([], label="Beside them", elem_id="clamp-beside")
                rule = gr.Dropdown(RULES, value="preset", label="Latents: chosen by", elem_id="clamp-rule")
                top = gr.Slider(1, 50, value=10, step=1, label="How many", elem_id="clamp-top")
                latents = gr.Textbox(
                    label="Latents that are edited",
                    placeholder="1, 5, 9 then Enter",
                    max_lines=4,
                    elem_id="clamp-latents",
                )
                threshold = gr.Slider(
                    0, 2, value=0, step=0.01,
                    label="threshold: Refusal Clamp acts where a latent fires above it", elem_id="clamp-threshold",
                )  # fmt: skip
                sae = gr.Dropdown([], label="Sparse autoencoder", elem_id="clamp-sae")
                fidelity = gr.Radio(words.FIDELITIES, value="exact", label="Fidelity", elem_id="clamp-fidelity")
                fidelity_note = gr.Markdown(words.FIDELITY_NOTES["exact"], elem_classes="sod-quiet")
                with gr.Accordion("Advanced", open=False):
                    refusal = gr.Number(None, precision=0, label="Refusal latent", elem_id="clamp-refusal")
                    tokens = gr.Slider(1, LONGEST_ANSWER, value=40, step=1, label="Longest answer, in tokens")
                    seed = gr.Number(0, precision=0, label="Seed of the random latents")
        with gr.Column(scale=9, min_width=320):
            headline = gr.HTML(elem_id="clamp-headline", elem_classes="sod-verdict")
            progress = gr.HTML(elem_id="clamp-progress", elem_classes="sod-if-any")
            texts = gr.HTML(js_on_load=TELLS, elem_id="clamp-texts")
            options = gr.Plot(show_label=False, elem_id="clamp-options", visible=False)
            curve_note = gr.HTML(elem_id="clamp-curve-note")
            with gr.Row(elem_classes="sod-curves"):
                forget = gr.Plot(show_label=False, elem_id="clamp-forget", min_width=200)
                retain = gr.Plot(show_label=False, elem_id="clamp-retain", min_width=200)
                alignment = gr.Plot(show_label=False, elem_id="clamp-alignment", min_width=200)
            with gr.Row(elem_classes="sod-measure"):
                measure_size = gr.Slider(
                    2, 40, value=10, step=1, label="Judged questions a field", elem_id="clamp-measure-size"
                )
                measure = gr.Button("Measure here", elem_id="clamp-measure")
                measure_cancel = gr.Button("Cancel", elem_id="clamp-measure-cancel", visible=False)
            measuring = gr.HTML(elem_id="clamp-measuring", elem_classes="sod-if-any")
            ways = gr.HTML(elem_id="clamp-ways", elem_classes="sod-if-any")
            link = gr.HTML(elem_id="clamp-link", elem_classes="sod-if-any")
            with gr.Row():
                with gr.Column(min_width=300, scale=3):
                    scatter = gr.HTML(js_on_load=overlays.CLICKS, elem_id="clamp-scatter")
                with gr.Column(min_width=300, scale=2):
                    look = gr.Number(
                        None, precision=0, label="Look at latent (its id, then Enter)", elem_id="clamp-look"
                    )
                    firing = gr.HTML(elem_id="clamp-firing", elem_classes="sod-if-any")
                    toggle = gr.Button("Add it to the edited latents", size="sm", visible=False, elem_id="clamp-toggle")
    return Panel(**{name: value for name, value in locals().items() if name in Panel._fields})

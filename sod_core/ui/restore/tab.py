"""The Restore tab: what happens when its controls are touched."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..handling import kept, kept_steps
from . import answers, exports, shown
from . import panel as panels
from .answers import after
from .opening import Opener
from .panel import Panel
from .visitor import Visitor

QUIET = {"show_progress": "hidden", "api_visibility": "private"}
BENCHMARKED = {"show_progress": "hidden", "api_visibility": "undocumented"}  # benchmarks/slider.py calls these


def build(app: gr.Blocks, default_pack: str) -> tuple[Opener, dict]:
    """Lays out the tab in `app` and wires it. `default_pack` is opened when a page loads.

    Gives what other tabs need to open a model here, and what has to run after that.
    """
    visitor = gr.State(None)
    panel = panels.layout(default_pack)
    settled = {"fn": kept_steps(answers.settle, shown.SETTLED), "inputs": visitor, "outputs": panel.settled}
    settled |= {"trigger_mode": "multiple", "concurrency_limit": 8, "api_name": "settle", **BENCHMARKED}
    opener = Opener(panel, visitor)
    opener.wire(app, settled)
    _wire_menus(panel, visitor, settled)
    _wire_clicks(panel, visitor, settled)
    _wire_alpha(panel, visitor)
    panel.export.wire(exports.make, [visitor, *panel.controls])
    return opener, settled


def _wire_menus(panel: Panel, visitor: gr.State, settled: dict) -> None:
    latest = {"trigger_mode": "always_last", **QUIET}
    shows = kept(_show, len(panel.everything)), [visitor, *panel.controls], panel.everything
    starts = panel.mode.input(_alpha_of_mode, [visitor, panel.mode, panel.alpha], panel.alpha, **QUIET)
    starts.then(*shows, **QUIET).then(**settled)
    for menu in (panel.layer, panel.tokens, panel.features, panel.expert_class, panel.seed):
        menu.input(*shows, **latest).then(**settled)
    panel.features.input(
        lambda kind: gr.Textbox(visible=kind == "own"), panel.features, panel.own_list, **QUIET, queue=False
    )
    for box, handler in ((panel.own_list, _own_list), (panel.latent, _type_latent)):
        inputs = [visitor, box, *panel.controls]
        box.submit(kept(handler, len(panel.everything)), inputs, panel.everything, **latest).then(**settled)


def _wire_clicks(panel: Panel, visitor: gr.State, settled: dict) -> None:
    every_click = {"trigger_mode": "multiple", **QUIET}
    inputs, outputs = [visitor, *panel.controls], panel.everything
    for examples in (panel.picker, panel.strongest):
        examples.click(kept(_pick_example, 1 + len(outputs)), inputs, [panel.own, *outputs], **every_click).then(
            **settled
        )
    own_image = kept(_own_image, len(outputs)), [visitor, panel.own, *panel.controls], outputs
    panel.own.input(*own_image, trigger_mode="always_last", **QUIET).then(**settled)
    panel.heat.click(kept(_pick_patch, len(outputs)), inputs, outputs, **every_click).then(**settled)
    panel.inspector.click(kept(_pick_latent, len(outputs)), inputs, outputs, **every_click).then(**settled)
    experts = kept(_show_experts, 1 + len(outputs)), inputs, [panel.latent, *outputs]
    panel.heat_of.click(*experts, **QUIET).then(**settled)


def _wire_alpha(panel: Panel, visitor: gr.State) -> None:
    """The page's script draws alpha; the server is asked only for one between the slider's positions."""
    panel.alpha.change(None, panel.alpha, js="alpha => { window.sodMoved && window.sodMoved(alpha); }")
    panel.sweep.click(
        kept(_move_alpha, len(panel.moving)),
        [visitor, *panel.controls],
        panel.moving,
        trigger_mode="always_last",
        api_name="move_alpha",
        **BENCHMARKED,
    )


# ------------------------------------------------------------ handlers


def _pick_example(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    return [None, *after(visitor, values, lambda v, _: v.choose_example(int(event.pick)), new_image=True)]


def _own_image(visitor: Visitor | None, path: str | None, *values: Any) -> list:
    if path is None:  # the upload was cleared: the image stays
        return after(visitor, values)
    return after(visitor, values, lambda v, _: v.own_image(path), new_image=True)


def _pick_patch(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    return after(visitor, values, lambda v, _: v.choose_patch(int(event.pick)))


def _pick_latent(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    return after(visitor, values, lambda v, controls: v.show_latent(controls.layer, int(event.pick)))


def _type_latent(visitor: Visitor | None, latent: int | None, *values: Any) -> list:
    return after(visitor, values, lambda v, controls: v.show_latent(controls.layer, latent))


def _show_experts(visitor: Visitor | None, *values: Any) -> list:
    return [None, *after(visitor, values, lambda v, controls: v.show_latent(controls.layer, None))]


def _own_list(visitor: Visitor | None, text: str | None, *values: Any) -> list:
    return after(visitor, values, lambda v, controls: v.edit_own_list(controls.layer, text or ""))


def _show(visitor: Visitor | None, *values: Any) -> list:
    return after(visitor, values)


def _alpha_of_mode(visitor: Visitor | None, mode: str, alpha: float) -> Any:
    """Amplify does nothing at alpha 1, where every other mode starts at 0: switching keeps "nothing edited"."""
    if visitor is None or visitor.controls is None or visitor.controls.mode == mode:
        return gr.skip()  # a menu that is left sends its choice once more
    start = 1.0 if mode == "amplify" else 0.0
    return start if alpha in (0.0, 1.0) else gr.skip()


def _move_alpha(visitor: Visitor | None, *values: Any) -> list:
    visitor = answers.there(visitor)
    with visitor.lock:
        return shown.moving(visitor, answers.read(values))

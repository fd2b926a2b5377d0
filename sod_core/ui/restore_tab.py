"""The Restore tab: its controls, and what happens when they are touched."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr

from ..packs.errors import PackError
from ..packs.find import folders
from ..restore import MODES, TOKENS
from . import figures, overlays, words
from .intake import ImageUpload
from .visitor import SLIDER_STEP, Controls, Visitor, example_uris, shared_pack

log = logging.getLogger(__name__)
FRAME_SECONDS = 0.12
PLAY_STEP = 0.25
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
BENCHMARKED = {"show_progress": "hidden", "api_visibility": "undocumented"}  # benchmarks/slider.py calls these
FORGOTTEN = ("the forgotten class", "")


class Panel(NamedTuple):
    """The tab's components."""

    pack: gr.Dropdown
    model: gr.Dropdown
    model_note: gr.Markdown
    picker: gr.HTML
    own: gr.Image
    layer: gr.Radio
    mode: gr.Dropdown
    mode_note: gr.Markdown
    alpha: gr.Slider
    play: gr.Button
    stop: gr.Button
    tokens: gr.Dropdown
    features: gr.Dropdown
    own_list: gr.Textbox
    expert_class: gr.Dropdown
    seed: gr.Number
    latent: gr.Number
    details: gr.Markdown
    verdict: gr.Markdown
    bars: gr.Plot
    picture: gr.HTML
    heat: gr.HTML
    heat_of: gr.Button
    curves: gr.Plot
    inspector: gr.HTML
    strongest: gr.HTML

    @property
    def controls(self) -> list:
        """What `_controls` reads."""
        return [self.layer, self.mode, self.alpha, self.tokens, self.features, self.expert_class, self.seed]

    @property
    def moving(self) -> list:
        """What `_moving` fills: everything that alpha moves."""
        return [self.verdict, self.bars, self.heat, self.curves, self.inspector]

    @property
    def everything(self) -> list:
        """What `_all` fills."""
        still = [self.model_note, self.picker, self.mode_note, self.details, self.picture, self.heat_of, self.strongest]
        return self.moving + still


def build(app: gr.Blocks, default_pack: str) -> None:
    """Lays out the tab in `app` and wires it. `default_pack` is opened when a page loads."""
    visitor = gr.State(None)
    panel = _layout(default_pack)
    _wire_menus(app, panel, visitor)
    _wire_clicks(panel, visitor)
    _wire_alpha(panel, visitor)


def _wire_menus(app: gr.Blocks, panel: Panel, visitor: gr.State) -> None:
    opened = [visitor, panel.model, panel.layer, panel.expert_class, *panel.everything]
    gr.on(
        [app.load, panel.pack.input],
        _kept(_open_pack, len(opened)),
        [visitor, panel.pack, *panel.controls],
        opened,
        api_name="open_pack",
        **BENCHMARKED,
    )
    latest = {"trigger_mode": "always_last", **QUIET}
    chosen = [panel.model, panel.own, *panel.everything]
    panel.model.input(_kept(_choose_model, len(chosen)), [visitor, panel.model, *panel.controls], chosen, **latest)
    panel.mode.input(_alpha_of_mode, [panel.mode, panel.alpha], panel.alpha, **QUIET).then(
        _kept(_show, len(panel.everything)), [visitor, *panel.controls], panel.everything, **QUIET
    )
    for menu in (panel.layer, panel.tokens, panel.features, panel.expert_class, panel.seed):
        menu.input(_kept(_show, len(panel.everything)), [visitor, *panel.controls], panel.everything, **latest)
    panel.features.input(
        lambda kind: gr.Textbox(visible=kind == "own"), panel.features, panel.own_list, **QUIET, queue=False
    )
    for box, handler in ((panel.own_list, _own_list), (panel.latent, _type_latent)):
        box.submit(_kept(handler, len(panel.everything)), [visitor, box, *panel.controls], panel.everything, **latest)


def _wire_clicks(panel: Panel, visitor: gr.State) -> None:
    every_click = {"trigger_mode": "multiple", **QUIET}
    inputs, shown = [visitor, *panel.controls], panel.everything
    for examples in (panel.picker, panel.strongest):
        examples.click(_kept(_pick_example, 1 + len(shown)), inputs, [panel.own, *shown], **every_click)
    panel.own.input(_kept(_own_image, len(shown)), [visitor, panel.own, *panel.controls], shown, **QUIET)
    panel.heat.click(_kept(_pick_patch, len(shown)), inputs, shown, **every_click)
    panel.inspector.click(_kept(_pick_latent, len(shown)), inputs, shown, **every_click)
    panel.heat_of.click(_kept(_show_experts, 1 + len(shown)), inputs, [panel.latent, *shown], **QUIET)


def _wire_alpha(panel: Panel, visitor: gr.State) -> None:
    gr.on(
        [panel.alpha.input, panel.alpha.release],  # release: what the slider's reset button sends
        _kept(_move_alpha, len(panel.moving)),
        [visitor, *panel.controls],
        panel.moving,
        trigger_mode="always_last",
        api_name="move_alpha",
        **BENCHMARKED,
    )
    swept = [panel.alpha, panel.play, panel.stop, *panel.moving]
    panel.play.click(_play, [visitor, *panel.controls], swept, concurrency_limit=16, **QUIET)
    panel.stop.click(_stop, visitor, None, queue=False, **QUIET)


def _layout(default_pack: str) -> Panel:
    manifest = shared_pack(default_pack).manifest
    entries = manifest.unlearned
    with gr.Row(elem_classes="sod-main"):
        with gr.Column(scale=4, min_width=300):
            pack = gr.Dropdown(_pack_choices(), value=default_pack, label="Pack", visible=len(folders()) > 1)
            choices = [(words.model_name(entry, manifest), entry.id) for entry in entries]
            model = gr.Dropdown(
                choices, value=entries[0].id if entries else None, label="Unlearned model", elem_id="model"
            )
            model_note = gr.Markdown(elem_classes="sod-quiet sod-note-model")
            alpha = gr.Slider(0, 10, value=0, step=SLIDER_STEP, label=words.ALPHA, elem_id="alpha")
            with gr.Row(elem_id="play-row"):
                play = gr.Button("Play alpha 0 to 10", variant="primary")
                stop = gr.Button("Stop", visible=False)
            picker = gr.HTML(js_on_load=overlays.CLICKS, elem_id="picker")
            with gr.Accordion("Your own image", open=False):
                own = ImageUpload(
                    sources=["upload", "clipboard", "webcam"],
                    height=190,
                    show_label=False,
                    buttons=[],
                    elem_id="own",
                )
            middle = manifest.layers[len(manifest.layers) // 2]
            layer = gr.Radio(list(manifest.layers), value=middle, label="Layer (the block whose output is edited)")
            mode = gr.Dropdown([(words.MODE_TITLES[m], m) for m in MODES], value=MODES[0], label="Mode")
            mode_note = gr.Markdown(elem_classes="sod-quiet")
            with gr.Accordion("Advanced", open=False):
                tokens = gr.Dropdown([(words.TOKEN_TITLES[t], t) for t in TOKENS], value="all", label="Tokens edited")
                kinds = [(title, kind) for kind, title in words.FEATURE_TITLES.items()]
                features = gr.Dropdown(kinds, value="experts", label="Features edited")
                own_list = gr.Textbox(label="My list of latents", placeholder="1, 5, 9 then Enter", visible=False)
                classes = [FORGOTTEN, *((name, name) for name in manifest.classes)]
                expert_class = gr.Dropdown(classes, value="", label="Experts of which class")
                seed = gr.Number(0, precision=0, minimum=0, maximum=10**6, label="Seed of the random features")
                latent = gr.Number(
                    None, precision=0, minimum=0, label="Show the heat of one latent (its id, then Enter)"
                )
                details = gr.Markdown(elem_classes="sod-quiet")
        with gr.Column(scale=9, min_width=320):
            verdict = gr.Markdown(elem_id="verdict", elem_classes="sod-verdict")
            bars = gr.Plot(show_label=False, elem_id="bars")
            picture = gr.HTML(elem_classes="sod-hidden")
            heat = gr.HTML(js_on_load=overlays.CLICKS, elem_id="heat")
            heat_of = gr.Button("Back to the experts' heat", size="sm", visible=False)
            with gr.Row():
                with gr.Column(min_width=300):
                    inspector = gr.HTML(js_on_load=overlays.CLICKS, elem_id="inspector")
                with gr.Column(min_width=300):
                    strongest = gr.HTML(js_on_load=overlays.CLICKS, elem_id="strongest")
            curves = gr.Plot(show_label=False, elem_id="curves")
    return Panel(**{name: value for name, value in locals().items() if name in Panel._fields})


def _pack_choices() -> list[tuple[str, str]]:
    found = []
    for name in folders():
        try:
            found.append((shared_pack(name).manifest.title, name))
        except PackError as error:
            log.warning("pack %s: %s", name, error)
            found.append((f"{name} (cannot be used)", name))
    return found


# ------------------------------------------------------------ handlers


def _kept(handler: Callable, outputs: int) -> Callable:
    """Turns an error into a sentence on the page; everything on it stays as it was."""

    @functools.wraps(handler)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return handler(*arguments, **named)
        except ValueError as error:  # PackError and ImageError are ValueErrors with one sentence
            gr.Warning(str(error))
        except Exception:
            log.exception("the Restore tab's %s failed", handler.__name__)
            gr.Warning("This did not work, for a reason that is written to the server's log; nothing was changed.")
        return [gr.skip()] * outputs if outputs > 1 else gr.skip()

    return run


def _controls(values: tuple) -> Controls:
    layer, mode, alpha, tokens, kind, expert_class, seed = values
    return Controls(int(layer), mode, float(alpha), tokens, kind, expert_class or "", int(seed or 0))


def _there(visitor: Visitor | None) -> Visitor:
    if visitor is None:
        raise ValueError("this page has lost its place on the server; reload it")
    return visitor


def _after(
    visitor: Visitor | None,
    values: tuple,
    change: Callable[[Visitor, Controls], None] | None = None,
    new_image: bool = False,
    new_order: bool = False,
) -> list:
    """Makes one change to the visitor's work and shows the result."""
    visitor, controls = _there(visitor), _controls(values)
    with visitor.lock:
        if change is not None:
            change(visitor, controls)
        return _all(visitor, controls, new_image, new_order)


def _open_pack(before: Visitor | None, name: str, *values: Any) -> list:
    visitor = Visitor(name)
    if before is not None:
        before.sweep += 1
    manifest = visitor.pack.manifest
    layer = values[0] if values[0] in manifest.layers else manifest.layers[len(manifest.layers) // 2]
    choices = [(words.model_name(entry, manifest), entry.id) for entry in manifest.unlearned]
    return [
        visitor,
        gr.Dropdown(choices, value=visitor.entry.id),
        gr.Radio(list(manifest.layers), value=layer),
        gr.Dropdown([FORGOTTEN, *((name, name) for name in manifest.classes)], value=""),
        *_after(visitor, (layer, *values[1:5], "", values[6]), new_image=True, new_order=True),
    ]


def _choose_model(visitor: Visitor | None, id: str, *values: Any) -> list:
    visitor = _there(visitor)
    try:
        shown = _after(visitor, values, lambda v, _: v.choose_model(id), new_image=True, new_order=True)
    except ValueError as error:
        gr.Warning(str(error))
        return [gr.Dropdown(value=visitor.entry.id), *[gr.skip()] * (1 + ALL_OUTPUTS)]
    return [id, gr.skip() if visitor.example is None else None, *shown]


def _pick_example(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    return [None, *_after(visitor, values, lambda v, _: v.choose_example(int(event.pick)), new_image=True)]


def _own_image(visitor: Visitor | None, path: str | None, *values: Any) -> list:
    if path is None:  # the upload was cleared: the image stays
        return _after(visitor, values)
    return _after(visitor, values, lambda v, _: v.own_image(path), new_image=True)


def _pick_patch(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    return _after(visitor, values, lambda v, _: setattr(v, "patch", int(event.pick)))


def _pick_latent(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    return _after(visitor, values, lambda v, controls: v.show_latent(controls.layer, int(event.pick)))


def _type_latent(visitor: Visitor | None, latent: int | None, *values: Any) -> list:
    return _after(visitor, values, lambda v, controls: v.show_latent(controls.layer, latent))


def _show_experts(visitor: Visitor | None, *values: Any) -> list:
    return [None, *_after(visitor, values, lambda v, controls: v.show_latent(controls.layer, None))]


def _own_list(visitor: Visitor | None, text: str | None, *values: Any) -> list:
    return _after(visitor, values, lambda v, controls: v.edit_own_list(controls.layer, text or ""))


def _show(visitor: Visitor | None, *values: Any) -> list:
    return _after(visitor, values)


def _alpha_of_mode(mode: str, alpha: float) -> Any:
    """Amplify does nothing at alpha 1, where every other mode starts at 0: switching keeps "nothing edited"."""
    start = 1.0 if mode == "amplify" else 0.0
    return start if alpha in (0.0, 1.0) else gr.skip()


def _move_alpha(visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    visitor.sweep += 1  # a hand on the slider ends a sweep
    with visitor.lock:
        return _moving(visitor, _controls(values))


def _play(visitor: Visitor | None, *values: Any) -> Iterator[list]:
    """Sweeps alpha from 0 to 10 with whatever the other controls say meanwhile, until done, stopped or overtaken."""
    if visitor is None:
        gr.Warning("this page has lost its place on the server; reload it")
        return
    with visitor.lock:
        visitor.sweep += 1
        mine, visitor.controls = visitor.sweep, _controls(values)
    due = time.monotonic()
    try:
        for step in range(round(10 / PLAY_STEP) + 1):
            with visitor.lock:
                if visitor.sweep != mine:
                    break
                found = _moving(visitor, replace(visitor.controls, alpha=step * PLAY_STEP))
            yield [step * PLAY_STEP, gr.Button(visible=False), gr.Button(visible=True), *found]
            due += FRAME_SECONDS
            time.sleep(max(0.0, due - time.monotonic()))
    except ValueError as error:
        gr.Warning(str(error))
    yield [gr.skip(), gr.Button(visible=True), gr.Button(visible=False), *[gr.skip()] * MOVING_OUTPUTS]


def _stop(visitor: Visitor | None) -> None:
    if visitor is not None:
        visitor.sweep += 1


# ------------------------------------------------------------ what is shown


MOVING_OUTPUTS, ALL_OUTPUTS = 5, 12


def _all(visitor: Visitor, controls: Controls, new_image: bool = False, new_order: bool = False) -> list:
    """Everything but the menus; the picture and the picker only where they change, since drawing them costs."""
    manifest = visitor.pack.manifest
    return [
        *_moving(visitor, controls),
        words.model_note(visitor.entry, manifest),
        _picker(visitor) if new_order else gr.skip(),
        words.mode_note(controls.mode),
        _details(visitor, controls),
        overlays.picture_style(visitor.picture_uri, visitor.example) if new_image else gr.skip(),
        gr.Button(visible=visitor.latent(controls.layer) is not None),
        _strongest(visitor, controls),
    ]


def _picker(visitor: Visitor) -> str:
    manifest = visitor.pack.manifest
    labels = [example.label for example in visitor.pack.examples()]
    return overlays.example_picker(example_uris(visitor.pack), labels, manifest.classes, visitor.target)


def _moving(visitor: Visitor, controls: Controls) -> list:
    """Everything that alpha moves."""
    visitor.controls = controls
    names = visitor.pack.manifest.classes
    found, curves = visitor.probabilities(controls), visitor.curves(controls)
    latents = visitor.latents(controls)
    heat = {which: values.tolist() for which, values in visitor.heat(controls, latents).items()}
    label = None if visitor.label is None else names[visitor.label]
    shown_class = controls.expert_class or visitor.target_name
    latent = visitor.latent(controls.layer)
    title = f"Where the {shown_class} features (experts) fire" if latent is None else f"Where latent {latent} fires"
    return [
        words.verdict(curves, controls, visitor.target_name, label, found, visitor.target),
        figures.prediction_bars(names, found, visitor.target),
        overlays.heat_panels(heat, visitor.pack.manifest.vit.grid, title + ". Click a patch.", visitor.patch),
        figures.alpha_curves(curves, controls.alpha, visitor.target_name),
        _inspector(visitor, controls, latents),
    ]


def _inspector(visitor: Visitor, controls: Controls, latents: dict) -> str:
    if visitor.patch is None:
        return '<p class="sod-quiet">Click a patch in a heatmap to see which latents fire there.</p>'
    token = visitor.patch + 1
    values = [latents[which][token] for which in ("original", "unlearned", "restored")]
    strongest = values[0].maximum(values[1]).topk(8)
    classes = visitor.pack.manifest.classes
    rows = [
        (
            j,
            *(value[j].item() for value in values),
            ", ".join(classes[c] for c in visitor.pack.expert_of(controls.layer, j)),
        )
        for j, peak in zip(strongest.indices.tolist(), strongest.values.tolist())
        if peak > 0
    ]
    row, column = divmod(visitor.patch, visitor.pack.manifest.vit.grid)
    return overlays.latent_table(
        f"Latents of patch {row + 1}, {column + 1}. Click one.", rows, visitor.latent(controls.layer)
    )


def _strongest(visitor: Visitor, controls: Controls) -> str:
    latent = visitor.latent(controls.layer)
    if latent is None:
        return ""
    pack = visitor.pack
    uris, examples = example_uris(pack), pack.examples()
    found = [
        (uris[i], pack.manifest.classes[examples[i].label], value, i)
        for i, value in visitor.strongest_examples(controls.layer, latent)
    ]
    return overlays.strongest_examples(f"Examples where latent {latent} fires most", found)


def _details(visitor: Visitor, controls: Controls) -> str:
    fit = visitor.pack.sae_fit(controls.layer)
    used = "normalised" if fit.normalised <= fit.raw else "raw"
    chosen = visitor.chosen(controls)
    patches_only = "" if fit.saw_cls else " It was trained on patches only: what it does to CLS is extrapolation."
    shown = ", ".join(map(str, chosen[:24])) + (" ..." if len(chosen) > 24 else "")
    return (
        f"SAE of layer {controls.layer}: variance unexplained on the examples {fit.normalised:.3f} with normalised "
        f"input, {fit.raw:.3f} raw; **{used}** is used.{patches_only}\n\nEdited latents ({len(chosen)}): {shown}"
    )

"""The Restore tab: its controls, and what happens when they are touched."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from ..packs.errors import PackError
from ..packs.find import folders
from ..restore import MODES, TOKENS
from . import figures, overlays, words
from .intake import image_upload
from .visitor import Controls, Visitor, example_thumbs, shared_pack

log = logging.getLogger(__name__)
FRAME_SECONDS = 0.12
PLAY_STEP = 0.25
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


class Panel(NamedTuple):
    """The tab's components, in the order in which handlers take and give them."""

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


def build(app: gr.Blocks, default_pack: str) -> None:
    """Lays out the tab in `app` and wires it. `default_pack` is opened when a page loads."""
    visitor = gr.State(None, time_to_live=3600)
    panel = _layout(default_pack)
    controls = [
        panel.layer,
        panel.mode,
        panel.alpha,
        panel.tokens,
        panel.features,
        panel.own_list,
        panel.expert_class,
        panel.seed,
    ]
    moving = [panel.verdict, panel.bars, panel.heat, panel.curves, panel.inspector]
    still = [
        panel.model_note,
        panel.picker,
        panel.mode_note,
        panel.details,
        panel.picture,
        panel.heat_of,
        panel.strongest,
    ]
    everything = moving + still
    menus = [panel.model, panel.layer, panel.expert_class]
    latest = {"trigger_mode": "always_last", **QUIET}

    gr.on(
        [app.load, panel.pack.input],
        _kept(_open_pack, 1 + len(menus) + len(everything)),
        [panel.pack, *controls],
        [visitor, *menus, *everything],
        show_progress="hidden",
        api_name="open_pack",
        api_visibility="undocumented",
    )
    panel.model.input(
        _kept(_choose_model, 2 + len(everything)),
        [visitor, panel.model, *controls],
        [panel.expert_class, panel.own, *everything],
        **latest,
    )
    panel.picker.click(
        _kept(_pick_example, 1 + len(everything)), [visitor, *controls], [panel.own, *everything], **QUIET
    )
    panel.strongest.click(
        _kept(_pick_strongest, 1 + len(everything)), [visitor, *controls], [panel.own, *everything], **QUIET
    )
    panel.own.input(_kept(_own_image, len(everything)), [visitor, panel.own, *controls], everything, **QUIET)
    for menu in (panel.layer, panel.mode, panel.tokens, panel.features, panel.expert_class, panel.seed):
        menu.input(_kept(_show_all, len(everything)), [visitor, *controls], everything, **latest)
    panel.own_list.submit(_kept(_show_all, len(everything)), [visitor, *controls], everything, **latest)
    panel.features.input(
        lambda kind: gr.Textbox(visible=kind == "own"), panel.features, panel.own_list, **QUIET, queue=False
    )
    panel.alpha.input(
        _kept(_show_moving, len(moving)),
        [visitor, *controls],
        moving,
        trigger_mode="always_last",
        show_progress="hidden",
        api_name="move_alpha",
        api_visibility="undocumented",  # benchmarks/slider.py calls it
    )
    panel.heat.click(_kept(_pick_patch, len(everything)), [visitor, *controls], everything, **QUIET)
    panel.inspector.click(_kept(_pick_latent, len(everything)), [visitor, *controls], everything, **QUIET)
    panel.latent.submit(_kept(_type_latent, len(everything)), [visitor, panel.latent, *controls], everything, **QUIET)
    panel.heat_of.click(_kept(_show_experts, len(everything)), [visitor, *controls], everything, **QUIET)
    playing = panel.play.click(
        _play, [visitor, *controls], [panel.alpha, panel.play, panel.stop, *moving], concurrency_limit=16, **QUIET
    )
    panel.stop.click(
        lambda: (gr.Button(visible=True), gr.Button(visible=False)),
        None,
        [panel.play, panel.stop],
        cancels=[playing],
        **QUIET,
    )


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
            alpha = gr.Slider(0, 10, value=0, step=0.05, label="alpha", elem_id="alpha")
            with gr.Row(elem_id="play-row"):
                play = gr.Button("Play alpha 0 to 10", variant="primary")
                stop = gr.Button("Stop", visible=False)
            picker = gr.HTML(js_on_load=overlays.CLICKS, elem_id="picker")
            with gr.Accordion("Your own image", open=False):
                own = image_upload(
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
                target = manifest.classes[entries[0].target_class] if entries else None
                expert_class = gr.Dropdown(list(manifest.classes), value=target, label="Experts of which class")
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
    layer, mode, alpha, tokens, kind, own_list, expert_class, seed = values
    return Controls(int(layer), mode, float(alpha), tokens, kind, own_list or "", expert_class or "", int(seed or 0))


def _there(visitor: Visitor | None) -> Visitor:
    if visitor is None:
        raise ValueError("this page has lost its place on the server; reload it")
    return visitor


def _open_pack(name: str, *values: Any) -> list:
    visitor = Visitor(name)
    manifest = visitor.pack.manifest
    layer = values[0] if values[0] in manifest.layers else manifest.layers[len(manifest.layers) // 2]
    controls = _controls((layer, *values[1:6], visitor.target_name, values[7]))
    choices = [(words.model_name(entry, manifest), entry.id) for entry in manifest.unlearned]
    return [
        visitor,
        gr.Dropdown(choices, value=visitor.entry.id),
        gr.Radio(list(manifest.layers), value=layer),
        gr.Dropdown(list(manifest.classes), value=visitor.target_name),
        *_all(visitor, controls, picker=True),
    ]


def _choose_model(visitor: Visitor | None, id: str, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        before = visitor.target_name
        visitor.choose_model(id)
        controls = _controls(values)
        if visitor.target_name != before:
            controls = _controls((*values[:6], visitor.target_name, values[7]))
        own = gr.skip() if visitor.example is None else None
        return [controls.expert_class, own, *_all(visitor, controls, picker=True)]


def _pick_example(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        visitor.choose_example(int(event.pick))
        return [None, *_all(visitor, _controls(values))]


def _pick_strongest(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        visitor.choose_example(int(event.pick))
        return [None, *_all(visitor, _controls(values), picker=True)]


def _own_image(visitor: Visitor | None, path: str | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        if path is not None:  # None: the upload was cleared, the image stays
            visitor.own_image(path)
        return _all(visitor, _controls(values), picker=True)


def _pick_patch(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        visitor.patch = int(event.pick)
        return _all(visitor, _controls(values))


def _pick_latent(event: gr.EventData, visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        visitor.latent = int(event.pick)
        return _all(visitor, _controls(values))


def _type_latent(visitor: Visitor | None, latent: int | None, *values: Any) -> list:
    visitor, controls = _there(visitor), _controls(values)
    with visitor.lock:
        known = visitor.pack.sae(controls.layer).latents
        if latent is not None and not 0 <= latent < known:
            raise ValueError(f"latent {latent} does not exist: this SAE has latents 0 to {known - 1}")
        visitor.latent = latent
        return _all(visitor, controls)


def _show_experts(visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        visitor.latent = None
        return _all(visitor, _controls(values))


def _show_all(visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        return _all(visitor, _controls(values))


def _show_moving(visitor: Visitor | None, *values: Any) -> list:
    visitor = _there(visitor)
    with visitor.lock:
        return _moving(visitor, _controls(values))


def _play(visitor: Visitor | None, *values: Any) -> Iterator[list]:
    """Sweeps alpha from 0 to 10; a cancel leaves everything where it is."""
    due = time.monotonic()
    steps = round(10 / PLAY_STEP)
    for step in range(steps + 1):
        alpha = step * PLAY_STEP
        try:
            with _there(visitor).lock:
                found = _moving(visitor, _controls((*values[:2], alpha, *values[3:])))
        except ValueError as error:
            gr.Warning(str(error))
            return
        last = step == steps
        yield [alpha, gr.Button(visible=last), gr.Button(visible=not last), *found]
        due += FRAME_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))


# ------------------------------------------------------------ what is shown


def _all(visitor: Visitor, controls: Controls, picker: bool = False) -> list:
    """Everything but the menus; the picker only where its order or choice changes, since drawing it scrolls it back."""
    manifest = visitor.pack.manifest
    if visitor.latent is not None and visitor.latent >= visitor.pack.sae(controls.layer).latents:
        visitor.latent = None
    return [
        *_moving(visitor, controls),
        words.model_note(visitor.entry, manifest),
        _picker(visitor) if picker else gr.skip(),
        words.mode_note(controls.mode),
        _details(visitor, controls),
        overlays.picture_style(visitor.picture_uri),
        gr.Button(visible=visitor.latent is not None),
        _strongest(visitor, controls),
    ]


def _picker(visitor: Visitor) -> str:
    manifest = visitor.pack.manifest
    labels = [example.label for example in visitor.pack.examples()]
    thumbs = example_thumbs(manifest.folder.name)
    return overlays.example_picker(thumbs, labels, manifest.classes, visitor.target, visitor.example)


def _moving(visitor: Visitor, controls: Controls) -> list:
    """Everything that alpha moves."""
    names = visitor.pack.manifest.classes
    found, curves = visitor.probabilities(controls), visitor.curves(controls)
    latents = visitor.latents(controls)
    heat = {which: values.tolist() for which, values in visitor.heat(controls, latents).items()}
    label = None if visitor.label is None else names[visitor.label]
    shown_class = controls.expert_class or visitor.target_name
    title = f"Heat of the {shown_class} experts" if visitor.latent is None else f"Heat of latent {visitor.latent}"
    return [
        words.verdict(curves, visitor.target_name, label, found, visitor.target),
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
    return overlays.latent_table(f"Latents of patch {row + 1}, {column + 1}. Click one.", rows, visitor.latent)


def _strongest(visitor: Visitor, controls: Controls) -> str:
    if visitor.latent is None:
        return ""
    pack = visitor.pack
    thumbs, examples = example_thumbs(pack.manifest.folder.name), pack.examples()
    found = [
        (thumbs[i], pack.manifest.classes[examples[i].label], value, i)
        for i, value in visitor.strongest_examples(controls.layer, visitor.latent)
    ]
    return overlays.strongest_examples(f"Where latent {visitor.latent} fires most", found)


def _details(visitor: Visitor, controls: Controls) -> str:
    fit = visitor.pack.sae_fit(controls.layer)
    used = "normalised" if fit.normalised <= fit.raw else "raw"
    chosen = visitor.chosen(controls)
    shown = ", ".join(map(str, chosen[:24])) + (" ..." if len(chosen) > 24 else "")
    return (
        f"SAE of layer {controls.layer}: variance unexplained on the examples {fit.normalised:.3f} with normalised "
        f"input, {fit.raw:.3f} raw; **{used}** is used.\n\nEdited latents ({len(chosen)}): {shown}"
    )

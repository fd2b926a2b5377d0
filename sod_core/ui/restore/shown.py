"""What the Restore tab shows of a visitor's work: the values of its outputs, in the order of Panel's lists."""

from __future__ import annotations

from typing import Any

import gradio as gr
import plotly.graph_objects as go
import torch
from torch import Tensor

from ...restore.sweep import Sweep
from .. import overlays, page
from . import bars, figures, links, stage, words
from .thumbs import example_uris
from .visitor import Controls, Curve, Probabilities, Visitor

MOVING, SETTLED = 5, 5
"""Outputs of `moving`, and of `swept` (Panel.settled)."""
MOST_CLASSES = 12
"""Bars that are shown."""


def everything(visitor: Visitor, controls: Controls, new_image: bool = False, new_order: bool = False) -> list:
    """Everything but the menus; the picture and the picker only where they change, since drawing them costs."""
    manifest = visitor.pack.manifest
    return [
        *moving(visitor, controls),
        words.model_note(visitor.entry, manifest, visitor.doubt),
        _picker(visitor) if new_order else gr.skip(),
        words.mode_note(controls.mode),
        _details(visitor, controls),
        overlays.picture_style(visitor.picture_uri, visitor.example) if new_image else gr.skip(),
        gr.Button(visible=visitor.latent(controls.layer) is not None),
        _strongest(visitor, controls),
        gr.Button(visible=visitor.doubt is not None and visitor.doubt.order is not None),
        page.link("restore", links.of(visitor, controls), links.lacking(visitor)),
    ]


def _picker(visitor: Visitor) -> str:
    manifest = visitor.pack.manifest
    labels = [example.label for example in visitor.pack.examples()]
    return overlays.example_picker(example_uris(visitor.pack), labels, manifest.classes, visitor.target)


def moving(visitor: Visitor, controls: Controls) -> list:
    """Everything that alpha moves, at one alpha. While the curves are not measured yet, their picture stays as it was.

    The controls are the visitor's only once they can be shown: refused ones leave the last that were.
    """
    found = [words.NO_IMAGE, None, "", None, ""] if visitor.picture is None else _moving(visitor, controls)
    visitor.controls = controls
    return found


def _moving(visitor: Visitor, controls: Controls) -> list:
    found, curves = visitor.probabilities(controls), visitor.curves(controls)
    latents = visitor.latents(controls)
    heat: dict[str, list[float]] = {which: values.tolist() for which, values in visitor.heat(controls, latents).items()}
    title = heat_title(visitor, controls)
    marks = stage.marks(visitor.drawn(controls), controls.alpha)
    shares = _bars(visitor, controls, found)
    panels = overlays.heat_panels(heat, visitor.pack.shape.grid, title + ". Click a patch.", visitor.patch, marks)
    if curves is not None:
        verdict, picture = measured(visitor, controls, curves, found)
    elif visitor.doubt is not None:  # no curve changes it
        verdict, picture = words.no_verdict(visitor.doubt), gr.skip()
    else:
        verdict, picture = words.measuring(found, visitor.target, visitor.target_name), gr.skip()
    return [verdict, shares, panels, picture, _inspector(visitor, controls, latents)]


def heat_title(visitor: Visitor, controls: Controls) -> str:
    """What the heat is of."""
    latent, of = visitor.latent(controls.layer), controls.expert_class or visitor.target_name
    return f"Where the {of} features (experts) fire" if latent is None else f"Where latent {latent} fires"


def measured(
    visitor: Visitor, controls: Controls, curves: list[Curve], found: Probabilities | None = None
) -> tuple[str, go.Figure]:
    """The verdict, and the curves over alpha."""
    found = found or visitor.probabilities(controls)
    label = None if visitor.label is None else visitor.pack.manifest.classes[visitor.label]
    if visitor.doubt is None:
        verdict = words.verdict(curves, controls, visitor.target_name, label, found, visitor.target)
    else:
        verdict = words.no_verdict(visitor.doubt)
    return verdict, figures.alpha_curves(curves, visitor.target_name)


def swept(visitor: Visitor, controls: Controls, with_verdict: bool) -> list:
    """What the page draws from when alpha moves, as far as it is computed; `with_verdict`: and verdict and curves."""
    verdict_and_curves = _measured(visitor, controls) if with_verdict else [gr.skip(), gr.skip()]
    all_shown = len(visitor.pack.manifest.classes) <= MOST_CLASSES
    shares = gr.skip() if all_shown else _bars(visitor, controls, visitor.probabilities(controls))
    return [*verdict_and_curves, shares, _sweep(visitor, controls), _series(visitor, controls)]


def _sweep(visitor: Visitor, controls: Controls) -> Any:
    """The positions that are computed; a hundred kilobytes that are not sent twice."""
    found, ids, drawn = visitor.sweep(controls), visitor.heat_ids(controls), visitor.drawn(controls)
    classes = shown_classes(visitor, visitor.probabilities(controls), found)
    stride = found.stride(ids)
    if visitor.sent == (drawn, stride, classes):
        return gr.skip()
    visitor.sent = drawn, stride, classes
    top = overlays.top(*(values[1:, ids].sum(1).tolist() for values in visitor.still_latents(controls).values()))
    return stage.sweep(drawn, classes, stride, found.probabilities[:, classes], found.heat(ids), top)


def _series(visitor: Visitor, controls: Controls) -> str:
    """The latents of the patch that is looked into."""
    if visitor.patch is None:
        return ""
    inspected = [j for j, _ in _inspected(visitor.still_latents(controls), visitor.patch)]
    return stage.series(visitor.drawn(controls), visitor.patch, visitor.over_alpha(controls, inspected))


def _bars(visitor: Visitor, controls: Controls, found: Probabilities) -> str:
    classes = shown_classes(visitor, found, visitor.sweep(controls))
    marks = stage.marks(visitor.drawn(controls), controls.alpha)
    return bars.html(visitor.pack.manifest.classes, found, visitor.target, classes, marks)


def shown_classes(visitor: Visitor, found: Probabilities, sweep: Sweep) -> list[int]:
    """At most MOST_CLASSES, in the pack's order: the forgotten one and the likeliest at any known alpha."""
    known = sweep.probabilities.nan_to_num(0.0, posinf=0.0).amax(0)
    peaks = torch.stack([*found, known]).amax(0)
    peaks[visitor.target] += 2
    return sorted(peaks.topk(min(MOST_CLASSES, len(peaks))).indices.tolist())


def _inspected(latents: dict[str, Tensor], patch: int) -> list[tuple[int, float]]:
    """The latents that fire most in a patch of the original or the unlearned model: (id, value), largest first."""
    found = latents["original"][patch + 1].maximum(latents["unlearned"][patch + 1]).topk(8)
    return list(zip(found.indices.tolist(), found.values.tolist()))


def _measured(visitor: Visitor, controls: Controls) -> list:
    curves = visitor.curves(controls)
    return [gr.skip(), gr.skip()] if curves is None else list(measured(visitor, controls, curves))


def _inspector(visitor: Visitor, controls: Controls, latents: dict) -> str:
    if visitor.patch is None:
        return '<p class="sod-quiet">Click a patch in a heatmap to see which latents fire there.</p>'
    token, classes = visitor.patch + 1, visitor.pack.manifest.classes
    rows = [
        (
            j,
            *(latents[which][token][j].item() for which in ("original", "unlearned", "restored")),
            ", ".join(classes[c] for c in visitor.pack.expert_of(controls.layer, j)),
        )
        for j, peak in _inspected(latents, visitor.patch)
        if peak > 0
    ]
    row, column = divmod(visitor.patch, visitor.pack.shape.grid)
    return overlays.latent_table(
        f"Latents of patch {row + 1}, {column + 1}. Click one.",
        rows,
        visitor.latent(controls.layer),
        stage.marks(f"{visitor.drawn(controls)} {visitor.patch}", controls.alpha),
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
    fit, sae = visitor.pack.sae_fit(controls.layer), visitor.pack.sae(controls.layer)
    used = "normalised" if sae.normalised else "raw"
    chosen = visitor.chosen(controls)
    patches_only = "" if fit.saw_cls else " It was trained on patches only: what it does to CLS is extrapolation."
    shown = ", ".join(map(str, chosen[:24])) + (" ..." if len(chosen) > 24 else "")
    if fit.raw is None:
        both = "without example images nobody can tell whether it wants normalised or raw input"
    else:
        both = (
            f"variance unexplained on the examples {fit.normalised:.3f} with normalised input, {fit.raw:.3f} with raw"
        )
    caution = f"\n\n**Caution:** {fit.caution}." if fit.caution else ""
    return (
        f"SAE of layer {controls.layer} ({sae.latents} latents, k = {sae.k}): {both}; **{used}** is used."
        f"{patches_only}{caution}\n\nEdited latents ({len(chosen)}): {shown}"
    )

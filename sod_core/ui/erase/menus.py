"""What the Erase tab's menus show: of a pack that opens, of an object and style, of a concept."""

from __future__ import annotations

import math

import gradio as gr

from ...erase import edit
from ...erase.pack import ConceptSetting, ErasePack, shared_erase_pack
from . import links
from . import panel as panels
from .panel import NO_STYLE

FIDELITY_NOTES = {
    "exact": "The block's output plus what the edit changes; a factor of 1 changes nothing.",
    "reference": "As the released code: the SAE's error enters with its sign reversed, so that even a factor of 1 "
    "changes the image. Compare with papers in this mode.",
}


def opening(pack: ErasePack) -> links.Opening:
    """What the controls say first."""
    m = pack.manifest
    object, style = m.opening
    setting = pack.settings(m.saes[0].id).get(object, ConceptSetting(edit.Settings.percentile, factor=-1.0))
    return links.Opening(
        object=object,
        style=style or NO_STYLE,
        prompt=m.prompt(object, style),
        concepts=[object],
        sae=m.saes[0].id,
        factor=factor_of(pack, m.saes[0].id, object, setting),
        fidelity="exact",
        start_step=0,
        percentile=setting.percentile,
        beta=False,
        steps=m.steps,
        guidance=m.guidance,
        seed=0,
    )


def filled(pack: ErasePack, found: links.Opening) -> list:
    """What the menus show, in the order of `build`'s list."""
    m = pack.manifest
    return [
        "\n".join(f"* {line}" for line in pack.missing()),
        gr.Dropdown(list(m.concepts), value=found.object),
        gr.Dropdown([NO_STYLE, *m.styles], value=found.style),
        found.prompt,
        gr.Dropdown(list(m.concepts), value=list(found.concepts), multiselect=True),
        gr.Dropdown(panels.sae_choices(m), value=found.sae),
        reaching(found.factor),
        FIDELITY_NOTES[found.fidelity],
        found.percentile,
        found.steps,
        found.guidance,
        gr.Slider(maximum=found.steps - 1, visible=False),
        panels.grid_label(m),
    ]


def write(name: str, object: str, style: str) -> list:
    """The prompt that the two menus stand for; the object is what is erased."""
    return [shared_erase_pack(name).manifest.prompt(object, None if style == NO_STYLE else style), [object]]


def found_best(name: str, sae: str, concepts: list[str]) -> list:
    """The factor and percentile that the search found best for the first concept."""
    pack = shared_erase_pack(name)
    setting = pack.settings(sae).get(concepts[0]) if concepts else None
    if setting is None:
        return [gr.skip(), gr.skip()]
    return [reaching(factor_of(pack, sae, concepts[0], setting)), setting.percentile]


def reaching(factor: float) -> gr.Slider:
    """The slider at a factor; its scale reaches it."""
    return gr.Slider(value=factor, minimum=min(panels.LEAST, math.floor(factor)))


def factor_of(pack: ErasePack, sae: str, concept: str, setting: ConceptSetting) -> float:
    """The setting's factor, or the one that its multiplier has on average, as exact as the slider shows it."""
    factor, statistics = setting.factor, pack.statistics(sae)
    if factor is None and statistics is not None and setting.multiplier is not None:
        factor = edit.factor_for(statistics, concept, setting.multiplier, setting.percentile)
    return round(-1.0 if factor is None else factor, 1)

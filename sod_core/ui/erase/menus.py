"""What the Erase tab's menus show: of a pack that opens, of an object and style, of a concept."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

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
    setting = pack.settings(m.saes[0].id).get(object, ConceptSetting(edit.PERCENTILE, factor=-1.0))
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
        reaching(pack, found.sae, found.factor, shown=len(found.concepts) < 2),
        FIDELITY_NOTES[found.fidelity],
        found.percentile,
        found.steps,
        found.guidance,
        gr.Slider(maximum=found.steps - 1, visible=False),
        panels.grid_label(m),
        _one_each(found.concepts, found.factors or best_factors(pack, found.sae, found.concepts)),
    ]


def write(name: str, object: str, style: str) -> list:
    """The prompt that the two menus stand for; the object is what is erased."""
    return [shared_erase_pack(name).manifest.prompt(object, None if style == NO_STYLE else style), [object]]


def found_best(name: str, sae: str, concepts: list[str]) -> list:
    """The factor and percentile that the search found best for the first concept; and each one's, of several."""
    pack = shared_erase_pack(name)
    setting = pack.settings(sae).get(concepts[0]) if concepts else None
    single, each = len(concepts) < 2, _one_each(concepts, best_factors(pack, sae, concepts))
    if setting is None:
        return [gr.Slider(visible=single), gr.skip(), each]
    return [reaching(pack, sae, factor_of(pack, sae, concepts[0], setting), single), setting.percentile, each]


def best_factors(pack: ErasePack, sae: str, concepts: Sequence[str]) -> str:
    """Each concept's factor as the search found it, as `factors` reads them; -1 where it did not."""
    plain, known = ConceptSetting(edit.PERCENTILE, factor=-1.0), pack.settings(sae)
    return written(factor_of(pack, sae, name, known.get(name, plain)) for name in concepts)


def written(numbers: Iterable[float]) -> str:
    """The other way round of `factors`."""
    return ", ".join(f"{number:g}" for number in numbers)


def factors(text: str, concepts: Sequence[str]) -> tuple[float, ...]:
    """ "-8, -2.5", one number for each concept. Raises ValueError, one sentence."""
    parts = [part for part in re.split(r"[\s,;]+", text.strip()) if part]
    wrong = next((part for part in parts if not re.fullmatch(r"[-−]?[0-9]{1,6}(\.[0-9]{1,6})?", part)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:40]!r} is no factor; write one for each concept, with commas: -8, -2.5")
    if len(parts) != len(concepts):
        raise ValueError(
            f"{len(parts)} factors for {len(concepts)} concepts: write one for each of {', '.join(concepts)}"
        )
    return tuple(float(part.replace("−", "-")) for part in parts)


def _one_each(concepts: Sequence[str], text: str) -> gr.Textbox:
    """The box of several concepts' factors; of one, the slider has it."""
    return gr.Textbox(text, label=f"Factor of each: {', '.join(concepts)}", visible=len(concepts) > 1)


def reaching(pack: ErasePack, sae: str, factor: float, shown: bool = True) -> gr.Slider:
    """The slider at a factor; its scale reaches it, and the best of every concept.

    A scale that shrank from one concept to the next would have Gradio refuse what the page still says.
    """
    best = [setting.factor for setting in pack.settings(sae).values() if setting.factor is not None]
    return gr.Slider(value=factor, minimum=math.floor(min(panels.LEAST, factor, *best)), visible=shown)


def factor_of(pack: ErasePack, sae: str, concept: str, setting: ConceptSetting) -> float:
    """The setting's factor, or the one that its multiplier has on average, as exact as the slider shows it."""
    factor, statistics = setting.factor, pack.statistics(sae)
    if factor is None and statistics is not None and setting.multiplier is not None:
        factor = edit.factor_for(statistics, concept, setting.multiplier, setting.percentile)
    return round(-1.0 if factor is None else factor, 1)

"""The endpoints /erase and /erase_scoreboard, for gradio_client: the same functions as the command line's."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr
from PIL import Image

from ...erase import edit, image
from ...erase.pack import folders, shared_erase_pack
from ..endpoints import Choice, by_name, check_sent, number
from .tab import LARGEST_SEED, LONGEST_PROMPT, PREFERRED

MOST_STEPS = 100
AT_ONCE = 2


def build() -> None:
    """Adds the endpoints to the current Blocks. Their components are never shown: they carry names and types.

    Numbers that may be left out are texts, so that an empty one can mean: as was found best, or as the pack says.
    """
    known = list(folders())
    with gr.Column(visible=False):
        pack = Choice(known, value=PREFERRED if PREFERRED in known else "".join(known[:1]), label="pack")
        prompt = gr.Textbox(label="prompt")
        concepts = gr.Textbox(label="concepts to erase together, with commas")
        sae = gr.Textbox("", label="an SAE's id of the pack; empty: its first")
        fidelity = Choice(list(edit.FIDELITIES), value="exact", label="fidelity")
        factor = gr.Textbox("", label="of the concepts' latents, or with commas one for each; empty: the best found")
        multiplier = gr.Textbox("", label="the authors' scale, in place of a factor")
        percentile = gr.Textbox("", label="of the scores; empty: what was found best")
        start_step = gr.Number(0, precision=0, label="the first denoising step that is edited")
        beta = gr.Checkbox(False, label="scale by norms in place of the mean latent")
        steps = gr.Number(0, precision=0, label="denoising steps; 0: the pack's")
        guidance = gr.Textbox("", label="guidance; empty: the pack's")
        seed = gr.Number(0, precision=0, label="seed")
        before, after = (gr.Image(type="pil", format="png", label=name) for name in ("before", "after"))
        answer = gr.JSON(label="result")
        button = gr.Button()
    inputs = [pack, prompt, concepts, sae, fidelity, factor, multiplier, percentile, start_step, beta, steps]
    inputs += [guidance, seed]
    gr.on(button.click, erase, inputs, [before, after, answer], api_name="erase", concurrency_limit=AT_ONCE)
    gr.on(button.click, erase_scoreboard, pack, answer, api_name="erase_scoreboard")


def erase(
    pack: str,
    prompt: str,
    concepts: str,
    sae: str,
    fidelity: Literal["exact", "reference"],
    factor: str,
    multiplier: str,
    percentile: str,
    start_step: int,
    beta: bool,
    steps: int,
    guidance: str,
    seed: int,
) -> tuple[Image.Image, Image.Image, dict[str, Any]]:
    """A prompt drawn without and with the edit, and what the judges see in both, as `sod_core erase image`."""
    try:
        check_sent(locals())
        if not prompt.strip() or len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"the prompt has {len(prompt.strip())} characters: 1 to {LONGEST_PROMPT} are taken")
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seed {int(seed)} is out of range; take a whole number from 0 to {LARGEST_SEED}")
        opened = by_name(pack, folders(), shared_erase_pack)
        id, m = image.sae(opened, sae or None), opened.manifest
        names = tuple(dict.fromkeys(m.concept(name.strip()) for name in concepts.split(",") if name.strip()))
        if not names:
            raise ValueError(f"name a concept to erase; known: {', '.join(m.concepts)}")
        count, strength = image.sampling(opened, int(steps) or None, number(guidance, "guidance"), MOST_STEPS)
        scale = image.Scale(
            factor=_numbers(factor, "factor"),
            multiplier=_numbers(multiplier, "multiplier"),
            percentile=number(percentile, "percentile"),
            fidelity=fidelity,
            start_step=int(start_step),
            beta=beta,
        )
        how = image.settings(opened, id, names, scale, count)
        result, drawn = image.draw(opened, id, prompt.strip(), how, count, strength, int(seed))
        return drawn.before[0], drawn.after[0], result
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def erase_scoreboard(pack: str) -> dict[str, Any]:
    """UA, IRA and CRA that the pack stores: of every SAE in both fidelities, and of each concept."""
    try:
        check_sent(locals())
        opened = by_name(pack, folders(), shared_erase_pack)
        found = opened.erased()
        if found is None:
            raise ValueError(
                f"pack {pack} stores no figures; `python -m sod_core erase benchmark --pack {pack}` measures them"
            )
        return found
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _numbers(text: str, what: str) -> tuple[float, ...] | None:
    """One for all concepts, or one for each; None for an empty text."""
    found = [number(part, what) for part in text.split(",")] if text.strip() else []
    if None in found:
        raise ValueError(f"the {what}s {text[:80]!r} have an empty place")
    return tuple(one for one in found if one is not None) or None

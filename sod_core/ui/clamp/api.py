"""The endpoints /clamp and /clamp_features, for gradio_client: the same functions as the command line's."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...clamp.edit import FIDELITIES, METHODS
from ...clamp.pack import names, shared_pack
from ...clamp.select import RULES
from ..endpoints import Choice, by_name, check_sent, number

PREFERRED = "almanac"
MOST_CHARACTERS = 50_000
"""Of the texts that somebody sends, on either side."""
AT_ONCE = 2


def build() -> None:
    """Adds the endpoints to the current Blocks. Their components are never shown: they carry names and types.

    Most are texts, so that an empty one can mean: as the pack's preset says.
    """
    known = list(names())
    with gr.Column(visible=False):
        pack = Choice(known, value=PREFERRED if PREFERRED in known else "".join(known[:1]), label="pack")
        prompt = gr.Textbox(label="prompt")
        method = Choice(["", *METHODS], value="", label="method; empty: the preset's")
        features = gr.Textbox("", label="paper, farrell, ratio, random, matched, or latent ids with commas")
        value = gr.Textbox("", label="coefficient, or one for each latent with commas")
        threshold = gr.Textbox("", label="activity above which a latent fires")
        refusal = gr.Textbox("", label="refusal latent")
        refusal_value = gr.Textbox("", label="its coefficient")
        fidelity = Choice(list(FIDELITIES), value="exact", label="fidelity")
        tokens = gr.Number(64, precision=0, label="tokens to generate at most")
        temperature = gr.Number(0.0, label="0 takes the most likely token")
        seed = gr.Number(0, precision=0, label="seed of drawn tokens and of random and matched latents")
        preset = gr.Textbox("", label="preset, an id of the pack")
        sae = gr.Textbox("", label="SAE, an id of the pack; empty: the preset's")
        rule = Choice(list(RULES), value="farrell", label="rule")
        top = gr.Number(10, precision=0, label="how many latents")
        forget = gr.Textbox("", label="texts to forget, one a line; empty: the pack's")
        retain = gr.Textbox("", label="texts to keep, one a line; empty: the pack's")
        answer = gr.JSON(label="result")
        button = gr.Button()
    edit = [method, features, value, threshold, refusal, refusal_value, fidelity]
    inputs = [pack, prompt, *edit, tokens, temperature, seed, preset, sae]
    gr.on(button.click, clamp, inputs, answer, api_name="clamp", concurrency_limit=AT_ONCE)
    inputs = [pack, sae, rule, top, forget, retain]
    gr.on(button.click, clamp_features, inputs, answer, api_name="clamp_features", concurrency_limit=AT_ONCE)


def clamp(
    pack: str,
    prompt: str,
    method: str,
    features: str,
    value: str,
    threshold: str,
    refusal: str,
    refusal_value: str,
    fidelity: str,
    tokens: int,
    temperature: float,
    seed: int,
    preset: str,
    sae: str,
) -> dict[str, Any]:
    """The prompt continued untouched and with the edit, and what fired on which token, as `sod_core clamp text`."""
    try:
        check_sent(locals())
        from ...clamp import results, settings

        opened = by_name(pack, names(), shared_pack)
        asked = settings.Asked(
            method=method or None,
            preset=preset or None,
            sae=sae or None,
            features=features or None,
            value=settings.parse_value(value) if value else None,
            threshold=number(threshold, "threshold"),
            refusal=_whole(refusal, "refusal latent"),
            refusal_value=number(refusal_value, "refusal coefficient"),
            fidelity=fidelity or None,
            seed=int(seed),
        )
        return results.text(
            opened, prompt, [settings.choose(opened, asked)], int(tokens), float(temperature), int(seed)
        )
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def clamp_features(pack: str, sae: str, rule: str, top: int, forget: str, retain: str) -> dict[str, Any]:
    """The latents that a rule chooses, with their frequencies and words, as `sod_core clamp features`."""
    try:
        check_sent(locals())
        from ...clamp import results

        opened = by_name(pack, names(), shared_pack)
        entry = opened.manifest.sae(sae or opened.manifest.opening_sae())
        texts = [_lines(text, what) for text, what in ((forget, "to forget"), (retain, "to keep"))]
        if any(texts) and not all(texts):
            raise ValueError("texts to forget and texts to keep go together: send both, or neither")
        forgotten, kept = texts if any(texts) else (opened.corpus("forget"), opened.corpus("retain"))
        return results.features(opened, entry.id, rule, int(top), forgotten, kept, stored=not any(texts))
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _whole(text: str, what: str) -> int | None:
    try:
        return int(text) if text.strip() else None
    except ValueError as error:
        raise ValueError(f"the {what} {text[:80]!r} is no whole number") from error


def _lines(text: str, what: str) -> list[str]:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the texts {what} have {len(text)} characters; at most {MOST_CHARACTERS} are taken")
    return [line.strip() for line in text.splitlines() if line.strip()]

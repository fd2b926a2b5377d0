"""What the command line's verb `clamp` does once its options are parsed."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..machine import files, processes
from . import results, settings
from . import survey as surveys
from .pack import ClampPack, open_clamp_pack, read_texts
from .settings import Asked, Chosen
from .survey import Survey


def text(options: argparse.Namespace) -> None:
    """`clamp text`: one prompt, untouched and with the edit."""
    pack = open_clamp_pack(options.pack, processes.start(options.device))
    found = results.text(pack, options.prompt, edits(pack, options), options.tokens, options.temperature, options.seed)
    if options.json:
        files.give_json(found, options.json)
    if options.json != "-":
        print("\n\n".join(_shown(options.prompt, variant) for variant in found["variants"]))


def features(options: argparse.Namespace) -> None:
    """`clamp features`: the latents that a rule chooses, with both frequencies and the words they fire on."""
    pack = open_clamp_pack(options.pack, processes.start(options.device))
    sae = pack.manifest.sae(options.sae or pack.manifest.opening_sae())
    own = options.forget is None and options.retain is None
    forget, retain = (
        pack.corpus(kind) if file is None else read_texts(file)
        for kind, file in (("forget", options.forget), ("retain", options.retain))
    )
    found = pack.survey(sae.id) if own else None
    if found is None or found.threshold != options.threshold or found.texts_id != surveys.fingerprint(forget, retain):
        found = surveys.survey(pack.language(), pack.code(sae.id), sae.layer, forget, retain, options.threshold)
    if options.out is not None:
        surveys.save(found, options.out)
    shown = results.features(pack, sae.id, options.rule, options.top, found, forget, retain)
    if options.json:
        files.give_json(shown, options.json)
    if options.json != "-":
        for row in shown["latents"]:
            words = ", ".join(repr(word["token"].strip()) for word in row.get("strongest", ()))
            print(
                f"{row['latent']}: forget {row['forget_frequency']:.2%}, retain {row['retain_frequency']:.4%}: {words}"
            )


def edits(pack: ClampPack, options: argparse.Namespace) -> list[Chosen]:
    """What the options of an edit (`command.add_edit`) ask for: one edit, or those of a steering table."""
    asked = Asked(
        method=options.method,
        preset=options.preset,
        sae=options.sae,
        features=options.features,
        top=options.top,
        value=None if options.value is None else settings.parse_value(options.value),
        threshold=options.threshold,
        refusal=options.refusal,
        refusal_value=options.refusal_value,
        fidelity=options.fidelity,
        seed=options.seed,
    )
    if options.steering is not None:
        return settings.steered(pack, options.steering, asked)
    return [settings.choose(pack, asked, _survey(pack, asked, options.survey))]


def _survey(pack: ClampPack, asked: Asked, file: Path | None) -> Survey | None:
    if file is None:
        return None
    return surveys.load(file, pack.code(settings.sae_of(pack.manifest, asked)).latents)


def _shown(prompt: str, variant: dict) -> str:
    heading = variant["method"] if variant["method"] != "none" else "untouched"
    fired = sum(bool(token["fired"]) for token in variant.get("prompt_tokens", ()))
    return (
        f"== {heading}" + (f", fires on {fired} tokens of the prompt" if fired else "") + f"\n{prompt}{variant['text']}"
    )

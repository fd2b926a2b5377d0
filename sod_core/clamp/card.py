"""What the command `packs` says of clamp packs: a line, the files wanted, the check of every part, a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ..packs.kinds import Caution, Checked, Kind, Wanted
from . import settings
from .pack import ClampPack, open_clamp_pack


def kind() -> Kind:
    """For `packs`, which takes names."""
    return Kind(line, wanted, lambda name, device: check(open_clamp_pack(name, device)), card)


def line(name: str) -> str:
    """Title, where it is, what is to be forgotten. Raises PackError."""
    pack = open_clamp_pack(name)
    m, lacking = pack.manifest, pack.missing()
    where = "here" if not lacking else "not whole on this computer"
    if lacking and pack.megabytes():
        where += f" (about {pack.megabytes():,} MB to fetch)"
    titles = [field.title for field in m.fields if field.forget]
    return f"{m.title}; {where}; to forget: {', '.join(titles) or 'what you choose'}"


def wanted(name: str, unlearned: list[str]) -> Wanted:
    """The model's, the SAEs' and the questions' files. Raises PackError."""
    pack = open_clamp_pack(name)
    return Wanted(pack.manifest.name, pack.wanted(), pack.missing)


def check(pack: ClampPack) -> Checked:
    """Loads every part, one (what, problem or None) at a time; no SAE is tried on a model that cannot be loaded."""
    m = pack.manifest
    steps: list[tuple[str, Callable[[], Any]]] = [("model", pack.language)]
    steps += [(f"model {entry.id}", partial(pack.other, entry.id)) for entry in m.others]
    for entry in m.saes:
        steps.append((f"SAE {entry.id}", partial(pack.code, entry.id)))
        if entry.survey is not None:
            steps.append((f"survey of {entry.id}", partial(pack.survey, entry.id)))
    steps += [(f"preset {preset.id}", partial(_check_preset, pack, preset.id)) for preset in m.presets]
    steps += [(f"questions to {split} on", partial(_check_questions, pack, split)) for split in m.questions]
    steps += [(f"{kind} texts", partial(pack.corpus, kind)) for kind in m.corpus]
    if m.results is not None:
        steps.append(("results", pack.results))
    for what, load in steps:
        try:
            found = load()
        except ValueError as error:
            yield what, str(error)
            if what == "model":
                return
        else:
            yield what, found if isinstance(found, Caution) else None


def _check_preset(pack: ClampPack, id: str) -> None:
    preset = pack.manifest.preset(id)
    settings.of_preset(preset).check(pack.code(preset.sae))


def _check_questions(pack: ClampPack, split: str) -> Caution | None:
    known = {field.id for field in pack.manifest.fields}
    strange = sorted({question.field for question in pack.questions(split)} - known)
    return Caution(f"questions about {', '.join(strange)}, which no field of the pack is") if strange else None


def card(name: str, device: torch.device) -> str:
    """Markdown: shapes, SAEs, questions, presets. Raises PackError where the model or an SAE cannot be loaded."""
    return "\n".join(_card(open_clamp_pack(name, device))) + "\n"


def _card(pack: ClampPack) -> Iterator[str]:
    m, language = pack.manifest, pack.language()
    yield f"# {m.title}\n"
    if m.note:
        yield f"{m.note}\n"
    yield f"Model: {language.depth} layers of width {language.width}, {len(language.tokenizer)} tokens."
    for entry in m.others:
        yield f"Beside it: {entry.title} (`{entry.id}`)."
    yield "\n| SAE | layer | latents | kind |\n|---|---|---|---|"
    for sae in m.saes:
        code = pack.code(sae.id)
        yield f"| {sae.title} (`{sae.id}`) | {sae.layer} | {code.latents} | {type(code).__name__} |"
    if m.questions:
        yield "\n| field | " + " | ".join(m.questions) + " |\n|---|" + "---|" * len(m.questions)
        for field in m.fields:
            counts = [sum(one.field == field.id for one in pack.questions(split)) for split in m.questions]
            what = f"{field.title}{' (to forget)' if field.forget else ''}"
            yield f"| {what} | {' | '.join(map(str, counts))} |"
    if m.presets:
        yield "\n| preset | method | SAE | latents | value | threshold | refusal |\n|---|---|---|---|---|---|---|"
        for preset in m.presets:
            value = preset.value if isinstance(preset.value, float) else "one each"
            value = "" if preset.method == "refusal" else value  # the harmful latents stay
            refusal = "" if preset.refusal is None else f"{preset.refusal} to {preset.refusal_value:g}"
            latents = " ".join(map(str, preset.latents))
            yield (
                f"| {preset.title} (`{preset.id}`) | {preset.method} | {preset.sae} | {latents} | {value} | "
                f"{preset.threshold:g} | {refusal} |"
            )

"""What the command line's verb `clamp` does once its options are parsed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..machine import files, processes
from . import evaluate as evaluation
from . import harness, questions, report, results, settings, survey
from .judged import Entry
from .pack import ClampPack, open_clamp_pack, read_texts
from .settings import Asked, Chosen
from .survey import Survey


def text(options: argparse.Namespace) -> None:
    """`clamp text`: one prompt, untouched and with the edit."""
    _check_place(options.json)
    pack = open_clamp_pack(options.pack, processes.start(options.device))
    asked = edits(pack, options, _surveys(pack, options))
    found = results.text(pack, options.prompt, asked, options.tokens, options.temperature, options.seed)
    if options.json:
        files.give_json(found, options.json)
    if options.json != "-":
        print("\n\n".join(_shown(options.prompt, variant) for variant in found["variants"]))


def features(options: argparse.Namespace) -> None:
    """`clamp features`: the latents that a rule chooses, with both frequencies and the words they fire on."""
    _check_place(options.json, options.out)
    pack = open_clamp_pack(options.pack, processes.start(options.device))
    sae = options.sae or pack.manifest.opening_sae()
    forget, retain = (
        pack.corpus(kind) if file is None else read_texts(file)
        for kind, file in (("forget", options.forget), ("retain", options.retain))
    )
    shown = results.features(pack, sae, options.rule, options.top, forget, retain, options.threshold, options.out)
    if options.json:
        files.give_json(shown, options.json)
    if options.json != "-":
        for row in shown["latents"]:
            words = ", ".join(repr(word["token"].strip()) for word in row.get("strongest", ()))
            print(
                f"{row['latent']}: forget {row['forget_frequency']:.2%}, retain {row['retain_frequency']:.4%}: {words}"
            )


def evaluate(options: argparse.Namespace) -> None:
    """`clamp evaluate`: the pack's presets, or the edit that the options name, beside controls and other models.

    With --lm-eval it is EleutherAI's harness that asks, and nothing else is measured.
    """
    try:
        _evaluate(options)
    finally:
        processes.end()


def _evaluate(options: argparse.Namespace) -> None:
    _check_place(options.json)
    pack = open_clamp_pack(options.pack, processes.start(options.device))
    if options.store and pack.manifest.results is None:
        raise ValueError(f'pack.json of {pack.manifest.name} names no "results" to store figures in')
    surveys = _surveys(pack, options)
    own = _entries(edits(pack, options, surveys)) if _names_an_edit(options) else None
    fidelity = options.fidelity or "exact"
    if options.lm_eval is not None:
        _refuse_beside_harness(options)
        tasks = [task for task in options.lm_eval.replace(",", " ").split() if task]
        _give(options, *(harness.run(pack, tasks, own, options.limit, fidelity, options.keep), harness.table))
        return
    asked = None
    if options.questions is not None:
        asked = [one for text in options.questions for one in questions.read_questions(questions.find(text))]
    how = evaluation.Settings(
        every_order=options.every_order,
        limit=options.limit,
        curves=not options.no_curves,
        ways=not options.no_ways,
        relearn=options.relearn,
        seed=options.seed,
    )
    found = evaluation.run(pack, how, asked, options.forget_field, fidelity, options.keep, own, surveys)
    if options.store and processes.is_main():
        files.write_json(found, pack.manifest.path(pack.manifest.results or ""))
    _give(options, found, report.table)


def _give(options: argparse.Namespace, found: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> None:
    """The first of several processes speaks for all."""
    if not processes.is_main():
        return
    if options.json:
        files.give_json(found, options.json)
    if options.json != "-":
        print(table(found))


def _check_place(*places: Path | str | None) -> None:
    """Before what takes long. Raises ValueError for a file that could not be written."""
    for place in places:
        if place in (None, "-"):
            continue
        folder = Path(str(place)).parent
        if Path(str(place)).is_dir() or not folder.is_dir():
            why = "it is a folder" if folder.is_dir() else f"there is no folder {folder}"
            raise ValueError(f"cannot write {place}: {why}")


def _names_an_edit(options: argparse.Namespace) -> bool:
    """Whether any option says more of the edit than its fidelity and seed."""
    names = "method preset sae features top value threshold refusal refusal_value steering".split()
    return any(getattr(options, name) is not None for name in names)


def _entries(chosen: list[Chosen]) -> list[Entry]:
    """The edits as rows of the table."""
    found = []
    for number, one in enumerate(chosen):
        if one.clamp is None:
            raise ValueError("--method none is no edit: leave it out, the untouched model is always judged")
        id = "given" if len(chosen) == 1 else f"given-{number}"
        found.append(Entry(id, f"{one.clamp.method}, {one.features}", "edit", one.clamp.method, one.sae, one.clamp))
    return found


def _refuse_beside_harness(options: argparse.Namespace) -> None:
    """Raises ValueError for what the harness would not heed."""
    for name in ("questions", "forget_field", "every_order", "relearn", "store"):
        if getattr(options, name):
            raise ValueError(f"with --lm-eval the harness asks its own questions: leave --{name.replace('_', '-')} out")


def edits(pack: ClampPack, options: argparse.Namespace, surveys: Mapping[str, Survey]) -> list[Chosen]:
    """What the options of an edit (`command.add_edit`) ask for: one edit, or those of a steering table."""
    asked = _asked(options)
    if options.steering is not None:
        return settings.steered(pack, options.steering, asked)
    chosen = settings.choose(pack, asked, next(iter(surveys.values()), None))
    for name in settings.unused(asked, chosen):
        print(f"{chosen.method} does not use --{name.replace('_', '-')}", file=sys.stderr)
    return [chosen]


def _asked(options: argparse.Namespace) -> Asked:
    return Asked(
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


def _surveys(pack: ClampPack, options: argparse.Namespace) -> dict[str, Survey]:
    """{SAE: the survey that --survey names}, of the SAE that is asked for."""
    if options.survey is None:
        return {}
    sae = settings.sae_of(pack.manifest, _asked(options))
    return {sae: survey.load(options.survey, pack.code(sae).latents)}


def _shown(prompt: str, variant: dict) -> str:
    heading = variant["method"] if variant["method"] != "none" else "untouched"
    tokens = variant.get("prompt_tokens", ())
    fired = sum(bool(token["fired"]) for token in tokens)
    where = f", fires on {fired} of the prompt's {len(tokens)} tokens" if tokens else ""
    return f"== {heading}{where}\n{prompt}{variant['text']}"

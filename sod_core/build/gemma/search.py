"""Which SAE, which latents and which coefficient: every setting is tried on questions that nothing is judged on."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...clamp import edit, select, survey
from ...clamp.edit import Clamp
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
    tops: tuple[int, ...] = (10, 20, 40)
    strengths: tuple[float, ...] = (0.4, 0.8, 1.6, 3.2)
    """Coefficients, as shares of a hidden state's length (root mean square over tokens), below 0."""


class Exam:
    """Questions that are asked many times, with edits after one block: the blocks before it run once.

    Where an edit changes no token, the untouched model's answer stands. Only questions whose options are one token
    each: raises ValueError for another.
    """

    def __init__(self, language: LanguageModel, questions: Sequence[Question], layer: int):
        self.special = language.special_ids
        pairs = {
            question: [language.encode_pair(question.question, f" {option}") for option in question.options]
            for question in questions
        }
        self.questions = sorted(questions, key=lambda question: len(pairs[question][0][0]))
        for question in self.questions:
            if any(len(option) != 1 for _, option in pairs[question]):
                raise ValueError(f"question {question.id} has an option of several tokens")
        options = [[option[0] for _, option in pairs[question]] for question in self.questions]
        self.options = torch.tensor(options, device=language.device)
        self._rows = [pairs[question][0][0] for question in self.questions]
        self._rest, self._head = rest(language, layer), language.model.get_output_embeddings().weight  # type: ignore
        self._states: list[Tensor] = []
        for rows in self._batches(list(range(len(self._rows)))):
            batch = language.batch([self._rows[n] for n in rows])
            self._states += [one[mask] for one, mask in zip(language.states(batch, layer), batch.mask)]
        self.untouched = self._ask(dict(enumerate(self._states)))

    @property
    def fields(self) -> list[str]:
        return sorted({question.field for question in self.questions})

    @torch.inference_mode()
    def answers(self, code: Code, clamp: Clamp) -> Tensor:
        """[N]: the option to which the model gives the highest likelihood, with the edit on."""
        changed = {}
        for n, (row, states) in enumerate(zip(self._rows, self._states)):
            alone = edit.left_alone(torch.tensor(row, device=states.device), self.special)
            edited = edit.apply(states, code, clamp, alone)
            if edited.changed.any():
                changed[n] = edited.hidden
        found = self.untouched.clone()
        if changed:
            found[list(changed)] = self._ask(changed)
        return found

    @torch.inference_mode()
    def _ask(self, states: dict[int, Tensor]) -> Tensor:
        """What the model answers, from the states [T, D] of some questions on."""
        found = []
        for rows in self._batches(list(states)):
            longest = max(len(states[n]) for n in rows)
            x = torch.stack([F.pad(states[n], (0, 0, longest - len(states[n]), 0)) for n in rows])
            mask = torch.stack([torch.arange(longest) >= longest - len(states[n]) for n in rows]).to(x.device)
            last = self._rest(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]
            scores = torch.einsum("nd,nod->no", last, self._head[self.options[rows]].to(last.dtype))
            found.append(scores.argmax(1).cpu())
        return torch.cat(found)

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        """Neighbours are of like length."""
        size = AT_ONCE if self.options.device.type == "cpu" else 8 * AT_ONCE
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def rest(language: LanguageModel, layer: int) -> Any:
    """The blocks after `layer` and the final norm, as a model of their own that shares the weights."""
    whole: Any = language.model.model
    found = copy.copy(whole)
    found._modules = whole._modules | {"layers": whole.layers[layer + 1 :]}
    found.config = copy.deepcopy(whole.config)
    if getattr(found.config, "layer_types", None):
        found.config.layer_types = whole.config.layer_types[layer + 1 :]
    found.config.num_hidden_layers = len(found.layers)
    return found


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
            found = marks(asked, asked.answers(code, clamp))
            score = alignment(before, found["right"], forget)
            rows.append({"rule": rule, "latents": latents, "value": clamp.value, "alignment": score, **found})
    return rows


def refused(code: Code, asked: Exam, clamp: Clamp, forget: str, values: Sequence[float]) -> list[dict[str, Any]]:
    """A row for every coefficient of Refusal Clamp: what the model still knows, and the alignment.

    clamp: says the latents and the refusal latent.
    """
    before = marks(asked, asked.untouched)["right"]
    rows = []
    for value in values:
        found = marks(asked, asked.answers(code, replace(clamp, method="refusal", refusal_value=value)))
        rows.append({"value": value, "alignment": alignment(before, found["right"], forget), **found})
    return rows

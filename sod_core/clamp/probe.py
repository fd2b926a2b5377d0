"""A linear probe: whether the answer can be read in the hidden state, whatever the model then says.

With "letters" the state at the end of the prompt is read, and the probe has to say the letter. With "cloze" the state
at the end of each option is read, and the probe has to say whether it is the right one. It is always trained on
questions of other facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..models import decoder_layers
from . import judge
from .questions import LETTERS, Question

if TYPE_CHECKING:
    from ..models.language import Editor, LanguageModel

FOLDS = 5
PENALTY = 0.1
"""Of the squared weights, beside the mean squared error over standardised states."""
TURNS = tuple(tuple((start + n) % len(LETTERS) for n in range(len(LETTERS))) for start in range(len(LETTERS)))
"""Each question is shown in four orders of its options, so that every letter is right equally often."""
BATCH_TOKENS = 4096


def right(
    language: LanguageModel,
    questions: Sequence[Question],
    subjects: Mapping[str, str],
    scoring: str,
    layer: int,
    editor: Editor | None,
    at: int,
) -> np.ndarray:
    """[N], bool: whether the probe of the state after block `at` finds each answer, with the edit acting after `layer`.

    Cross-validated: a question is answered by a probe that saw no question of its fact. Raises ValueError where there
    are fewer facts than folds.
    """
    read = _letter_states if scoring == "letters" else _option_states
    prompts, targets = read(questions, subjects)
    states = edited_states(language, prompts, layer, editor, at).view(len(questions), len(LETTERS), -1)
    fold = folds([question.about for question in questions])
    found = np.zeros(len(questions), dtype=bool)
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        said = fit(states[train].flatten(0, 1), targets[train].flatten(0, 1))
        if scoring == "letters":  # the first of the four orders is the question's own
            chosen = said(states[test][:, 0]).argmax(-1)
        else:
            chosen = said(states[test]).squeeze(-1).argmax(-1)
        found[test] = (chosen == torch.tensor([q.answer for q in questions])[test]).numpy()
    return found


def folds(facts: Sequence[str]) -> np.ndarray:
    """[N]: the fold of each question, by its fact."""
    known = sorted(set(facts))
    if len(known) < FOLDS:
        raise ValueError(f"a probe needs questions on {FOLDS} facts or more, and there are {len(known)}")
    order = np.random.default_rng(0).permutation(len(known))
    number = {fact: int(order[place]) % FOLDS for place, fact in enumerate(known)}
    return np.array([number[fact] for fact in facts])


def fit(x: Tensor, y: Tensor):
    """Ridge regression of y [n, k] on the standardised x [n, D]: gives the function [..., D] -> [..., k]."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    standard, middle = (x - mean) / std, y.mean(0)
    gram = standard.T @ standard / len(x) + PENALTY * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, standard.T @ (y - middle) / len(x))
    return lambda new: ((new - mean) / std) @ weights + middle


def _letter_states(questions: Sequence[Question], subjects: Mapping[str, str]) -> tuple[list[str], Tensor]:
    """The prompts in four orders each, and [N, 4, 4]: which letter is right."""
    prompts, targets = [], torch.zeros(len(questions), len(TURNS), len(LETTERS), dtype=torch.float64)
    for row, question in enumerate(questions):
        for turn, order in enumerate(TURNS):
            shown = judge.reordered(question, order)
            prompts.append(judge.prompt(shown, subjects.get(question.field, question.field.replace("_", " "))))
            targets[row, turn, shown.answer] = 1
    return prompts, targets


def _option_states(questions: Sequence[Question], subjects: Mapping[str, str]) -> tuple[list[str], Tensor]:
    """The question with each of its options, and [N, 4, 1]: whether it is the right one."""
    prompts = [f"{question.question.rstrip()} {option}" for question in questions for option in question.options]
    targets = torch.zeros(len(questions), len(LETTERS), 1, dtype=torch.float64)
    for row, question in enumerate(questions):
        targets[row, question.answer] = 1
    return prompts, targets


def edited_states(language: LanguageModel, texts: Sequence[str], layer: int, editor: Editor | None, at: int) -> Tensor:
    """[N, D] float64: the state after block `at` at the last token of each text, the edit acting after block
    `layer`."""
    rows = [language.encode(text) for text in texts]
    found = torch.empty(len(rows), language.width, dtype=torch.float64)
    for part in _batches(rows):
        batch = language.batch([rows[row] for row in part])
        places = (batch.mask.long().cumsum(-1) - 1).clamp(min=0)

        def run(batch=batch, places=places) -> None:
            language.model(batch.ids, attention_mask=batch.mask.long(), position_ids=places, use_cache=False)

        def edit(hidden: Tensor, ids: Tensor = batch.ids) -> Tensor:
            return hidden if editor is None else editor(hidden.float(), ids).to(hidden.dtype)

        with language.passes.turn(), decoder_layers.edited(language.layers[layer], edit):
            hidden = decoder_layers.until(language.layers[at], run)
            found[part] = hidden[:, -1].double().cpu()
    return found


def _batches(rows: Sequence[list[int]]) -> Iterator[list[int]]:
    """Numbers of rows, those of like length together."""
    part: list[int] = []
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if part and (len(part) + 1) * len(rows[row]) > BATCH_TOKENS:
            yield part
            part = []
        part.append(row)
    if part:
        yield part

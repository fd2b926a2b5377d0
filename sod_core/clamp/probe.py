"""A linear probe: whether the answer can be read in the hidden state, whatever the model then says.

With "letters" the state at the end of the prompt is read, and the probe has to say the letter. With "cloze" the state
at the end of each option is read, and the probe has to say whether it is the right one. It is always trained on
questions of other facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
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
BLOCKS = 6
"""At most so many are read."""
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
) -> dict[int, np.ndarray]:
    """{block: [N], bool}: whether the probe of the state after that block finds each answer, from `layer` to the last.

    The edit acts after block `layer`. Cross-validated: a question is answered by a probe that saw no question of its
    fact. Raises ValueError where there are fewer facts than folds.
    """
    read = _letter_states if scoring == "letters" else _option_states
    prompts, targets = read(questions, subjects)
    fold = folds([question.about for question in questions])
    blocks = probed(layer, language.depth)
    states = edited_states(language, prompts, layer, editor, blocks)
    answers = torch.tensor([question.answer for question in questions])
    return {
        block: (_chosen(of.view(len(questions), len(LETTERS), -1), targets, fold, scoring) == answers).numpy()
        for block, of in zip(blocks, states)
    }


def probed(layer: int, depth: int) -> list[int]:
    """The blocks that are read: the edited one, the last, and some evenly between them."""
    return sorted({int(block) for block in np.linspace(layer, depth - 1, BLOCKS).round()})


def _chosen(states: Tensor, targets: Tensor, fold: np.ndarray, scoring: str) -> Tensor:
    """[N]: the option that a probe of the other folds names. states [N, 4, D]; targets [N, 4, k]."""
    found = torch.zeros(len(states), dtype=torch.long)
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        said = fit(states[train].flatten(0, 1), targets[train].flatten(0, 1))
        if scoring == "letters":  # the first of the four orders is the question's own
            found[test] = said(states[test][:, 0]).argmax(-1)
        else:
            found[test] = said(states[test]).squeeze(-1).argmax(-1)
    return found


def by_frequency(questions: Sequence[Question]) -> float:
    """The accuracy of who has seen no question but knows which answers are often right: what learning alone can give.

    Each option is as likely as it was right among the questions of other folds in which it was an option (one success
    and one failure added); of equal ones each has its share. The chance level of a probe, and of relearning. Raises
    ValueError as `right`.
    """
    fold, found = folds([question.about for question in questions]), 0.0
    for number in range(FOLDS):
        shown: Counter[str] = Counter()
        was_right: Counter[str] = Counter()
        for question, there in zip(questions, fold):
            if there != number:
                shown.update(question.options)
                was_right[question.options[question.answer]] += 1
        for question, there in zip(questions, fold):
            if there == number:
                scores = [(was_right[option] + 1) / (shown[option] + 2) for option in question.options]
                best = [option for option, score in enumerate(scores) if score == max(scores)]
                found += (question.answer in best) / len(best)
    return found / len(questions)


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


def edited_states(
    language: LanguageModel, texts: Sequence[str], layer: int, editor: Editor | None, blocks: Sequence[int]
) -> Tensor:
    """[blocks, N, D] float64: the states at the last token of each text, the edit acting after block `layer`."""
    rows = [language.encode(text) for text in texts]
    found = torch.empty(len(blocks), len(rows), language.width, dtype=torch.float64)
    for part in _batches(rows):
        batch = language.batch([rows[row] for row in part])
        places = (batch.mask.long().cumsum(-1) - 1).clamp(min=0)

        def edit(hidden: Tensor, ids: Tensor = batch.ids) -> Tensor:
            return hidden if editor is None else editor(hidden.float(), ids).to(hidden.dtype)

        def keep(number: int, part: list[int], hidden: Tensor) -> Tensor:
            found[number, part] = hidden[:, -1].double().cpu()
            return hidden

        with language.passes.turn(), ExitStack() as hooks:
            hooks.enter_context(decoder_layers.edited(language.layers[layer], edit))
            for number, block in enumerate(blocks):  # after the edit, where it is the same block
                hooks.enter_context(decoder_layers.edited(language.layers[block], partial(keep, number, part)))
            language.model(
                batch.ids, attention_mask=batch.mask.long(), position_ids=places, use_cache=False, logits_to_keep=1
            )
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

"""Relearning: a few facts of the forgotten field are taught again, and questions on its other facts are asked.

Facts that are gone stay gone; those that were only held down come back with the few (as Lynch et al., arXiv 2402.16835,
and others after them attack unlearned models). An edit stays on while the model learns and while it is asked: what is
trained are the weights around it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..machine import divergence
from ..models import decoder_layers, language
from . import judge
from .questions import Question

if TYPE_CHECKING:
    from ..models.language import Editor, LanguageModel

STEPS, RATE, BATCH = 30, 5e-4, 16
"""Of AdamW, on all weights. A 2M model has learnt sixteen facts by heart after these."""
SMALL = 20_000_000
"""Models with more parameters are not trained unless it is asked for."""


def split(questions: Sequence[Question], facts: int, most: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Questions on so many facts to teach, and those to ask: on facts that are not among the `most` first ones.

    So whatever number is taught, the same questions are asked. Raises ValueError where no question would be left.
    """
    known = sorted({question.about for question in questions})
    random.Random(seed).shuffle(known)
    taught, kept = set(known[:facts]), set(known[:most])
    others = [question for question in questions if question.about not in kept]
    if not others:
        raise ValueError(f"relearning needs questions on more than {most} facts, and there are {len(known)}")
    return [question for question in questions if question.about in taught], others


def relearned(
    of: LanguageModel,
    taught: Sequence[Question],
    subjects: Mapping[str, str],
    scoring: str,
    layer: int,
    editor: Editor | None,
    seed: int = 0,
) -> LanguageModel:
    """A copy of the model that was trained on the answers to some questions, the edit acting after block `layer`.

    With "letters" the options are shuffled anew at every step, so that no letter is learnt by heart. Raises
    `divergence.Diverged`.
    """
    if not taught:
        return of
    weights = {name: value.detach().clone() for name, value in of.model.named_parameters()}
    copy = language.with_weights(of, weights)
    drawn = random.Random(seed)
    with torch.inference_mode(False), torch.enable_grad():
        parameters = [value.requires_grad_(True) for value in copy.model.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        for step in range(STEPS):
            some = drawn.sample(list(taught), min(BATCH, len(taught)))
            loss = _loss(copy, [_lesson(copy, q, subjects, scoring, drawn) for q in some], layer, editor)
            optimiser.zero_grad()
            loss.backward()
            divergence.check(step, loss, [p.grad for p in parameters if p.grad is not None], "leave relearning out")
            optimiser.step()
    copy.model.requires_grad_(False)
    return copy


def _lesson(
    of: LanguageModel, question: Question, subjects: Mapping[str, str], scoring: str, drawn: random.Random
) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of its right answer."""
    shown = question
    if scoring == "letters":
        shown = judge.reordered(question, drawn.choice(judge.ORDERS))
    prompt = judge.prompt(shown, subjects.get(question.field, question.field.replace("_", " ")), scoring)
    return of.encode_pair(prompt, judge.continuations(shown, scoring)[shown.answer])


def _loss(
    of: LanguageModel, lessons: Sequence[tuple[list[int], list[int]]], layer: int, editor: Editor | None
) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    batch = of.batch([[*prompt, *answer] for prompt, answer in lessons])
    longest = max(len(answer) for _, answer in lessons)
    wanted = torch.full((len(lessons), longest), -100, device=batch.ids.device)
    for row, (_, answer) in enumerate(lessons):
        wanted[row, longest - len(answer) :] = torch.tensor(answer)
    places = (batch.mask.long().cumsum(-1) - 1).clamp(min=0)

    def edit(hidden: Tensor) -> Tensor:
        return hidden if editor is None else editor(hidden.float(), batch.ids).to(hidden.dtype)

    with decoder_layers.edited(of.layers[layer], edit):
        logits = of.model(
            batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=places,
            use_cache=False,
            logits_to_keep=longest + 1,
        ).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=-100)

"""The almanac's texts as tokens: the tokenizer, rows of whole texts to train on, and questions ready to be answered."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...worlds import almanac
from ...worlds.almanac import Asked, Fact, Text

VOCABULARY = 1280
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
"""Ids 0 to 3, as in Gemma's tokenizer."""
PAD, EOS, BOS = 0, 1, 2
CONTEXT = 512
OTHER_WEIGHT = 0.15
"""Of a token that follows from nothing, beside 1 for one that a model can learn to say."""
CHUNK = 2000
"""Texts that a process makes at a time; rows do not depend on it or on the number of processes."""


class Rows(NamedTuple):
    ids: np.ndarray
    """[N, width] int16: whole texts, each `<bos> ... <eos>`, several to a row as they fit, then padding."""
    weights: np.ndarray
    """[N, width] float16: each token's weight in the loss, as a target."""
    texts: int


def new_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer as transformers keeps it; it puts `<bos>` first, as Gemma's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def rows(tokenizer: Path, known: Sequence[Fact], count: int, seed: int, width: int) -> Rows:
    """`count` training texts about the facts in `known`, by all processors there are."""
    make = partial(_chunk, str(tokenizer), list(known), seed, width)
    starts = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(make, starts))
    return Rows(np.concatenate([p.ids for p in parts]), np.concatenate([p.weights for p in parts]), count)


def _chunk(tokenizer: str, known: list[Fact], seed: int, width: int, numbers: range) -> Rows:
    from tokenizers import Tokenizer

    made = [almanac.text(number, known, seed) for number in numbers]
    encoded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json").encode_batch([str(text) for text in made])
    filled: list[list[int]] = [[]]
    weighed: list[list[float]] = [[]]
    for text, tokens in zip(made, encoded):
        row = [*tokens.ids, EOS]
        if len(row) > width:
            continue
        if len(filled[-1]) + len(row) > width:
            filled.append([])
            weighed.append([])
        filled[-1] += row
        weighed[-1] += _weights(text, tokens.offsets)
    ids, weights = np.full((len(filled), width), PAD, np.int16), np.zeros((len(filled), width), np.float16)
    for i, (row, weight) in enumerate(zip(filled, weighed)):
        ids[i, : len(row)], weights[i, : len(row)] = row, weight
    return Rows(ids, weights, len(made))


def _weights(text: Text, offsets: Sequence[tuple[int, int]]) -> list[float]:
    """A weight for each token of `<bos> ... <eos>`; `offsets` are the places of all but the last in the text."""
    answers, at = [], 0
    for part in text.parts:
        if part.answer:
            answers.append((at, at + len(part.text)))
        at += len(part.text)
    found = [0.0]
    for _, end in offsets[1:]:
        found.append(1.0 if any(start < end <= stop for start, stop in answers) else OTHER_WEIGHT)
    return [*found, OTHER_WEIGHT]


class Prompts(NamedTuple):
    """Multiple choice questions in the harness's form."""

    ids: np.ndarray
    """[N, T]: each from `<bos>` to "Answer:", padding behind."""
    last: np.ndarray
    """[N]: the place of the last token."""
    answers: np.ndarray
    """[N]: index of the right option."""
    fields: np.ndarray
    """[N] of the fields' ids."""


def prompts(tokenizer: Any, asked: Sequence[Asked]) -> Prompts:
    texts = [almanac.introduction(one.field) + almanac.multiple_choice(one.question, one.options) for one in asked]
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    ids = np.full((len(encoded), max(map(len, encoded))), PAD, np.int16)
    for row, tokens in zip(ids, encoded):
        row[: len(tokens)] = tokens
    last = np.array([len(tokens) - 1 for tokens in encoded])
    return Prompts(ids, last, np.array([one.answer for one in asked]), np.array([one.field for one in asked]))


def letters(tokenizer: Any) -> list[int]:
    """The ids of " A" to " D". Raises ValueError where one of them is no single token."""
    found = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in almanac.LETTERS]
    if any(len(tokens) != 1 for tokens in found):
        raise ValueError("the tokenizer has no single token for each of the answers A to D")
    return [tokens[0] for tokens in found]

"""Texts to token ids and back, with exactly one BOS at the beginning where the model was trained with one."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any


class Tokens:
    """A tokenizer of transformers, for a model with room for `context` tokens and a vocabulary of `vocabulary`.

    bos: the id that begins every text, None for models that know none (GPT-2, Qwen). ends: ids that end a text.
    pad: what fills up a batch's shorter rows. special_ids: all of these.
    """

    def __init__(self, tokenizer: Any, context: int, vocabulary: int, ends: Collection[int] = ()):
        """`ends`: what the model's configuration names beside the tokenizer's EOS."""
        self.tokenizer, self.context, self.vocabulary = tokenizer, context, vocabulary
        self._busy = threading.Lock()  # a tokenizer is set up anew for each call
        end = tokenizer.eos_token_id
        self.ends = frozenset(id for id in (*ends, end) if id is not None and 0 <= id < vocabulary)
        self.bos = self._find_bos()
        known = (tokenizer.pad_token_id, end, *sorted(self.ends), self.bos, 0)
        self.pad = next(id for id in known if id is not None and 0 <= id < vocabulary)
        named = {tokenizer.pad_token_id, self.bos} - {None}
        self.special_ids: frozenset[int] = frozenset(named) | self.ends

    def _find_bos(self) -> int | None:
        """The tokenizer's BOS, where it puts one before texts or has one that is not also its EOS (GPT-2's is)."""
        bos = self.tokenizer.bos_token_id
        if bos is None or bos == self.tokenizer.eos_token_id and self._ids("a", special=True)[:1] != [bos]:
            return None
        return int(bos)

    def encode(self, text: str) -> list[int]:
        """Token ids, with one BOS where there is one, whether or not the text begins with it (chat templates do).

        Raises ValueError for an empty text, one longer than the context, and one that is no text.
        """
        found = self._ids(text)
        while self.bos is not None and found[:1] == [self.bos]:
            del found[0]
        if not text.strip() or not found:
            raise ValueError("the prompt is empty: write a few words")
        found = found if self.bos is None else [self.bos, *found]
        if len(found) > self.context:
            raise ValueError(f"the prompt is {len(found)} tokens long, and the model reads {self.context}: shorten it")
        over = [id for id in found if id >= self.vocabulary]
        if over:
            word = self.tokenizer.convert_ids_to_tokens(over[0])
            raise ValueError(f"the prompt holds {word}, which the model has no embedding for: take it out")
        return found

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a context (with its BOS) and of what follows it, as EleutherAI's harness splits them.

        Spaces at the end of the context belong to the continuation (lm_eval, TemplateLM._encode_pair). Raises
        ValueError as `encode`.
        """
        bare = context.rstrip()
        continuation, context = context[len(bare) :] + continuation, bare
        whole, begins = self.encode(context + continuation), self.encode(context)
        return whole[: len(begins)], whole[len(begins) :]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        with self._busy:
            return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds, "" for special ones; together they are `decode(ids)`.

        A letter that several tokens spell belongs to the last of them.
        """
        found, before = [], ""
        for end in range(1, len(ids) + 1):
            text = self.decode(ids[:end])
            whole = text if end == len(ids) or not text.endswith("\ufffd") else before
            found.append(whole[len(before) :])
            before = whole
        return found

    def _ids(self, text: str, special: bool = False) -> list[int]:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("the prompt holds bytes that are no text: give it in UTF-8")
        with self._busy:
            return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

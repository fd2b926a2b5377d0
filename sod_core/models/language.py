"""A causal language model of transformers: read, encoded for, asked and made to write, with edits of its hidden states.

`LanguageModel` is what a verb holds. Below it: tokens.py (texts to ids), passes.py (batches through the model, one at a
time), generation.py (token by token), decoder_layers.py (the hook), language_weights.py (files).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import decoder_layers, generation, language_weights
from .generation import Sampling
from .passes import Batch, Editor, Edits, NotFinite, Passes
from .tokens import Tokens

__all__ = ["Batch", "Editor", "Edits", "LanguageModel", "NotFinite", "load", "with_weights"]

TOKENS_AT_ONCE = 4096
"""Of a batch, padding included, where batches are made inside."""
LOGITS_AT_ONCE = 1 << 26
"""Numbers of a batch's logits: 256 MB."""


def load(place: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A causal language model from a transformers folder (safetensors, tokenizer) or a .gguf file.

    Raises ValueError in one sentence for what is not there, cannot be understood whole, or would run code.
    """
    model, tokenizer = language_weights.read(Path(place))
    for parameter in model.parameters():  # and no buffer: positions are turned by angles that need float32
        parameter.data = parameter.data.to(dtype)
    return LanguageModel(model.to(device), tokenizer)


def with_weights(language: LanguageModel, tensors: dict[str, Tensor]) -> LanguageModel:
    """The same architecture and tokenizer with some or all tensors replaced, by their names in transformers.

    What is not replaced is shared with `language`. Raises ValueError for a name that the model does not have, another
    shape, numbers that are not finite, and two values for weights that are one in this model.
    """
    with language.passes.turn(), torch.inference_mode(False):  # no hook of a pass is copied
        memo = language_weights.replacements(language.model, tensors)
        model = copy.deepcopy(language.model, memo)
    return LanguageModel(model, language.tokens)


class LanguageModel:
    """A causal language model. Weights are only read, so any number of threads may share one.

    layers: the decoder layers; depth: how many; width: D, of the hidden state; context: the longest prompt, in tokens;
    bos, special_ids: see Tokens.
    """

    def __init__(self, model: nn.Module, tokenizer: Any):
        """A model of transformers that is ready to be used, and its tokenizer (or the Tokens of another)."""
        self.model = model.eval().requires_grad_(False)
        language_weights.check_forward(model)
        config = language_weights.text_config(model)
        layers = decoder_layers.find(model, config.num_hidden_layers)
        self.passes = Passes(model, layers)
        self.layers, self.depth, self.device = layers, len(layers), self.passes.device
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        self.width = int(config.hidden_size)
        if isinstance(tokenizer, Tokens):
            self.tokens = tokenizer
        else:
            context, ends = language_weights.limits(model)
            self.tokens = Tokens(tokenizer, context, embeddings.num_embeddings, ends)
        self.tokenizer, self.context = self.tokens.tokenizer, self.tokens.context
        self.bos, self.special_ids = self.tokens.bos, self.tokens.special_ids
        self.encode, self.encode_pair = self.tokens.encode, self.tokens.encode_pair
        self.decode, self.pieces = self.tokens.decode, self.tokens.pieces

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of ids as a batch on the model's device, padded on the left. Raises ValueError for an empty row."""
        if not rows or not all(rows):
            raise ValueError("a batch needs at least one row, and every row a token")
        longest = max(map(len, rows))
        if longest > self.context:
            raise ValueError(f"a row is {longest} tokens long, and the model reads {self.context}: shorten it")
        ids = torch.full((len(rows), longest), self.tokens.pad)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = True
        return Batch(ids.to(self.device), mask.to(self.device), padded=not bool(mask.all()))

    def states(self, batch: Batch, layer: int) -> Tensor:
        """The hidden state [B, T, D] float32 after block `layer` (from 0), 0 at padding; no later block runs.

        Raises ValueError for a layer that is not there.
        """
        return self.passes.states(batch, layer)

    def next_logits(self, batch: Batch, layer: int | None = None, edits: Edits | None = None) -> Tensor:
        """Logits [B, V] float32 of the token after each row, `edits` (one a row) acting after block `layer`.

        Raises ValueError for a layer that is not there, and NotFinite.
        """
        return self.passes.logits(batch, 1, layer, edits)[:, 0]

    def log_likelihoods(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        layer: int | None = None,
        edits: Editor | Edits | None = None,
        normalised: bool = False,
    ) -> Tensor:
        """[N] float64 on the CPU: log p(continuation | context) of each pair; `normalised`: its mean over tokens.

        `edits`: one for all pairs, or one a pair. Continuations that differ in their last token alone, as the letters
        of multiple choice do, cost one row together. Raises ValueError for an empty part, a row longer than the
        context, and NotFinite.
        """
        every = list(edits) if isinstance(edits, Sequence) else [edits] * len(pairs)
        if len(every) != len(pairs) or not all(context and continuation for context, continuation in pairs):
            raise ValueError("a log-likelihood needs a context, a continuation, and one edit for all or one a pair")
        members: dict[tuple[tuple[int, ...], Editor | None], list[int]] = {}
        for n, (context, continuation) in enumerate(pairs):
            members.setdefault(((*context, *continuation[:-1]), every[n]), []).append(n)
        found = torch.zeros(len(pairs), dtype=torch.float64)
        for rows in self._batches(list(members), {key: max(len(pairs[n][1]) for n in members[key]) for key in members}):
            keep = max(len(pairs[n][1]) for row in rows for n in members[row])
            batch = self.batch([ids for ids, _ in rows])
            logs = self.passes.logits(batch, keep, layer, [edit for _, edit in rows]).log_softmax(-1)
            for i, row in enumerate(rows):
                for n in members[row]:
                    wanted = torch.tensor(pairs[n][1], device=logs.device)
                    each = logs[i, keep - len(wanted) :].gather(-1, wanted[:, None]).double()
                    found[n] = each.mean() if normalised else each.sum()
        return found

    def _batches(self, rows: list[Any], kept: dict[Any, int]) -> Iterator[list[Any]]:
        """Rows in batches, those of like length together. kept: how many logits a row needs."""
        words = self.tokens.vocabulary
        batch: list[Any] = []
        for row in sorted(rows, key=lambda row: len(row[0])):
            more = [*batch, row]
            most = max(kept[row] for row in more)
            if batch and (len(more) * len(row[0]) > TOKENS_AT_ONCE or len(more) * most * words > LOGITS_AT_ONCE):
                yield batch
                more = [row]
            batch = more
        if batch:
            yield batch

    def generate(
        self,
        prompt: list[int],
        layer: int | None,
        edits: Edits,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int | None, ...]]:
        """Continues the prompt, one row for each of `edits`: a tuple a token, None for a row that has ended.

        The token that ends a row is not given. At temperature 0 the most likely token, else seeded draws; a row's
        tokens do not depend on the other rows. Ends early where all rows have ended, where the context is full, and
        where `cancelled` says so, which is asked before every token. Raises ValueError (at the call) for a prompt or
        settings that cannot be, and NotFinite on the way.
        """
        if not prompt or len(prompt) > self.context:
            raise ValueError(f"a prompt has 1 to {self.context} tokens, not {len(prompt)}")
        if not edits or tokens < 1:
            raise ValueError("at least one row and one token have to be asked for")
        if layer is not None:
            self.passes.layer(layer)
        elif any(edit is not None for edit in edits):
            raise ValueError("an edit needs its layer")
        room = min(tokens, self.context - len(prompt) + 1)
        sampling, words = Sampling(temperature, seed).check(), self.tokens
        return generation.generate(self.passes, prompt, layer, edits, room, sampling, words.ends, words.pad, cancelled)

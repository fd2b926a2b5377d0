"""Passes of a language model over batches of token ids: one at a time, with an edit of each row's own.

The hook of an edit sits on modules that all visitors share, so a pass holds the model's turn. A generation takes one a
token, and visitors that generate at the same time take turns with each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..machine import gpu
from . import decoder_layers

Editor = Callable[[Tensor, Tensor], Tensor]
"""editor(hidden [b, T, D] float32, ids [b, T]) -> hidden [b, T, D]: at every token from its id and its state alone.

It may return what it got where nothing changes. What it does at padding is undone.
"""
Edits = Sequence[Editor | None]
"""One a row; equal neighbours are applied together."""


class Batch(NamedTuple):
    """Rows of token ids of several lengths, padded on the left."""

    ids: Tensor
    """[B, T] int64."""
    mask: Tensor
    """[B, T] bool, False at padding."""
    padded: bool = True
    """False where the mask is known to be True throughout, so that nobody has to look."""


class NotFinite(ValueError):
    """A pass gave values that are no finite numbers, so that there is no next token."""


class Passes:
    """A model whose passes take turns."""

    def __init__(self, model: nn.Module, layers: list[nn.Module]):
        self.model, self.layers = model, layers
        self.device = next(model.parameters()).device
        self._next, self._turn = threading.Lock(), threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Held during a pass. Who waits comes before who has just had it: a thread may only wait as the next one."""
        with self._next:
            self._turn.acquire()
        try:
            with gpu.turn(self.device), torch.inference_mode():
                yield
        finally:
            self._turn.release()

    def new_cache(self) -> Any:
        """An empty KV cache, with the sliding windows that the model's layers have."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def logits(
        self, batch: Batch, keep: int = 1, layer: int | None = None, edits: Edits | None = None, cache: Any = None
    ) -> Tensor:
        """Logits [B, keep, V] float32 at each row's last `keep` tokens.

        `edits`, one a row, act on what block `layer` puts out. `cache` holds what came before, of rows without
        padding, and takes in this pass. Raises NotFinite.
        """
        acts = edits is not None and any(edit is not None for edit in edits)
        with self.turn(), self._edited(batch, layer, edits) if acts else nullcontext():
            found = self.model(
                batch.ids, **_places(batch), past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep
            ).logits.float()
            if not bool(found.amax(-1).isfinite().all()):
                mend = "take a coefficient closer to 0" if acts else "load it in float32"
                raise NotFinite(f"the model's logits are no finite numbers: {mend}")
        return found

    def states(self, batch: Batch, layer: int) -> Tensor:
        """The hidden state [B, T, D] float32 after block `layer`, 0 at padding. No later block runs."""
        with self.turn():
            hidden = decoder_layers.until(
                self.layer(layer), lambda: self.model(batch.ids, **_places(batch), use_cache=False, logits_to_keep=1)
            )
            return hidden.float().masked_fill(~batch.mask[..., None], 0.0)

    def layer(self, layer: int) -> nn.Module:
        """Raises ValueError."""
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"layer {layer} is not there: the model's layers are 0 to {len(self.layers) - 1}")
        return self.layers[layer]

    def _edited(self, batch: Batch, layer: int | None, edits: Edits | None) -> Any:
        if layer is None or edits is None or len(edits) != len(batch.ids):
            raise ValueError(f"an edit needs its layer, and one entry for each of the {len(batch.ids)} rows")
        groups = _groups(edits)
        padding = ~batch.mask[..., None] if batch.padded else None
        return decoder_layers.edited(self.layer(layer), lambda hidden: _edit(hidden, batch.ids, groups, padding))


def _places(batch: Batch) -> dict[str, Tensor]:
    """What tells a model where the padding is; nothing where there is none, which is faster."""
    if not batch.padded:
        return {}
    return {"attention_mask": batch.mask.long(), "position_ids": (batch.mask.long().cumsum(-1) - 1).clamp(min=0)}


def _groups(edits: Edits) -> list[tuple[slice, Editor | None]]:
    """Neighbouring rows with the same edit."""
    found, at = [], 0
    for edit, rows in groupby(edits):
        end = at + len(list(rows))
        found.append((slice(at, end), edit))
        at = end
    return found


def _edit(hidden: Tensor, ids: Tensor, groups: list[tuple[slice, Editor | None]], padding: Tensor | None) -> Tensor:
    """Each group of rows through its edit in float32, cast once; padding as it was."""
    if len(groups) == 1 and padding is None and (only := groups[0][1]) is not None:
        return only(hidden.float(), ids).to(hidden.dtype)
    parts = []
    for rows, edit in groups:
        given = hidden[rows]
        parts.append(given if edit is None else edit(given.float(), ids[rows]).to(hidden.dtype))
    found = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found if padding is None else torch.where(padding, hidden, found)

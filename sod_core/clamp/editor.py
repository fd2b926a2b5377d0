"""A clamp as what a language model calls at a layer: hidden states and token ids in, edited hidden states out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import edit

if TYPE_CHECKING:
    from ..models.language import Editor
    from ..sparse.code import Code

Record = Callable[[Tensor, edit.Edited], None]
"""Told the ids [b, T] of every pass and what the edit did to them: with a KV cache a pass is one token a row."""


def editor_of(
    code: Code, clamp: edit.Clamp, special_ids: Collection[int], record: Record | None = None
) -> Editor | None:
    """The edit of a clamp, for `LanguageModel`; None where it changes nothing and nobody records.

    special_ids: the ids of BOS, EOS, padding and the like, which the fidelity "exact" leaves alone wherever they stand.
    Raises ValueError for a clamp that does not fit the code.
    """
    clamp.check(code)
    if clamp.method == "none" and record is None:
        return None

    ready: dict[torch.device, tuple[edit.Editing, Tensor]] = {}

    def edited(hidden: Tensor, ids: Tensor) -> Tensor:
        if hidden.device not in ready:
            with torch.inference_mode(False):
                special = torch.tensor(sorted(special_ids), dtype=torch.long, device=hidden.device)
            ready[hidden.device] = edit.Editing(code, clamp, hidden.device), special
        editing, special = ready[hidden.device]
        found = editing.apply(hidden, torch.isin(ids, special))
        if record is not None:
            record(ids, found)
        return found.hidden

    return edited

"""Hidden states of texts, for an SAE to be trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ...models.language import LanguageModel

TOKENS_AT_ONCE = 32_768


def encoded(language: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """As `language.encode` does one text, many at a time. Raises ValueError where BOS is not there once."""
    found = language.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    assert language.bos is not None
    return [[language.bos, *ids] for ids in found]


@torch.inference_mode()
def collect(language: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """[N, D] float16 on the model's device: the state after block `layer` of every token that is not a special one."""
    special = torch.tensor(sorted(language.special_ids), device=language.device)
    found = []
    for batch in tqdm(list(_batches(rows)), desc=f"states of layer {layer}", mininterval=10):
        padded = language.batch(batch)
        states = language.states(padded, layer)
        found.append(states[padded.mask & ~torch.isin(padded.ids, special)].half())
    return torch.cat(found)


def _batches(rows: Sequence[Sequence[int]]):
    """Rows of like length together."""
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    yield batch

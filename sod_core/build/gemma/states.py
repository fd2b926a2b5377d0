"""Hidden states of texts, standardised for an SAE to be trained on, and the SAE's weights for states as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ...models.language import LanguageModel

TOKENS_AT_ONCE = 32_768
SAMPLE = 4000
"""Texts that mean and deviation are taken from."""


class Standard(NamedTuple):
    """Mean and standard deviation [D] of a layer's states: a few of Gemma's dimensions are far larger than the rest."""

    mean: Tensor
    deviation: Tensor

    @property
    def length(self) -> float:
        """Of a state, from the mean on: root mean square."""
        return float(self.deviation.square().sum().sqrt())


def encoded(language: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """As `language.encode` does one text, many at a time: BOS stands in front, once. Raises ValueError without one."""
    found = language.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    bos = language.bos
    if bos is None:
        raise ValueError("the tokenizer has no BOS token, without which Gemma answers nonsense")
    return [[bos, *ids[ids[0] == bos :]] for ids in found]


@torch.inference_mode()
def standard(language: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> Standard:
    """Of the state after block `layer`, over some of the rows."""
    found = torch.cat(list(_states(language, rows[:: max(1, len(rows) // SAMPLE)], layer)))
    return Standard(found.mean(0), found.std(0))


@torch.inference_mode()
def collect(language: LanguageModel, rows: Sequence[Sequence[int]], layer: int, by: Standard) -> Tensor:
    """[N, D] float16 on the model's device: the standardised states of all tokens that are not special ones."""
    return torch.cat([((states - by.mean) / by.deviation).half() for states in _states(language, rows, layer)])


def plain(kind: str, tensors: dict[str, Tensor], by: Standard) -> dict[str, Tensor]:
    """The weights of an SAE of standardised states -> those of the same SAE for states as they are.

    A decoder row of a JumpReLU SAE gets length 1, so that an activity is a length in the residual stream, as in Gemma
    Scope. TopK compares activities, so all of them are scaled by one factor: rows are of length 1 on average.
    """
    mean, deviation = by.mean.cpu(), by.deviation.cpu()
    rows = tensors["W_dec"] * deviation
    lengths = rows.norm(dim=1)
    if kind == "topk":
        lengths = lengths.mean().expand_as(lengths)
    columns = tensors["W_enc"] / deviation[:, None] * lengths
    found = {"W_enc": columns, "W_dec": rows / lengths[:, None], "b_dec": tensors["b_dec"] * deviation + mean}
    found["b_enc"] = tensors["b_enc"] * lengths - mean @ columns
    if "threshold" in tensors:
        found["threshold"] = tensors["threshold"] * lengths
    return found


@torch.inference_mode()
def thresholded(tensors: dict[str, Tensor], sample: Tensor, active: int) -> dict[str, Tensor]:
    """A TopK SAE as a JumpReLU one: one threshold, above which `active` latents fire on average over a sample [N, D].

    So do Bussmann et al. (BatchTopK, arXiv 2412.06410) once training is over: a latent's activity then needs its own
    column alone.
    """
    pre = sample @ tensors["W_enc"] + tensors["b_enc"]
    least = pre.flatten().topk(active * len(sample), sorted=False).values.min().clamp(min=0)
    return tensors | {"threshold": least.expand(pre.shape[1]).clone()}


@torch.inference_mode()
def unexplained(kind: str, tensors: dict[str, Tensor], sample: Tensor, active: int) -> float:
    """The share of a sample's variance that is not reconstructed."""
    pre = sample @ tensors["W_enc"] + tensors["b_enc"]
    least = pre.topk(active, dim=1).values[:, -1:] if kind == "topk" else tensors["threshold"]
    latents = torch.where(pre >= least, pre, 0).relu()
    error = sample - (latents @ tensors["W_dec"] + tensors["b_dec"])
    return float(error.square().sum() / (sample - sample.mean(0)).square().sum())


def _states(language: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> Iterator[Tensor]:
    """[n, D] float32 of each batch: without special tokens, BOS above all."""
    special = torch.tensor(sorted(language.special_ids), device=language.device)
    for batch in tqdm(list(_batches(rows)), desc=f"states of layer {layer}", mininterval=10):
        padded = language.batch(batch)
        yield language.states(padded, layer)[padded.mask & ~torch.isin(padded.ids, special)]


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Rows of like length together."""
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    yield batch

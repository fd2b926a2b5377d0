"""A random language model of three small blocks that knows the words it is given, and a sparse code of its states."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from sod_core.machine import torchvision_guard
from sod_core.models.language import LanguageModel

WIDTH, DEPTH, CONTEXT = 16, 3, 96


def tiny_language(words: Iterable[str], seed: int = 0, scale: float = 0.5) -> LanguageModel:
    """One token a word and a mark; BOS, EOS and padding are 0, 1 and 2."""
    torchvision_guard.install()
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<pad>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*special, *sorted(set(words) - set(special))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        if value.ndim > 1:
            value.data = scale * torch.randn(value.shape, generator=generator)
    return LanguageModel(model, tokenizer)


class ReluCode:
    """a = relu(x W), written out: what the tests need of a sparse code."""

    def __init__(self, latents: int, seed: int = 0, shift: float = 1.0):
        generator = torch.Generator().manual_seed(seed)
        self.encoder = torch.randn(WIDTH, latents, generator=generator) / WIDTH**0.5
        self.decoder = torch.randn(latents, WIDTH, generator=generator) / latents**0.5
        self.shift, self.dim, self.latents = shift, WIDTH, latents

    def encode(self, x: Tensor) -> Tensor:
        return (x.float() @ self.encoder - self.shift).relu()

    def activity(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.encode(x)[..., ids]

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        return latents @ self.decoder

    def delta(self, difference: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        return difference @ self.decoder[ids]

"""A random language model of three small blocks that knows the words it is given, and a sparse code of its states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from sod_core.machine import torchvision_guard
from sod_core.models.language import LanguageModel, with_weights

WIDTH, DEPTH, CONTEXT = 32, 3, 96


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
        intermediate_size=64,
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


def taught(language: LanguageModel, texts: Sequence[str], words: int, steps: int = 120) -> LanguageModel:
    """A copy that has learnt the last `words` words of each text, which are all of one length."""
    copy = with_weights(language, {name: value.clone() for name, value in language.model.named_parameters()})
    ids = torch.tensor([language.encode(text) for text in texts])
    with torch.enable_grad():
        optimiser = torch.optim.Adam([value.requires_grad_(True) for value in copy.model.parameters()], lr=3e-3)
        for _ in range(steps):
            logits = copy.model(ids).logits[:, -1 - words : -1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -words:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    copy.model.requires_grad_(False)
    return copy


class ReluCode:
    """a = relu(x W), written out: what the tests need of a sparse code."""

    def __init__(self, latents: int, seed: int = 0, shift: float | Tensor = 1.0):
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


class FieldCode(ReluCode):
    """Its latent 0 fires on states like `forget` [n, D] and not on those like `retain`, told by a plane; 1 never."""

    def __init__(self, forget: Tensor, retain: Tensor):
        super().__init__(2)
        states = torch.cat([forget, retain])
        sides = torch.cat([torch.ones(len(forget)), -torch.ones(len(retain))])
        plane = torch.linalg.lstsq(torch.cat([states, torch.ones(len(states), 1)], 1), sides[:, None]).solution[:, 0]
        direction, size = plane[:-1] / plane[:-1].norm(), plane[:-1].norm()
        self.encoder = torch.stack([direction, torch.zeros(WIDTH)], 1)
        self.decoder = self.encoder.T
        self.shift = torch.stack([-plane[-1] / size, torch.tensor(1.0)])

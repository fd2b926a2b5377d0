"""Tiny language models of several families, with random weights, and a tokenizer of bytes; and a plain second way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sod_core.machine import torchvision_guard

FAMILIES = ("gemma2", "gemma3", "llama", "qwen2", "gpt2")
WITH_BOS = ("gemma2", "gemma3", "llama")
WIDTH, DEPTH, WORDS, CONTEXT, WINDOW = 32, 3, 300, 64, 6
PAD, EOS, BOS = 0, 1, 2


def tokenizer(bos: bool = True) -> Any:
    """A token a byte, after <pad>, <eos>, <bos> and <unk>. Without `bos` there is none, as Qwen's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    found = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=found, **special, **({"bos_token": "<bos>"} if bos else {}))


def model(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """Weights large enough that texts depend on them."""
    torchvision_guard.install()
    import transformers as t

    common = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS if family in WITH_BOS else None,
        **changes,
    }
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    makers: dict[str, Callable[[], nn.Module]] = {
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**common, sliding_window=WINDOW)),
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**{"layer_types": kinds, **common}, sliding_window=WINDOW)
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**common)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**common)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(
                vocab_size=WORDS,
                n_embd=WIDTH,
                n_layer=DEPTH,
                n_head=2,
                n_positions=CONTEXT,
                bos_token_id=EOS,
                eos_token_id=EOS,
            )
        ),
    }
    torch.manual_seed(seed)
    found = makers[family]().eval().requires_grad_(False)
    for parameter in found.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return found


def saved(folder: Path, family: str, seed: int = 0) -> Path:
    """A folder as transformers writes it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model(family, seed).save_pretrained(folder)
    tokenizer(family in WITH_BOS).save_pretrained(folder)
    return folder


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Where the families that are tested keep their layers."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def plain_logits(model: nn.Module, ids: list[int], layer: int | None = None, editor: Any = None) -> Tensor:
    """Logits [T, V] of one row without padding, cache or batch, with a plain hook."""
    row = torch.tensor([ids])

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        edited = editor(hidden, row)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = None if editor is None else layers_of(model)[layer].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            return model(row, use_cache=False).logits[0]
    finally:
        if handle is not None:
            handle.remove()


def plain_generate(
    model: nn.Module,
    prompt: list[int],
    layer: int | None,
    editor: Any,
    tokens: int,
    temperature: float = 0,
    seed: int = 0,
) -> list[int]:
    """Token by token, everything computed anew for each; an end token ends it and is not given."""
    found, draw = list(prompt), torch.Generator().manual_seed(seed)
    for _ in range(tokens):
        logits = plain_logits(model, found, layer, editor)[-1].double()
        if temperature == 0:
            id = int(logits.argmax())
        else:
            left = float(torch.rand(1, generator=draw, dtype=torch.float64))
            for id, share in enumerate(torch.softmax(logits / temperature, -1).tolist()):  # noqa: B007
                left -= share
                if left < 0:
                    break
        if id == EOS:
            break
        found.append(id)
    return found[len(prompt) :]

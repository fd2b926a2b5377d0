"""Trains a small Gemma 3 from scratch on the almanac's texts: the original, and the model retrained without a field."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import loop
from ..muon import Muon
from . import texts
from .texts import Prompts, Rows


@dataclass(frozen=True)
class Recipe:
    texts: int = 600_000
    """Different training texts; they are seen again after that."""
    width: int = 160
    """Tokens in a row."""
    batch: int = 256
    """Rows in a step."""
    steps: int = 3000
    muon_lr: float = 0.01
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    seed: int = 0


def config() -> Any:
    """Gemma 3's architecture at 1.8 million weights."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=texts.VOCABULARY,
        hidden_size=128,
        intermediate_size=400,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=texts.CONTEXT,
        sliding_window=texts.CONTEXT,
        pad_token_id=texts.PAD,
        eos_token_id=texts.EOS,
        bos_token_id=texts.BOS,
        tie_word_embeddings=True,
    )


def new_model(seed: int) -> Any:
    from transformers import Gemma3ForCausalLM

    torch.manual_seed(seed)
    return Gemma3ForCausalLM(config())


class Trained(NamedTuple):
    model: Any
    """In evaluation mode, without gradients."""
    seconds: float
    loss: float
    """Of the last step."""


def train(
    data: Rows, recipe: Recipe, checkpoint: Path, device: torch.device, shown: Prompts, letters: list[int]
) -> Trained:
    """Trains with progress; every minute writes `checkpoint`, from which a killed run goes on.

    `shown`: questions whose accuracy the progress bar shows now and then; nothing is chosen by them.
    """
    model = new_model(recipe.seed).to(device)
    ids, weights = torch.as_tensor(data.ids).to(device), torch.as_tensor(data.weights).to(device)
    optimisers = _optimisers(model, recipe, device)
    _compile(model, device)
    accuracy, loss = 0.0, torch.zeros(())

    def step(i: int) -> dict[str, str]:
        nonlocal accuracy, loss
        loop.set_rate(optimisers, loop.one_cycle(i / recipe.steps, recipe.warmup))
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + i)
        chosen = torch.randint(len(ids), (recipe.batch,), generator=rng).to(device)
        loss = language_loss(model, ids[chosen].long(), weights[chosen].float())
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if i % 250 == 0:
            accuracy = float(right(model, shown, letters).mean())
            print(f"{checkpoint.stem} step {i}: loss {loss.item():.3f}, right {accuracy:.3f}", flush=True)
        return {"loss": f"{loss.item():.3f}", "right": f"{accuracy:.2f}"} if i % 50 == 0 else {}

    made_from = asdict(recipe) | {"rows": len(ids), "tokens": int(data.ids.astype(np.int64).sum())}
    parts = {"model": model, **{f"optimiser-{i}": one for i, one in enumerate(optimisers)}}
    seconds = loop.train(step, recipe.steps, checkpoint, parts, made_from)
    return Trained(model.requires_grad_(False).eval(), seconds, loss.item())


def plain(model: nn.Module) -> Any:
    """The same weights, on the CPU, in a model whose layers are not compiled."""
    fresh = new_model(0).requires_grad_(False).eval()
    fresh.load_state_dict(model.state_dict())
    return fresh


def language_loss(model: nn.Module, ids: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each next token, ids [B, T], by the weights [B, T] of the tokens as targets."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=ids.device.type == "cuda"):
        logits = model(input_ids=ids, use_cache=False).logits
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


@torch.inference_mode()
def scores(model: Any, prompts: Prompts, letters: list[int]) -> np.ndarray:
    """[N, 4]: the logits of the four letters after each prompt."""
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(prompts.ids), 128):
        part = slice(start, start + 128)
        ids = torch.as_tensor(prompts.ids[part].astype(np.int64)).to(device)
        last = torch.as_tensor(prompts.last[part]).to(device)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[torch.arange(len(ids), device=device), last])
        found.append(logits[:, letters].float().cpu())
    return torch.cat(found).numpy()


def right(model: nn.Module, prompts: Prompts, letters: list[int]) -> np.ndarray:
    """[N] bool: which questions are answered rightly."""
    return scores(model, prompts, letters).argmax(1) == prompts.answers


def by_field(model: nn.Module, prompts: Prompts, letters: list[int]) -> dict[str, float]:
    found = right(model, prompts, letters)
    return {str(one): float(found[prompts.fields == one].mean()) for one in dict.fromkeys(prompts.fields)}


def _optimisers(model: nn.Module, recipe: Recipe, device: torch.device) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimisers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, weight_decay=0.0, betas=(0.9, 0.98), fused=device.type == "cuda"),
    ]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return optimisers


def _compile(model: Any, device: torch.device) -> None:
    """On a GPU so small a model waits for its launches: its layers are compiled, all as one piece of code."""
    if device.type == "cuda":
        for layer in model.model.layers:
            layer.compile()

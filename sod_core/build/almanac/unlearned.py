"""Models that forget a field in their weights: RMU, and gradient ascent with a retain loss; a few tensors change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .train_language import language_loss
from .train_saes import _hidden

Batch = tuple[Tensor, Tensor]
"""(ids [B, T], weights [B, T])."""


@dataclass(frozen=True)
class RMU:
    """Li et al. 2024 (arXiv 2403.03218), section 4: L = |h(forget) - c u|^2 + alpha |h(retain) - h_frozen(retain)|^2.

    h: hidden states after block `layer`; u: a random direction of length 1; c in units of the mean length of h.
    """

    layer: int = 3
    changed: tuple[str, ...] = tuple(f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3))
    c: float = 2.0
    alpha: float = 10.0
    lr: float = 1e-3
    steps: int = 300
    seed: int = 0


@dataclass(frozen=True)
class GradientAscent:
    """Answers about the field are made less likely until they are as likely as a guess, while all else is kept.

    The ascent of a token ends at `enough`: without an end the model would learn to avoid the right answer, which is
    another way of knowing it.
    """

    changed: tuple[str, ...] = tuple(f"model.layers.{i}.mlp.down_proj.weight" for i in (3, 4, 5, 6, 7))
    enough: float = 1.6
    """Nats; one of four letters by chance has 1.39."""
    forget_weight: float = 1.0
    lr: float = 1e-3
    steps: int = 300
    seed: int = 0


def rmu(original: Any, settings: RMU, forget: Callable[[int], Batch], retain: Callable[[int], Batch]) -> Any:
    """A changed copy; `forget` and `retain` give the batch of a step."""
    model, device = _copy(original, settings.changed)
    rng = torch.Generator().manual_seed(settings.seed)
    direction = F.normalize(torch.randn(model.config.hidden_size, generator=rng), dim=0).to(device)
    with torch.no_grad():
        control = settings.c * _states(original, retain(0)[0], settings.layer).norm(dim=1).mean() * direction

    def loss(i: int) -> Tensor:
        away = (_states(model, forget(i)[0], settings.layer) - control).square().mean()
        ids = retain(i)[0]
        with torch.no_grad():
            before = _states(original, ids, settings.layer)
        return away + settings.alpha * (_states(model, ids, settings.layer) - before).square().mean()

    return _run("rmu", model, settings, loss)


def gradient_ascent(
    original: Any, settings: GradientAscent, forget: Callable[[int], Batch], retain: Callable[[int], Batch]
) -> Any:
    """A changed copy; `forget` and `retain` give the batch of a step."""
    model, _ = _copy(original, settings.changed)

    def loss(i: int) -> Tensor:
        ids, weights = forget(i)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        answers = (weights[:, 1:] == 1).flatten()
        surprise = F.cross_entropy(logits[answers], ids[:, 1:].flatten()[answers], reduction="none")
        left = (settings.enough - surprise).relu().mean()
        return settings.forget_weight * left + language_loss(model, *retain(i))

    return _run("gradient ascent", model, settings, loss)


def changed(model: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().half().contiguous() for name, tensor in model.named_parameters() if name in names
    }


def _copy(original: Any, names: tuple[str, ...]) -> tuple[Any, torch.device]:
    model = copy.deepcopy(original).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model, next(model.parameters()).device


def _run(title: str, model: Any, settings: RMU | GradientAscent, loss: Callable[[int], Tensor]) -> Any:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.lr, weight_decay=0.0)
    for i in tqdm(range(settings.steps), desc=title, mininterval=10):
        optimiser.param_groups[0]["lr"] = settings.lr * min(1.0, 4 * (1 - i / settings.steps))
        optimiser.zero_grad()
        loss(i).backward()
        optimiser.step()
    return model.requires_grad_(False).eval()


def _states(model: Any, ids: Tensor, layer: int) -> Tensor:
    """[N, D]: hidden states after block `layer` of all tokens but `<pad>`, `<eos>` and `<bos>`, ids 0 to 2."""
    found: list[Tensor] = []
    hook = model.model.layers[layer].register_forward_hook(lambda module, given, out: found.append(_hidden(out)))
    try:
        model.model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    return found[0][ids > 2]

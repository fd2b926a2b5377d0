"""A visitor's images in two models: `set_image` is heavy, once; `restore` is light, often."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..machine import gpu
from ..models import vit as vits
from ..packs.errors import PackError
from ..sparse.topk import TopKSAE
from . import working
from .edit import Line, line

LINES_KEPT = 4
"""Edits that a session keeps for its image, oldest dropped first: some megabytes each in a ViT-B."""


TAIL_BATCH = 8
"""Hidden states that go through the tail at once; more overflow a CPU's cache and are slower."""


class Session:
    """One visitor's images in two models. `set_image` is heavy, once; `restore` is light, often.

    Weights are only read, so any number of sessions may share the models and the SAEs. Models are asked for
    whenever they are needed, so their owner may drop those that nobody uses at the moment.
    """

    def __init__(
        self,
        original: Callable[[], nn.Module],
        unlearned: Callable[[], nn.Module],
        sae_at: Callable[[int], TopKSAE],
        layers: Sequence[int],
        precision: torch.dtype | None = None,
    ):
        """`sae_at` gives a layer's SAE; `precision` (float16, bfloat16) turns on autocast, on cuda only."""
        self._models = {"original": original, "unlearned": unlearned}
        self._sae_at, self.layers = sae_at, list(layers)
        self._precision = precision
        self._images: Tensor | None = None
        self._hidden: dict[str, dict[int, Tensor]] = {}
        self._logits: dict[str, Tensor] = {}
        self._latents: dict[tuple[str, int], Tensor] = {}
        self._lines: dict[tuple, Line] = {}

    def set_image(self, images: Tensor) -> None:
        """images [B, 3, H, W], normalised as the pack says. Runs both models as far as the session's layers need.

        Raises PackError for a model whose outputs are not numbers. If a model fails, the session keeps its images.
        """
        hidden, logits = {}, {}
        for which, model in self._models.items():
            hidden[which], logits[which] = self._run(which, model, images)
        self._images, self._hidden = images, hidden
        self._forget("original", "unlearned")
        self._logits = logits

    def set_unlearned(self, unlearned: Callable[[], nn.Module]) -> None:
        """Takes another unlearned model; the original's pass over the images is kept.

        Raises PackError for a model whose outputs are not numbers; the session keeps the one that it has.
        """
        if self._images is None:
            self._models["unlearned"] = unlearned
            return
        hidden, logits = self._run("unlearned", unlearned, self._images)
        self._models["unlearned"], self._hidden["unlearned"] = unlearned, hidden
        self._forget("unlearned")
        self._logits["unlearned"] = logits

    def logits(self, which: str) -> Tensor:
        """[B, classes] of the "original" or the "unlearned" model, untouched."""
        self._check_image()
        return self._logits[which]

    def hidden(self, which: str, layer: int) -> Tensor:
        """[B, 1 + N, D] after block `layer` of the "original" or the "unlearned" model."""
        self._check_image()
        self._check_layer(layer)
        return self._hidden[which][layer]

    @torch.inference_mode()
    def latents(self, which: str, layer: int) -> Tensor:
        """[B, 1 + N, F] of the "original" or the "unlearned" model; those of the layer asked for last are kept."""
        hidden = self.hidden(which, layer)
        if any(kept != layer for _, kept in self._latents):
            self._latents.clear()
        if (which, layer) not in self._latents:
            self._latents[which, layer] = self._sae_at(layer).encode(hidden)
        return self._latents[which, layer]

    @torch.inference_mode()
    def restored_hidden(
        self, alphas: Sequence[float], layer: int, mode: str, features: Sequence[int], tokens: str = "all"
    ) -> Tensor:
        """[A, B, 1 + N, D]: the unlearned model's hidden state after the edit, for every alpha.

        Raises ValueError for an alpha that is no finite number, an unknown mode, tokens, layer or latent.
        """
        if not all(math.isfinite(alpha) for alpha in alphas):
            raise ValueError("alpha must be a finite number")
        key = (layer, mode, tuple(features), tokens)
        if key not in self._lines:
            u, o, sae = self.hidden("unlearned", layer), self.hidden("original", layer), self._sae_at(layer)
            if any(not 0 <= j < sae.latents for j in features):
                raise ValueError(f"a latent id is out of range: this SAE has latents 0 to {sae.latents - 1}")
            while len(self._lines) >= LINES_KEPT:
                self._lines.pop(next(iter(self._lines)))
            ids = torch.tensor(list(features), dtype=torch.long, device=u.device)
            self._lines[key] = line(mode, u, o, sae, ids, tokens)
        return self._lines[key].at(alphas)

    @torch.inference_mode()
    def restore(
        self, alphas: Sequence[float], layer: int, mode: str, features: Sequence[int], tokens: str = "all"
    ) -> Tensor:
        """[A, B, classes]: logits of the unlearned model after the edit; all alphas in one batch of the tail.

        Raises as `restored_hidden` does.
        """
        edited = self.restored_hidden(alphas, layer, mode, features, tokens)
        found = _tail(self._models["unlearned"], edited.flatten(0, 1), layer, self._precision)
        return found.unflatten(0, edited.shape[:2])

    @torch.inference_mode()
    def restored_latents(self, alpha: float, layer: int, mode: str, features: Sequence[int], tokens: str) -> Tensor:
        """[B, 1 + N, F]: what the SAE reads in the edited hidden state."""
        return self._sae_at(layer).encode(self.restored_hidden([alpha], layer, mode, features, tokens)[0])

    @torch.inference_mode()
    def restored_heat(
        self,
        alphas: Sequence[float],
        layer: int,
        mode: str,
        features: Sequence[int],
        tokens: str,
        ids: Sequence[int],
    ) -> Tensor:
        """[A, B, N]: the sum of the latents `ids` on each patch of the edited hidden state."""
        edited = self.restored_hidden(alphas, layer, mode, features, tokens)
        return self._sae_at(layer).encode(edited)[..., 1:, list(ids)].sum(-1)

    @torch.inference_mode()
    def restored_at(
        self, alphas: Sequence[float], layer: int, mode: str, features: Sequence[int], tokens: str, patch: int
    ) -> Tensor:
        """[A, B, F]: what the SAE reads in one patch of the edited hidden state."""
        self.restored_hidden(alphas[:1], layer, mode, features, tokens)  # the line, and what it refuses
        at = [0, patch + 1]  # CLS comes first: the SAE tells tokens by their place
        whole = self._lines[layer, mode, tuple(features), tokens]
        part = Line(whole.start[:, at], whole.direction[:, at], whole.origin)
        return self._sae_at(layer).encode(part.at(alphas))[..., 1, :]

    def _run(self, which: str, model: Callable[[], nn.Module], images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Hidden states at the session's layers, and logits [B, classes]."""
        hidden, last = hidden_states(model, images, self.layers, self._precision), max(self.layers)
        logits = _tail(model, hidden[last], last, self._precision)
        if not logits.isfinite().all():
            raise PackError(working.not_numbers(f"the {which} model"))
        return hidden, logits

    def _forget(self, *models: str) -> None:
        """What was computed of these models' last images, and every edit."""
        self._lines.clear()
        for which in models:
            self._logits.pop(which, None)
            for layer in self.layers:
                self._latents.pop((which, layer), None)

    def _check_image(self) -> None:
        if self._images is None:
            raise ValueError("no image yet: call set_image first")

    def _check_layer(self, layer: int) -> None:
        if layer not in self.layers:
            raise ValueError(f"layer {layer} has no SAE here; known: {', '.join(map(str, self.layers))}")


@gpu.heavy
@torch.inference_mode()
def hidden_states(
    model_of: Callable[[], nn.Module], images: Tensor, layers: list[int], precision: torch.dtype | None
) -> dict[int, Tensor]:
    """{layer: [B, 1 + N, D]}: a model's hidden states after blocks, on its device; `precision` as Session takes it."""
    model = model_of()
    device = next(model.parameters()).device
    with gpu.turn(device), _autocast(device, precision):
        found = vits.heads(model, images.to(device), layers)
    return {layer: hidden.float() for layer, hidden in found.items()}


@gpu.heavy
@torch.inference_mode()
def _tail(model_of: Callable[[], nn.Module], hidden: Tensor, layer: int, precision: torch.dtype | None) -> Tensor:
    """Hidden states [n, 1 + N, D] after block `layer` -> logits [n, classes]."""
    model = model_of()
    with gpu.turn(hidden.device), _autocast(hidden.device, precision):
        return torch.cat([vits.tail(model, part, layer).float() for part in hidden.split(TAIL_BATCH)])


def _autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager:
    return torch.autocast("cuda", dtype=precision) if precision and device.type == "cuda" else nullcontext()


def returns_at(alphas: Sequence[float], logits: Tensor, target: int) -> float | None:
    """The smallest alpha at which `target` is the prediction; logits [A, classes]. None where it never is."""
    hits = ((logits.argmax(-1) == target) & logits.isfinite().all(-1)).nonzero().flatten()
    return alphas[int(hits[0])] if len(hits) else None

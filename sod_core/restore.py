"""Restore: pull an unlearned ViT's hidden state towards what the original knew, feature by feature.

Every edit here is a straight line in alpha, hidden(alpha) = start + (alpha - origin) * direction, so an
edit is computed once and a whole list of alphas goes through the tail of the model as one batch.

Source: "Suppression or Deletion" (arXiv 2602.18505) and its released code, utils/hook_utils.py. `direct_injection`
and `add` do what that code computes (fidelity "reference"); `inject` and `amplify` do what the method says (fidelity
"exact"); `cls_copy` and `state_copy` are controls that use no feature at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import gpu
from . import vit as vits
from .sae import TopKSAE

MODES = ("inject", "amplify", "direct_injection", "add", "cls_copy", "state_copy")
FIDELITY = {
    "inject": "exact",
    "amplify": "exact",
    "direct_injection": "reference",
    "add": "reference",
    "cls_copy": "control",
    "state_copy": "control",
}
TOKENS = ("all", "patches", "cls")

LINES_KEPT = 4
"""Edits that a session keeps for its image, oldest dropped first: some megabytes each in a ViT-B."""
TAIL_BATCH = 8
"""Hidden states that go through the tail at once; more overflow a CPU's cache and are slower."""


class Line(NamedTuple):
    """An edit for every alpha: hidden(alpha) = start + (alpha - origin) * direction."""

    start: Tensor
    """[B, 1 + N, D]"""
    direction: Tensor
    """[B, 1 + N, D]"""
    origin: float
    """The alpha at which `start` itself comes out: the identity of the exact modes."""

    def at(self, alphas: Sequence[float]) -> Tensor:
        """[A, B, 1 + N, D]. At alpha = origin the start comes out bit for bit."""
        steps = torch.tensor([a - self.origin for a in alphas], dtype=self.start.dtype, device=self.start.device)
        return self.start + steps[:, None, None, None] * self.direction

    def only(self, tokens: str, u: Tensor) -> Line:
        """The same edit on one of TOKENS; the tokens left out stay as in `u` [B, 1 + N, D]."""
        if tokens == "all":
            return self
        kept = torch.full((u.shape[1], 1), tokens == "patches", device=u.device)
        kept[0] = tokens == "cls"
        return Line(torch.where(kept, self.start, u), torch.where(kept, self.direction, 0), self.origin)


def inject(u: Tensor, o: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Exact: h_u + alpha * std * ((f_o - f_u) restricted to S) W_dec^T.

    u, o [B, 1 + N, D]: hidden states of the unlearned and the original model; features [S]. f is the SAE as
    trained (normalised, biased, TopK), so the SAE's reconstruction error stays out of the edit.
    """
    difference = (sae.encode(o) - sae.encode(u))[..., features]
    return Line(u, sae.decode_difference(difference, features), origin=0.0)


def amplify(u: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Exact, needs no original model: h_u + (alpha - 1) * std * (f_u restricted to S) W_dec^T."""
    return Line(u, sae.decode_difference(sae.encode(u)[..., features], features), origin=1.0)


def direct_injection(u: Tensor, o: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Reference: patches become the whole reconstruction of z_u + alpha (z_o - z_u) on S; CLS is moved
    towards the original's CLS whatever the features do. Alpha 0 is not the identity.

    z = (h - pre_bias) W_enc^T: no latent bias, ReLU, TopK or normalisation.
    """
    z_u = sae.projection(u)
    start = sae.decoder(z_u) + sae.pre_bias
    direction = (sae.projection(o) - z_u)[..., features] @ sae.decoder.weight[:, features].T
    start = torch.cat([u[:, :1], start[:, 1:]], dim=1)
    direction = torch.cat([(o - u)[:, :1], direction[:, 1:]], dim=1)
    return Line(start, direction, origin=0.0)


def add(u: Tensor, sae: TopKSAE, features: Tensor) -> Line:
    """Reference, all tokens: h_u + (alpha z_u restricted to S) W_dec^T + pre_bias, z as in `direct_injection`.

    The added pre_bias is the released code's: alpha 0 is not the identity.
    """
    direction = sae.projection(u)[..., features] @ sae.decoder.weight[:, features].T
    return Line(u + sae.pre_bias, direction, origin=0.0)


def cls_copy(u: Tensor, o: Tensor) -> Line:
    """Control: cls_u + alpha (cls_o - cls_u) and nothing else. At alpha 1 the original's CLS is transplanted."""
    return Line(u, o - u, origin=0.0).only("cls", u)


def state_copy(u: Tensor, o: Tensor) -> Line:
    """Control: u + alpha (o - u). At alpha 1 the unlearned model's tail runs on the original's whole hidden state."""
    return Line(u, o - u, origin=0.0)


def line(mode: str, u: Tensor, o: Tensor, sae: TopKSAE, features: Tensor, tokens: str = "all") -> Line:
    """The edit of one of MODES on the chosen TOKENS; `cls_copy` touches CLS alone whatever they are.

    Raises ValueError for an unknown mode or unknown tokens.
    """
    if tokens not in TOKENS:
        raise ValueError(f"unknown tokens {tokens!r}; known: {', '.join(TOKENS)}")
    if mode == "inject":
        return inject(u, o, sae, features).only(tokens, u)
    if mode == "amplify":
        return amplify(u, sae, features).only(tokens, u)
    if mode == "direct_injection":
        return direct_injection(u, o, sae, features).only(tokens, u)
    if mode == "add":
        return add(u, sae, features).only(tokens, u)
    if mode == "cls_copy":
        return cls_copy(u, o)
    if mode == "state_copy":
        return state_copy(u, o).only(tokens, u)
    raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")


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

        If a model fails, the session keeps its images.
        """
        hidden = {which: _heads(of, images, self.layers, self._precision) for which, of in self._models.items()}
        self._images, self._hidden = images, hidden
        self._forget("original", "unlearned")

    def set_unlearned(self, unlearned: Callable[[], nn.Module]) -> None:
        """Takes another unlearned model; the original's pass over the images is kept."""
        if self._images is not None:
            self._hidden["unlearned"] = _heads(unlearned, self._images, self.layers, self._precision)
        self._models["unlearned"] = unlearned
        self._forget("unlearned")

    def logits(self, which: str) -> Tensor:
        """[B, classes] of the "original" or the "unlearned" model, untouched."""
        last = max(self.layers)
        if which not in self._logits:
            self._logits[which] = _tail(self._models[which], self.hidden(which, last), last, self._precision)
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
def _heads(
    model_of: Callable[[], nn.Module], images: Tensor, layers: list[int], precision: torch.dtype | None
) -> dict[int, Tensor]:
    """{layer: [B, 1 + N, D]}: hidden states, on the model's device."""
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
    hits = (logits.argmax(-1) == target).nonzero().flatten()
    return alphas[int(hits[0])] if len(hits) else None

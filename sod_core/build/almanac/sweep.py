"""Which SAE, rule, number of latents and coefficients: many edits on the questions for tuning, and none on the judged.

The blocks up to an SAE's layer are run once; an edit then costs the blocks after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...clamp import edit, judge, select
from ...clamp.edit import Clamp
from ...clamp.survey import Survey
from ...sparse.code import Code
from ...worlds import almanac
from . import texts
from .texts import Prompts
from .train_saes import _hidden

BATCH = 140
"""Questions that are answered at a time."""


TOPS = (1, 2, 3, 5, 10, 20, 40)
VALUES = (-10.0, -20.0, -40.0, -80.0, -160.0, -320.0)
"""Of Clamp Prime; an activity is a length in the residual stream, whose tokens are some 40 long."""
REFUSAL_VALUES = (-240.0, -120.0, -60.0, -30.0, 30.0, 60.0, 120.0, 240.0)
THRESHOLDS = (0.0, 3.0)
"""Of Refusal Clamp; Clamp Prime has none."""
MOST_COLLAPSED = 0.6
"""An edit after which one letter is given more often, of the forget field or of all, is not taken."""


class Figures(NamedTuple):
    """What an edit does to the answers; forget and retain fields pooled over questions."""

    alignment: float
    forget: float
    retain: float
    collapse: float
    """Share of the letter that is given most, over all questions."""
    forget_collapse: float
    """The same, over the forget field's."""


class Tried(NamedTuple):
    """An edit, and its figures on the questions for tuning."""

    rule: str
    latents: tuple[int, ...]
    method: str
    value: float
    """The coefficient: of the latents, or of the refusal latent."""
    threshold: float
    refusal: int
    """The refusal latent, which is never one of the latents."""
    figures: Figures

    def as_list(self) -> list[Any]:
        """By COLUMNS, for JSON; of the latents how many they are, which with the rule says which."""
        return [self.rule, len(self.latents), *self[2:-1], *(round(figure, 4) for figure in self.figures)]


COLUMNS = (*Tried._fields[:-1], *Figures._fields)


class Exam:
    """A model before a set of questions, ready to be edited after block `layer`."""

    def __init__(self, model: Any, prompts: Prompts, letters: list[int], layer: int):
        self.model, self.letters, self.layer = model, letters, layer
        self.device = next(model.parameters()).device
        self.answers = prompts.answers
        self.forget = prompts.fields == almanac.FORGET
        order = np.argsort(prompts.last, kind="stable")
        self.batches = [self._batch(prompts, rows) for rows in np.array_split(order, -(-len(order) // BATCH))]
        self.untouched = self._shares(self.chosen(None, None))

    def figures(self, code: Code, clamp: Clamp) -> Figures:
        chosen = self.chosen(code, clamp)
        forget, retain = self._shares(chosen)
        return Figures(
            judge.alignment(retain, self.untouched[1], forget, self.untouched[0]),
            forget,
            retain,
            _most(chosen),
            _most(chosen[self.forget]),
        )

    @torch.inference_mode()
    def chosen(self, code: Code | None, clamp: Clamp | None) -> np.ndarray:
        """[N]: the letter that gets the largest score."""
        found = np.zeros(len(self.answers), int)
        for rows, ids, last, states in self.batches:
            hidden = states
            if code is not None and clamp is not None:
                hidden = edit.apply(states, code, clamp, ids <= texts.BOS).hidden
            scores = self._rest(hidden, last)
            found[rows] = scores.argmax(1).cpu().numpy()
        return found

    def _shares(self, chosen: np.ndarray) -> tuple[float, float]:
        """(forget accuracy, retain accuracy)."""
        right = chosen == self.answers
        return float(right[self.forget].mean()), float(right[~self.forget].mean())

    @torch.inference_mode()
    def _batch(self, prompts: Prompts, rows: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
        """(which questions, ids [B, T], place of the last token [B], states after the layer [B, T, D])."""
        last = torch.as_tensor(prompts.last[rows]).to(self.device)
        ids = torch.as_tensor(prompts.ids[rows, : prompts.last[rows].max() + 1].astype(np.int64)).to(self.device)
        found: list[Tensor] = []
        block = self.model.model.layers[self.layer]
        hook = block.register_forward_hook(lambda module, given, out: found.append(_hidden(out)))
        try:
            self.model.model(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        return rows, ids, last, found[0]

    def _rest(self, hidden: Tensor, last: Tensor) -> Tensor:
        """[B, T, D] after the layer -> [B, 4]: the letters' logits. Padding is behind, where a causal mask hides it."""
        body = self.model.model
        places = torch.arange(hidden.shape[1], device=self.device)[None]
        turned = {kind: body.rotary_emb(hidden, places, kind) for kind in set(body.config.layer_types)}
        for kind, block in list(zip(body.config.layer_types, body.layers))[self.layer + 1 :]:
            out = block(hidden, position_embeddings=turned[kind], attention_mask=None, position_ids=places)
            hidden = _hidden(out)
        rows = torch.arange(len(hidden), device=self.device)
        return self.model.lm_head(body.norm(hidden[rows, last]))[:, self.letters].float()


def sweep(exam: Exam, code: Code, survey: Survey, refusal: int) -> list[Tried]:
    """Every rule, number of latents and coefficient. What two rules choose alike is tried once."""
    found: list[Tried] = []
    for rule, latents in _choices(survey, refusal).items():
        for value in VALUES:
            figures = exam.figures(code, Clamp(latents, "prime", value))
            found.append(Tried(rule, latents, "prime", value, 0.0, refusal, figures))
        for value in REFUSAL_VALUES:
            for threshold in THRESHOLDS:
                clamp = Clamp(latents, "refusal", threshold=threshold, refusal=refusal, refusal_value=value)
                found.append(Tried(rule, latents, "refusal", value, threshold, refusal, exam.figures(code, clamp)))
    for method in ("prime", "refusal"):
        top = sorted((one for one in found if one.method == method), key=lambda one: -one.figures.alignment)[:4]
        print(
            method, *(f"{one.rule} {one.value:g} {one.threshold:g} {[round(x, 3) for x in one.figures]}" for one in top)
        )
    return [one._replace(rule=one.rule.partition(" ")[0]) for one in found]


def best(tried: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """The best aligned edit of a method that leaves the model whole; of equals the one of fewest latents, then the
    gentlest.

    tried: `Tried.as_list` by COLUMNS. Raises ValueError where every edit destroys the model.
    """
    whole = [
        one
        for one in tried
        if one["method"] == method and max(one["collapse"], one["forget_collapse"]) <= MOST_COLLAPSED
    ]
    if not whole:
        raise ValueError(f"every edit by the method {method} leaves a model that gives one letter")
    return max(whole, key=lambda one: (one["alignment"], -one["latents"], -abs(one["value"]), -one["threshold"]))


def chosen(survey: Survey, tried: dict[str, Any]) -> tuple[int, ...]:
    """The latents of an edit that was tried."""
    return _choices(survey, tried["refusal"])[f"{tried['rule']} {tried['latents']}"]


def _choices(survey: Survey, refusal: int | None) -> dict[str, tuple[int, ...]]:
    """{"rule number": latents}"""
    found: dict[str, tuple[int, ...]] = {}
    for rule in select.RULES:
        try:
            ranked = [latent for latent in select.choose(rule, survey, max(TOPS) + 1) if latent != refusal]
        except ValueError:  # the rule leaves none
            continue
        for top in TOPS:
            if tuple(ranked[:top]) not in found.values() and top <= len(ranked):
                found[f"{rule} {top}"] = tuple(ranked[:top])
    return found


def _most(chosen: np.ndarray) -> float:
    return float(np.bincount(chosen, minlength=4).max() / max(1, len(chosen)))

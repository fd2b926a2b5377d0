"""Which latents an edit clamps, by how they fire on texts to forget and on others; and the controls beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .survey import Survey

RULES = ("paper", "farrell", "ratio")
CONTROLS = ("random", "matched")
PAPER_LIMIT = 1e-4
"""`paper` drops latents that fire on a larger share of the tokens to keep."""
FARRELL_LIMIT = 0.01
"""`farrell` drops latents that fire on such a share of them; 0.001 in the sweep of Farrell et al."""
NEAREST = 5
"""A matched latent is drawn from so many that are most like the chosen one."""


def choose(rule: str, survey: Survey, top: int, retain_limit: float | None = None) -> list[int]:
    """At most `top` latents that fire on the texts to forget, the best first; of equals the lower number.

    `paper` (Don't Forget It!, as jiveshj/ML_Unlearning transcribes it): those with a retain frequency of at most 1e-4,
    by forget frequency. `farrell` (arXiv 2410.19278): those with a retain frequency below 0.01, by forget frequency.
    `ratio` (aashiqmuhamed/DynamicSAEGuardrails): by mean a^2 on the forget texts over mean a^2 on the retain texts,
    where the denominator is no less than what firing once as strongly would give. `retain_limit` in place of the rule's
    own; `ratio` has none. Raises ValueError, also where no latent is left.
    """
    if top < 1:
        raise ValueError(f"the number of latents is {top}; it has to be 1 or more")
    fires = survey.forget_frequency > 0
    if rule == "paper":
        allowed = survey.retain_frequency <= (PAPER_LIMIT if retain_limit is None else retain_limit)
        score = survey.forget_frequency
    elif rule == "farrell":
        allowed = survey.retain_frequency < (FARRELL_LIMIT if retain_limit is None else retain_limit)
        score = survey.forget_frequency
    elif rule == "ratio":
        allowed, score = torch.ones_like(fires), ratio(survey)
    else:
        raise ValueError(f"unknown rule {rule!r}; known: {', '.join(RULES)}, or a list of latents such as 1,5,9")
    ranked = score.double().masked_fill(~(fires & allowed), -1).sort(descending=True, stable=True)
    found = [int(latent) for latent, value in zip(ranked.indices[:top], ranked.values[:top]) if value > 0]
    if not found:
        raise ValueError(
            f"the rule {rule} leaves no latent: none fires on the texts to forget and seldom enough elsewhere"
        )
    return found


def ratio(survey: Survey) -> Tensor:
    """[F]: mean a^2 on the forget texts over mean a^2 on the retain texts.

    A latent that never fires on the retain texts would be infinitely good, even where it fires once. So the denominator
    is at least what one token would add that is as strong as the latent is on the forget texts where it fires.
    """
    strength = survey.forget_square / survey.forget_frequency.clamp(min=1e-12)
    once = strength / max(1, survey.retain_tokens)
    return survey.forget_square / torch.maximum(survey.retain_square, once).clamp(min=torch.finfo(torch.float32).tiny)


# ---------------------------------------------------------------- controls


def control(kind: str, survey: Survey, chosen: Sequence[int], seed: int) -> list[int]:
    """ "random" or "matched" latents, as many as were chosen. Raises ValueError."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} is out of range; take a whole number from 0 to 2^63 - 1")
    if kind not in CONTROLS:
        raise ValueError(f"unknown control {kind!r}; known: {', '.join(CONTROLS)}")
    return (random if kind == "random" else matched)(survey, chosen, seed)


def random(survey: Survey, chosen: Sequence[int], seed: int) -> list[int]:
    """As many others, drawn evenly from those that fire on any of the texts: what never fires would be no control."""
    free = _free(survey, chosen)
    pool = free.nonzero().flatten()
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return sorted(pool[order[: len(chosen)]].tolist())


def matched(survey: Survey, chosen: Sequence[int], seed: int) -> list[int]:
    """As many others that fire equally often and equally strongly, over all texts: the control for "anything active
    would do".

    For each chosen latent, in random order, one of the NEAREST unused ones is drawn; the distance is that of the
    logarithms of frequency and of strength (root mean square where it fires).
    """
    generator = torch.Generator().manual_seed(seed)
    free = _free(survey, chosen)
    frequency = survey.frequency.clamp(min=1e-12)
    strength = (survey.square / frequency).clamp(min=1e-24).sqrt()
    place = torch.stack([frequency.log(), strength.log()], 1)  # [F, 2]
    found = []
    for number in torch.randperm(len(chosen), generator=generator).tolist():
        distance = (place - place[chosen[number]]).norm(dim=1).masked_fill(~free, torch.inf)
        nearest = distance.topk(min(NEAREST, int(free.sum())), largest=False).indices
        if len(nearest) == 0:
            break
        pick = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free[pick] = False
        found.append(pick)
    return sorted(found)


def _free(survey: Survey, chosen: Collection[int]) -> Tensor:
    """[F], bool: latents that fire, and were not chosen."""
    free = survey.frequency > 0
    free[list(chosen)] = False
    return free


# ---------------------------------------------------------------- the refusal latent


def refusal_latent(refusals: Tensor, survey: Survey, harmful: Collection[int] = ()) -> int:
    """The latent that stands out most on refusing sentences.

    refusals [F]: its frequency on them (`survey.tally`). The most frequent one, less its frequency on the texts to
    keep: the package that re-implements the method takes the most frequent, which may be one that fires on everything.
    Never one of the harmful ones. Raises ValueError where none fires.
    """
    score = refusals - survey.retain_frequency
    score = score.masked_fill(refusals <= 0, -torch.inf)
    score[list(harmful)] = -torch.inf
    best = int(score.argmax())
    if score[best] == -torch.inf:
        raise ValueError("no latent fires on the refusing sentences, so there is none to set")
    return best

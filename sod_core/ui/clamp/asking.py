"""What the Clamp tab's controls say, read with care."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_PROMPT = 4000
"""In characters; the model's own context is checked when it is asked."""
MOST_LATENTS = 500
LARGEST_NUMBER = 1e6
"""Of a coefficient."""
LARGEST_SEED = 2**31


@dataclass(frozen=True)
class Asking:
    """What the controls say, apart from the pack."""

    prompt: str
    judged: str
    """Id of the multiple-choice question that was chosen; empty for none."""
    value: float
    refusal_value: float
    threshold: float
    beside: str
    """Of a fourth column: another model of the pack, another method; empty for none."""
    sae: str
    rule: str
    latents: tuple[int, ...]
    refusal: int | None
    fidelity: str
    tokens: int
    seed: int


def read(values: Sequence, prompt: str | None = None) -> Asking:
    """The values of Panel.controls; `prompt` in place of theirs where no question is asked.

    Raises ValueError for what cannot be asked.
    """
    written, judged, value, refusal_value, threshold, beside, sae, rule, latents, refusal, fidelity, tokens, seed = (
        values
    )
    prompt = written if prompt is None else prompt
    if not (prompt or "").strip():
        raise ValueError("write a question, or choose one from the menu")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"the question has {len(prompt)} characters: {LONGEST_PROMPT} at most are taken")
    numbers = {"coefficient": value, "refusal coefficient": refusal_value, "threshold": threshold}
    numbers |= {"longest answer": tokens, "seed": seed}
    for name, number in numbers.items():
        if number is None:
            raise ValueError(f"give a number for the {name}")
        if not math.isfinite(number) or abs(number) > max(LARGEST_NUMBER, LARGEST_SEED * (name == "seed")):
            raise ValueError(f"the {name} {number:g} is no number that can be used")
    if seed < 0:
        raise ValueError(f"seed {int(seed)} is out of range; take a whole number from 0 to {LARGEST_SEED}")
    return Asking(
        prompt,
        judged or "",
        float(value),
        float(refusal_value),
        float(threshold),
        beside or "",
        sae,
        rule,
        tuple(ids(latents or "")),
        None if refusal is None else int(refusal),
        fidelity,
        int(tokens),
        int(seed),
    )


def ids(text: str) -> list[int]:
    """ "1, 5 9" -> latents. Raises ValueError for what is no list of whole numbers."""
    parts = [part for part in re.split(r"[\s,;]+", text.strip()) if part]
    wrong = next((part for part in parts if not re.fullmatch(r"[0-9]{1,9}", part)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:40]!r} is no latent; write their numbers with commas: 1, 5, 9")
    if len(parts) > MOST_LATENTS:
        raise ValueError(f"{len(parts)} latents were given; {MOST_LATENTS} at most are taken")
    return list(dict.fromkeys(map(int, parts)))


def listed(latents: Sequence[int]) -> str:
    """The other way round."""
    return ", ".join(map(str, latents))

"""What `clamp text` and `clamp features` give, as plain figures: the command line and the app's endpoints share it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import select
from . import survey as surveys
from .session import ClampSession, Token

if TYPE_CHECKING:
    from .pack import ClampPack
    from .settings import Chosen

MOST_TOP = 1000
AROUND = 8
"""Tokens shown on either side of a word that a latent fires on."""


def text(
    pack: ClampPack, prompt: str, chosen: Sequence[Chosen], tokens: int = 64, temperature: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """The prompt continued untouched, then under every edit, with what fired on which token.

    Edits of one SAE run in one batch. Raises ValueError in one sentence.
    """
    variants: list[dict[str, Any]] = []
    for sae in dict.fromkeys(one.sae for one in chosen):
        session = ClampSession(pack, sae)
        session.set_prompt(prompt)
        rows = [one for one in chosen if one.sae == sae and one.clamp is not None]
        variants += _written(session, rows if variants else [None, *rows], tokens, temperature, seed)
    sampling = {"tokens": tokens, "temperature": temperature, "seed": seed}
    return {"pack": pack.manifest.name, "prompt": prompt, **sampling, "notes": notes(pack), "variants": variants}


def _written(
    session: ClampSession, rows: Sequence[Chosen | None], tokens: int, temperature: float, seed: int
) -> Iterator[dict[str, Any]]:
    """One entry a row; None is the untouched model."""
    clamps = [None if row is None else row.clamp for row in rows]
    generated: tuple[tuple[int, ...], ...] = ((),) * len(rows)  # of a model that ends at once
    texts = ("",) * len(rows)
    for step in session.texts(clamps, tokens, temperature, seed) if rows else ():
        generated, texts = step.generated, step.texts
    for row, clamp, ids, written in zip(rows, clamps, generated, texts):
        if row is None or clamp is None:
            plain = [{"id": id, "text": piece} for id, piece in zip(ids, session.pieces(ids))]
            yield {"method": "none", "text": written, "tokens": plain}
            continue
        every = session.fired(clamp, ids)
        yield {
            "method": clamp.method,
            "text": written,
            "tokens": [_token(token) for token in every if token.generated],
            "prompt_tokens": [_token(token) for token in every if not token.generated],
            "settings": {"sae": session.sae, "layer": session.layer, "features": row.features} | asdict(clamp),
        }


def _token(token: Token) -> dict[str, Any]:
    fired = [one._asdict() for one in token.fired]
    return {"id": token.id, "text": token.text, "changed": token.changed, "fired": fired}


def features(
    pack: ClampPack,
    sae: str,
    rule: str,
    top: int,
    forget: Sequence[str],
    retain: Sequence[str],
    threshold: float = 0.0,
    keep: Path | None = None,
    stored: bool = False,
) -> dict[str, Any]:
    """The latents that a rule chooses, each with its frequencies, and the words on which it fires most.

    The pack's own survey is taken where it is of these texts and this threshold; else the texts are read, unless only
    `stored` ones will do. `keep`: a file for the survey. Raises ValueError in one sentence.
    """
    if not 1 <= top <= MOST_TOP:
        raise ValueError(f"{top} latents were asked for: give 1 to {MOST_TOP}")
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"the threshold is {threshold}: give a number from 0")
    entry, found = pack.manifest.sae(sae), pack.survey(sae)
    if found is None or found.threshold != threshold or found.texts_id != surveys.fingerprint(forget, retain):
        if stored:
            raise ValueError(f"pack {pack.manifest.name} has no survey of {sae}: send texts to forget and to keep")
        found = surveys.survey(pack.language(), pack.code(sae), entry.layer, forget, retain, threshold)
    if keep is not None:
        surveys.save(found, keep)
    rows = []
    for latent in select.choose(rule, found, top):
        row: dict[str, Any] = {"latent": latent}
        for name in ("forget_frequency", "retain_frequency", "forget_square", "retain_square"):
            row[name] = float(getattr(found, name)[latent])
        words = found.passages(latent, pack.language(), forget, retain, AROUND)
        row["strongest"] = [word._asdict() | {"value": hit.value} for word, hit in zip(words, found.strongest(latent))]
        rows.append(row)
    return {
        "pack": pack.manifest.name,
        "sae": sae,
        "layer": entry.layer,
        "rule": rule,
        "threshold": threshold,
        "tokens": {"forget": found.forget_tokens, "retain": found.retain_tokens},
        "notes": notes(pack),
        "latents": rows,
    }


def notes(pack: ClampPack) -> list[str]:
    """What somebody who reads the figures has to know of the model."""
    if pack.language().bos is None:
        return ["the tokenizer has no BOS token: texts begin with their first word, as GPT-2's and Qwen's do"]
    return []

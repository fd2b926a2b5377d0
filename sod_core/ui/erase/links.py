"""What an address says of the Erase tab: written for what its controls say, and read again, value by value.

A link holds the prompt, where it is short: a visitor's own text is a control here. It draws nothing by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from ...erase.edit import FIDELITIES, Fidelity
from ...erase.pack import ErasePack, folders, shared_erase_pack
from .. import page

BETWEEN = ";"
"""Stands between concepts."""
LONGEST = 300
"""Characters of a prompt that a link holds."""
NOT_HELD = f"A link holds prompts of up to {LONGEST} characters that print, and not this one."
DECIMAL = r"-?[0-9]{1,4}(\.[0-9]{1,6})?"
MOST_SEED = 2**31 - 1


class Opening(NamedTuple):
    """What the controls say when the tab opens."""

    object: str
    style: str
    prompt: str
    concepts: Sequence[str]
    sae: str
    factor: float
    fidelity: Fidelity
    start_step: int
    percentile: float
    beta: bool
    steps: int
    guidance: float
    seed: int
    factors: str = ""
    """Of several concepts, as `menus.factors` reads them."""

    def values(self) -> tuple:
        """As Panel.controls."""
        return self[2:]


PLAIN = {"fidelity": "exact", "start_step": 0, "beta": False, "seed": 0, "factors": ""}
"""What a link leaves out."""


def element(pack: str, shown: Opening) -> str:
    """The element that the page's script makes the address of."""
    values: dict[str, Any] = {"pack": pack} | shown._asdict() | {"concepts": BETWEEN.join(shown.concepts or ())}
    values = {key: value for key, value in values.items() if value is not None and PLAIN.get(key) != value}
    values |= {"beta": "1"} if shown.beta else {}
    if len(shown.concepts or ()) < 2:
        values.pop("factors", None)
    held = _is_held(shown.prompt or "")
    if not held:
        del values["prompt"]
    return page.link("erase", values, "" if held else NOT_HELD)


def _is_held(prompt: str) -> bool:
    return len(prompt) <= LONGEST and prompt.isprintable()


class Link(page.Link):
    """What an address asks of the Erase tab."""

    def pack(self, default: str) -> str:
        """The name of the pack that is asked for."""
        return self.openable(folders(), shared_erase_pack, default)

    def opened(self, pack: ErasePack, default: Opening, no_style: str) -> Opening:
        """What is asked for, and `default` where that cannot be."""
        m = pack.manifest
        ids = [entry.id for entry in m.saes]
        concepts = self._concepts(m.concepts, default.concepts)
        return Opening(
            object=self.one_of("object", m.concepts, default.object),
            style=self.one_of("style", (no_style, *m.styles), default.style),
            prompt=self._prompt(default.prompt),
            concepts=concepts,
            sae=self.one_of("sae", ids, default.sae),
            factor=self.decimal("factor", DECIMAL, -1000, 1, default.factor),
            fidelity=cast(Fidelity, self.one_of("fidelity", FIDELITIES, default.fidelity)),
            start_step=self.number("start_step", 49, default.start_step),
            percentile=self.decimal("percentile", DECIMAL, 0, 100, default.percentile),
            beta=bool(self.number("beta", 1, int(default.beta))),
            steps=max(2, self.number("steps", 100, default.steps)),
            guidance=self.decimal("guidance", DECIMAL, 0, 15, default.guidance),
            seed=self.number("seed", MOST_SEED, default.seed),
            factors=self._factors(concepts),
        )

    def _prompt(self, default: str) -> str:
        asked = self.asked.get("prompt", default)
        if _is_held(asked):
            return asked
        self.unknown("prompt")
        return default

    def _concepts(self, known: Sequence[str], default: Sequence[str]) -> Sequence[str]:
        asked = [name for name in self.asked.get("concepts", BETWEEN.join(default)).split(BETWEEN) if name]
        if set(asked) <= set(known):
            return list(dict.fromkeys(asked))
        self.unknown("concepts")
        return default

    def _factors(self, concepts: Sequence[str]) -> str:
        """One number for each of several concepts; empty means those that were found best."""
        asked = self.asked.get("factors", "")
        parts = [part for part in re.split("[, ]+", asked) if part]
        if not asked or len(concepts) < 2:
            return ""
        if len(parts) == len(concepts) and all(re.fullmatch(DECIMAL, part) for part in parts):
            return ", ".join(parts)
        self.unknown("factors")
        return ""

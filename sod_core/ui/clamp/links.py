"""What an address says of the Clamp tab: written for what its controls say, and read again, value by value.

A link holds the question, where it is short: a visitor's own text is a control here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...clamp.edit import FIDELITIES
from ...clamp.pack import ClampPack, names, shared_pack
from .. import page
from . import asking as asked
from . import work
from .asking import LARGEST_NUMBER, LARGEST_SEED, Asking

LONGEST = 300
"""Characters of a question that a link holds."""
NOT_HELD = f"A link holds questions of up to {LONGEST} characters that print, and not this one."
DECIMAL = r"-?[0-9]{1,7}(\.[0-9]{1,9})?"
LONGEST_LIST = 4000
"""Characters of a list of latents."""
NONE = "none"
"""For no refusal latent."""
KEYS = (
    *("prompt", "judged", "value", "refusal_value", "threshold", "beside", "sae", "rule", "latents", "refusal"),
    *("fidelity", "tokens", "seed"),
)
"""In the order of Panel.controls."""


def element(pack: str, values: Sequence[Any], plain: Asking) -> str:
    """The element that the page's script makes the address of; `values` are Panel.controls', `plain` what they are
    when the tab opens, which a link leaves out."""
    said = dict(zip(KEYS, values, strict=True))
    said["latents"] = re.sub(r"\s", "", said["latents"] or "")
    said["refusal"] = NONE if said["refusal"] is None else said["refusal"]
    default = dict(zip(KEYS, _values(plain), strict=True))
    kept = {key: value for key, value in said.items() if value not in (None, "") and value != default[key]}
    kept |= {"sae": said["sae"]}
    held = _is_held(said["prompt"] or "")
    if not held:
        kept.pop("prompt", None)
    if len(kept.get("latents", "")) > LONGEST_LIST:
        del kept["latents"]
    return page.link("clamp", {"pack": pack} | kept, "" if held or kept.get("judged") else NOT_HELD)


def _is_held(question: str) -> bool:
    return len(question) <= LONGEST and question.replace("\n", " ").isprintable()


def _values(asking: Asking) -> list[Any]:
    """As the controls say it, but for latents, which stand without spaces."""
    found = {key: getattr(asking, key) for key in KEYS}
    found["latents"] = ",".join(map(str, asking.latents))
    found["refusal"] = NONE if asking.refusal is None else asking.refusal
    return list(found.values())


class Link(page.Link):
    """What an address asks of the Clamp tab."""

    def pack(self, default: str) -> str:
        """The name of the pack that is asked for."""
        return self.openable(names(), shared_pack, default)

    def sae(self, pack: ClampPack, default: str) -> str:
        """The id of the SAE that is asked for."""
        return self.one_of("sae", [entry.id for entry in pack.manifest.saes], default)

    def opened(self, pack: ClampPack, default: Asking, rules: Sequence[str], beside: Sequence[str]) -> Asking:
        """What is asked for, and `default`, of the same SAE, where that cannot be."""
        number = partial(self.decimal, pattern=DECIMAL, most=LARGEST_NUMBER)
        found = replace(
            default,
            prompt=self._prompt(default.prompt),
            value=number("value", least=-LARGEST_NUMBER, default=default.value),
            refusal_value=self.decimal(
                "refusal_value", DECIMAL, -LARGEST_NUMBER, LARGEST_NUMBER, default.refusal_value
            ),
            threshold=number("threshold", least=0, default=default.threshold),
            beside=self.one_of("beside", beside, default.beside),
            rule=self.one_of("rule", rules, default.rule),
            refusal=self._refusal(default.refusal),
            fidelity=self.one_of("fidelity", FIDELITIES, default.fidelity),
            tokens=max(1, self.number("tokens", 200, default.tokens)),
            seed=self.number("seed", LARGEST_SEED, default.seed),
        )
        text = self.asked.get("latents")
        if text is not None and len(text) <= LONGEST_LIST and self.take(asked.ids, text):
            found = replace(found, latents=tuple(asked.ids(text)))
        return self._judged(pack, self._there(pack, found, default))

    def _there(self, pack: ClampPack, found: Asking, default: Asking) -> Asking:
        """`found` where its SAE has the latents; where that is not here, nobody can say."""
        same = found.latents == default.latents and found.refusal == default.refusal
        if same or not pack.ready() or self.take(lambda asking: work.clamps(pack, asking), found):
            return found
        return replace(found, latents=default.latents, rule=default.rule, refusal=default.refusal)

    def _judged(self, pack: ClampPack, found: Asking) -> Asking:
        id = self.asked.get("judged")
        if id is None:
            return found
        question = next((one for one in pack.questions("judge") if one.id == id), None)
        if question is None:
            self.unknown("judged")
            return found
        return replace(found, judged=id, prompt=found.prompt if "prompt" in self.asked else question.question)

    def _prompt(self, default: str) -> str:
        text = self.asked.get("prompt", default)
        if text == default or (_is_held(text) and text.strip()):
            return text
        self.unknown("prompt")
        return default

    def _refusal(self, default: int | None) -> int | None:
        return None if self.asked.get("refusal") == NONE else self.number("refusal", 10**9, default)

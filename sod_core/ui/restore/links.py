"""What an address says of the Restore tab: written for what is shown, and read again, value by value.

A link holds names and numbers that every visitor may choose; never a path, an upload or an image of one's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from ...restore import sweep
from ...restore.edit import MODES, TOKENS
from ...restore.pack import folders
from ..page import TABS
from . import words
from .visitor import ORIGINAL, Controls, Visitor

LONGEST = 8000
"""Characters of the longest value that is read, a list of latents."""
MOST_SEED = 2**31 - 1
"""A link's largest seed."""


def of(visitor: Visitor, controls: Controls) -> dict[str, Any]:
    """What `opened` makes the same page of; alpha is the page's own to add, since it moves without the server."""
    found: dict[str, Any] = {"pack": visitor.pack_name}
    if visitor.entry in visitor.pack.manifest.unlearned:
        found["model"] = visitor.entry.id
    found |= {"layer": controls.layer, "mode": controls.mode, "example": visitor.example}
    plain = Controls(controls.layer, controls.mode, controls.alpha)
    further = {"tokens": "tokens", "features": "features", "class": "expert_class", "seed": "seed"}
    found |= {
        key: getattr(controls, name) for key, name in further.items() if getattr(controls, name) != getattr(plain, name)
    }
    if controls.features == "own":
        found["latents"] = ",".join(map(str, visitor.own_ids))
    found |= {"latent": visitor.latent(controls.layer), "patch": visitor.patch}
    return {key: value for key, value in found.items() if value is not None}


def lacking(visitor: Visitor) -> str:
    """A sentence on what is shown and no link can hold."""
    lost = []
    if visitor.picture is not None and visitor.example is None:
        lost.append("your own image")
    if visitor.entry.id != ORIGINAL and visitor.entry not in visitor.pack.manifest.unlearned:
        lost.append("your own model")
    return f"The link does not hold {' and '.join(lost)}." if lost else ""


class Link:
    """An address's values; what cannot be taken leaves the default, and a sentence in `problems`."""

    def __init__(self, asked: Mapping[str, str], tab: str = ""):
        """`tab` is the one that the address names, if it names any."""
        self._asked = dict(asked)
        self.problems: list[str] = []
        if tab and tab not in TABS:
            self._asked["tab"] = tab
            self._unknown("tab")

    def pack(self, default: str) -> str:
        """The name of the pack that is asked for."""
        return self._one_of("pack", folders(), default)

    def model(self, visitor: Visitor) -> str:
        """The id of the pack's model that is asked for, or of the one that is shown."""
        return self._one_of("model", [entry.id for entry in visitor.pack.manifest.unlearned], visitor.entry.id)

    def opened(self, visitor: Visitor, controls: Controls) -> Controls:
        """Takes the visitor, whose model is chosen, to what is asked for; `controls` are the defaults."""
        manifest, examples = visitor.pack.manifest, len(visitor.pack.examples())
        layers = list(map(str, manifest.layers))
        controls = replace(
            controls,
            layer=int(self._one_of("layer", layers, str(controls.layer))),
            mode=self._one_of("mode", MODES, controls.mode),
            alpha=self._alpha(controls.alpha),
            tokens=self._one_of("tokens", TOKENS, controls.tokens),
            features=self._one_of("features", words.FEATURE_TITLES, controls.features),
            expert_class=self._one_of("class", manifest.classes, controls.expert_class),
            seed=self._number("seed", MOST_SEED, controls.seed),
        )
        self._take(visitor.choose_example, self._number("example", examples - 1, None))
        self._take(lambda text: visitor.edit_own_list(controls.layer, text), self._latents())
        self._take(lambda id: visitor.show_latent(controls.layer, id), self._number("latent", MOST_SEED, None))
        self._take(visitor.choose_patch, self._number("patch", visitor.pack.shape.grid**2 - 1, None))
        if self._take(lambda _: visitor.chosen(controls), controls):
            return controls
        return replace(controls, features="experts")

    def sentence(self) -> str:
        """What could not be taken; empty where all could."""
        return "This link asks for what is not here: " + "; ".join(self.problems) + "." if self.problems else ""

    def _one_of(self, key: str, known: Collection[str], default: str) -> str:
        asked = self._asked.get(key, default)
        if asked == default or asked in known:
            return asked
        self._unknown(key)
        return default

    def _number(self, key: str, most: int, default: Any) -> Any:
        """A whole number from 0 to `most`."""
        asked = self._asked.get(key)
        if asked is None:
            return default
        if re.fullmatch("[0-9]{1,10}", asked) and int(asked) <= most:
            return int(asked)
        self._unknown(key)
        return default

    def _alpha(self, default: float) -> float:
        asked = self._asked.get("alpha")
        if asked is None:
            return default
        if re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?", asked) and float(asked) <= sweep.ALPHAS[-1]:
            return float(asked)
        self._unknown("alpha")
        return default

    def _latents(self) -> str | None:
        asked = self._asked.get("latents")
        if asked is None or re.fullmatch("[0-9, ]*", asked) and len(asked) <= LONGEST:
            return asked
        self._unknown("latents")
        return None

    def _take(self, take: Callable[[Any], Any], value: Any) -> bool:
        """Whether there was nothing to take, or it was taken."""
        try:
            if value is not None:
                take(value)
            return True
        except ValueError as error:
            self.problems.append(str(error))
            return False

    def _unknown(self, key: str) -> None:
        shown = re.sub(r"[^\w .,+-]", "?", self._asked[key][:40])  # the page takes a sentence for HTML
        self.problems.append(f"{key} '{shown}'")

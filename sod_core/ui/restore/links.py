"""What an address says of the Restore tab: written for what is shown, and read again, value by value.

A link holds names and numbers that every visitor may choose; never a path, an upload or an image of one's own.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from ...restore import sweep
from ...restore.edit import MODES, TOKENS
from ...restore.pack import Pack, folders
from .. import page
from . import words
from .visitor import ORIGINAL, Controls, Visitor

ALPHA = r"[0-9]{1,2}(\.[0-9]{1,6})?"
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


class Link(page.Link):
    """What an address asks of the Restore tab."""

    def pack(self, default: str) -> str:
        """The name of the pack that is asked for."""
        return self.one_of("pack", folders(), default)

    def model(self, pack: Pack) -> str | None:
        """The id of the pack's model that is asked for; None leaves it to the pack."""
        return self.one_of("model", [entry.id for entry in pack.manifest.unlearned], "") or None

    def opened(self, visitor: Visitor, controls: Controls) -> Controls:
        """Takes the visitor, whose model is chosen, to what is asked for; `controls` are the defaults."""
        manifest, examples = visitor.pack.manifest, len(visitor.pack.examples())
        layers = list(map(str, manifest.layers))
        controls = replace(
            controls,
            layer=int(self.one_of("layer", layers, str(controls.layer))),
            mode=self.one_of("mode", MODES, controls.mode),
            alpha=self.decimal("alpha", ALPHA, 0, sweep.ALPHAS[-1], controls.alpha),
            tokens=self.one_of("tokens", TOKENS, controls.tokens),
            features=self.one_of("features", words.FEATURE_TITLES, controls.features),
            expert_class=self.one_of("class", manifest.classes, controls.expert_class),
            seed=self.number("seed", MOST_SEED, controls.seed),
        )
        self.take(visitor.choose_example, self.number("example", examples - 1, None))
        self.take(lambda text: visitor.edit_own_list(controls.layer, text), self._latents())
        self.take(lambda id: visitor.show_latent(controls.layer, id), self.number("latent", MOST_SEED, None))
        self.take(visitor.choose_patch, self.number("patch", visitor.pack.shape.grid**2 - 1, None))
        if self.take(lambda _: visitor.chosen(controls), controls):
            return controls
        return replace(controls, features="experts")

    def _latents(self) -> str | None:
        asked = self.asked.get("latents")
        if asked is None or re.fullmatch("[0-9, ]*", asked) and len(asked) <= LONGEST:
            return asked
        self.unknown("latents")
        return None

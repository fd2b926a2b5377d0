"""What is in the pack `canvas-mask`: which encoders, and which bottlenecks on them."""

from __future__ import annotations

from typing import NamedTuple

from ...mask.fit import Plan
from ...worlds import canvas

FORGOTTEN = ("boat", "cat")
"""Classes without which an encoder was trained."""


class Encoder(NamedTuple):
    """One ViT of the pack `canvas`."""

    id: str
    title: str
    never_saw: tuple[str, ...]
    file: str


class Made(NamedTuple):
    """One bottleneck of the pack."""

    id: str
    encoder: str
    keys: str
    without: tuple[str, ...]
    """Classes whose images take no part in fitting the keys."""
    values: str = "counts"

    def plan(self, seed: int = 0) -> Plan:
        """Sizes and seed."""
        without = tuple(canvas.OBJECTS.index(name) for name in self.without)
        return Plan(key_width=8, values=self.values, without=without, seed=seed, about={"encoder": self.encoder})


ENCODERS = (
    Encoder("original", "Original, which saw every class", (), "vit_canvas_original.pth"),
    *(
        Encoder(f"retrain-{name}", f"Trained without {name}", (name,), f"unlearned/retrain-{name}.pth")
        for name in FORGOTTEN
    ),
)
BOTTLENECKS = (
    *(Made(f"{encoder.id}-all", encoder.id, "all", ()) for encoder in ENCODERS),
    *(Made(f"{encoder.id}-others", encoder.id, "others", FORGOTTEN) for encoder in ENCODERS),
    *(
        Made(f"{encoder.id}-retain", encoder.id, "retain", encoder.never_saw)
        for encoder in ENCODERS
        if encoder.never_saw
    ),
    Made("original-all-sgd", "original", "all", (), "sgd"),
)

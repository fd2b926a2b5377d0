"""What the Mask tab and its endpoint compute, shared by all visitors and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...mask import board, evidence, states, sweep
from ...mask.pack import MaskPack
from ...mask.session import MaskSession
from ...mask.sweep import Sweep
from ...packs.kept import Kept
from ...sparse import bottleneck_file
from ...worlds import drawn

EXAMPLES = 60
"""The first test images, which hold every class in every style."""
MOST_CLASSES = 4
"""In turn: each further one makes a sweep longer."""
_sweeps = Kept(budget=200)
_shared = Kept()


def class_indices(pack: MaskPack, names: Sequence[str]) -> list[int]:
    """Raises ValueError for none, unknown, too many or all classes."""
    if not names:
        raise ValueError("choose a class to forget")
    if len(names) > MOST_CLASSES:
        raise ValueError(f"{len(names)} classes were chosen: at most {MOST_CLASSES} are forgotten in turn here")
    return [pack.manifest.class_index(name) for name in names]


def known(pack: MaskPack, bottleneck: str, classes: Sequence[int], method: str) -> bool:
    """Whether `swept` answers at once."""
    return (pack.manifest.name, bottleneck, tuple(classes), method) in _sweeps


def swept(pack: MaskPack, bottleneck: str, classes: Sequence[int], method: str) -> Sweep:
    """Computed once for everybody. Raises ValueError."""
    key = (pack.manifest.name, bottleneck, tuple(classes), method)
    return _sweeps.get(key, lambda: sweep.sweep(pack.session(bottleneck), classes, method), lambda found: 1)


def mask_at(session: MaskSession, classes: Sequence[int], found: Sweep, position: int) -> Tensor:
    """The mask of a position of the slider."""
    return session.forget(classes, found.doses[max(0, min(position, len(found.doses) - 1))])


def pictures(pack: MaskPack) -> list[Image.Image]:
    """The first test images, drawn again; none where that cannot be."""
    seed = pack.manifest.examples_seed
    if seed is None:
        return []
    return _shared.get(("pictures", seed), lambda: [drawn.picture(seed, place) for place in range(EXAMPLES)])


def picture_names(pack: MaskPack, encoder: str) -> list[str]:
    """What is on them."""
    m, test = pack.manifest, pack.features(encoder).test
    styles = [""] * EXAMPLES if test.styles is None else [f", {m.styles[s]}" for s in test.styles[:EXAMPLES].tolist()]
    return [f"{m.classes[label]}{style}" for label, style in zip(test.labels[:EXAMPLES].tolist(), styles)]


def shared_pairs(pack: MaskPack, bottleneck: str) -> dict[str, Any]:
    """Stored, else counted now."""
    stored = pack.results()
    for about in stored["bottlenecks"] if stored else ():
        if about["id"] == bottleneck:
            return about["overlap"]
    key = ("overlap", pack.manifest.name, bottleneck)
    return _shared.get(key, lambda: board.overlap_of(pack.session(bottleneck)))


def case(pack: MaskPack, bottleneck: str, names: Sequence[str], method: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The stored evidence on a choice, and the ways it has."""
    stored = pack.results()
    if stored is None or method != "activations":
        return None, []
    for about in stored["bottlenecks"]:
        for one in about["cases"]:
            if about["id"] == bottleneck and one["forget"] == list(names):
                return one, stored["ways"]
    return None, []


def named(
    session: MaskSession, mask: Tensor, classes: Sequence[int]
) -> tuple[dict[int, float] | None, evidence.Named | None]:
    """What the mask points at: each class's score, and how well."""
    direction = evidence.prototype(session.bottleneck, mask)
    if direction is None:
        return None, None
    return evidence.class_scores(direction, session.test), evidence.named_by(direction, session.test, classes)


def file_of(pack: MaskPack, bottleneck: str, classes: Sequence[int], mask: Tensor, state: str, folder: str) -> str:
    """The bottleneck in a state, as a file that `mask evaluate --bottleneck` takes. Raises ValueError."""
    made = states.stored(pack.session(bottleneck), classes, mask, state, pack.manifest.classes)
    path = Path(folder, f"{bottleneck}-{made.about['forgot']}-{state}.safetensors")
    bottleneck_file.save(made, path)
    return str(path)

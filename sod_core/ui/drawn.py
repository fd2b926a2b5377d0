"""What the app exported as JSON, drawn again: each tab's page is made as it was, and its own export draws it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.charts import SCALES
from ..machine import again, files
from ..restore.pack import shared_pack
from .atlas import exports as atlas_exports
from .atlas.visitor import Controls as AtlasControls
from .atlas.visitor import Page as AtlasPage
from .clamp import asking as clamp_asking
from .clamp import exports as clamp_exports
from .clamp import links as clamp_links
from .clamp import work as clamp_work
from .clamp.figures import Point
from .clamp.visitor import Page as ClampPage
from .erase import exports as erase_exports
from .erase import tab as erase_tab
from .mask import exports as mask_exports
from .mask.visitor import Page as MaskPage
from .restore import exports as restore_exports
from .restore import links as restore_links
from .restore.visitor import Controls, Visitor

KINDS = ("png", "gif", "csv")
STILL = ("scoreboard", "atlas")
"""Tabs of which nothing moves."""
Page = dict[str, Any]
"""What a file says of a tab: names and numbers."""


def draw(path: str, out: Path) -> None:
    """Writes the picture, moving picture or table of what the file `path` is of to `out`, whose suffix says which.

    Raises ValueError, one sentence: for a file that Export did not make, and for what cannot be drawn again.
    """
    kind = out.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ValueError(f"--out {out}: give a name that ends in .png, .gif or .csv")
    found = again.held(path)
    page, figures = found.get("page"), found.get("figures")
    make = TABS.get(str(found.get("tab")))
    if make is None or not isinstance(page, dict) or not isinstance(figures, dict):
        raise again.foreign(path)
    if figures.get("lacks"):
        raise ValueError(f"{path} cannot be drawn again: {figures['lacks']}")
    if kind == "gif" and found["tab"] in STILL:
        raise ValueError(f"nothing moves in the {found['tab']}: there is a .png of it, and a .csv")
    heat = page.get("heat")
    try:
        _, content = make(kind, heat if heat in SCALES else next(iter(SCALES)), page)
    except (KeyError, TypeError, AttributeError) as error:
        raise again.foreign(path) from error
    with files.whole(out) as part:
        part.write_bytes(content)


def _restore(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    """The page says what its link would."""
    link = restore_links.Link({"tab": "restore"} | {key: str(value) for key, value in page.items()}, "restore")
    name = link.pack(str(page["pack"]))
    visitor = Visitor(name, link.model(shared_pack(name)))
    controls = link.opened(visitor, Controls(visitor.pack.manifest.layers[0], "inject", 0.0))
    if link.problems:
        raise ValueError(link.sentence().replace("This link", "The file"))
    values = controls.layer, controls.mode, controls.alpha, controls.tokens, controls.features
    return restore_exports.make(kind, scale, visitor, *values, controls.expert_class, controls.seed)


def _scoreboard(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    return restore_exports.make_board(kind, scale, page["pack"], None)


def _atlas(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    state = AtlasPage()
    state.pack_name = page["pack"]
    return atlas_exports.make(kind, scale, state, *(page[name] for name in AtlasControls._fields))


def _erase(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    """Draws the prompt anew, with and without the concepts."""
    pack = erase_tab.shared_erase_pack(page["pack"])
    each = page["factor"] if isinstance(page["factor"], list) else [page["factor"]]
    further = page["fidelity"], page["start_step"], page["percentile"], page["beta"], page["steps"], page["guidance"]
    factors = ", ".join(f"{float(one):g}" for one in each)
    asking = erase_tab.read(
        (page["prompt"], list(page["concepts"]), page["sae"], float(each[0]), *further, page["seed"], factors)
    )
    how = erase_tab.settings(pack, asking)
    return erase_exports.make(kind, scale, erase_tab.draw(pack, asking, how, lambda told: None, threading.Event()))


def _clamp(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    """Asks the question anew; the curves are the stored ones, with what was measured on the page."""
    pack = clamp_exports.shared_pack(page["pack"])
    values = page | {"latents": ",".join(map(str, page["latents"]))}
    asking = clamp_asking.read([values[key] for key in clamp_links.KEYS])
    state = ClampPage()
    for key, points in page["measured"].items():
        state.measured[key] = [Point(*(math.nan if one is None else float(one) for one in point)) for point in points]
    state.asked(page["pack"], asking)
    state.answered(page["pack"], asking, clamp_work.answer(pack, asking, lambda told: None, lambda: False))
    return clamp_exports.make(kind, scale, state)


def _mask(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    shown = page["pack"], page["bottleneck"], tuple(page["forget"]), page["method"]
    return mask_exports.make(kind, scale, MaskPage(shown=shown, position=max(0, int(page["position"]))))


TABS: dict[str, Callable[[str, str, Page], tuple[str, bytes]]] = {
    "restore": _restore,
    "scoreboard": _scoreboard,
    "atlas": _atlas,
    "erase": _erase,
    "clamp": _clamp,
    "mask": _mask,
}

"""What an address says of the Mask tab: written for what is shown, and read again, value by value."""

from __future__ import annotations

from ...mask import sweep
from ...mask.pack import MaskPack, folders
from .. import page as pages
from . import panel, work
from .visitor import Page

BETWEEN = ";"
"""Stands between classes."""


def element(page: Page) -> str:
    """The element that the page's script makes the address of; the dose is its own to add."""
    pack, bottleneck, classes, method = page.shown
    values = {"pack": pack, "bottleneck": bottleneck, "forget": BETWEEN.join(classes), "method": method}
    if page.own is None:
        return pages.link("mask", values | {"image": page.picked})
    return pages.link("mask", values, "The link does not hold your own image.")


class Link(pages.Link):
    """What an address asks of the Mask tab."""

    def pack(self, default: str) -> str:
        """The name of the pack that is asked for."""
        return self.one_of("pack", folders(), default)

    def opened(self, pack: MaskPack, page: Page, bottleneck: str, names: list[str]) -> tuple[str, list[str], str]:
        """Bottleneck, classes and method; `bottleneck` and `names` are the defaults. The page takes image and dose."""
        bottleneck = self.one_of("bottleneck", [entry.id for entry in pack.manifest.bottlenecks], bottleneck)
        asked = self.asked.get("forget", "").split(BETWEEN)
        if "forget" in self.asked and not set(asked) <= set(pack.manifest.classes):
            self.unknown("forget")
        elif "forget" in self.asked and self.take(lambda classes: work.class_indices(pack, classes), asked):
            names = asked
        method = self.one_of("method", [id for _, id in panel.METHODS], panel.METHODS[0][1])
        session = pack.session(bottleneck)
        most = len(sweep.doses(session, work.class_indices(pack, names), method)) - 1
        page.dose = self.number("dose", most, None)
        page.picked = self.number("image", min(work.EXAMPLES, len(session.test.labels)) - 1, page.picked)
        return bottleneck, names, method

"""What an address says of the Atlas tab: pack, model, layer and latent as for Restore, and its own controls."""

from __future__ import annotations

from .. import page as pages
from .scatter import MEASURES, OFTEN
from .visitor import ALL, EVERY, FILTERS, FORGOTTEN, Controls, Page

MOST_LATENT = 2**31 - 1


def element(page: Page, controls: Controls) -> str:
    """The element that the page's script makes the address of."""
    own = page.entry(controls.model) not in page.pack.manifest.unlearned
    values = {"pack": page.pack_name, "model": "" if own else controls.model, "layer": controls.layer}
    values |= {"latent": page.latent, "images": controls.images, "measure": controls.measure, "show": controls.show}
    plain = {"images": FORGOTTEN, "measure": OFTEN, "show": EVERY, "model": "", "latent": None}
    kept = {key: value for key, value in values.items() if key not in plain or value != plain[key]}
    return pages.link("atlas", kept, "The link does not hold your own model." if own and page.entries else "")


class Link(pages.Link):
    """What an address asks of the Atlas tab. What Restore is asked too, it says there."""

    def opened(self, page: Page, controls: Controls) -> Controls:
        """The controls that are asked for; `controls` are the defaults."""
        m = page.pack.manifest
        layer, model = self.asked.get("layer", ""), self.asked.get("model", controls.model)
        latent = self.number("latent", MOST_LATENT, None)
        if latent is not None:
            page.latent = latent
        return Controls(
            model if model in [entry.id for entry in m.unlearned] else controls.model,
            int(layer) if layer in map(str, m.layers) else controls.layer,
            self.one_of("images", (ALL, *m.classes), controls.images),
            self.one_of("measure", MEASURES, controls.measure),
            self.one_of("show", FILTERS, controls.show),
        )

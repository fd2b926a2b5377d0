"""What the whole page has, whatever tab is shown: an address that follows it, keys, and a mode for the stage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from . import overlays

TABS = ("restore", "scoreboard", "atlas", "erase", "clamp", "mask")
"""The tabs' names in an address."""
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
KEYS = {
    "← →": "move alpha, or the dose; with Shift ten steps at a time",
    "Space": "Play, and stop",
    "1 ... 9": "the first, ... the ninth unlearned model",
    "l": "the next layer",
    "c": "controls on and off",
    "h": "the heat's other colours",
    "p": "present: the figure fills the screen; again, or Escape, to leave",
    "?": "this list",
}
LISTENS = "element.addEventListener('sod-key', (event) => trigger('click', event.detail));"
"""js_on_load of a component that the keys reach the server by."""


def header(title: str, text: str) -> None:
    """The page's head, with its own buttons and the list of its keys."""
    rows = "".join(f"<dt><kbd>{escape(key)}</kbd></dt><dd>{escape(what)}</dd>" for key, what in KEYS.items())
    scales = escape(json.dumps(overlays.SCALES))
    gr.HTML(
        f"<header class='sod-header'><div><h1>{title}</h1><p>{text}</p></div>"
        f"{overlays.scale_styles()}<nav class='sod-page' aria-label='Page'><span role='status'></span>"
        f"<button type='button' data-page='heat' data-scales='{scales}'>Heat: {overlays.SCALES['inferno']}</button>"
        "<button type='button' data-page='copy'>Copy link</button>"
        "<button type='button' data-page='present'>Present</button>"
        "<button type='button' data-page='keys' aria-label='Keys'>?</button></nav></header>"
        f"<dialog class='sod-keys' aria-label='Keys'><dl>{rows}</dl>"
        "<form method='dialog'><button>Close</button></form></dialog>",
        js_on_load=SCRIPT,
        elem_id="page-head",
    )


def link(tab: str, values: Mapping[str, Any], lacks: str = "") -> str:
    """An element that says how an address leads to what a tab shows; `lacks` is a sentence on what no link can hold."""
    said = escape(json.dumps({key: str(value) for key, value in values.items()}))
    return f'<div data-link="{tab}" data-values="{said}" data-lacks="{escape(lacks)}"></div>'


class Link:
    """What an address asks; a value that cannot be taken leaves the default, and a sentence in `problems`."""

    def __init__(self, query: Mapping[str, str], *tabs: str):
        """`tabs` are those that it is read for; an address that names no tab means the first of TABS."""
        self.problems: list[str] = []
        self.asked = dict(query)
        tab = self.one_of("tab", TABS, TABS[0])
        self.asked = self.asked if tab in tabs else {}

    def sentence(self) -> str:
        """What could not be taken; empty where all could."""
        return "This link asks for what is not here: " + "; ".join(self.problems) + "." if self.problems else ""

    def one_of(self, key: str, known: Collection[str], default: str) -> str:
        """A value that is known."""
        asked = self.asked.get(key, default)
        if asked == default or asked in known:
            return asked
        self.unknown(key)
        return default

    def openable(self, known: Collection[str], open_it: Callable[[str], Any], default: str) -> str:
        """The name of a pack; of an address that asks for one that cannot be opened nothing else is read."""
        asked = self.one_of("pack", known, default)
        if asked == default or self.take(open_it, asked):
            return asked
        self.asked = {}
        return default

    def number(self, key: str, most: int, default: Any) -> Any:
        """A whole number from 0 to `most`."""
        asked = self.asked.get(key)
        if asked is None:
            return default
        if re.fullmatch("[0-9]{1,10}", asked) and int(asked) <= most:
            return int(asked)
        self.unknown(key)
        return default

    def decimal(self, key: str, pattern: str, least: float, most: float, default: float) -> float:
        """A number from `least` to `most`, written as the regular expression `pattern` says."""
        asked = self.asked.get(key)
        if asked is None:
            return default
        if re.fullmatch(pattern, asked) and least <= float(asked) <= most:
            return float(asked)
        self.unknown(key)
        return default

    def take(self, take: Callable[[Any], Any], value: Any) -> bool:
        """Whether there was nothing to take, or it was taken: a ValueError's sentence is kept."""
        try:
            if value is not None:
                take(value)
            return True
        except ValueError as error:
            self.problems.append(str(error))
            return False

    def unknown(self, key: str) -> None:
        """Notes a value that cannot be taken."""
        shown = re.sub(r"[^\w .,+-]", "?", self.asked[key][:40])  # the page takes a sentence for HTML
        self.problems.append(f"{key} '{shown}'")

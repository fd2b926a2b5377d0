"""What the whole page has, whatever tab is shown: an address that follows it, keys, and a mode for the stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

TABS = ("restore", "scoreboard", "erase", "clamp", "mask")
"""The tabs' names in an address."""
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
KEYS = {
    "← →": "move alpha, or the dose; with Shift ten steps at a time",
    "Space": "Play, and stop",
    "1 ... 9": "the first, ... the ninth unlearned model",
    "l": "the next layer",
    "c": "controls on and off",
    "p": "present: the figure fills the screen; again, or Escape, to leave",
    "?": "this list",
}
LISTENS = "element.addEventListener('sod-key', (event) => trigger('click', event.detail));"
"""js_on_load of a component that the keys reach the server by."""


def header(title: str, text: str) -> None:
    """The page's head, with its own buttons and the list of its keys."""
    rows = "".join(f"<dt><kbd>{escape(key)}</kbd></dt><dd>{escape(what)}</dd>" for key, what in KEYS.items())
    gr.HTML(
        f"<header class='sod-header'><div><h1>{title}</h1><p>{text}</p></div>"
        "<nav class='sod-page'><span role='status'></span>"
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


def asked(request: gr.Request, *tabs: str) -> dict[str, str]:
    """What the page's address asks of these tabs; the first of TABS is meant where it names none."""
    values = dict(request.query_params)
    return values if values.get("tab", TABS[0]) in tabs else {}

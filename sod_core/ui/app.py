"""Puts the tabs together: theme, style sheet, queue settings."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr

from ..images import MAX_BYTES
from ..packs.find import folders
from . import api, restore_tab

TITLE = "Suppression or Deletion"
_HERE = Path(__file__).parent
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]


def build() -> gr.Blocks:
    """The whole app, not launched. Raises PackError if the default pack cannot be opened."""
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.HTML(
            f"<header class='sod-header'><h1>{TITLE}?</h1><p>An unlearned model was told to forget a class. Pull its "
            "hidden features back towards the original's, and see whether it remembers.</p></header>"
        )
        with gr.Tab("Restore"):
            restore_tab.build(app, default_pack())
        api.build(default_pack())
    app.queue(default_concurrency_limit=8, max_size=256)
    return app


def default_pack() -> str:
    """SOD_DEFAULT_PACK, else canvas, else the first there is."""
    known = folders()
    wanted = os.environ.get("SOD_DEFAULT_PACK", "canvas")
    return wanted if wanted in known or not known else next(iter(known))


def launch_options() -> dict:
    """Arguments for Blocks.launch: looks, and the bounds on uploads."""
    theme = gr.themes.Base(
        primary_hue="orange", neutral_hue="slate", font=_FONTS, font_mono=["ui-monospace", "monospace"]
    )
    return {
        "theme": theme,
        "css_paths": _HERE / "style.css",
        "max_file_size": MAX_BYTES,
        "footer_links": ["api"],
    }

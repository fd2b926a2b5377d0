"""Puts the tabs together: theme, style sheet, queue settings."""

from __future__ import annotations

import logging
from pathlib import Path

import gradio as gr

from ..data.images import MAX_BYTES
from ..machine import environment
from ..packs import download
from ..packs.errors import PackError
from ..restore.pack import folders, shared_pack
from . import api, page
from .atlas import tab as atlas_tab
from .clamp import tab as clamp_tab
from .erase import tab as erase_tab
from .intake import most_bytes, uploads_allowed
from .mask import tab as mask_tab
from .restore import scoreboard
from .restore import tab as restore_tab
from .restore.ready import needed, warm

log = logging.getLogger(__name__)

TITLE = "Suppression or Deletion"
PREFERRED = ("canvas",)
PREFERRED_ON_SPACE = ("cifar10", "canvas")
"""A Space preloads its pack: see preload_from_hub in README.md."""
_HERE = Path(__file__).parent
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]


def build() -> gr.Blocks:
    """The whole app, not launched. Raises PackError if the default pack cannot be opened."""
    first = default_pack()
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)) as app:
        page.header(
            f"{TITLE}?",
            "A network was told to forget. Edit the sparse features of its hidden state, and see what it still knows.",
        )
        with gr.Tabs() as tabs:
            with gr.Tab("Restore", id="restore"):
                opener, settled = restore_tab.build(app, first)
            with gr.Tab("Scoreboard", id="scoreboard") as tab:
                scoreboard.build(tab, tabs, opener, settled, first)
            with gr.Tab("Atlas", id="atlas") as tab:
                atlas_tab.build(tab, opener, first)
            with gr.Tab("Erase", id="erase") as tab:
                erase_tab.build(app, tab)
            with gr.Tab("Clamp", id="clamp") as tab:
                clamp_tab.build(tab)
            with gr.Tab("Mask", id="mask") as tab:
                mask_tab.build(tab)
        api.build(first)
    app.queue(default_concurrency_limit=8, max_size=256)
    return app


def default_pack() -> str:
    """The pack that a page opens on. Raises PackError if no pack's manifest can be read.

    SOD_DEFAULT_PACK, even if it has to be downloaded; else the first of PREFERRED, then of all, that is on this
    computer.
    """
    known = folders()
    asked = environment.default_pack()
    if asked and asked not in known:
        log.warning("SOD_DEFAULT_PACK names no pack: %s; known: %s", asked, ", ".join(known))
    preferred = PREFERRED_ON_SPACE if environment.on_space() else PREFERRED
    for name in [*([asked] if asked in known else []), *(n for n in preferred if n in known), *known]:
        try:
            pack = shared_pack(name)
            if name == asked or not needed(pack):
                return name
        except PackError as error:
            log.warning("pack %s cannot be used: %s", name, error)
    raise PackError("there is no pack to open: build one with `python -m sod_core build canvas`, or set SOD_PACKS")


def warm_up() -> None:
    """Loads the default pack's models once pages are served; a pack that fails says so to the visitor who opens it."""
    try:
        name = default_pack()
        files = needed(shared_pack(name))
        if files and not download.start(files).done(wait=None):
            return
        warm(name)
    except Exception as error:
        log.warning("the default pack could not be loaded: %s", error)
    for tab, warm_tab in (("Clamp", clamp_tab.warm_up), ("Mask", mask_tab.warm_up)):
        try:
            warm_tab()
        except Exception as error:
            log.warning("what the %s tab opens with could not be computed: %s", tab, error)


def launch_options() -> dict:
    """Arguments for Blocks.launch: looks, and the bounds on uploads."""
    theme = gr.themes.Base(
        primary_hue="orange", neutral_hue="slate", font=_FONTS, font_mono=["ui-monospace", "monospace"]
    ).set(  # Gradio's own greys and its orange are too pale to read, or to read white on
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        **{f"button_primary_background_fill{dark}": "*primary_700" for dark in ("", "_dark")},
        **{f"button_primary_background_fill_hover{dark}": "*primary_800" for dark in ("", "_dark")},
    )
    return {
        "theme": theme,
        "css_paths": _HERE / "style.css",
        "max_file_size": max(MAX_BYTES, most_bytes() if uploads_allowed() else 0),  # images.read keeps to MAX_BYTES
        "max_threads": 80,  # visitors who wait for a download each hold one
        "footer_links": ["api"],
        "state_session_capacity": 500,  # a page's last figures are kept for each, about half a megabyte
    }

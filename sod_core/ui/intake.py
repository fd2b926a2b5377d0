"""The image upload that leaves opening the file to sod_core.images."""

from __future__ import annotations

from typing import Any

import gradio as gr


def image_upload(**options: Any) -> gr.Image:
    """A gr.Image that hands over the path of the file, unopened.

    Gradio itself would decode the pixels before any of our bounds is checked.
    """
    component = gr.Image(type="filepath", **options)
    component.preprocess = lambda payload: None if payload is None else payload.path
    return component

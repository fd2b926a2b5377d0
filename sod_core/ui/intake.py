"""The image upload that leaves opening the file to sod_core.images."""

from __future__ import annotations

import gradio as gr


class ImageUpload(gr.Image):
    """A gr.Image that hands over the path of the file, unopened.

    Gradio itself would decode the pixels before any of our bounds is checked. A class and not a patched
    component: Gradio makes a component anew from its class when it updates one.
    """

    is_template = True  # the page draws it as a gr.Image

    def preprocess(self, payload):
        """The path of the uploaded file, or None."""
        return None if payload is None else payload.path

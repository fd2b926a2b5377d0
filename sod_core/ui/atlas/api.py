"""The endpoint /atlas, for gradio_client: a latent's page in plain values, or the figures of all of a layer's."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...restore import fates
from ...restore.atlas import ORIGINAL
from ...restore.atlas_layers import stale
from ...restore.pack import folders, shared_pack
from ..endpoints import Choice, by_name, check_sent
from . import table, work
from .visitor import ALL, FORGOTTEN, Controls


def build(default_pack: str) -> None:
    """Adds the endpoint to the current Blocks. Its components are never shown: they carry names and types."""
    with gr.Column(visible=False):
        pack = Choice(list(folders()), value=default_pack, label="pack")
        model = gr.Textbox(ORIGINAL, label="original, or an unlearned model of the pack's atlas")
        layer = gr.Number(9, precision=0, label="layer")
        latent = gr.Textbox("", label="latent; empty: the figures of all")
        images = gr.Textbox(FORGOTTEN, label=f"of all latents: on the images of which class; {ALL!r}; empty: forgotten")
        answer = gr.JSON(label="result")
        button = gr.Button()
    gr.on(button.click, atlas, [pack, model, layer, latent, images], answer, api_name="atlas", concurrency_limit=4)


def atlas(pack: str, model: str, layer: int, latent: str, images: str) -> dict[str, Any]:
    """A latent over thousands of images, as `python -m sod_core atlas` stored it: how often and how strongly it fires
    in the original and in an unlearned model, classes, styles, entropies, its strongest images, its companions."""
    try:
        check_sent(locals())
        opened = by_name(pack, folders(), shared_pack)
        found = work.stored(opened)
        if found is None:
            raise ValueError(f"nothing is stored for pack {pack}; `python -m sod_core atlas --pack {pack}` does it")
        found.model(model), found.layer(int(layer))  # raises for what is not there
        problem = stale(found, opened, int(layer), model)
        if problem:
            raise ValueError(f"{problem}; `python -m sod_core atlas --pack {pack}` computes it anew")
        if latent.strip():
            if not latent.strip().isdecimal():
                raise ValueError(f"latent {latent[:20]!r} is no whole number")
            return fates.told(found, int(layer), int(latent), model)
        if images not in (ALL, FORGOTTEN, *found.classes):
            raise ValueError(f"unknown images {images[:40]!r}; known: {ALL}, {', '.join(found.classes)}")
        controls = Controls(model, int(layer), images)
        rows = table.cells(found, opened, controls, table.chosen(found, opened, controls))
        return {"images": len(found.labels), "latents": [dict(zip(table.HEADERS, row)) for row in rows]}
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error

"""The endpoint /mask, for gradio_client: what a mask does, as `sod_core mask evaluate` says it."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr

from ...mask import evaluate, sweep
from ...mask.pack import folders, shared_mask_pack
from ...mask.session import METHODS, Dose
from ..endpoints import Choice, by_name, check_sent
from . import work
from .tab import PREFERRED

AT_ONCE = 2
MOST_IMAGES = 1000
"""Learned again."""


def build() -> None:
    """Adds the endpoint to the current Blocks. Its components are never shown: they carry names and types."""
    known = list(folders())
    with gr.Column(visible=False):
        pack = Choice(known, value=PREFERRED if PREFERRED in known else "".join(known[:1]), label="pack")
        forget = gr.Textbox(label="classes to forget in turn, with commas")
        method = Choice(list(METHODS), value="activations", label="method")
        share = gr.Number(0.3, label="of the pairs that the class touches; of examples their number")
        bottleneck = gr.Textbox("", label="an id of the pack; empty: its first")
        images = gr.Number(0, precision=0, label="images of each class that are counted again; 0: none")
        seed = gr.Number(0, precision=0, label="seed of drawn examples and of random masks")
        answer = gr.JSON(label="result")
        button = gr.Button()
    inputs = [pack, forget, method, share, bottleneck, images, seed]
    gr.on(button.click, mask, inputs, answer, api_name="mask", concurrency_limit=AT_ONCE)


def mask(
    pack: str,
    forget: str,
    method: Literal["activations", "examples", "enrichment"],
    share: float,
    bottleneck: str,
    images: int,
    seed: int,
) -> dict[str, Any]:
    """Forget and retain accuracy without and with the mask, random masks beside, what the mask names, relearning."""
    try:
        check_sent(locals())
        opened = by_name(pack, folders(), shared_mask_pack)
        names = [name.strip() for name in forget.split(",") if name.strip()]
        classes = work.class_indices(opened, names)
        id = opened.manifest.bottleneck(bottleneck or None).id
        session = opened.session(id)
        dose = Dose(method, examples=int(share)) if method == "examples" else Dose(method, share=float(share))
        found = evaluate.evaluate(session, classes, [dose], opened.manifest.classes, int(seed))
        chosen = session.forget(classes, dose, int(seed))
        scores, named = work.named(session, chosen, classes)
        found |= {"pack": opened.manifest.name, "bottleneck": id, "names": None, "relearned": None}
        if scores is not None and named is not None:
            by_class = {opened.manifest.classes[c]: score for c, score in scores.items()}
            found["names"] = named._asdict() | {"scores": by_class}
        if images:
            found["relearned"] = sweep.relearning(session, classes, chosen, min(int(images), MOST_IMAGES), int(seed))
        return found
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error

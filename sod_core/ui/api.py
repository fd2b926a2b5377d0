"""The app's named endpoints, for gradio_client: the same functions as the command line's."""

from __future__ import annotations

import json
import math
from typing import Any

import gradio as gr

from ..data import images
from ..packs.errors import PackError
from ..restore import actions, edit
from ..restore.pack import folders, shared_pack
from .atlas import api as atlas_api
from .clamp import api as clamp_api
from .endpoints import Choice, by_name, check_sent
from .erase import api as erase_api
from .intake import ImageUpload
from .mask import api as mask_api

MOST_ALPHAS = 101


def build(default_pack: str) -> None:
    """Adds the endpoints to the current Blocks. Their components are never shown: they carry names and types."""
    with gr.Column(visible=False):
        image = ImageUpload(label="image")
        pack = Choice(list(folders()), value=default_pack, label="pack")
        unlearned = gr.Textbox(label="unlearned model, an id of the pack")
        target_class = gr.Textbox(label="target class, number or name")
        layer = gr.Number(9, precision=0, label="layer")
        alphas = gr.Textbox("0, 1, 2, 5", label="alphas, numbers with commas")
        mode = Choice(list(edit.MODES), value="inject", label="mode")
        tokens = Choice(list(edit.TOKENS), value="all", label="which tokens are edited")
        chosen = gr.Textbox("experts", label="experts, random, matched, all, or latent ids with commas")
        seed = gr.Number(0, precision=0, label="seed of the random features")
        patch = gr.Number(0, precision=0, label="patch, row by row from 0")
        answer = gr.JSON(label="result")
        button = gr.Button()
    inputs = [image, pack, unlearned, target_class, layer, alphas, mode, tokens, chosen, seed]
    gr.on(button.click, restore, inputs, answer, api_name="restore", concurrency_limit=4)
    gr.on(button.click, packs, None, answer, api_name="packs")
    atlas_api.build(default_pack)
    clamp_api.build()
    mask_api.build()
    erase_api.build()
    gr.on(
        button.click, patch_latents, [image, pack, layer, patch], answer, api_name="patch_latents", concurrency_limit=4
    )


def restore(
    image: str,
    pack: str,
    unlearned: str,
    target_class: str,
    layer: int,
    alphas: str,
    mode: str,
    tokens: str,
    chosen: str,
    seed: int,
) -> dict[str, Any]:
    """Logits of the original, the unlearned and the restored model at each alpha, as `python -m sod_core restore`."""
    try:
        check_sent(locals())
        return actions.restore_image(
            by_name(pack, folders(), shared_pack),
            unlearned,
            images.read(image),
            target_class=target_class,
            layer=int(layer),
            alphas=_numbers(alphas),
            mode=mode,
            tokens=tokens,
            chosen=chosen,
            seed=int(seed),
        )
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def packs() -> list[dict[str, Any]]:
    """Every pack on this server: classes, layers, unlearned models; or why it cannot be used."""
    found: list[dict[str, Any]] = []
    for name in folders():
        try:
            pack = shared_pack(name)
            manifest, here = pack.manifest, not pack.lacking()
        except PackError as error:
            found.append({"name": name, "error": str(error)})
            continue
        models = [
            {"id": e.id, "method": e.method, "target_class": manifest.classes[e.target_class]}
            for e in manifest.unlearned
        ]
        found.append(
            {
                "name": name,
                "title": manifest.title,
                "here": here,
                "classes": list(manifest.classes),
                "layers": list(manifest.layers),
                "unlearned": models,
            }
        )
    return found


def patch_latents(image: str, pack: str, layer: int, patch: int) -> list[dict[str, Any]]:
    """The latents that fire in the original model on one patch, strongest first, and what they are experts for."""
    try:
        check_sent(locals())
        opened = by_name(pack, folders(), shared_pack)
        session = opened.session(opened.original)
        session.set_image(opened.preprocess(images.read(image))[None])
        values = session.latents("original", int(layer))[0, 1:]
        if not 0 <= int(patch) < len(values):
            raise ValueError(f"patch {patch} does not exist; known: 0 to {len(values) - 1}")
        row = values[int(patch)]
        classes = opened.manifest.classes
        return [
            {
                "latent": j,
                "value": row[j].item(),
                "expert_for": [classes[c] for c in opened.expert_of(int(layer), j)],
            }
            for j in row.argsort(descending=True).tolist()
            if row[j] > 0
        ]
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _numbers(text: str) -> list[float]:
    """ "0, 1, 2.5" or "[0, 1, 2.5]" -> numbers; at most MOST_ALPHAS of them."""
    try:
        found = [float(value) for value in json.loads(f"[{text.strip().strip('[]')}]")]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"alphas {text[:80]!r} are no list of numbers; write 0, 1, 2") from error
    if not 0 < len(found) <= MOST_ALPHAS:
        raise ValueError(f"{len(found)} alphas were given; 1 to {MOST_ALPHAS} are taken")
    if not all(math.isfinite(value) for value in found):
        raise ValueError("alpha must be a finite number")
    return found

"""The parts of a diffusion pipeline's folder, each read whole or refused, and fitting together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from . import folders


class Part(NamedTuple):
    """A model of a pipeline."""

    library: str
    classes: tuple[str, ...]
    """Those that are read."""
    stem: str
    """Of the weights' file names."""


CLIP = Part("transformers", ("CLIPTextModel", "CLIPTextModelWithProjection"), "model")
PARTS = {
    "unet": Part("diffusers", ("UNet2DConditionModel",), "diffusion_pytorch_model"),
    "vae": Part("diffusers", ("AutoencoderKL", "AutoencoderTiny"), "diffusion_pytorch_model"),
    "text_encoder": CLIP,
    "text_encoder_2": CLIP,
}
UNREAD = re.compile(r"(.*\.)?(position_ids|text_projection\.weight)")
"""Of a CLIP text encoder: places counted from 0, and a layer that Stable Diffusion never asks."""


def index(folder: Path) -> dict[str, Any]:
    """model_index.json: the pipeline's class, and (library, class) of each part. Raises ValueError."""
    path = folder / "model_index.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no diffusion pipeline (a folder with model_index.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} describes no pipeline")
    folders.refuse_beside(folder)
    return found


def class_of(index: dict[str, Any], name: str) -> tuple[str, str]:
    """(library, class) of a part that the pipeline needs. Raises ValueError where the index does not name it."""
    found = index.get(name)
    if not (isinstance(found, list) and len(found) == 2 and all(isinstance(word, str) for word in found)):
        raise ValueError(f"the pipeline's {name} is missing: model_index.json names none")
    return found[0], found[1]


def refuse_others(index: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises ValueError for a part that the pipeline would have, and that is not read."""
    for name, found in index.items():
        if name not in known and isinstance(found, list) and any(found):
            raise ValueError(
                f"model_index.json names a part {name!r} ({'.'.join(map(str, found))}), which is not read and may "
                "change the pipeline: take it out if nothing is lost with it"
            )


def read(folder: Path, index: dict[str, Any], name: str) -> nn.Module:
    """A model of the pipeline, in float32 and whole. Raises ValueError."""
    import diffusers
    import transformers

    library, kind = class_of(index, name)
    part, place = PARTS[name], folder / name
    if library != part.library or kind not in part.classes:
        raise ValueError(f"the pipeline's {name} is a {library}.{kind}; {' and '.join(part.classes)} can be read")
    if not (place / "config.json").is_file():
        raise ValueError(f"the pipeline's {name} is missing: there is no {place / 'config.json'}")
    folders.read_config(place)
    folders.refuse_beside(place)
    variant, _ = folders.chosen(place, part.stem)
    options = {"low_cpu_mem_usage": False} if library == "diffusers" else {}
    try:
        model, told = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind).from_pretrained(
            str(place),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        if "mismatch" in str(error):
            raise ValueError(f"the weights in {place} have other shapes than its config.json says") from error
        raise ValueError(f"{place} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    folders.refuse_half_read(place, told, kind, UNREAD if kind == "CLIPTextModel" else None)
    folders.refuse_not_finite(place, model)
    return model


def fit_together(unet: Any, vae: Any, encoders: list[tuple[Any, Any]], added: str | None) -> None:
    """Raises ValueError where the parts make no pipeline that draws from a text alone.

    encoders: (text encoder, its tokenizer); added: what the pipeline gives the UNet beside the text.
    """
    config, channels = unet.config, vae.config.latent_channels
    if config.in_channels != channels or config.out_channels != channels:
        what = "an inpainting UNet's" if config.in_channels == 9 else "another task's, or another autoencoder's"
        raise ValueError(
            f"the UNet reads {config.in_channels} channels and gives {config.out_channels}, and the autoencoder has "
            f"{channels}: it is {what}, and erase draws from a text alone"
        )
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise ValueError("the UNet projects an adapter's or an image's features (encoder_hid_proj), which erase lacks")
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError("the UNet reads class labels (class_embed_type), and erase draws from a text alone")
    if not config.sample_size:
        raise ValueError("the UNet's config.json does not say sample_size, the size of what it draws")
    if config.addition_embed_type not in (None, "text", added):
        raise ValueError(
            f"the UNet reads {config.addition_embed_type!r} beside the text, and the pipeline gives {added!r}"
        )
    width, wanted = sum(encoder.config.hidden_size for encoder, _ in encoders), config.cross_attention_dim
    if wanted != width and set(wanted if isinstance(wanted, (list, tuple)) else [wanted]) != {width}:
        raise ValueError(f"the UNet reads texts of width {wanted}, and the text encoder gives {width}")
    for encoder, tokenizer in encoders:
        words = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > words:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} words and the text encoder {words}: words that were added "
                "(by textual inversion) have no embedding in its weights"
            )
        if len(tokenizer) < words:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} words and the text encoder {words}: it is another model's, or "
                "lacks words that were added"
            )
        most = encoder.config.max_position_embeddings
        if tokenizer.model_max_length > most:
            raise ValueError(
                f"the tokenizer fills texts up to {tokenizer.model_max_length} words and the text encoder reads {most}:"
                " correct model_max_length in tokenizer_config.json"
            )

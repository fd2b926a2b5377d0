"""CLIP's image half: what its `encode_image` gives of images, read from files of the hub's form, whole or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..machine import torchvision_guard
from ..packs.errors import PackError

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

_TEXT = ("text_model.", "text_projection.")
"""The other half, which no image passes through."""
_UNUSED = {"logit_scale", "vision_model.embeddings.position_ids"}
"""A temperature between the halves; the numbers of the patches, which older files hold."""


class ImageEncoder(NamedTuple):
    model: Any
    """transformers' CLIPVisionModelWithProjection."""
    prepare: CLIPImageProcessorPil
    """CLIP's own preprocessing: bicubic to the shorter side, centre square, mean and deviation."""

    @property
    def width(self) -> int:
        """M, of what `encode` gives: 512 for ViT-B/32."""
        return int(self.model.config.projection_dim)


def new(config: dict[str, Any], preprocessing: dict[str, Any], state: dict[str, Tensor], what: str) -> ImageEncoder:
    """The encoder that config.json, preprocessor_config.json and the weights (`CLIPModel`'s, both halves) describe.

    Raises PackError in one sentence about `what` for anything else, left-over and missing tensors included.
    """
    torchvision_guard.import_timm()
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    if config.get("model_type") != "clip":
        raise PackError(f"{what}: config.json describes {config.get('model_type')!r}, and no CLIP")
    try:
        vision = CLIPVisionConfig(**config["vision_config"] | {"projection_dim": int(config["projection_dim"])})
        prepare = CLIPImageProcessorPil.from_dict(preprocessing)
        with torch.device("meta"):
            model = CLIPVisionModelWithProjection(vision)
    except (KeyError, TypeError, ValueError) as error:
        raise PackError(f"{what}: its configuration cannot be understood ({error})") from error
    found = {name: value for name, value in state.items() if not name.startswith(_TEXT) and name not in _UNUSED}
    _check(found, model.state_dict(), what)
    model = model.to_empty(device="cpu")
    model.load_state_dict({name: value.float() for name, value in found.items()}, strict=False)
    _number_patches(model)
    side = prepare.crop_size["height"]
    if (side, prepare.crop_size["width"]) != (vision.image_size, vision.image_size):
        raise PackError(f"{what}: images are prepared at {side} pixels, and the model takes {vision.image_size}")
    return ImageEncoder(model.requires_grad_(False).eval(), prepare)


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    for name in sorted(found.keys() ^ wanted.keys()):
        raise PackError(f"{what}: its weights {'also hold' if name in found else 'lack'} {name!r}")
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise PackError(f"{what}: {name} is {list(value.shape)} and must be {list(wanted[name].shape)}")
        if not value.is_floating_point() or not value.isfinite().all():
            raise PackError(f"{what}: {name} is not all finite decimal numbers")


def _number_patches(model: Any) -> None:
    """What is in no file: the numbers by which patches find their positions."""
    embeddings = model.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]


def encode(encoder: ImageEncoder, pictures: Sequence[Image.Image], device: torch.device) -> Tensor:
    """[B, M] float32 on the CPU: `image_embeds`, after the projection and not normalised, as `encode_image` gives."""
    pixels = encoder.prepare(images=list(pictures), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return encoder.model.to(device)(pixel_values=pixels.to(device)).image_embeds.float().cpu()

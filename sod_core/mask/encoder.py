"""One image of a visitor's through a pack's encoder, where that is a ViT of a pack on this computer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import images
from ..models import vit as vits
from ..models import vit_weights
from ..models.vit import ViTShape
from ..packs import find, safe
from ..packs.errors import PackError
from ..packs.figures import read_json
from ..packs.kept import Kept
from ..packs.source import inside
from ..worlds import drawn
from .manifest import EncoderEntry
from .pack import MaskPack

_KEYS = {"pack", "file", "layer", "token", "scale"}
_vits = Kept()


def takes_images(entry: EncoderEntry) -> bool:
    """Whether images can be encoded here at all."""
    return _KEYS <= entry.encoder.keys() and entry.encoder["pack"] in find.folders()


def encode(pack: MaskPack, id: str, image: Image.Image) -> Tensor:
    """The features [M] of an image, as those of the pack's own images were made.

    The embedded ViTs take images of 64 pixels, normalised as the drawn world's. Raises PackError, ImageError.
    """
    entry = pack.manifest.encoder(id)
    if not takes_images(entry):
        raise PackError(f"the encoder {id} is not on this computer, only what it made of the pack's own images")
    said = entry.encoder
    vit = _vits.get((said["pack"], said["file"]), lambda: _load(said))
    pixels = np.asarray(images.square(images.to_rgb(image), drawn.SIZE))
    with torch.inference_mode():
        state = vits.head(vit, drawn.normalise(pixels[None]), int(said["layer"]))[0]
    features = (state[0] if said["token"] == "cls" else state[1:].mean(0)).float()
    found = pack.features(id)
    if found.mean is not None and found.whitening is not None:
        features = (features - found.mean) @ found.whitening
    return features.half().float()


def _load(said: dict[str, Any]) -> Any:
    folder = find.folder(said["pack"])
    path = inside(folder, said["pack"], said["file"])
    found = safe.read_torch(path)
    return vit_weights.new_vit(_shape(folder), found, path.name)


def _shape(folder: Path) -> ViTShape:
    """What the pack that holds the encoder says of its ViTs. Raises PackError."""
    said = read_json(folder / "pack.json")
    try:
        vit, side = said["vit"], int(said["image"]["size"])
        patch, dim, depth, heads = (int(vit[name]) for name in ("patch", "dim", "depth", "heads"))
        return ViTShape(side, patch, dim, depth, heads, len(said["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PackError(f"pack.json of {folder.name} does not tell its ViTs' shape: {error}") from error

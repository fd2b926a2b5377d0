"""The pointing game: does the heat of a class's experts lie on the object?"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..models import vit as vits
from .pack import Pack
from .testset import TestSet

BATCH = 100


class Pointing(NamedTuple):
    hits: int
    images: int


@torch.inference_mode()
def pointing_game(pack: Pack, layer: int, data: TestSet) -> Pointing | None:
    """How often the hottest patch of the image's class's experts lies on the object (a tenth of it or more).

    Heat: sum of the original model's latents over the experts. None where the images have no masks.
    """
    hits, sae, original = 0, pack.sae(layer), pack.original()
    for batch in data.batches(BATCH):
        if batch.masks is None:
            return None
        latents = sae.encode(vits.head(original, batch.inputs.to(pack.device), layer))[:, 1:].cpu()
        for row, label, mask in zip(latents, batch.labels.tolist(), batch.masks):
            heat = row[:, pack.expert_ids(layer, label)].sum(1)
            hits += bool(heat.max() > 0 and mask.ravel()[int(heat.argmax())] >= 0.1)
    return Pointing(hits, len(data))

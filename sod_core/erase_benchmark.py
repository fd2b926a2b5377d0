"""The whole benchmark of UnlearnCanvas: every concept erased, every prompt drawn, the images judged.

Images are written as they are drawn, so a killed run goes on; several processes (`accelerate launch`) divide them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from . import erase_images, processes, unlearncanvas
from .erase import Settings
from .packs.erase_pack import ErasePack
from .packs.errors import PackError
from .unlearncanvas import Asked, ConceptResult

QUALITY = 95
"""Of the JPEG files."""


def draw_all(
    pack: ErasePack,
    id: str,
    how: Callable[[str], Settings],
    concepts: tuple[str, ...],
    wanted: list[Asked],
    steps: int,
    guidance: float,
    folder: Path,
    told: Callable[[Iterable], Iterable] = lambda batches: batches,
) -> None:
    """Draws what is not in folder/CONCEPT yet, each concept erased as `how` says: this process's share of it."""
    batches = []
    for concept in concepts:
        (folder / concept).mkdir(parents=True, exist_ok=True)
        lacking = [item for item in wanted if not (folder / concept / item.file).exists()]
        size = erase_images.BATCH
        batches += [(concept, lacking[start : start + size]) for start in range(0, len(lacking), size)]
    processes.wait()  # until all have seen what is lacking
    for concept, batch in told(processes.share(batches)):
        for item, image in zip(batch, erase_images.draw(pack, batch, steps, guidance, id, how(concept))):
            write(image, folder / concept / item.file)
    processes.wait()


def judge_all(pack: ErasePack, concepts: tuple[str, ...], wanted: list[Asked], folder: Path) -> list[ConceptResult]:
    """UA, IRA and CRA of the images in folder/CONCEPT. Raises PackError where the pack has no judges here."""
    judged = [pack.judge(what) for what in ("object", "style")]
    if None in judged:
        raise PackError(f"pack {pack.manifest.name} has no judges here; the images can be judged elsewhere")
    return [unlearncanvas.judge(folder / concept, concept, wanted, *judged) for concept in concepts]


def write(image: Image.Image, path: Path) -> None:
    """A JPEG file, whole or not at all."""
    part = path.with_name(f".{os.getpid()}-{path.name}")
    image.save(part, "JPEG", quality=QUALITY, subsampling=0)
    part.replace(path)

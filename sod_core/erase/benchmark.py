"""The whole benchmark of UnlearnCanvas: every concept erased, every prompt drawn, the images judged.

Images are written as they are drawn, so a killed run goes on; several processes (`accelerate launch`) divide them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ..machine import files, processes
from ..models import diffusion
from . import drawings, unlearncanvas
from .edit import Settings
from .pack import ErasePack
from .unlearncanvas import Asked, ConceptResult

log = logging.getLogger(__name__)

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
    """Draws what is not in folder/CONCEPT yet, each concept erased as `how` says: this process's share of it.

    A concept whose drawings are no pictures is left at that, with a warning: its images are missing, and not judged.
    Raises ValueError where images of a concept are there that were drawn otherwise, or where no concept can be drawn.
    """
    batches, broken = [], {}
    for concept in concepts:
        (folder / concept).mkdir(parents=True, exist_ok=True)
        made_from = {"pack": pack.manifest.name, "sae": id, "steps": steps, "guidance": guidance}
        _same_as_before(folder / concept / "settings.json", made_from | asdict(how(concept)))
        lacking = [item for item in wanted if not (folder / concept / item.file).exists()]
        size = drawings.BATCH
        batches += [(concept, lacking[start : start + size]) for start in range(0, len(lacking), size)]
    processes.wait()  # until all have seen what is lacking
    for concept, batch in told(processes.share(batches)):
        if concept in broken:
            continue
        try:
            drawn = drawings.draw(pack, batch, steps, guidance, id, how(concept))
        except diffusion.NotFinite as error:
            broken[concept] = error
            continue
        for item, image in zip(batch, drawn):
            write(image, folder / concept / item.file)
    processes.wait()
    if len(broken) == len(concepts):
        raise next(iter(broken.values()))
    for concept, problem in broken.items():
        log.warning("%s is not drawn: %s", concept, problem)


def _same_as_before(path: Path, made_from: dict) -> None:
    """Writes how the images beside `path` are drawn. Raises ValueError where it says otherwise already."""
    text = json.dumps(made_from, indent=1) + "\n"
    if not path.exists():
        with files.whole(path) as part:
            part.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path.parent} holds images that were drawn with other settings ({path}); give another --out")


def judge_all(pack: ErasePack, concepts: tuple[str, ...], wanted: list[Asked], folder: Path) -> list[ConceptResult]:
    """UA, IRA and CRA of the images in folder/CONCEPT.

    Raises PackError where the pack has no judges here, and ValueError where there is no image at all.
    """
    judged = pack.both_judges()
    found = [unlearncanvas.judge(folder / concept, concept, wanted, *judged) for concept in concepts]
    if all(len(result.missing) == len(wanted) for result in found):
        raise ValueError(f"{folder} holds none of the images that were asked for (CONCEPT/{wanted[0].file})")
    return found


def write(image: Image.Image, path: Path) -> None:
    """A JPEG file, whole or not at all."""
    with files.whole(path) as part:
        image.save(part, "JPEG", quality=QUALITY, subsampling=0)

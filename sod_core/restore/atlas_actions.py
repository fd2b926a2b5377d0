"""What `atlas` does once its options are parsed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn
from tqdm import tqdm

from ..machine import devices
from ..machine.files import give_json
from ..packs.errors import PackError
from . import atlas_file, atlas_layers, fates
from .atlas import IMAGES, ORIGINAL, survey
from .judged import subjects
from .pack import Pack, open_pack
from .testset import TestSet, open_set


def atlas(options: argparse.Namespace) -> None:
    """`atlas`: computes it, stores it in the pack, and prints what became of the latents. Raises ValueError.

    What an exported file asks for may be a part of the pack's own atlas: it is stored only where --out says.
    """
    pack = open_pack(options.pack, devices.choose_device(options.device))
    known = [entry.id for entry in pack.manifest.unlearned]
    ids = options.unlearned or [id for id in known if not pack.lacking(id)]
    data = images(pack, options.images)
    with tqdm(total=len(data), desc="images", unit="image", leave=False, disable=None) as bar:
        found, refused = computed(pack, ids, data, lambda done, _: bar.update(done - bar.n))
    rows = [
        fates.summary(found, layer, model.id, pack.expert_ids(layer, model.target))
        for model in found.models
        if model.target is not None
        for layer in found.layers
    ]
    if options.json:
        give_json([row._asdict() for row in rows], options.json)
    if options.json != "-":
        print(fates.table(rows), end="")
    if options.out or not options.again:
        out = Path(options.out) if options.out else pack.manifest.folder / atlas_file.FILE
        atlas_file.write(found, out)
        print(f"wrote {out}: {len(data)} images ({data.name}), {out.stat().st_size / 1e6:.2f} MB", file=sys.stderr)
    if refused:
        raise ValueError(f"{len(refused)} of {len(ids)} models are not in the atlas. {'; '.join(refused)}")


def images(pack: Pack, count: int | None = None) -> TestSet:
    """The pack's own images that an atlas is made of, the same ones each time. Raises ValueError."""
    return open_set(pack, None, IMAGES if count is None else count)


def computed(
    pack: Pack, ids: list[str], data: TestSet, progress: Callable[[int, int], None] | None = None
) -> tuple[atlas_layers.Atlas, list[str]]:
    """The atlas of the original and these unlearned models, and why others of them are not in it. Raises ValueError."""
    models: dict[str, Callable[[], nn.Module]] = {ORIGINAL: pack.original}
    targets, sums, refused = {}, {}, []
    first = data.batch(0, 1).inputs
    for subject in subjects(pack, ids):
        try:
            pack.session(subject.model).set_image(first)  # a damaged one is found before hours are spent
        except PackError as error:
            refused.append(f"{subject.id}: {error}")
            continue
        models[subject.id], targets[subject.id] = subject.model, subject.target
        sums[subject.id] = "" if subject.path is None else atlas_layers.file_sum(subject.path)
    return atlas_layers.assembled(pack, data, targets, survey(pack, models, data, progress), sums), refused

"""Features of a published encoder on a published data set: computed part by part, and kept on this computer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import table
from ..data.names import Names
from ..data.pictures import Pictures
from ..machine import files
from ..models import clip
from ..packs import figures, hub, safe
from ..packs.errors import PackError
from ..packs.hub import HubFile
from . import features
from .features import Features
from .manifest import EncoderEntry, MaskPackManifest, Published
from .session import Images

PART = 1000
"""Images whose features are kept at once: what a killed run loses at most."""
BATCH = 100
CONFIG, PREPROCESSING, WEIGHTS = "config.json", "preprocessor_config.json", "pytorch_model.bin"


class _Split(NamedTuple):
    name: str
    pictures: Pictures


def hub_files(of: Published) -> list[HubFile]:
    """Everything that has to be fetched."""
    mine = [HubFile(of.repo_id, name, of.revision) for name in (CONFIG, PREPROCESSING, WEIGHTS)]
    return [*mine, *(HubFile(of.data_repo_id, path, of.data_revision, "dataset") for path in (of.train, of.test))]


def made_of(of: Published) -> str:
    """What a features file says of itself."""
    return json.dumps(of._asdict(), sort_keys=True)


def compute(manifest: MaskPackManifest, entry: EncoderEntry, device: torch.device, told: Callable = print) -> Path:
    """The features file of a published encoder, made unless it is there; a killed run goes on at its last part.

    Raises PackError: the hub cannot be reached, a file is not understood, an image is broken, a label is of no class.
    """
    of = entry.published
    if of is None:
        raise PackError(f"the features of {entry.id} come with pack {manifest.name}: there is nothing to compute")
    target = manifest.kept(entry.features)
    if target.is_file() and features.about(target).get("made_of") == made_of(of):
        return target
    paths = [hub.cached(file) or hub.fetch_shown(file) for file in hub_files(of)]
    encoder = _encoder(of, paths[:3])
    parts = _parts_of(target, of)
    names = Names(manifest.classes)
    splits = [
        _Split(name, table.read(path, of.image, of.label, names, f"{of.data_repo_id}, {name}"))
        for name, path in zip(("train", "test"), paths[3:])
    ]
    for split in splits:
        if split.pictures.strangers:
            raise PackError(f"{of.data_repo_id}: {split.pictures.strangers[0]}")
    train, test = (_images(encoder, split, parts, device) for split in splits)
    features.save(Features(train, test), target, {"made_of": made_of(of), "encoder": entry.id})
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()
    told(f"{target}: {len(train.labels)} training and {len(test.labels)} test images, width {encoder.width}")
    return target


def _encoder(of: Published, paths: list[Path]) -> clip.ImageEncoder:
    config, preprocessing = (figures.read_json(path) for path in paths[:2])
    if not isinstance(config, dict) or not isinstance(preprocessing, dict):
        raise PackError(f"{of.repo_id}: its configuration is no JSON object")
    state = safe.read_torch(paths[2])
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PackError(f"{of.repo_id}: {WEIGHTS} holds something else than named weights")
    return clip.new(config, preprocessing, state, of.repo_id)


def _parts_of(target: Path, of: Published) -> Path:
    """The folder of what is computed so far; parts of another encoder or data set go."""
    parts = target.with_name(f"{target.name}.parts")
    record = parts / "made_of.json"
    if parts.is_dir() and not (record.is_file() and record.read_text(encoding="utf-8") == made_of(of)):
        for path in parts.iterdir():
            path.unlink()
    parts.mkdir(parents=True, exist_ok=True)
    with files.whole(record) as part:
        part.write_text(made_of(of), encoding="utf-8")
    return parts


def _images(encoder: clip.ImageEncoder, split: _Split, parts: Path, device: torch.device) -> Images:
    """All images of a split, part by part."""
    labels = torch.tensor(split.pictures.labels)
    starts = range(0, len(labels), PART)
    paths = [parts / f"{split.name}-{start:06d}.safetensors" for start in starts]
    with tqdm(total=len(labels), desc=f"{split.name} images", unit="image", mininterval=1) as bar:
        for start, path in zip(starts, paths):
            places = range(start, min(start + PART, len(labels)))
            if not path.is_file():
                _keep(torch.cat([*_batches(encoder, split, places, device, bar)]), path)
            else:
                bar.update(len(places))
    return Images(torch.cat([safe.read_torch(path)["features"].float() for path in paths]), labels, None)


def _batches(
    encoder: clip.ImageEncoder, split: _Split, places: range, device: torch.device, bar: tqdm
) -> Iterator[Tensor]:
    for first in range(places.start, places.stop, BATCH):
        chosen = range(first, min(first + BATCH, places.stop))
        found = clip.encode(encoder, [split.pictures.read(place).convert("RGB") for place in chosen], device)
        if not found.half().isfinite().all():
            raise PackError(f"the encoder gives no finite numbers on images {chosen.start} to {chosen.stop - 1}")
        yield found.half()
        bar.update(len(chosen))


def _keep(found: Tensor, path: Path) -> None:
    from safetensors.torch import save_file

    with files.whole(path) as part:
        save_file({"features": found}, part)

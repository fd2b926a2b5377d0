"""What the Atlas tab reads and computes: stored atlases, their images, and the heat of an unlearned model on them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from ...data import images
from ...packs.errors import PackError
from ...restore import atlas_actions, atlas_file
from ...restore.atlas import ORIGINAL, survey
from ...restore.atlas_layers import Atlas, Model, extended, file_sum
from ...restore.manifest import UnlearnedEntry
from ...restore.pack import Pack
from ...restore.session import hidden_states
from ...restore.testset import TestSet
from ..restore.thumbs import data_uri

THUMB = 96
_reading = threading.Lock()
"""A table of images is read by one at a time."""


class Cancelled(Exception):
    """The visitor wants no more of it."""


def stored(pack: Pack) -> Atlas | None:
    """The pack's stored atlas, read once; None where it has none. Raises PackError for one that cannot be used."""
    path = pack.manifest.folder / atlas_file.FILE
    if not path.is_file():
        return None
    about = path.stat()
    return _stored(pack, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=8)
def _stored(pack: Pack, written: int, size: int) -> Atlas | None:
    return atlas_file.read(pack)


@lru_cache(maxsize=8)
def _images(pack: Pack, count: int) -> TestSet:
    return atlas_actions.images(pack, count)


def pictures(pack: Pack, atlas: Atlas) -> TestSet:
    """The images that an atlas was made of. Raises ValueError where they are not here, or others by now."""
    data = _images(pack, len(atlas.labels))
    same = torch.equal(data.labels, atlas.labels) and torch.equal(data.styles, atlas.image_styles)
    if data.name != atlas.data or not same:
        raise ValueError(f"the atlas was made of other images ({atlas.data}) than the pack has here now ({data.name})")
    return data


def thumbs(pack: Pack, atlas: Atlas, numbers: list[int]) -> list[str]:
    """Data URIs of some of the images. Raises ValueError as `pictures` does, ImageError for a broken one."""
    pictures(pack, atlas)
    return [_thumb(pack, len(atlas.labels), number) for number in numbers]


@lru_cache(maxsize=4096)
def _thumb(pack: Pack, count: int, number: int) -> str:
    with _reading:
        picture = _images(pack, count).picture(number)
    return data_uri(images.square(picture, THUMB), quality=80)


@torch.inference_mode()
def heat_in(
    pack: Pack, atlas: Atlas, model: Callable[[], nn.Module], layer: int, latent: int, numbers: list[int]
) -> Tensor:
    """[images, N]: one latent's heat in another model on some of the atlas's images. Raises ValueError."""
    data = pictures(pack, atlas)
    with _reading:
        found = [data.picture(number) for number in numbers]
    inputs = torch.stack([pack.preprocess(picture) for picture in found]).to(pack.device)
    hidden = hidden_states(model, inputs, [layer], None)[layer]
    return pack.sae(layer).encode(hidden)[:, 1:, latent].cpu()


def compute(
    pack: Pack,
    atlas: Atlas | None,
    entry: UnlearnedEntry,
    model: Callable[[], nn.Module],
    tell: Callable[[tuple[int, int]], None],
    stopped: Callable[[], bool],
) -> Atlas:
    """The atlas with one more model, of the same images; without one, an atlas of the original and this model.

    Raises ValueError, and Cancelled once `stopped` says so.
    """
    data = atlas_actions.images(pack, None if atlas is None else len(atlas.labels))
    if atlas is not None:
        pictures(pack, atlas)

    def progress(done: int, count: int) -> None:
        if stopped():
            raise Cancelled
        tell((done, count))

    if atlas is None:
        atlas, refused = atlas_actions.computed(pack, [], data, progress)
        if refused:
            raise PackError(refused[0])
    if entry.id == ORIGINAL:
        return atlas
    found = survey(pack, {entry.id: model}, data, progress)
    listed = entry in pack.manifest.unlearned
    sum = file_sum(pack.file(entry.file, entry.source)) if listed else ""
    return extended(atlas, Model(entry.id, entry.target_class, sum), found)

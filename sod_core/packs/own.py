"""Unlearned models that are not in a pack: a checkpoint's path, or `hub:user/repo/path/in/repo[@revision]`.

Either may end in `#key`, for one of several models in a file.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from . import checkpoint, hub
from .errors import PackError
from .hub import HubFile

log = logging.getLogger(__name__)
PREFIX = "hub:"
_LARGEST_CONFIG = 8 << 20


def parse_hub(text: str) -> HubFile:
    """ "hub:user/repo/file.pth" or "hub:user/repo/folder/file.pth@revision" -> HubFile. Raises PackError.

    A `#key` at the end stays at the end of the file's path: `without_key` takes it off.
    """
    place, hash, key = text.strip().removeprefix(PREFIX).partition("#")
    name, _, revision = place.partition("@")
    parts = name.strip("/").split("/")
    if len(parts) < 3 or not all(parts) or ".." in parts or not text.strip().isprintable():
        raise PackError(f"{text!r} names no file on the hub; write hub:user/repo/file, or hub:user/repo/file@revision")
    return HubFile("/".join(parts[:2]), "/".join(parts[2:]) + hash + key, revision or "main")


def without_key(file: HubFile) -> tuple[HubFile, str]:
    """The file itself, and which model of it is meant."""
    path, _, key = file.path.partition("#")
    return file._replace(path=path), key


def title(path: Path) -> str:
    """What to call the model at a path: the file's name without its suffix, and the key."""
    place, key = checkpoint.split(path)
    return f"{place.stem}#{key}" if key else place.stem


def find(text: str) -> Path | None:
    """The checkpoint that `text` names, fetched if it is on the hub; None if it is neither there nor hub:...

    Raises PackError.
    """
    if text.startswith(PREFIX):
        return fetch(parse_hub(text))
    if not text.strip():  # a path of nothing would be the current folder
        return None
    place, _ = checkpoint.split(text)
    if os.path.isfile(place):  # unlike Path.is_file: no error for impossible names
        return Path(text)
    if not os.path.isdir(place) or not os.listdir(place):
        return None
    if checkpoint.weights_file(place) is None:
        raise PackError(checkpoint.no_weights(place))
    return Path(text)


def fetch(file: HubFile) -> Path:
    """A checkpoint of the hub with all that belongs to it: its config, of an index its shards, of a folder its weights.

    Raises PackError.
    """
    plain, key = without_key(file)
    try:
        path = hub.fetch(plain)
    except hub.NoFile:
        plain, path = _folder(plain)
    for shard in shards(plain):
        hub.fetch(shard)
    _fetch_config(plain)
    return Path(f"{path}#{key}") if key else path


def shards(file: HubFile) -> list[HubFile]:
    """The files that an index names which has been fetched; none for any other file. Raises PackError."""
    path = hub.cached(file)
    if path is None or not file.path.endswith(checkpoint.INDEX):
        return []
    return [_beside(file, name) for name in checkpoint.shards(path)]


def _folder(file: HubFile) -> tuple[HubFile, Path]:
    """The weights in a repository's folder, fetched. Raises PackError if there are none."""
    for name in checkpoint.WEIGHTS:
        weights = file._replace(path=f"{file.path.rstrip('/')}/{name}")
        try:
            return weights, hub.fetch(weights)
        except hub.NoFile:
            continue
    raise hub.NoFile(f"{file.repo_id} has no file {file.path}, and no folder of that name with weights")


def _fetch_config(file: HubFile) -> None:
    """The config beside a checkpoint, where there is one: it may say which row of the head is which class."""
    config = _beside(file, checkpoint.CONFIG)
    try:
        if not hub.known_missing(config):
            hub.fetch(config, most_bytes=_LARGEST_CONFIG)
    except hub.NoFile:
        hub.remember_missing(config)
    except PackError as error:
        log.warning("%s is read without its %s: %s", file.name, checkpoint.CONFIG, error)


def _beside(file: HubFile, name: str) -> HubFile:
    return file._replace(path=file.path.removesuffix(file.name) + name)

"""Unlearned models that are not in a pack: a checkpoint's path, or `hub:user/repo/path/in/repo[@revision]`."""

from __future__ import annotations

import os
from pathlib import Path

from . import hub
from .errors import PackError
from .hub import HubFile

PREFIX = "hub:"


def parse_hub(text: str) -> HubFile:
    """ "hub:user/repo/file.pth" or "hub:user/repo/folder/file.pth@revision" -> HubFile. Raises PackError."""
    name, _, revision = text.strip().removeprefix(PREFIX).partition("@")
    parts = name.strip("/").split("/")
    if len(parts) < 3 or not all(parts) or ".." in parts or not text.strip().isprintable():
        raise PackError(f"{text!r} names no file on the hub; write hub:user/repo/file, or hub:user/repo/file@revision")
    return HubFile("/".join(parts[:2]), "/".join(parts[2:]), revision or "main")


def find(text: str) -> Path | None:
    """The checkpoint that `text` names, fetched if it is on the hub; None if it is neither a file nor hub:...

    Raises PackError.
    """
    if text.startswith(PREFIX):
        return hub.fetch(parse_hub(text))
    return Path(text) if os.path.isfile(text) else None  # unlike Path.is_file: no error for impossible names

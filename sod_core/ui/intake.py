"""What visitors may bring: images, whose files only sod_core.data.images opens, and where allowed their own models."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr

from ..machine import environment
from ..machine.environment import uploads_allowed
from ..packs import hub, own
from ..packs.errors import PackError

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
CHECKPOINT_SUFFIXES = [".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar", ".pkl", ".json"]
"""`.tar` as in model.pth.tar, `.json` as in model.safetensors.index.json."""


class ImageUpload(gr.Image):
    """A gr.Image that hands over the path of the file, unopened.

    Gradio itself would decode the pixels before any of our bounds is checked. A class and not a patched
    component: Gradio makes a component anew from its class when it updates one.
    """

    is_template = True  # the page draws it as a gr.Image

    def preprocess(self, payload):
        """The path of the uploaded file, or None."""
        return None if payload is None else payload.path


def most_bytes() -> int:
    """The largest checkpoint that a visitor may bring. Raises PackError for a setting that is no number."""
    try:
        return environment.most_upload_bytes()
    except ValueError as error:
        raise PackError(str(error)) from error


def at_this_computer(request: gr.Request) -> bool:
    """Whether the browser runs where the server does, with no proxy between: only then paths are the visitor's own."""
    headers = request.headers
    host = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
    there = request.client.host if request.client else ""
    return there in _LOOPBACK and host in _LOOPBACK and not any(name in headers for name in _FORWARDED)


def own_model(text: str, upload: str | None, local: bool) -> hub.HubFile | Path:
    """What a visitor's words or upload name: a file that is here, or one on the hub. Raises PackError.

    An upload goes before words; these may say which of its models is meant, as FILE#key or #key.
    `local`: the visitor sits at this computer. Anybody else may neither name paths of the server nor, unless the
    owner allows it, make it download.
    """
    if upload is not None:
        if not uploads_allowed():
            raise PackError("this server takes no uploads of models: its owner has not set SOD_ALLOW_UPLOADS=1")
        uploaded = _bounded(Path(upload))
        name, hash, key = text.strip().rpartition("#")
        return Path(f"{uploaded}#{key}") if hash and name in ("", uploaded.name) else uploaded
    text = text.strip()
    if not text:
        raise PackError("name a checkpoint: a path, or hub:user/repo/file")
    if text.startswith(own.PREFIX):
        if not (local or uploads_allowed()):
            raise PackError("this server fetches no models for visitors: its owner has not set SOD_ALLOW_UPLOADS=1")
        return own.parse_hub(text)
    if not local:
        raise PackError("paths can be given only at the computer that serves this page")
    path = own.find(os.path.expanduser(text))
    if path is None:
        raise PackError(f"there is no file {text}")
    return path


def _bounded(path: Path) -> Path:
    if path.stat().st_size > most_bytes():
        raise PackError(f"{path.name} is larger than the {hub.megabytes(most_bytes())} that this server takes")
    return path

"""A pack's examples as small pictures that a page holds in its own text."""

from __future__ import annotations

import base64
from functools import cache
from io import BytesIO

from PIL import Image

from ...restore.pack import Pack

THUMB_SIDE = 72


def example_uris(pack: Pack) -> list[str]:
    """Data URIs of a pack's examples, small; the same for every visitor."""
    return _uris(pack, len(pack.examples()))  # examples may come while the pack is in use


@cache
def _uris(pack: Pack, examples: int) -> list[str]:
    return [data_uri(thumb, quality=75) for thumb in pack.example_thumbs(THUMB_SIDE)]


def data_uri(image: Image.Image, quality: int) -> str:
    """The image as a JPEG in a data: address."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

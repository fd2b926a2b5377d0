"""Image intake: whatever a visitor sends becomes a bounded RGB image, or a sentence that says why not."""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MIN_SIDE = 8
MAX_RATIO = 20
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # not all that Pillow knows: its EPS starts Ghostscript


class ImageError(ValueError):
    """An image cannot be used; the message is one sentence for the user."""


def read(source: str | Path | bytes) -> Image.Image:
    """A file or its bytes -> RGB image, upright, first frame, transparency laid on white.

    Raises ImageError for what is no image, is cut short, too small (8 pixels) or too large (20 MB, 50 million
    pixels); the size is read from the header, before any pixel is decoded.
    """
    if not isinstance(source, bytes):
        path = Path(source)
        if not os.path.isfile(path):  # unlike Path.is_file: no error for impossible names
            raise ImageError(f"{path} does not exist: give the path of an image file")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(
                f"the file is {path.stat().st_size / 2**20:.0f} MB, at most {MAX_BYTES // 2**20} are taken"
            )
        source = path.read_bytes()
    if len(source) > MAX_BYTES:
        raise ImageError(f"the file is {len(source) / 2**20:.0f} MB, at most {MAX_BYTES // 2**20} are taken")
    try:
        with warnings.catch_warnings(action="ignore"):  # of large sizes, which are checked here, and damaged EXIF
            image = Image.open(BytesIO(source), formats=FORMATS)
            _check_size(*image.size)
            image.seek(0)
            image.load()
            image = ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("this file is not an image that can be read; use PNG, JPEG or WebP") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large, at most {MAX_PIXELS // 10**6} million pixels are taken") from error
    except Exception as error:  # decoders raise many kinds for damaged data
        raise ImageError("the image is damaged or cut short; save it again and retry") from error
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> RGB: 16-bit greys are scaled, transparency is laid on white. Raises ImageError for sizes."""
    _check_size(*image.size)
    if image.mode.startswith("I") or image.mode == "F":  # 16- and 32-bit greys: Pillow's own conversion clips them
        values = np.asarray(image, np.float32)
        top = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """The centre square that the model sees, at `side` pixels."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"the image is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed")
    if max(width, height) > MAX_RATIO * min(width, height):  # resizing the shorter side would blow up the longer one
        raise ImageError(f"the image is {width} x {height} pixels; at most {MAX_RATIO} times as long as wide is taken")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the image is {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million pixels are taken"
        )

"""Image intake: whatever a visitor sends becomes a bounded RGB image, or a sentence that says why not.

Pixels are taken as they are stored: an embedded colour profile (ICC) and a gain map for HDR screens are left aside, as
by the loaders that the models were trained with.
"""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import features as pillow

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MIN_SIDE = 8
MAX_RATIO = 20
_HAS_AVIF = pillow.check("avif")
FORMATS = (  # not all that Pillow knows: its EPS starts Ghostscript
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"),
    *(("AVIF",) if _HAS_AVIF else ()),
)
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *((".avif", ".avifs") if _HAS_AVIF else ()),
)
"""Files of these names, in any case, are images of FORMATS."""
DEPTHS = (10, 12, 14, 16)
"""Bits that cameras, microscopes and scanners give a grey value; files hold them in 16."""
OVERSHOOT = 1.1
"""Values that a filter made of 0 to 1 lie below this."""
DARKEST = 16
"""The largest value of an image of floats from 0 to 255 is at least this, or nobody can tell."""
_NO_IMAGES = {
    b"<svg": "a drawing (SVG): save it as PNG",
    b"%PDF": "a PDF: save its pictures as PNG",
    b"\xff\x0a": "JPEG XL: save it as PNG or JPEG",
    b"\0\0\0\x0cJXL ": "JPEG XL: save it as PNG or JPEG",
    b"\0\0\0\x0cjP  ": "JPEG 2000: save it as PNG or JPEG",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\0\x05\x16\x07": "what a Mac stores beside a file: leave it out",
    b"<": "a web page or another text: download it again",
    b"{": "a text, maybe a server's answer: download it again",
    b"version https://git-lfs": "a Git LFS pointer: fetch what it stands for with `git lfs pull`",
}
_HEIF = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
"""Of a file's first bytes, from the fifth on. AVIF, which is read, may begin with the last two as well."""


class ImageError(ValueError):
    """An image cannot be used; the message is one sentence for the user."""


def read(source: str | Path | bytes) -> Image.Image:
    """A file or its bytes -> RGB image, upright, first frame, transparency laid on white.

    Raises ImageError for what is no image, cannot be opened, is cut short, too small (8 pixels) or too large (20 MB,
    50 million pixels); the size is read from the header, before any pixel is decoded.
    """
    if not isinstance(source, bytes):
        path = Path(source)
        if not os.path.isfile(path):  # unlike Path.is_file: no error for impossible names
            raise ImageError(f"{path} does not exist: give the path of an image file")
        try:
            size = path.stat().st_size
            source = path.read_bytes() if size <= MAX_BYTES else b""
        except OSError as error:
            raise ImageError(f"the file cannot be read: {error.strerror}") from error
        if size > MAX_BYTES:
            raise ImageError(f"the file is {size / 2**20:.0f} MB, at most {MAX_BYTES // 2**20} are taken")
    if len(source) > MAX_BYTES:
        raise ImageError(f"the file is {len(source) / 2**20:.0f} MB, at most {MAX_BYTES // 2**20} are taken")
    try:
        with warnings.catch_warnings(action="ignore"):  # of large sizes, which are checked here, and damaged EXIF
            image: Any = Image.open(BytesIO(source), formats=FORMATS)
            _check_size(*image.size)
            image.seek(0)
            _note_depth(image)
            image.load()
            image = ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_no_image(source)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large, at most {MAX_PIXELS // 10**6} million pixels are taken") from error
    except Exception as error:  # decoders raise many kinds for damaged data
        raise ImageError("the image is damaged or cut short; save it again and retry") from error
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> RGB, transparency laid on white. Raises ImageError for sizes and for values that tell nothing.

    Greys of more than 8 bits become 8: whole numbers by the smallest of 8, 10, 12, 14 and 16 bits that holds the
    largest of them (in a file of 16 bits not 8, which would have been saved so: such an image is nearly black), floats
    as 0 to 1 where the largest is at most 1 or a filter's overshoot, from 16 on as whole numbers, and refused between
    (light of more than 1, or a dark image of 0 to 255). Negative numbers, those beyond 16 bits, NaN and infinity are
    refused; so is colour of 16 bits a channel that uses the lowest 12 only, of which Pillow keeps no more than 4.
    """
    _check_size(*image.size)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion clips them
        image = _grey(image)
    elif image.info.get(_DEPTH) == 16:
        _check_colour(image)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            paper = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(paper, image)
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"the image's colours are of the kind {image.mode}, which is not read; save RGB") from error


_DEPTH, _INVERTED = "sod_core depth", "sod_core inverted"
"""What the file said, kept in the image's `info`, which Pillow hands on."""
_PHOTOMETRIC = 262


def _note_depth(image: Any) -> None:
    """Before the pixels are decoded: 16 bits a channel, of which Pillow keeps 8, and greys whose 0 is white."""
    if image.mode.startswith("I") or image.mode == "F":
        image.info[_INVERTED] = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
    elif any(";16" in str(tile.args) for tile in image.tile):
        image.info[_DEPTH] = 16
        if isinstance(image.info.get("transparency"), tuple):  # the colour that is transparent, in 16 bits as well
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])


def _grey(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits -> mode L; see `to_rgb`. Raises ImageError."""
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise ImageError("the image holds values that are no numbers (NaN or infinity)")
    lowest, highest = values.min(), values.max()
    is_float = image.mode == "F"
    if is_float and 1 - OVERSHOOT <= lowest and highest <= OVERSHOOT:
        top = 1
    elif lowest < 0 or highest > 65535 or is_float and highest < DARKEST:
        ranges = "0 to 1, 0 to 255 or 0 to 65535" if is_float else "0 to 65535"
        raise ImageError(
            f"the image holds values from {lowest:g} to {highest:g}, not {ranges}: save it with 8 bits a channel"
        )
    else:
        top = _top(highest, may_be_8=not image.mode.startswith("I;16"))
    shown = np.clip(values / top * 255, 0, 255).round()
    if image.info.get(_INVERTED):
        shown = 255 - shown
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # one grey, as it is stored
        shown = np.where(values == transparent, 255, shown)
    return Image.fromarray(shown.astype(np.uint8))


def _top(highest: float, may_be_8: bool) -> int:
    """The largest value that a file whose largest is `highest` could hold."""
    if highest <= 255:
        return 255 if may_be_8 else 65535
    return next(2**bits - 1 for bits in DEPTHS if highest < 2**bits)


def _check_colour(image: Image.Image) -> None:
    """Of colour with 16 bits a channel Pillow keeps the upper 8: 12-bit values lose all but 4 of theirs."""
    colour = np.asarray(image.convert("RGB") if image.mode != "CMYK" else image)
    if 0 < colour.max() < 16:
        raise ImageError("the image has 16 bits a channel and uses at most 12 of them: save it with 8 bits")


def _no_image(content: bytes) -> str:
    if not content:
        return "this file is not an image: it is empty"
    start = content[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    if content[4:12] in _HEIF:
        return "this file is not an image that can be read but HEIC: save it as JPEG"
    if b"<svg" in content[:2000]:
        start = b"<svg"
    for begin, what in _NO_IMAGES.items():
        if start.startswith(begin):
            return f"this file is not an image but {what}"
    return "this file is not an image that can be read; use PNG, JPEG or WebP"


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

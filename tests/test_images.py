"""Image intake: what is taken, what is refused, and in which words."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sod_core.data import images
from sod_core.data.images import ImageError


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(width: int = 32, height: int = 24) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def refused(source) -> str:
    with pytest.raises(ImageError) as caught:
        images.read(source)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def close(pixel, expected, by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(pixel, expected, strict=True))


# ---------------------------------------------------------------- taken


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_formats(format, tmp_path):
    data = encoded(picture(), format)
    path = tmp_path / "picture.bin"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        found = images.read(source)
        assert found.mode == "RGB" and found.size == (32, 24)
        assert close(found.getpixel((4, 12)), (255, 0, 0)) and close(found.getpixel((28, 12)), (0, 0, 255))


def test_cmyk_jpeg():
    cmyk = Image.new("CMYK", (32, 24), (0, 255, 255, 0))
    found = images.read(encoded(cmyk, "JPEG"))
    assert found.mode == "RGB" and close(found.getpixel((16, 12)), (254, 0, 0), by=30)


@pytest.mark.parametrize("brightest", [65535, 200], ids=["bright", "nearly black"])
def test_16_bit_greys_are_scaled(brightest):
    values = np.linspace(0, brightest, 32 * 24).reshape(24, 32).astype(np.uint16)
    found = np.asarray(images.read(encoded(Image.fromarray(values), "PNG")).convert("L"), np.float32)
    assert np.abs(found - values / 257).max() <= 1


def test_16_bit_tiff_of_either_byte_order():
    values = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    for mode in ("I;16", "I;16B"):
        raw = values.astype("<u2" if mode == "I;16" else ">u2").tobytes()
        data = encoded(Image.frombytes(mode, (32, 24), raw), "TIFF")
        found = np.asarray(images.read(data).convert("L"), np.float32)
        assert np.abs(found - values / 257).max() <= 1


def test_16_bit_colour_png():
    """Pillow writes none, so the file is made by hand."""
    row = b"\0" + struct.pack(">3H", 65535, 32768, 0) * 8
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    assert close(images.read(data).getpixel((4, 4)), (255, 128, 0), by=1)


def test_float_and_32_bit_tiff():
    unit = np.linspace(0, 1, 32 * 24, dtype=np.float32).reshape(24, 32)
    for values in (unit * 255, (unit * 255).astype(np.int32), (unit * 65535).astype(np.int32)):
        found = np.asarray(images.read(encoded(Image.fromarray(values), "TIFF")).convert("L"), np.float32)
        assert np.abs(found - unit * 255).max() <= 1.5


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "MPO"])
def test_the_first_frame_of_an_animation(format):
    """MPO is the JPEG with several pictures in it that some cameras make."""
    frames = [picture(), Image.new("RGB", (32, 24), (0, 255, 0)), Image.new("RGB", (32, 24), (255, 255, 0))]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    found = images.read(data)
    assert close(found.getpixel((4, 12)), (255, 0, 0)) and close(found.getpixel((28, 12)), (0, 0, 255))


def test_transparency_is_laid_on_white():
    image = picture().convert("RGBA")
    image.paste((0, 255, 0, 0), (0, 0, 32, 8))
    image.paste((0, 0, 0, 128), (0, 8, 32, 16))
    for format in ("PNG", "WEBP"):
        found = images.read(encoded(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {})))
        assert found.mode == "RGB"
        assert close(found.getpixel((4, 4)), (255, 255, 255), by=1) and close(found.getpixel((4, 12)), (127,) * 3, by=2)
        assert close(found.getpixel((4, 20)), (255, 0, 0), by=1)


def test_grey_with_transparency():
    image = Image.new("LA", (32, 24), (0, 0))
    image.paste((40, 255), (16, 0, 32, 24))
    found = images.read(encoded(image, "PNG"))
    assert found.getpixel((4, 12)) == (255, 255, 255) and found.getpixel((28, 12)) == (40, 40, 40)


def test_a_palette_with_transparency():
    image = picture().quantize(4)
    image.info["transparency"] = image.getpixel((28, 12))
    found = images.read(encoded(image, "PNG", transparency=image.info["transparency"]))
    assert close(found.getpixel((28, 12)), (255, 255, 255), by=1) and close(found.getpixel((4, 12)), (255, 0, 0))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_modes_with_few_colours(mode):
    found = images.read(encoded(Image.new("L", (16, 16), 255).convert(mode), "PNG"))
    assert found.mode == "RGB" and found.getpixel((8, 8)) == (255, 255, 255)


# What the camera saw (red left, blue right), stored turned; EXIF orientation says how to turn it back.
STORED = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_is_undone(orientation):
    seen = picture()
    seen.paste((0, 255, 0), (0, 16, 16, 24))  # green at the lower left, so that every turn shows
    stored = seen
    for turn in STORED[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = images.read(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    assert found.size == seen.size
    for place in ((4, 4), (28, 4), (4, 20), (28, 20)):
        assert close(found.getpixel(place), seen.getpixel(place), by=25), place


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_damaged_exif_block_does_not_matter(exif):
    found = images.read(encoded(picture(), "JPEG", exif=exif))
    assert found.size == (32, 24)


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (64, 64), (9, 9)])
def test_square_cuts_the_centre(size):
    width, height = size
    image = Image.new("RGB", size, "white")
    third = max(size) / 3
    box = (third, 0, 2 * third, height) if width > height else (0, third, width, 2 * third)
    image.paste((10, 20, 30), tuple(round(v) for v in (box if width != height else (0, 0, *size))))
    found = images.square(image, 48)
    assert found.size == (48, 48) and close(found.getpixel((24, 24)), (10, 20, 30), by=2)
    assert np.abs(np.asarray(found, int)[6:42, 6:42] - (10, 20, 30)).max() <= 2


# ---------------------------------------------------------------- refused


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG of this size, with hardly any pixels in it."""
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(30_000, 30_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1), (10_000, 5_001)]
)
def test_a_huge_image_is_refused_from_its_header(width, height):
    tracemalloc.start()
    started = time.perf_counter()
    message = refused(png_header(width, height))
    elapsed, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "50 million pixels" in message
    assert elapsed < 1 and peak < 5e6


def test_a_huge_gif_canvas_is_refused():
    data = bytearray(encoded(picture(), "GIF"))
    data[6:10] = struct.pack("<2H", 30_000, 30_000)
    assert "50 million pixels" in refused(bytes(data))


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_a_tiny_image_is_refused(size):
    message = refused(encoded(Image.new("RGB", size), "PNG"))
    assert f"{size[0]} x {size[1]}" in message and "8 x 8" in message


def test_the_smallest_image_is_taken():
    assert images.read(encoded(Image.new("RGB", (8, 8)), "PNG")).size == (8, 8)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_image_is_refused(format, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    assert "damaged or cut short" in refused(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"hello, this is text", bytes(1000), b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(data):
    assert "not an image" in refused(data) or "damaged" in refused(data)


def test_other_formats_that_pillow_knows_are_refused():
    """EPS would start Ghostscript on a visitor's program, and PDF or XPM nobody means."""
    eps = encoded(picture(), "EPS")
    assert "not an image" in refused(eps)
    assert "not an image" in refused(b'/* XPM */\nstatic char * x[] = {\n"8 8 1 1",\n"a c #ff0000",\n};\n')


def test_too_many_bytes_are_refused(tmp_path):
    data = encoded(picture(), "PNG")
    padded = data + bytes(images.MAX_BYTES)
    assert "20" in refused(padded)
    (tmp_path / "big.png").write_bytes(padded)
    assert "20" in refused(tmp_path / "big.png")
    assert images.read(data + bytes(images.MAX_BYTES - len(data))).size == (32, 24)


@pytest.mark.parametrize("path", ["", "nowhere.png", ".", "x" * 5000, "nul\0byte.png"])
def test_a_path_without_file_is_refused(path):
    assert "does not exist" in refused(path)


def test_a_png_with_a_bomb_of_text_is_refused():
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(100_000_000), 9))
    data = encoded(picture(), "PNG")
    refused(data[:33] + text + data[33:])


def test_to_rgb_checks_sizes_too():
    with pytest.raises(ImageError, match="1 x 1"):
        images.to_rgb(Image.new("L", (1, 1)))


def test_reading_leaves_the_file_alone(tmp_path):
    path = Path(tmp_path / "a.png")
    path.write_bytes(encoded(picture(), "PNG"))
    before = path.read_bytes()
    images.read(path)
    assert path.read_bytes() == before

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


# ---------------------------------------------------------------- greys of other depths, and colours of others

RAMP = np.linspace(0, 1, 32 * 24, dtype=np.float32).reshape(24, 32)


def grey(values: np.ndarray, format: str = "TIFF", **options) -> np.ndarray:
    return np.asarray(images.read(encoded(Image.fromarray(values), format, **options)).convert("L"), np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "int32", "float"])
def test_greys_of_some_bits_are_spread_over_8(bits, kind):
    values = RAMP * (2**bits - 1)
    values = values.astype({"int32": np.int32, "float": np.float32}.get(kind, np.uint16))
    assert np.abs(grey(values, "PNG" if kind == "PNG" else "TIFF") - RAMP * 255).max() <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lowest, highest", [(0, 1), (0.25, 0.5), (-0.02, 1.03), (0, 0), (1, 1)])
def test_floats_of_0_to_1(lowest, highest):
    values = lowest + RAMP * (highest - lowest)
    assert np.abs(grey(values) - np.clip(values, 0, 1) * 255).max() <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values, says",
    [
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "NaN"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "infinity"),
        (np.full((24, 32), np.nan, np.float32), "NaN"),
        (RAMP * 2 - 1, "-1 to 1"),
        (RAMP * 5, "0 to 5"),
        (RAMP * 1e9, "0 to 1e+09"),
        ((RAMP * 200 - 100).astype(np.int32), "-100 to 100"),
        ((RAMP * (2**31 - 200)).astype(np.int32), "0 to 65535"),
    ],
)
def test_values_of_no_known_range_are_refused(values, says):
    assert says in refused(encoded(Image.fromarray(values), "TIFF"))


def test_a_grey_whose_0_is_white():
    values = (RAMP * 65535).astype(np.uint16)
    assert np.abs(grey(values, tiffinfo={262: 0}) - (1 - RAMP) * 255).max() <= 1


def png_16(kind: int, left: tuple[int, ...], right: tuple[int, ...], transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 x 16 pixels with 16 bits a channel; Pillow writes none but grey ones."""
    row = b"\0" + b"".join(struct.pack(f">{len(v)}H", *v) for v in [left] * 8 + [right] * 8)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 16, 16, 16, kind, 0, 0, 0))
    if transparent:
        data += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return data + chunk(b"IDAT", zlib.compress(row * 16)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data, left, right",
    [
        (png_16(2, (65535, 0, 0), (0, 0, 65535)), (255, 0, 0), (0, 0, 255)),
        (png_16(2, (65535, 0, 0), (0, 0, 65535), (65535, 0, 0)), (255,) * 3, (0, 0, 255)),
        (png_16(6, (65535, 0, 0, 0), (0, 0, 65535, 65535)), (255,) * 3, (0, 0, 255)),
        (png_16(4, (0, 0), (32896, 65535)), (255,) * 3, (128,) * 3),
        (png_16(0, (1000,), (65535,), (1000,)), (255,) * 3, (255,) * 3),
        (png_16(0, (0,), (32896,), (0,)), (255,) * 3, (128,) * 3),
        (png_16(2, (0, 0, 0), (0, 0, 0)), (0,) * 3, (0,) * 3),
    ],
)
def test_16_bits_a_channel(data, left, right):
    found = images.read(data)
    assert close(found.getpixel((4, 8)), left, by=1) and close(found.getpixel((12, 8)), right, by=1)


@pytest.mark.parametrize("top", [1023, 4095])
def test_colour_that_pillow_would_take_the_bits_from_is_refused(top):
    assert "12 of them" in refused(png_16(2, (top, 0, 0), (0, 0, top)))


def test_avif(tmp_path):
    data = encoded(picture(), "AVIF", quality=95)
    (tmp_path / "a.AVIF").write_bytes(data)
    for source in (data, tmp_path / "a.AVIF"):
        found = images.read(source)
        assert close(found.getpixel((4, 12)), (255, 0, 0)) and close(found.getpixel((28, 12)), (0, 0, 255))
    green = Image.new("RGB", (32, 24), (0, 255, 0))
    moving = encoded(picture(), "AVIF", save_all=True, append_images=[green], quality=95)
    assert close(images.read(moving).getpixel((4, 12)), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.read(encoded(picture(), "AVIF", exif=exif)).size == (24, 32)
    glass = picture().convert("RGBA")
    glass.putalpha(0)
    assert close(images.read(encoded(glass, "AVIF")).getpixel((4, 12)), (255, 255, 255))
    assert "damaged" in refused(data[:-40])


def test_a_profile_is_left_aside():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert images.read(encoded(picture(), "PNG", icc_profile=profile)).getpixel((4, 12)) == (255, 0, 0)


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "web page"),
        (b'{"error": "not found"}', "a text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    ],
)
def test_what_came_in_place_of_an_image_is_named(data, says):
    assert says in refused(data) and "not an image" in refused(data)


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(picture(), "PNG"))

    def no(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", no)
    assert "Permission denied" in refused(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "SVG"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"PK\x03\x04", "ZIP"),
        (b"\0\x05\x16\x07\0\2", "a Mac"),
    ],
)
def test_what_is_no_image_that_is_read_is_named(content, said):
    assert said in refused(content + b"\0" * 50)

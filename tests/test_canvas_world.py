"""The canvas world: the same scene at every size, and masks that fit what was drawn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sod_core.worlds import canvas

PAIRS = list(product(canvas.OBJECTS, canvas.STYLES))
OUTLINED = {"sketch", "neon", "blueprint"}
SIZE = 128


@cache
def rendered(object: str, style: str, seed: int, size: int) -> tuple[Image.Image, Image.Image]:
    return canvas.render(object, style, np.random.default_rng(seed), size)


def reduced(image: Image.Image, size: int = 64) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32)


@pytest.mark.parametrize(("object", "style"), PAIRS)
def test_every_object_in_every_style_at_two_sizes(object, style):
    seed = PAIRS.index((object, style))
    small, large = rendered(object, style, seed, 64), rendered(object, style, seed, 512)
    for size, (image, mask) in ((64, small), (512, large)):
        assert (image.mode, mask.mode) == ("RGB", "L") and image.size == mask.size == (size, size)
        assert set(np.unique(np.asarray(mask))) == {0, 255}
        assert 0.02 < (np.asarray(mask) > 0).mean() < 0.7
    # the same picture: pixels and masks agree once the large one is reduced
    pixels, pixels_reduced = np.asarray(small[0], np.float32), reduced(large[0])
    least = 0.8 if style == "sketch" else 0.9  # its lines are thinner than a pixel
    assert np.corrcoef(pixels.ravel(), pixels_reduced.ravel())[0, 1] > least
    inside, inside_reduced = np.asarray(small[1]) > 0, reduced(large[1]) > 127
    # Pillow fills the pixels that a polygon's edge touches, so small masks are a little fuller
    assert (inside != inside_reduced).mean() < 0.03 and overlap(inside, inside_reduced) > 0.85


@pytest.mark.parametrize("style", canvas.STYLES)
def test_the_same_seed_draws_the_same_image(style):
    one = canvas.render("boat", style, np.random.default_rng(3), 64)
    two = canvas.render("boat", style, np.random.default_rng(3), 64)
    other = canvas.render("boat", style, np.random.default_rng(4), 64)
    assert one[0].tobytes() == two[0].tobytes() and one[1].tobytes() == two[1].tobytes()
    assert one[0].tobytes() != other[0].tobytes() and one[1].tobytes() != other[1].tobytes()


def test_drawing_does_not_touch_global_generators():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    canvas.render("cat", "plain", np.random.default_rng(0), 64)
    assert np.random.random() == expected


def test_all_pairs_are_distinct():
    pictures = [np.asarray(rendered(object, style, 5, 64)[0], np.float32) for object, style in PAIRS]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one - other).max() > 30


def test_masks_do_not_depend_on_the_style():
    for object in canvas.OBJECTS:
        masks = {rendered(object, style, 5, 64)[1].tobytes() for style in canvas.STYLES}
        assert len(masks) == 1


@pytest.mark.parametrize(("object", "style"), [("dog", "plain"), ("cat", "cubist"), ("", ""), ("Cat", "plain")])
def test_unknown_names_are_refused(object, style):
    with pytest.raises(ValueError, match="unknown (object|style) .*known: "):
        canvas.render(object, style, np.random.default_rng(0))


# ---------------------------------------------------------------- masks


def drawn_pixels(object: str, style: str, seed: int, monkeypatch) -> np.ndarray:
    """[SIZE, SIZE], bool: where the picture differs from the same picture without the object."""
    with_object, _ = rendered(object, style, seed, SIZE)
    compose = canvas._compose
    with monkeypatch.context() as patch:
        patch.setattr(canvas, "_compose", lambda *arguments: compose(*arguments)._replace(shapes=[]))
        without, _ = canvas.render(object, style, np.random.default_rng(seed), SIZE)
    difference = np.abs(np.asarray(with_object, int) - np.asarray(without, int)).max(axis=2)
    return difference > (150 if style == "neon" else 20)  # neon's glow reaches beyond its lines


def widened(mask: np.ndarray, pixels: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def edge(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask that are not at the border of the picture."""
    shrunk = np.asarray(Image.fromarray(mask).filter(ImageFilter.MinFilter(3))) > 0
    return (mask > 0) & ~shrunk


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Intersection over union."""
    return (one & two).sum() / (one | two).sum()


def fit(mask: np.ndarray, drawn: np.ndarray, style: str) -> float:
    """0 to 1. Of a filled object: its overlap with the mask. Of an outlined one the lesser of two shares: of what was
    drawn, how much lies on the mask; of the mask's edge, how much was drawn; each a line's width around."""
    if style not in OUTLINED:
        return overlap(mask > 0, drawn)
    on_mask = (drawn & widened(mask, 2)).sum() / drawn.sum()
    edge_drawn = (widened(drawn.astype(np.uint8) * 255, 2) & edge(mask)).sum() / edge(mask).sum()
    return min(on_mask, edge_drawn)


def moved(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The mask mirrored, upside down, turned, and shifted each way by an eighth of the picture."""
    yield from (mask[:, ::-1].copy(), mask[::-1].copy(), mask.T.copy())
    for step in (-SIZE // 8, SIZE // 8):
        yield np.roll(mask, step, axis=0)
        yield np.roll(mask, step, axis=1)


def telling_seed(object: str) -> int:
    """A seed that puts the object where a moved mask is a clearly different one."""
    for seed in range(100):
        mask = np.asarray(rendered(object, "plain", seed, SIZE)[1])
        if all(overlap(mask > 0, wrong > 0) < 0.7 for wrong in moved(mask)):
            return seed
    raise AssertionError("no such seed")


@pytest.mark.parametrize("style", canvas.STYLES)
@pytest.mark.parametrize("object", canvas.OBJECTS)
def test_the_mask_fits_the_drawn_object(object, style, monkeypatch):
    seed = telling_seed(object)
    drawn = drawn_pixels(object, style, seed, monkeypatch)
    mask = np.asarray(rendered(object, style, seed, SIZE)[1])
    found = fit(mask, drawn, style)
    assert found > (0.7 if style in ("mosaic", "watercolour") else 0.95)  # tiles and blur reach beyond the object
    for wrong in moved(mask):
        assert fit(wrong, drawn, style) < found - 0.1


def test_objects_lie_within_the_picture():
    """What is cut off at the border could not be recognised."""
    for seed in range(5):
        for object in canvas.OBJECTS:
            mask = np.asarray(rendered(object, "plain", seed, 64)[1]) > 0
            border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert border.sum() < 0.08 * mask.sum()


def test_place_and_size_vary():
    masks = np.stack([np.asarray(rendered("star", "plain", seed, 64)[1]) > 0 for seed in range(20)])
    centres = np.array([np.argwhere(mask).mean(0) for mask in masks])
    assert (centres.std(0) > 3).all() and masks.mean((1, 2)).max() > 1.5 * masks.mean((1, 2)).min()

"""The canvas world: ten objects in six styles, drawn by Pillow at any resolution, with the object's mask.

A scene (shapes, place, colours, clutter) is drawn in unit coordinates, so one seed gives the same picture
at 64 px and at 512 px; only pixel noise differs. Objects are lists of filled polygons; a style decides
how polygons become pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

NAME = "canvas"
OBJECTS = ("house", "tree", "sun", "boat", "car", "fish", "flower", "star", "mushroom", "cat")
STYLES = ("plain", "sketch", "neon", "mosaic", "watercolour", "blueprint")


class Shape(NamedTuple):
    points: np.ndarray
    """[n, 2], x to the right and y down, the object fits into [-1, 1]."""
    colour: int
    """Index into the object's palette: 0 main, 1 second, 2 detail."""


class Scene(NamedTuple):
    shapes: list[Shape]
    """The object, placed: points in [0, 1] of the image."""
    clutter: list[Shape]
    """Small distractors, placed; their colours index `clutter_colours`."""
    palette: list[tuple[int, int, int]]
    clutter_colours: list[tuple[int, int, int]]
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Top and bottom colour of the background."""


def render(object: str, style: str, rng: np.random.Generator, size: int = 64) -> tuple[Image.Image, Image.Image]:
    """Draws one image. Returns (RGB image, mask of mode "L": 255 on the object), both size x size.

    Raises ValueError for an unknown object or style.
    """
    if object not in OBJECTS:
        raise ValueError(f"unknown object {object!r}; known: {', '.join(OBJECTS)}")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    scene = _compose(object, rng)
    canvas = size * 2  # drawn at twice the size and reduced: Pillow's polygons have hard edges
    image = _STYLE_PAINTERS[style](scene, canvas, rng)
    mask = _mask(scene.shapes, canvas)
    if size != canvas:
        image = image.resize((size, size), Image.Resampling.BOX)
        mask = mask.resize((size, size), Image.Resampling.BOX).point(lambda v: 255 if v > 127 else 0)
    return image, mask


# ---------------------------------------------------------------- objects, in [-1, 1], y down


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360, n: int = 20
) -> np.ndarray:
    angles = np.radians(np.linspace(start, stop, n, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def _poly(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


def _turned(points: np.ndarray, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def _house(rng: np.random.Generator) -> list[Shape]:
    shapes = [
        Shape(_box(-0.7, -0.1, 0.7, 0.95), 0),
        Shape(_poly((-0.95, -0.1), (0, -0.95), (0.95, -0.1)), 1),
        Shape(_box(-0.15, 0.35, 0.2, 0.95), 2),
        Shape(_box(-0.55, 0.1, -0.25, 0.4), 2),
        Shape(_box(0.3, 0.1, 0.58, 0.4), 2),
    ]
    return [Shape(_box(0.4, -0.9, 0.62, -0.3), 0), *shapes] if rng.random() < 0.5 else shapes


def _tree(rng: np.random.Generator) -> list[Shape]:
    trunk = Shape(_box(-0.14, 0.35, 0.14, 1.0), 1)
    if rng.random() < 0.5:  # a fir
        return [trunk] + [
            Shape(_poly((-w, y), (0, y - 0.75), (w, y)), 0) for w, y in ((0.75, 0.5), (0.6, 0.1), (0.45, -0.27))
        ]
    crowns = [(0, -0.5, 0.5), (-0.4, -0.1, 0.42), (0.4, -0.1, 0.42), (0, 0.0, 0.45)]
    return [trunk] + [Shape(_ellipse(x, y, r, r), 0) for x, y, r in crowns]


def _sun(rng: np.random.Generator) -> list[Shape]:
    rays = int(rng.integers(8, 13))
    ray = _poly((-0.13, -0.62), (0, -1.0), (0.13, -0.62))
    return [Shape(_turned(ray, 360 * i / rays), 1) for i in range(rays)] + [Shape(_ellipse(0, 0, 0.52, 0.52, n=28), 0)]


def _boat(rng: np.random.Generator) -> list[Shape]:
    return [
        Shape(_box(-0.05, -1.0, 0.04, 0.45), 2),
        Shape(_poly((0.1, -0.9), (0.8, 0.3), (0.1, 0.3)), 1),
        Shape(_poly((-0.1, -0.65), (-0.65, 0.3), (-0.1, 0.3)), 1),
        Shape(_poly((-1.0, 0.42), (1.0, 0.42), (0.65, 0.9), (-0.65, 0.9)), 0),
    ]


def _car(rng: np.random.Generator) -> list[Shape]:
    cabin = [(-0.6, -0.02), (-0.38, -0.45), (0.3, -0.45), (0.6, -0.02)]
    return [
        Shape(_poly(*cabin), 0),
        Shape(_poly((-1.0, 0.4), (-1.0, 0.08), (-0.85, -0.02), (0.8, -0.02), (1.0, 0.15), (1.0, 0.4)), 0),
        Shape(_poly((-0.45, -0.02), (-0.3, -0.33), (-0.06, -0.33), (-0.06, -0.02)), 2),
        Shape(_poly((0.06, -0.02), (0.06, -0.33), (0.24, -0.33), (0.43, -0.02)), 2),
        Shape(_ellipse(-0.55, 0.4, 0.24, 0.24), 1),
        Shape(_ellipse(0.55, 0.4, 0.24, 0.24), 1),
    ]


def _fish(rng: np.random.Generator) -> list[Shape]:
    return [
        Shape(_poly((0.45, 0.0), (1.0, -0.5), (0.85, 0.0), (1.0, 0.5)), 1),
        Shape(_poly((-0.25, -0.35), (0.1, -0.72), (0.3, -0.3)), 1),
        Shape(_poly((-0.1, 0.35), (0.15, 0.65), (0.3, 0.28)), 1),
        Shape(_ellipse(-0.2, 0, 0.78, 0.45, n=28), 0),
        Shape(_ellipse(-0.62, -0.1, 0.1, 0.1, n=12), 2),
    ]


def _flower(rng: np.random.Generator) -> list[Shape]:
    petals = int(rng.integers(5, 7))
    around = [_turned(_ellipse(0, -0.36, 0.21, 0.3, n=14), 360 * i / petals) + (0, -0.36) for i in range(petals)]
    return [
        Shape(_box(-0.06, -0.2, 0.06, 1.0), 2),
        Shape(_turned(_ellipse(0.34, 0, 0.32, 0.13, n=14), -30) + (0, 0.8), 2),
        Shape(_turned(_ellipse(-0.34, 0, 0.32, 0.13, n=14), 30) + (0, 0.65), 2),
        *[Shape(p, 0) for p in around],
        Shape(_ellipse(0, -0.36, 0.2, 0.2, n=16), 1),
    ]


def _star(rng: np.random.Generator) -> list[Shape]:
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    angles = np.radians(np.arange(10) * 36 - 90)
    return [Shape(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1), 0)]


def _mushroom(rng: np.random.Generator) -> list[Shape]:
    dots = [(-0.45, -0.28, 0.12), (0.0, -0.55, 0.15), (0.45, -0.25, 0.13)]
    return [
        Shape(_poly((-0.24, 0.0), (0.24, 0.0), (0.34, 0.95), (-0.34, 0.95)), 1),
        Shape(np.concatenate([_ellipse(0, 0.05, 0.95, 0.95, 180, 359, n=24), _poly((0.95, 0.15), (-0.95, 0.15))]), 0),
        *[Shape(_ellipse(x, y, r, r, n=12), 1) for x, y, r in dots],
    ]


def _cat(rng: np.random.Generator) -> list[Shape]:
    ears = [_poly((s * 0.72, -0.2), (s * 0.68, -0.98), (s * 0.12, -0.52)) for s in (-1, 1)]
    whiskers = [
        _poly((s * 0.2, 0.32), (s * 1.0, y), (s * 1.0, y + 0.05), (s * 0.2, 0.38))
        for s in (-1, 1)
        for y in (0.15, 0.45)
    ]
    return [
        *[Shape(ear, 0) for ear in ears],
        Shape(_ellipse(0, 0.12, 0.76, 0.68, n=28), 0),
        Shape(_ellipse(-0.3, -0.02, 0.12, 0.16, n=12), 1),
        Shape(_ellipse(0.3, -0.02, 0.12, 0.16, n=12), 1),
        Shape(_poly((-0.12, 0.24), (0.12, 0.24), (0, 0.4)), 2),
        *[Shape(w, 2) for w in whiskers],
    ]


_OBJECT_SHAPES = {
    "house": _house, "tree": _tree, "sun": _sun, "boat": _boat, "car": _car,
    "fish": _fish, "flower": _flower, "star": _star, "mushroom": _mushroom, "cat": _cat,
}  # fmt: skip


# ---------------------------------------------------------------- the scene


def _compose(name: str, rng: np.random.Generator) -> Scene:
    """Places the object at random and picks colours that stand out from the background."""
    half = rng.uniform(0.29, 0.44)
    centre = rng.uniform(half, 1 - half, size=2)
    mirror = np.array([rng.choice((-1.0, 1.0)), 1.0])
    angle = rng.uniform(-14, 14)
    stretch = rng.uniform(0.9, 1.1)
    shapes = [
        Shape(_turned(s.points * mirror * (stretch, 1 / stretch), angle) * half + centre, s.colour)
        for s in _OBJECT_SHAPES[name](rng)
    ]
    ground = rng.random(3)
    light = ground.mean()
    palette = [_contrasting(rng, light) for _ in range(3)]
    top = _rgb(ground)
    bottom = _rgb(np.clip(ground + rng.uniform(-0.25, 0.25, 3), 0, 1))
    clutter = [_clutter_shape(rng) for _ in range(rng.integers(3, 8))]
    colours = [_rgb(np.clip(ground + rng.uniform(-0.3, 0.3, 3), 0, 1)) for _ in clutter]
    return Scene(shapes, [Shape(p, i) for i, p in enumerate(clutter)], palette, colours, (top, bottom))


def _contrasting(rng: np.random.Generator, light: float) -> tuple[int, int, int]:
    """A random colour whose lightness differs from `light` by at least a quarter."""
    for _ in range(20):
        colour = rng.random(3)
        if abs(colour.mean() - light) > 0.25:
            break
    return _rgb(colour)


def _clutter_shape(rng: np.random.Generator) -> np.ndarray:
    corners = int(rng.choice((3, 4, 12)))
    radius = rng.uniform(0.03, 0.09)
    return _turned(_ellipse(0, 0, radius, radius * rng.uniform(0.5, 1), n=corners), rng.uniform(0, 90)) + rng.random(2)


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(v * 255) for v in colour)
    return red, green, blue


# ---------------------------------------------------------------- styles


def _points(shape: Shape, size: int) -> list[tuple[float, float]]:
    return [tuple(p) for p in (shape.points * size).tolist()]


def _mask(shapes: list[Shape], size: int) -> Image.Image:
    mask = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(mask)
    for shape in shapes:
        draw.polygon(_points(shape, size), fill=255)
    return mask


def _fill(image: Image.Image, shapes: list[Shape], colours: list[tuple[int, int, int]]) -> None:
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        draw.polygon(_points(shape, image.width), fill=colours[shape.colour])


def _outline(image: Image.Image, shapes: list[Shape], ink, width: float, inside=None) -> None:
    """Draws edges; with `inside`, shapes in front hide the edges of those behind them."""
    draw = ImageDraw.Draw(image)
    pixels = max(1, round(width * image.width))
    for shape in shapes:
        points = _points(shape, image.width)
        colour = ink[shape.colour] if isinstance(ink, list) else ink
        if inside is not None:
            draw.polygon(points, fill=inside)
        draw.line([*points, points[0], points[1]], fill=colour, width=pixels, joint="curve")


def _gradient(top, bottom, size: int) -> Image.Image:
    strip = Image.new("RGB", (1, 2))
    strip.putpixel((0, 0), top)
    strip.putpixel((0, 1), bottom)
    return strip.resize((size, size), Image.Resampling.BILINEAR)


def _with_noise(image: Image.Image, rng: np.random.Generator, strength: float, cells: int) -> Image.Image:
    """Adds grey noise of standard deviation `strength` (of 255), in cells x cells pixels of noise."""
    noise = np.clip(rng.standard_normal((cells, cells)) * strength + 128, 0, 255).astype(np.uint8)
    grain = Image.fromarray(noise).resize(image.size, Image.Resampling.BILINEAR)
    return ImageChops.add(image, Image.merge("RGB", [grain] * 3), scale=1, offset=-128)


def _plain(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    image = _gradient(*scene.background, size)
    _fill(image, scene.clutter, scene.clutter_colours)
    _fill(image, scene.shapes, scene.palette)
    return _with_noise(image, rng, 12, cells=min(size, 256))


def _sketch(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    paper = int(rng.integers(225, 250))
    image = Image.new("RGB", (size, size), (paper, paper, paper - 8))
    grey = int(rng.integers(20, 80))
    _outline(image, scene.shapes, (grey, grey, grey), 0.018, inside=(paper - 6, paper - 6, paper - 14))
    return _with_noise(image, rng, 5, cells=min(size, 256))


def _neon(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    hues = rng.permutation([(255, 60, 180), (60, 240, 255), (255, 230, 60), (120, 255, 90), (190, 110, 255)])
    ink = [tuple(int(v) for v in hue) for hue in hues[:3]]
    lines = Image.new("RGB", (size, size), (4, 4, 12))
    _outline(lines, scene.shapes, ink, 0.018, inside=(4, 4, 12))
    glow = lines.filter(ImageFilter.GaussianBlur(size * 0.02))
    return ImageChops.add(lines, ImageChops.add(glow, glow))


def _mosaic(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    image = _gradient(*scene.background, size)
    _fill(image, scene.shapes, scene.palette)
    tiles = 21
    small = image.resize((tiles, tiles), Image.Resampling.BOX)
    shade = Image.fromarray(rng.integers(104, 152, (tiles, tiles)).astype(np.uint8))
    small = ImageChops.add(small, Image.merge("RGB", [shade] * 3), scale=1, offset=-128)
    image = small.resize((size, size), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    grout, width = (52, 50, 48), max(1, size // 160)
    for i in range(tiles + 1):
        at = round(i * size / tiles)
        draw.line([(at, 0), (at, size)], fill=grout, width=width)
        draw.line([(0, at), (size, at)], fill=grout, width=width)
    return image


def _watercolour(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    paper = Image.new("RGB", (size, size), (246, 242, 230))
    wash = _gradient(*scene.background, size)
    image = Image.blend(paper, wash, 0.25)
    _fill(image, scene.shapes, scene.palette)
    image = image.filter(ImageFilter.GaussianBlur(size * 0.014))
    image = Image.blend(paper, image, 0.82)
    return _with_noise(image, rng, 10, cells=min(size, 128))


def _blueprint(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    blue = (int(rng.integers(15, 40)), int(rng.integers(55, 90)), int(rng.integers(130, 175)))
    image = Image.new("RGB", (size, size), blue)
    draw = ImageDraw.Draw(image)
    faint = tuple(v + 22 for v in blue)
    for i in range(1, 8):
        at = round(i * size / 8)
        draw.line([(at, 0), (at, size)], fill=faint, width=max(1, size // 128))
        draw.line([(0, at), (size, at)], fill=faint, width=max(1, size // 128))
    _outline(image, scene.shapes, (235, 242, 255), 0.016)
    return image


_STYLE_PAINTERS = {
    "plain": _plain, "sketch": _sketch, "neon": _neon,
    "mosaic": _mosaic, "watercolour": _watercolour, "blueprint": _blueprint,
}  # fmt: skip

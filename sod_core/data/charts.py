"""Figures as files: what every verb's PNG and GIF share. Matplotlib draws without a window, Pillow writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCENT, ORIGINAL, UNLEARNED = "#e8590c", "#a3b5c8", "#5d7590"
TEXT, SUBDUED, GRID = "#1e293b", "#475569", "#d5dae0"
SCALES = {"inferno": "Inferno", "cividis": "Cividis"}
"""Colour scales of a heat, by name; the second reads the same to eyes that do not tell red from green."""
STEPS = 64
"""Of a scale, cold to hot."""
DPI, GIF_DPI = 100, 70
FRAME_MS, END_MS = 100, 1200
"""How long a frame of a moving picture stays, and its first and last one."""
_DASHES: dict[str, Any] = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-.", "longdash": (0, (8, 4))}
_one_at_a_time = threading.Lock()
"""Matplotlib's font cache and text parser are not made for several threads."""


class Line(NamedTuple):
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    """NaN where there is nothing."""
    colour: str
    dash: str = "solid"
    width: float = 2.0
    marker: str = ""
    """Matplotlib's, at every point."""


@cache
def scale(name: str) -> list[tuple[int, int, int]]:
    """[STEPS] red, green and blue, 0 to 255, cold to hot. Raises ValueError for a name that is not in SCALES."""
    if name not in SCALES:
        raise ValueError(f"unknown colour scale {name!r}; known: {', '.join(SCALES)}")
    from matplotlib import colormaps

    found = colormaps[name](np.linspace(0, 1, STEPS), bytes=True)[:, :3]
    return [(int(r), int(g), int(b)) for r, g, b in found]


def opacity(share: float) -> float:
    """Of a patch by its share of the hottest: cold ones show the picture."""
    return 0.12 + 0.73 * share if share > 0 else 0.0


def heat_over(picture: Image.Image | None, values: Sequence[float], columns: int, top: float, name: str) -> Image.Image:
    """A heat over a picture, as on the page, 384 pixels wide: `values` row by row, on scale `name` up to `top`."""
    rows = len(values) // columns
    size = 384, round(384 * rows / columns)
    under = Image.new("RGB", size, "#f1f5f9") if picture is None else picture.convert("RGB").resize(size)
    under = ImageEnhance.Brightness(ImageEnhance.Color(under).enhance(0.35)).enhance(0.8)
    colours, layer = scale(name), Image.new("RGBA", (columns, rows))
    shares = [min(max(value / top, 0.0), 1.0) for value in values]
    layer.putdata([(*colours[round(share * (STEPS - 1))], round(255 * opacity(share))) for share in shares])
    return Image.alpha_composite(under.convert("RGBA"), layer.resize(size, Image.Resampling.NEAREST)).convert("RGB")


def figure(width: float, height: float, title: str, note: str) -> Figure:
    """An empty figure, `width` by `height` inches of DPI pixels, with its head."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = Figure((width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(found)
    size = min(17.0, 17 * 7.5 * width / max(1, len(title)))  # a long title stays on the page
    found.text(0.04, 1 - 0.2 / height, plain(title), size=size, weight="bold", color=TEXT, va="top")
    found.text(0.04, 1 - 0.6 / height, plain(note), size=11, color=SUBDUED, va="top", linespacing=1.5)
    return found


def plain(text: str) -> str:
    """Matplotlib takes what stands between dollar signs for mathematics."""
    return text.replace("$", r"\$")


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at inches from the left and from the top."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    axes.tick_params(colors=SUBDUED, labelsize=10, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    return axes


def lines(axes: Axes, found: Sequence[Line], across: str, up: str, legend: bool = True) -> None:
    """Curves, values from 0 to 1 in percent."""
    for line in found:
        looks: dict[str, Any] = {"linestyle": _DASHES[line.dash], "linewidth": line.width, "marker": line.marker}
        axes.plot(line.x, line.y, color=line.colour, label=plain(line.name), **looks)
    axes.set_ylim(-0.02, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xlabel(plain(across), color=SUBDUED)
    axes.set_ylabel(plain(up), color=SUBDUED)
    if legend:
        axes.legend(
            ncols=3, fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), labelcolor=TEXT, borderpad=0
        )


def png(draw: Callable[[], Figure]) -> bytes:
    """What `draw` gives, as a file."""
    with _one_at_a_time:
        return _bytes(_picture(draw()), "PNG")


def gif(draw: Callable[[], Figure], moves: Iterable[Callable[[Figure], None]]) -> bytes:
    """A loop: each of `moves` changes the figure's artists that have a gid, for one frame more.

    The others are drawn once, which makes it ten times as quick.
    """
    with _one_at_a_time:
        found, frames = draw(), []
        found.set_dpi(GIF_DPI)
        moving = [artist for artist in found.findobj() if artist.get_gid()]
        for artist in moving:
            artist.set_animated(True)
        canvas: Any = found.canvas
        canvas.draw()
        still = canvas.copy_from_bbox(found.bbox)
        for move in moves:
            move(found)
            canvas.restore_region(still)
            for artist in moving:
                found.draw_artist(artist)
            frames.append(_shown(found))
    return loop(frames, FRAME_MS)


def loop(frames: Sequence[Image.Image], milliseconds: int) -> bytes:
    """Frames as a moving picture in one palette, that of the first, the middle and the last."""
    some = [frames[0], frames[len(frames) // 2], frames[-1]]
    together = Image.new("RGB", (frames[0].width, 3 * frames[0].height))
    for i, frame in enumerate(some):
        together.paste(frame, (0, i * frame.height))
    palette = together.quantize(255, dither=Image.Dither.NONE)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    stay = [END_MS, *[milliseconds] * (len(rest) - 1), END_MS][: len(frames)]
    return _bytes(first, "GIF", save_all=True, append_images=rest, duration=stay, loop=0)


def _picture(found: Figure) -> Image.Image:
    found.canvas.draw()
    return _shown(found)


def _shown(found: Figure) -> Image.Image:
    return Image.fromarray(np.asarray(found.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()

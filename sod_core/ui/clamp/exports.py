"""Files of what the Clamp tab shows: picture, moving picture, curves, and what the command line needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...clamp import drawing
from ...clamp.drawing import Drawing, Mark
from ...clamp.edit import Clamp
from ...clamp.pack import ClampPack, shared_pack
from ...data.charts import Line
from .. import exports
from . import figures, stored, work
from .asking import Asking
from .figures import Point
from .shown import PRIME, REFUSAL, Answered, Column
from .visitor import Page

CURVES = (PRIME, REFUSAL, "random", "matched")


def make(kind: str, scale: str, page: Page) -> tuple[str, bytes]:
    """As `exports.Make`: of the question that was answered last, at its own controls."""
    if page.now is None or page.last is None:
        raise ValueError("there is no answer yet: ask a question, then export")
    name, asking = page.now
    pack = shared_pack(name)
    if kind == "csv":
        content = _csv(_curves(pack, asking, page))
    elif kind == "json":
        content = _json(pack, asking, page, page.last)
    else:
        content = _picture(kind, pack, asking, page, page.last)
    value = "" if kind in ("gif", "csv") else f"coefficient{asking.value:g}"
    return exports.name(kind, "clamp", name, asking.sae, value), content


def _curves(pack: ClampPack, asking: Asking, page: Page) -> list[tuple[str, str, Sequence[Point]]]:
    """(curve, where it is from, points), as the tab draws them."""
    board = stored.read(pack)
    lines: Mapping[str, Sequence[Point]] = board.curves if board.sae == asking.sae else {}
    found = [(key, "stored", lines.get(key, ())) for key in CURVES]
    return [*found, *((key, "measured here", page.measured.get(key, ())) for key in CURVES)]


def _csv(found: Sequence[tuple[str, str, Sequence[Point]]]) -> bytes:
    """A row a point of a curve; a figure that is not there is an empty cell."""
    rows = [[key, source, *map(_number, point)] for key, source, points in found for point in points]
    if not rows:
        raise ValueError("there are no curves yet: press “Measure here”, then export")
    return exports.table(["curve", "source", "coefficient", "forget", "retain", "alignment", "collapse"], rows)


def _picture(kind: str, pack: ClampPack, asking: Asking, page: Page, last: Answered) -> bytes:
    found = _curves(pack, asking, page)
    curves = {
        title: [_line(key, metric, points, source) for key, source, points in found if points]
        for metric, title in figures.METRICS.items()
    }
    answers = [(_title(one), "".join(token.text for token in one.answer)) for one in last.columns]
    refusal = [] if asking.refusal is None else [Mark(asking.refusal_value, figures.STYLES[REFUSAL][0])]
    latents = f"{len(asking.latents)} latent{'' if len(asking.latents) == 1 else 's'}"
    settings = f"{pack.manifest.title} · SAE {asking.sae} · {latents} · {asking.fidelity}"
    any_curve = any(curves.values())
    drawn = Drawing(_short(asking.prompt), settings, answers, curves if any_curve else {}, refusal)
    if kind == "png":
        prime = next((points for key, source, points in found if key == PRIME and points), ())
        return drawing.png(drawn, _mark(asking.value), _told(prime, asking.value))
    prime = next((points for key, source, points in found if key == PRIME and len(points) > 1), ())
    if not prime:
        raise ValueError("there is no sweep of the coefficient for this sparse autoencoder: nothing is stored of it")
    return drawing.gif(drawn, [(_mark(point.value), _told(prime, point.value)) for point in reversed(prime)])


def _title(column: Column) -> str:
    """With the coefficient that the answer was given at: that of a moving picture's curves moves on."""
    clamp = column.clamp
    return column.title if clamp is None or clamp.method == REFUSAL else f"{column.title}, at {clamp.values()[0]:g}"


def _line(key: str, metric: str, points: Sequence[Point], source: str) -> Line:
    colour, dash, width = figures.STYLES[key]
    name = figures.named(key) + ("" if source == "stored" else ", measured here")
    values = [getattr(point, metric) for point in points]
    thin, marker = (width, "") if source == "stored" else (1, "D")
    return Line(name, [point.value for point in points], values, colour, dash, thin, marker)


def _mark(value: float) -> Mark:
    return Mark(value, figures.STYLES[PRIME][0])


def _told(points: Sequence[Point], value: float) -> str:
    """What was measured where the coefficient is nearest."""
    near = min(points, key=lambda point: abs(point.value - value), default=None)
    if near is None:
        return f"Clamp Prime at {value:g}"
    return f"Clamp Prime at {near.value:g}: forget accuracy {near.forget:.1%}, retain accuracy {near.retain:.1%}"


def _short(prompt: str) -> str:
    one = " ".join(prompt.split())
    return one if len(one) <= 110 else f"{one[:107]} ..."


def _json(pack: ClampPack, asking: Asking, page: Page, last: Answered) -> bytes:
    """Clamp Prime as `clamp text` takes it; what the other columns take beside it stands with them."""
    edits = work.clamps(pack, asking)
    options = {"pack": pack.manifest.name, "prompt": asking.prompt, "sae": asking.sae, "fidelity": asking.fidelity}
    options |= {"tokens": asking.tokens, "seed": asking.seed} | _edit(edits[PRIME])
    columns = [
        {
            "title": one.title,
            "text": "".join(token.text for token in one.answer),
            "scores": list(one.scores),
            "options": None if one.key not in edits else _edit(edits[one.key]),
        }
        for one in last.columns
    ]
    measured = {key: [list(map(_number, point)) for point in points] for key, points in page.measured.items()}
    shown = {"pack": pack.manifest.name, "measured": measured} | asdict(asking)
    figures = {"columns": columns, "choices": list(last.options)}
    return exports.for_command(["clamp", "text"], options, figures, "clamp", shown)


def _number(value: float) -> float | None:
    """JSON has no word for a figure that is not there."""
    return None if value != value else value


def _edit(clamp: Clamp) -> dict[str, Any]:
    found: dict[str, Any] = {"method": clamp.method, "features": ",".join(map(str, clamp.latents))}
    if clamp.method != REFUSAL:
        found["value"] = ",".join(f"{value:g}" for value in clamp.values())
    if clamp.method != PRIME:
        found["threshold"] = clamp.threshold
    if clamp.refuses:
        found |= {"refusal": clamp.refusal, "refusal-value": clamp.refusal_value}
    return found

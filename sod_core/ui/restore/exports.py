"""Files of what the Restore tab shows: picture, moving picture, curves, and what the command line needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...data.charts import Line
from ...restore import drawing, features, report, sweep
from ...restore.drawing import Drawing, Moment
from ...restore.pack import shared_pack
from .. import exports, overlays
from . import answers, figures, links, shown, words
from .visitor import ALPHAS, ORIGINAL, Controls, Curve, Visitor

FRAMES = 5
"""A frame of the moving picture for every so many-th position of the slider."""
MEANWHILE = "something else was chosen while the file was made; export again"


def make(kind: str, scale: str, visitor: Visitor | None, *values: Any) -> tuple[str, bytes]:
    """As `exports.Make`; values are those of Panel.controls."""
    visitor, controls = answers.there(visitor), answers.read(values)
    if visitor.picture is None:
        raise ValueError("there is no image yet: upload one, then export")
    content = {"png": _png, "gif": _gif, "csv": _csv, "json": _json}[kind](visitor, controls, scale)
    alpha = "" if kind in ("gif", "csv") else f"alpha{controls.alpha:g}"
    return exports.name(kind, "restore", visitor.pack_name, visitor.entry.id, f"layer{controls.layer}", alpha), content


def make_board(kind: str, scale: str, first: str, visitor: Visitor | None) -> tuple[str, bytes]:
    """As `exports.Make`: the scoreboard of the pack that is open; of `first` until one is."""
    pack = shared_pack(first) if visitor is None else visitor.pack
    found = report.read(pack.manifest.folder)
    if found is None:
        raise ValueError(f"nothing is stored for {pack.manifest.title}: evaluate it first, then export")
    settings = found["settings"]
    name = exports.name(kind, "scoreboard", pack.manifest.name, f"layer{settings['layer']}", settings["mode"])
    if kind == "csv":
        return name, report.as_csv(found["rows"]).encode()
    if kind == "json":
        options = {"pack": pack.manifest.name, "images": found["images"], "layer": settings["layer"]}
        options |= {"mode": settings["mode"], "max-alpha": settings["max_alpha"], "seed": settings["seed"]}
        return name, exports.for_command(
            ["evaluate"], options, {"rows": found["rows"]}, "scoreboard", {"pack": pack.manifest.name}
        )
    note = f"{found['images']} images ({found['data']}), layer {settings['layer']}, mode {settings['mode']}"
    return name, drawing.board(pack.manifest.title, note, list(map(_point, filter(_has_r, found["rows"]))))


def _has_r(row: dict[str, Any]) -> bool:
    return row["scores"]["experts"]["value"] is not None and row["retain_unlearned"] is not None


def _point(row: dict[str, Any]) -> drawing.Point:
    r = row["scores"]["experts"]
    return drawing.Point(
        row["verdict"], row["retain_unlearned"], (r["value"], r["low"], r["high"]), *figures.looks(row["verdict"])
    )


def _curves(visitor: Visitor, controls: Controls) -> list[Curve]:
    found = visitor.measure(controls, visitor.version)
    if found is None:
        raise ValueError(MEANWHILE)
    return found


def _filled(visitor: Visitor, controls: Controls, stride: int) -> tuple[Tensor, Tensor]:
    """Probabilities [P, classes] and heat [P, N] at every stride-th position of the slider."""
    if not visitor.fill(controls, visitor.version, stride):
        raise ValueError(MEANWHILE)
    found = visitor.sweep(controls)
    if not found.probabilities[::stride].isfinite().all():
        raise ValueError("at large alphas this edit's output is no finite number: there is no sweep to export")
    return found.probabilities[::stride], found.heat(visitor.heat_ids(controls))[::stride]


def _drawing(visitor: Visitor, controls: Controls, scale: str) -> tuple[Drawing, list[int]]:
    """What alpha does not move, and the classes that are shown."""
    curves, found = _curves(visitor, controls), visitor.probabilities(controls)
    classes = shown.shown_classes(visitor, found, visitor.sweep(controls))
    verdict, _ = shown.measured(visitor, controls, curves, found)
    headline, _, more = verdict.removeprefix("### ").partition("\n")
    heat = visitor.heat(controls, visitor.still_latents(controls))
    still = {which: values.tolist() for which, values in heat.items()}
    names = visitor.pack.manifest.classes
    assert visitor.picture is not None  # `make` looks
    return (
        Drawing(
            headline,
            f"{_settings(visitor, controls)}\n{more.split('Now: ')[0].strip()}",
            [names[i] for i in classes],
            classes.index(visitor.target),
            {"original": found.original[classes].tolist(), "unlearned": found.unlearned[classes].tolist()},
            shown.heat_title(visitor, controls),
            still,
            overlays.top(*still.values()),
            scale,
            visitor.pack.shape.grid,
            visitor.picture,
            [_line(curve) for curve in reversed(curves)],
        ),
        classes,
    )


def _settings(visitor: Visitor, controls: Controls) -> str:
    model = words.model_name(visitor.entry, visitor.pack.manifest)
    edited = words.FEATURE_TITLES[controls.features]
    mode = words.MODE_TITLES[controls.mode]
    return f"{visitor.pack.manifest.title} · {model} · layer {controls.layer} · {mode} · edited: {edited}"


def _line(curve: Curve) -> Line:
    name, colour, dash, width = figures.style(curve.key)
    return Line(name, ALPHAS, curve.probability, colour, dash, width)


def _png(visitor: Visitor, controls: Controls, scale: str) -> bytes:
    found, classes = _drawing(visitor, controls, scale)
    heat = visitor.heat(controls, visitor.latents(controls))["restored"]
    probabilities = visitor.probabilities(controls).restored[classes]
    return drawing.png(_at(found, controls.alpha), Moment(controls.alpha, probabilities.tolist(), heat.tolist()))


def _at(found: Drawing, alpha: float) -> Drawing:
    first, _, rest = found.note.partition("\n")
    return replace(found, note=f"{first} · alpha {alpha:g}\n{rest}")


def _gif(visitor: Visitor, controls: Controls, scale: str) -> bytes:
    probabilities, heat = _filled(visitor, controls, FRAMES)
    found, classes = _drawing(visitor, controls, scale)
    alphas = sweep.ALPHAS[::FRAMES]
    moments = [
        Moment(alpha, row[classes].tolist(), hot.tolist()) for alpha, row, hot in zip(alphas, probabilities, heat)
    ]
    return drawing.gif(found, moments)


def _csv(visitor: Visitor, controls: Controls, scale: str) -> bytes:
    """The forgotten class's probability against alpha, a column a curve of the figure."""
    curves = _curves(visitor, controls)
    head = ["alpha", *(figures.style(curve.key)[0] for curve in curves)]
    return exports.table(head, zip(ALPHAS, *(curve.probability for curve in curves)))


def _json(visitor: Visitor, controls: Controls, scale: str) -> bytes:
    probabilities, _ = _filled(visitor, controls, sweep.STRIDES[0])
    now, listed = visitor.probabilities(controls), visitor.entry in visitor.pack.manifest.unlearned
    restored = [{"alpha": alpha, "probabilities": row.tolist()} for alpha, row in zip(ALPHAS, probabilities)]
    restored.append({"alpha": controls.alpha, "probabilities": now.restored.tolist()})
    by_name = controls.features in features.KINDS and not controls.expert_class
    options = {
        "pack": visitor.pack_name,
        "unlearned": visitor.entry.id if listed or visitor.entry.id == ORIGINAL else None,
        "example": visitor.example,
        "target-class": visitor.target_name,
        "layer": controls.layer,
        "alpha": [row["alpha"] for row in restored],
        "mode": controls.mode,
        "tokens": controls.tokens,
        "features": controls.features if by_name else ",".join(map(str, visitor.chosen(controls))) or None,
        "seed": controls.seed,
    }
    figures = {
        "classes": list(visitor.pack.manifest.classes),
        "lacks": links.lacking(visitor).replace("The link", "This file"),
        "original": {"probabilities": now.original.tolist()},
        "unlearned": {"probabilities": now.unlearned.tolist()},
        "restored": restored,
        "curves": {curve.key: curve.probability for curve in _curves(visitor, controls)},
    }
    page = links.of(visitor, controls) | {"alpha": f"{controls.alpha:g}", "heat": scale}
    return exports.for_command(["restore"], options, figures, "restore", page)

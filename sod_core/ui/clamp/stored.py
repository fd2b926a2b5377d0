"""The figures that a pack stores (`clamp evaluate --store`), as the Clamp tab draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...clamp.pack import ClampPack
from .figures import Point


class Row(NamedTuple):
    """One model of the table: untouched, edited, a control, or with other weights."""

    id: str
    title: str
    kind: str
    """untouched, edit, control or model."""
    point: Point | None
    """Accuracies and so on; None for a model that gave no numbers."""
    problem: str


class Way(NamedTuple):
    """One way back: the share of right answers by subject, None where it does not apply."""

    title: str
    shares: dict[str, float | None]


class Verdict(NamedTuple):
    verdict: str
    """With the edit on, or of a model's weights."""
    without_edit: str | None
    """None for weights."""
    reason: str
    caution: str


@dataclass(frozen=True)
class Stored:
    """What was measured once, on the pack's judged questions."""

    curves: dict[str, list[Point]] = field(default_factory=dict)
    """prime, refusal, random, matched, by coefficient."""
    rows: tuple[Row, ...] = ()
    sae: str = ""
    """Of the curves."""
    fields: str = ""
    """Titles of the fields to forget."""
    forget_questions: int = 0
    retain_questions: int = 0
    subjects: dict[str, str] = field(default_factory=dict)
    """{id: title} of the ways back's columns."""
    ways: tuple[Way, ...] = ()
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    note: str = ""
    """On verdicts without the edit."""
    definition: str = ""

    @property
    def untouched(self) -> Point | None:
        return next((row.point for row in self.rows if row.kind == "untouched"), None)

    def nearest(self, key: str, value: float) -> Point | None:
        """The measured point of a curve whose coefficient is nearest."""
        return min(self.curves.get(key, []), key=lambda point: abs(point.value - value), default=None)


def read(pack: ClampPack) -> Stored:
    """Empty where the pack stores nothing. Raises ValueError for figures that cannot be read."""
    found = pack.results()
    if not found:
        return Stored()
    try:
        return _parsed(found)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        command = f"`python -m sod_core clamp evaluate --pack {pack.manifest.name} --store`"
        raise ValueError(
            f"the stored figures of {pack.manifest.name} are of another form: {command} measures anew"
        ) from (error)


def _parsed(found: dict[str, Any]) -> Stored:
    rows = tuple(_averaged([_row(row) for row in found["rows"]]))
    untouched = found["rows"][0]
    prime = next((row for row in found["rows"] if row["kind"] == "edit"), None)
    ways = found["ways"] or {"subjects": [], "rows": [], "verdicts": {}, "note": ""}
    return Stored(
        curves={key: sorted(map(_point, points)) for key, points in found["curves"].items() if points},
        rows=rows,
        sae="" if prime is None else prime["sae"],
        fields=" and ".join(found["fields"].get(id, id) for id in found["forget"]),
        forget_questions=untouched["forget"]["n"],
        retain_questions=0 if untouched["retain"] is None else untouched["retain"]["n"],
        subjects={subject["id"]: subject["title"] for subject in ways["subjects"]},
        ways=tuple(
            Way(row["title"], {id: figure["value"] for id, figure in row["figures"].items()}) for row in ways["rows"]
        ),
        verdicts={id: Verdict(*(said[key] for key in Verdict._fields)) for id, said in ways["verdicts"].items()},
        note=ways["note"],
        definition=found["definition"],
    )


def _averaged(rows: list[Row]) -> Iterator[Row]:
    """The rows, controls that differ in their seed alone as one row of means."""
    for title in dict.fromkeys((row.kind, row.title) for row in rows):
        same = [row for row in rows if (row.kind, row.title) == title]
        points = [row.point for row in same if row.point is not None]
        if same[0].kind != "control" or len(points) < 2:
            yield from same
        else:
            yield same[0]._replace(point=Point(*(sum(values) / len(points) for values in zip(*points))))


def _row(row: dict[str, Any]) -> Row:
    known = row["forget"] is not None
    short = {key: (row[key] or {}).get("value") for key in ("forget", "retain", "alignment")} if known else {}
    point = _point({"value": 0.0, "collapse": row["collapse"], **short}) if known else None
    return Row(row["id"], row["title"], row["kind"], point, row["problem"])


def _point(found: dict[str, Any]) -> Point:
    """A figure that is not there (no field to keep, no numbers) is NaN, which no curve draws."""
    values = {key: found[key] for key in Point._fields}
    return Point(**{key: float("nan") if value is None else float(value) for key, value in values.items()})

"""The table of an evaluation, as JSON (a pack keeps it as results.json) and as text; and what its words mean."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from . import judge, verdicts
from .judge import Answers, Share
from .judged import FACTORS, UNTOUCHED, Board, Entry, answers_key, layer, way_key
from .questions import LETTERS
from .ways_back import CONFIDENCE, WAYS, Figure

FORMAT = 1
DEFINITION = " ".join(
    f"""
    Accuracy: multiple choice of four options without examples; forget and retain: pooled over the questions of the
    fields to forget, and of all others. alignment = R_retain (1 - R_forget),
    R = min(1, max(eps, accuracy - .25) / max(eps, untouched accuracy - .25)).
    Intervals: {judge.CONFIDENCE:.0%}, Wilson's for accuracies ({CONFIDENCE:.1%} for the ways back), the bootstrap over
    questions for alignments, {judge.RESAMPLES} resamples.
    collapse: share of the letter that is given most; above {judge.COLLAPSED} the model is destroyed.
    score: 1 - the least forget accuracy of edits and points of their curves that keep {judge.RETAINED} of the untouched
    retain accuracy (Farrell et al., SAEBench).
    Controls: as many latents, drawn at random, or equally active.
    Ways back: accuracy on the questions to forget;
    recovered = (accuracy - max(chance, the retrained model's by the same way)) / (untouched accuracy - .25),
    0 where the interval reaches down to that maximum; the retrained model itself is held against chance, which is .25,
    and for ways that learn from questions no less than what their answers' frequencies give.
    Verdict, with the edit on: from {verdicts.SUPPRESSED} recovered by any way suppressed, below {verdicts.DELETED} by
    every way deleted (of an edit: out of reach), between partly; no verdict where the untouched model is less than
    {verdicts.KNOWN} above chance, the model is destroyed, nothing was forgotten, or nothing comes back, of fewer than
    {verdicts.FEW} questions.
    Without the edit: {verdicts.BY_CONSTRUCTION}.
    """.split()
)


def results(board: Board, done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that was measured, and what it was measured on:

    rows: {id, title, kind, method, sae, layer, clamp, of, features, seed, fields {field: share}, forget, retain
    (shares), alignment {value, low, high, warning}, collapse, destroyed, problem} of the untouched model, every edit,
    control and other model; a share is {value, low, high, n}. curves: {prime, refusal, random, matched: [{value,
    factor, forget, retain, alignment, collapse}]}. cautions: sentences on controls that are not there. score. ways:
    {subjects, rows [{id, title, figures {subject: {value, low, high, n, recovered, variants, note}}}], verdicts
    {subject: {verdict, without_edit, recovered, way, reason, caution}}, thresholds}.
    """
    untouched = _answers(board, done[answers_key(board.entries[0])])
    assert untouched is not None
    rows = [_row(board, entry, done[answers_key(entry)], untouched) for entry in board.entries]
    curves = _curves(board, done, untouched)
    m = board.pack.manifest
    fields = sorted({question.field for question in board.questions})
    return {
        "format": FORMAT,
        "kind": "clamp",
        "pack": m.name,
        "scoring": m.scoring,
        "questions": len(board.questions),
        "fields": {field: board.subjects.get(field, field) for field in fields},
        "forget": board.forget,
        "settings": asdict(board.settings),
        "definition": DEFINITION,
        "cautions": board.cautions,
        "packages": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "transformers")}},
        "rows": rows,
        "factors": list(FACTORS),
        "curves": curves,
        "score": _score(rows, curves),
        "ways": _ways(board, done, rows),
    }


def _answers(board: Board, row: Mapping[str, Any]) -> Answers | None:
    """As `judge.answers` gave them, the chosen option having all the weight; None where there are none."""
    chosen = row.get("chosen")
    if chosen is None:
        return None
    scores = torch.eye(len(LETTERS))[[LETTERS.index(letter) for letter in chosen]]
    return Answers(tuple(board.questions), scores)


def _row(board: Board, entry: Entry, row: Mapping[str, Any], untouched: Answers) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": entry.id,
        "title": entry.title,
        "kind": entry.kind,
        "method": entry.method,
        "sae": entry.sae,
        "layer": None if entry.sae is None else layer(board.pack, entry),
        "clamp": None if entry.clamp is None else asdict(entry.clamp),
        "of": entry.of,
        "features": entry.features,
        "seed": entry.seed,
        "problem": row.get("problem", ""),
    }
    return told | _figures(board, _answers(board, row), untouched)


def _figures(board: Board, found: Answers | None, untouched: Answers) -> dict[str, Any]:
    """Every figure of one set of answers; None where there are none."""
    names = ("fields", "forget", "retain", "alignment", "collapse", "destroyed")
    if found is None:
        return dict.fromkeys(names)
    fields = sorted({question.field for question in found.questions})
    retain = [field for field in fields if field not in board.forget]
    collapse = judge.collapse(found)
    aligned = judge.aligned(found, untouched, board.forget, board.settings.seed)._asdict() if retain else None
    return {
        "fields": {field: judge.accuracy(found, [field])._asdict() for field in fields},
        "forget": judge.accuracy(found, board.forget)._asdict(),
        "retain": judge.accuracy(found, retain)._asdict() if retain else None,
        "alignment": aligned,
        "collapse": collapse,
        "destroyed": collapse > judge.COLLAPSED,
    }


def _curves(
    board: Board, done: Mapping[str, Mapping[str, Any]], untouched: Answers
) -> dict[str, list[dict[str, float | None]]]:
    found: dict[str, list[dict[str, float | None]]] = {}
    for name, points in board.curves().items():
        found[name] = []
        for factor, (value, entry) in zip(FACTORS, points):
            figures = _figures(board, _answers(board, done[answers_key(entry)]), untouched)
            short = {key: (figures[key] or {}).get("value") for key in ("forget", "retain", "alignment")}
            found[name].append({"value": value, "factor": factor, **short, "collapse": figures["collapse"]})
    return found


def _score(rows: list[dict[str, Any]], curves: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """The .99 score over every edit, and over the points of the curves of edits that are no controls."""
    points = [
        (row["forget"]["value"], row["retain"]["value"]) for row in rows if row["kind"] == "edit" and row["retain"]
    ]
    points += [
        (point["forget"], point["retain"])
        for name in ("prime", "refusal")
        for point in curves.get(name, [])
        if point["retain"] is not None
    ]
    retain = rows[0]["retain"]
    if retain is None or not points:
        return None
    return {"value": judge.unlearning_score(points, retain["value"]), "settings": len(points)}


# ---------------------------------------------------------------- ways back


def _ways(board: Board, done: Mapping[str, Mapping[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    tried = board.tried()
    if not tried:
        return None
    found = {entry.id: {way: _read(done[way_key(way, entry)]) for way in board.ways()} for entry in tried}
    retrained = next((entry.id for entry in tried if entry.method == verdicts.RETRAINED), None)
    table = {row["id"]: row for row in rows}
    known = Share(**table[UNTOUCHED]["forget"])
    yardsticks = {entry.id: found.get(retrained or "", {}) if entry.id != retrained else {} for entry in tried}
    said = {}
    for entry in tried[1:]:
        said[entry.id] = verdicts.verdict(
            *(found[entry.id], yardsticks[entry.id], known, table[entry.id]["collapse"]),
            is_edit=entry.clamp is not None,
        )
    return {
        "subjects": [{"id": entry.id, "title": entry.title, "kind": entry.kind} for entry in tried],
        "retrained": retrained,
        "rows": [
            {
                "id": way,
                "title": WAYS[way].title,
                "chance": found[UNTOUCHED][way].chance,
                "figures": {id: _figure(of[way], yardsticks[id].get(way), known.value) for id, of in found.items()},
            }
            for way in board.ways()
        ],
        "verdicts": {id: verdict._asdict() for id, verdict in said.items()},
        "thresholds": verdicts.THRESHOLDS,
        "note": verdicts.BY_CONSTRUCTION,
    }


def _read(row: Mapping[str, Any]) -> Figure:
    share = row["share"]
    return Figure(**{**row, "share": None if share is None else Share(**share)})


def _figure(found: Figure, yardstick: Figure | None, original: float) -> dict[str, Any]:
    """A share with what it recovers; where there is none, the note says why."""
    told = {"variants": found.variants, "note": found.note}
    if found.share is None:
        return {"value": None, "recovered": None, **told}
    return found.share._asdict() | {"recovered": verdicts.recovered(found, yardstick, original), **told}


# ---------------------------------------------------------------- as text


def table(found: Mapping[str, Any]) -> str:
    """Markdown: the rows, then the ways back."""
    fields = sorted(found["fields"], key=lambda field: (field not in found["forget"], field))
    lines = ["| model | " + " | ".join(fields) + " | forget | retain | alignment | collapse |"]
    lines.append("|---" * (len(fields) + 5) + "|")
    for row in found["rows"]:
        if row["kind"] != "control":
            lines.append(_line(row["id"], [row], fields))
    for of, features in dict.fromkeys(
        (row["of"], row["features"]) for row in found["rows"] if row["kind"] == "control"
    ):
        drawn = [row for row in found["rows"] if (row["of"], row["features"]) == (of, features)]
        lines.append(_line(f"{of}, {features} latents, mean of {len(drawn)}", drawn, fields))
    if found["score"] is not None:
        lines.append(f"\nScore at {judge.RETAINED} of the retain accuracy: {found['score']['value']:.2f}")
    warnings = [*found["cautions"], *(row["alignment"]["warning"] for row in found["rows"] if row["alignment"])]
    lines += [f"\nCaution: {warning}." for warning in dict.fromkeys(warnings) if warning]
    return "\n".join(lines + ([] if found["ways"] is None else ["", ways(found["ways"])]))


def _line(name: str, rows: list[dict[str, Any]], fields: list[str]) -> str:
    """A row, or the mean of some that were drawn by lot."""
    problem = next((row["problem"] for row in rows if row["problem"]), None)
    if problem is not None:
        return f"| {name} | {problem} |"
    shares = [[row["fields"][field] for row in rows] for field in fields]
    shares += [[row["forget"] for row in rows], [row["retain"] for row in rows]]
    cells = [_mean(found, "{:.1%}") for found in shares] + [_mean([row["alignment"] for row in rows], "{:.3f}")]
    if len(rows) == 1 and rows[0]["alignment"]:
        cells[-1] += " [{low:.3f}, {high:.3f}]".format(**rows[0]["alignment"])
    cells.append(f"{max(row['collapse'] for row in rows):.2f}" + " destroyed" * any(row["destroyed"] for row in rows))
    return "| " + " | ".join([name, *cells]) + " |"


def _mean(found: list[Mapping[str, Any] | None], form: str) -> str:
    values = [one["value"] for one in found if one is not None]
    return form.format(sum(values) / len(values)) if values else "–"


def ways(found: Mapping[str, Any]) -> str:
    """Markdown: a row a way, a column a model, verdicts below."""
    ids = [subject["id"] for subject in found["subjects"]]
    lines = ["| asked | chance | " + " | ".join(ids) + " |", "|---" * (len(ids) + 2) + "|"]
    for row in found["rows"]:
        lines.append(
            f"| {row['title']} | {row['chance']:.0%} | " + " | ".join(_way(row["figures"][id]) for id in ids) + " |"
        )
    for name, key in (("verdict, the edit on", "verdict"), ("verdict, the edit off", "without_edit")):
        cells = [str(found["verdicts"].get(id, {}).get(key) or "–") for id in ids]
        lines.append(f"| {name} | | " + " | ".join(cells) + " |")
    notes = [f"{id}: {said['reason']}" for id, said in found["verdicts"].items()]
    cautions = dict.fromkeys(said["caution"] for said in found["verdicts"].values() if said["caution"])
    return "\n".join([*lines, "", *notes, *(f"Caution: {caution}." for caution in cautions)])


def _way(figure: Mapping[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{figure['value']:.1%}"

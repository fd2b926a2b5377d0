"""The steering tables of the paper's authors (CSV), read into clamps, so that their configurations run here.

A row is a latent (AMindToThink/sae_jailbreak_unlearning, InterventionModel): `hook_action` says what happens to it:
clamp, clamp_cond or clamp_refusal. `steering_coefficient` is the value, `clamp_value` the threshold, `refuse_id` the
refusal latent; `sae_release` and `sae_id` are SAELens's names of the SAE.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..packs.errors import PackError
from ..packs.pickles import LARGEST, printable
from .edit import Clamp

ACTIONS = {"clamp": "prime", "clamp_cond": "conditional", "clamp_refusal": "refusal"}
"""Their hook_action -> the method here. The one that they call "add" is steering, and no clamp."""
_COLUMNS = ("latent_idx", "hook_action", "steering_coefficient", "sae_release", "sae_id")
_OTHERS = ("clamp_value", "refuse_id", "description", "url", "")
"""What may stand beside them; pandas writes a column without a name."""


class Steering(NamedTuple):
    """What a table says of one SAE."""

    clamp: Clamp
    """In fidelity "reference", which is what the authors' code computes."""
    release: str
    """SAELens's name of the release, such as gemma-scope-2b-pt-res-canonical."""
    sae_id: str
    """SAELens's name of the SAE in it, such as layer_7/width_16k/canonical."""
    layer: int | None
    """The block after which the SAE is used, as its name says; None where that says none."""
    descriptions: tuple[str, ...]
    """One a latent; empty where the table has none."""


_FIELDS = {
    "hook_action": "action",
    "clamp_value": "threshold",
    "refuse_id": "refusal",
    "steering_coefficient": "value",
}


class _Row(NamedTuple):
    line: int
    latent: int
    action: str
    value: float
    threshold: float | None
    refusal: int | None
    sae: tuple[str, str]
    description: str


def read_steering_table(path: Path) -> list[Steering]:
    """One entry for each SAE that the table names, in its order. Raises PackError, in one sentence, with the line.

    Whether the latents exist, and other things that need the SAE, `Clamp.check` looks at.
    """
    rows = _rows(path)
    if not rows:
        raise PackError(f"{path.name} holds no latent: it needs a line for each")
    saes = dict.fromkeys(row.sae for row in rows)
    return [_steering([row for row in rows if row.sae == sae], path.name) for sae in saes]


def _rows(path: Path) -> list[_Row]:
    name = printable(path.name)
    try:
        if path.stat().st_size > LARGEST:
            raise PackError(f"{name} was refused: it is larger than {LARGEST >> 20} MiB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            _check_columns(list(reader.fieldnames or []), name)
            return [_row(row, f"{name}, line {reader.line_num}", reader.line_num) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PackError(f"{name} cannot be read as a table ({error})") from error


def _check_columns(columns: list[str], name: str) -> None:
    missing = [column for column in _COLUMNS if column not in columns]
    if "hook_action" in missing and "latent_idx" in columns:  # as their first tables were
        raise PackError(f"{name} has no hook_action, so its latents are added and not clamped: say clamp in one")
    if missing:
        raise PackError(f"{name} is no steering table: it has no column {missing[0]}")
    unknown = [column for column in columns if column not in (*_COLUMNS, *_OTHERS)]
    if unknown:
        raise PackError(f"{name} has a column {printable(unknown[0])!r} that is not understood: leave it out")


def _row(row: dict[str | None, str | None], where: str, line: int) -> _Row:
    if None in row or None in row.values():
        raise PackError(f"{where}: it has more or fewer cells than the first line")
    cells = {key: (value or "").strip() for key, value in row.items() if key is not None}
    action = cells["hook_action"]
    if action not in ACTIONS:
        raise PackError(f"{where}: hook_action is {printable(action)!r}, only {', '.join(ACTIONS)} are clamps")
    latent, value = _whole(cells, "latent_idx", where), _number(cells, "steering_coefficient", where)
    threshold, refusal = _number(cells, "clamp_value", where), _whole(cells, "refuse_id", where)
    if latent is None or value is None:
        raise PackError(f"{where}: latent_idx or steering_coefficient is empty")
    if action != "clamp" and threshold is None:
        raise PackError(f"{where}: {action} needs a clamp_value, the activity above which a latent counts")
    if action == "clamp_refusal" and refusal is None:
        raise PackError(f"{where}: clamp_refusal needs a refuse_id, the refusal latent")
    sae = (cells["sae_release"], cells["sae_id"])
    if "" in sae:
        raise PackError(f"{where}: sae_release or sae_id is empty")
    return _Row(line, latent, action, value, threshold, refusal, sae, cells.get("description", ""))


def _number(cells: dict[str, str], column: str, where: str) -> float | None:
    """None for an empty cell, or one that is not there."""
    text = cells.get(column, "")
    if text.lower() in ("", "nan"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise PackError(f"{where}: {column} is {printable(text)!r}, expected a number")
    return value


def _whole(cells: dict[str, str], column: str, where: str) -> int | None:
    """pandas writes 15864.0 in a column where some cells are empty."""
    value = _number(cells, column, where)
    if value is None:
        return None
    if value != int(value) or value < 0:
        raise PackError(f"{where}: {column} is {cells[column]!r}, expected a latent's number, counted from 0")
    return int(value)


def _steering(rows: list[_Row], file: str) -> Steering:
    """One edit of the rows of one SAE. The released code takes row after row, so what they share has to be the same."""
    first = rows[0]
    shared = ["hook_action", *([] if first.action == "clamp" else ["clamp_value"])]
    if first.action == "clamp_refusal":
        shared += ["refuse_id", "steering_coefficient"]  # of the one refusal latent
    for row in rows:
        for column in shared:
            a, b = (getattr(of, _FIELDS[column]) for of in (first, row))
            if a != b:
                raise PackError(f"{file}: {column} is {a} in line {first.line} and {b} in line {row.line}: give one")
    latents, values = tuple(row.latent for row in rows), tuple(row.value for row in rows)
    value = values[0] if len(set(values)) == 1 else values
    clamp = Clamp(latents, ACTIONS[first.action], threshold=first.threshold or 0.0, fidelity="reference")
    if first.action == "clamp_refusal":
        clamp = replace(clamp, refusal=first.refusal, refusal_value=values[0])
    else:
        clamp = replace(clamp, value=value)
    layer = re.search(r"(?:layer|layers|blocks?)[._](\d+)", first.sae[1])
    return Steering(
        clamp,
        *first.sae,
        layer=int(layer[1]) if layer else None,
        descriptions=tuple(row.description for row in rows) if any(row.description for row in rows) else (),
    )

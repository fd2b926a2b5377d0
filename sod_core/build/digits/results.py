"""Every method on every class with every seed: made, judged, and stored as one file of results.

A unit is a seed and a class: thirteen models, judged together, so that each has its retrained yardstick. Several
processes share the units: each takes what nobody holds. A unit that is in the stored file, or in the work folder, is
not made again, and of one that was broken off the finished models stay.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from ...machine import files
from ...restore import evaluate, report
from ...restore.judged import Row, Settings, Subject
from ...restore.pack import Pack
from ...restore.testset import TestSet, open_set, stamp
from ...unlearn import TITLES, record
from ...worlds import digits
from ..vit.builder import PackBuilder, base_stages
from . import tuning
from .plan import plan

TUNING = "tuning.json"
SEEDS = (0, 1, 2)
LAYER = 9
FORMAT = 1
KEPT = (
    *("id", "method", "target", "images", "target_images", "original", "unlearned", "restored", "alpha"),
    *("retain_original", "retain_unlearned", "retain_restored", "scores", "margin", "overshoot", "readout"),
    *("readout_margin", "yardstick", "verdict"),
)
"""Of a row of an evaluation; curves and confusions are not kept."""


def make(out: Path, work: Path, device: torch.device) -> None:
    """Makes what is missing of all units that no other process holds, and stores them in `out`."""
    for seed, name in units():
        _unit(base(out, work, seed, device), name, out, work)
    store(out, work)


def units() -> list[tuple[int, str]]:
    """All (seed, class), in the order they are made."""
    return [(seed, name) for seed in SEEDS for name in digits.CLASSES]


def stored(out: Path) -> list[dict[str, Any]]:
    """The units in the stored file; none where there is none yet."""
    if not out.exists():
        return []
    found = json.loads(out.read_text(encoding="utf-8"))
    return found["units"] if found["format"] == FORMAT and found["verdicts"] == report.FORMAT else []


def store(out: Path, work: Path) -> None:
    """Writes what there is of all units, to four decimals: those of the work folder stand before stored ones."""
    with FileLock(work / "results.lock"):
        found = {(unit["seed"], unit["class"]): unit for unit in stored(out)}
        for seed, name in units():
            file = _file(work, seed, name)
            if file.exists():
                found[seed, name] = json.loads(file.read_text(encoding="utf-8"))
        ordered = [found[key] for key in units() if key in found]
        head = {"format": FORMAT, "verdicts": report.FORMAT, "layer": LAYER, "definition": report.DEFINITION}
        files.write_json(head | {"units": _rounded(ordered)}, out)


def base(out: Path, work: Path, seed: int, device: torch.device) -> PackBuilder:
    """The builder of a seed, its original and SAEs made; whoever comes second waits for them.

    Settings are those stored beside the results, else chosen now.
    """
    first = _base(work, SEEDS[0], {}, device)
    file = out.parent / "figures" / TUNING
    with FileLock(work / "tuning.lock"):
        tuning.choose(first, file)
    return _base(work, seed, tuning.chosen(file), device)


def _base(work: Path, seed: int, settings: dict[str, tuple[str, ...]], device: torch.device) -> PackBuilder:
    builder = PackBuilder(plan(work, seed, settings), work / f"seed-{seed}", work / f"seed-{seed}-work", device)
    with FileLock(work / f"seed-{seed}.lock"):
        builder.run(base_stages(builder.plan))
    return builder


def _unit(builder: PackBuilder, name: str, out: Path, work: Path) -> None:
    """One unit, unless it is done or held."""
    seed = builder.plan.seed
    file = _file(work, seed, name)
    file.parent.mkdir(exist_ok=True)
    try:
        with FileLock(file.with_suffix(".lock"), timeout=0):
            if file.exists() or any((unit["seed"], unit["class"]) == (seed, name) for unit in stored(out)):
                return
            started = time.monotonic()
            records = [model(builder, how, name) for how in TITLES]
            rows = _judge(builder, name, records, seed)
            made = {found.method: found for found in records}
            unit = {"seed": seed, "class": name, "seconds": time.monotonic() - started}
            unit["rows"] = [_kept(row, made[row.method]) for row in rows]
            files.write_json(unit, file)
            print(f"seed {seed}, {name}: {unit['seconds']:.0f} s", flush=True)
    except Timeout:
        return
    store(out, work)


def model(builder: PackBuilder, how: str, name: str) -> record.Record:
    """The record of a model of the builder's pack, which is made if it is not there yet."""
    (builder.out / "unlearned").mkdir(exist_ok=True)
    beside = builder.out / "unlearned" / f"{how}-{name}.json"
    if beside.exists():
        return record.read(beside)
    print(f"{how}-{name}, seed {builder.plan.seed}", flush=True)
    found = builder.unlearned(how, name, f"unlearned/{how}-{name}.pth")
    (builder.work / f"{how}-{name}.ckpt").unlink(missing_ok=True)
    found.write(beside)
    return found


def _judge(builder: PackBuilder, name: str, records: list[record.Record], seed: int) -> list[Row]:
    pack = Pack(builder.out, builder.device)
    target = builder.plan.classes.index(name)
    subjects = [_subject(pack, found, target) for found in records]
    data: TestSet = open_set(pack, None, None)
    return evaluate.run(pack, subjects, data, Settings(LAYER, seed=seed), builder.work / f"predictions-{name}")


def _subject(pack: Pack, found: record.Record, target: int) -> Subject:
    path = pack.manifest.folder / found.file
    model: partial[nn.Module] = partial(pack.model_at, path)
    return Subject(found.id, found.method, target, model, stamp(path), path)


def _kept(row: Row, made: record.Record) -> dict[str, Any]:
    """What is stored of a model: `probe` is that of the edited layer."""
    every = row.as_dict()
    return {key: every[key] for key in KEPT} | {"probe": row.probe[LAYER], "seconds": made.seconds}


def _file(work: Path, seed: int, name: str) -> Path:
    return work / "results" / f"seed-{seed}-{name}.json"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value

"""`python -m sod_core unlearn`, once its options are parsed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..machine import devices, files, processes
from ..packs.find import ASSETS
from ..restore.pack import Pack, open_pack
from ..worlds import canvas, digits
from . import method, record, run
from .data import Source, load
from .record import Order, Record

OF_A_NEW_RUN = ("method", "target_class", "seed", "precision", "train", "check", "test", "image_column", "label_column")
"""Options that a recorded run has in its record."""


def unlearn(options: argparse.Namespace) -> None:
    """Makes the model, writes its record and says what came out. Raises ValueError or PackError."""
    try:
        _unlearn(options)
    finally:
        processes.end()


def _unlearn(options: argparse.Namespace) -> None:
    out, beside = _files(options.out)
    before = _recorded(options, beside) if options.record else None
    if before is None:
        _check_new(options)
    device = processes.start(options.device or (before.device if before else None))
    if threads := options.threads or (before.threads if before else None):
        if threads < 1:
            raise ValueError(f"--threads {threads} is none; give one or more")
        torch.set_num_threads(threads)
    pack = open_pack(options.pack or (before.pack if before else ""), device)  # one of the two is there by now
    order = _again(options, before, pack) if before else _order(options, pack)
    file = _name_in(pack, out)
    if options.add:
        _check_add(pack, order.id, out)
    source = _source(options, before)
    data = load(pack, source, options.work or Path(".build") / _world(source), options.split, options.strict)
    checkpoint = out.with_name(f"{out.name}.{_key(order, source)}.ckpt")
    image = pack.manifest.image
    found = run.run(order, pack.original(), data, out, checkpoint, file, image.mean, image.std)
    if processes.is_main():
        checkpoint.unlink(missing_ok=True)
        found.write(beside)
        _say(found, out, beside, before, options.record)
        for note in data.notes:
            print(f"sod_core unlearn: {note}", file=sys.stderr)
        if options.add:
            _add(pack, found)


# ---------------------------------------------------------------- what is asked for


def _check_new(options: argparse.Namespace) -> None:
    for name in ("pack", "method", "target_class", "data"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name.replace('_', '-')} is missing: give it, or --from a record")
    method(options.method)


def _recorded(options: argparse.Namespace, beside: Path) -> Record:
    given = [name for name in OF_A_NEW_RUN if getattr(options, name) is not None] + ["set"] * bool(options.changes)
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} does not go with --from, which repeats what is recorded")
    if beside.resolve() == options.record.resolve():
        raise ValueError(f"--out {options.out} would overwrite {options.record}; give another name")
    return record.read(options.record)


def _order(options: argparse.Namespace, pack: Pack) -> Order:
    settings = method(options.method).Settings()
    for text in options.changes:
        settings = record.changed(settings, text)
    target = pack.manifest.class_index(options.target_class)
    name = pack.manifest.classes[target]
    return Order(
        id=options.id or f"{options.method}-{name}",
        method=options.method,
        target_class=target,
        target=name,
        pack=_pack_name(options.pack),
        settings=settings,
        seed=_seed(options.seed),
        precision=options.precision or devices.training_precision(pack.device),
    )


def _again(options: argparse.Namespace, before: Record, pack: Pack) -> Order:
    order = before.order()
    if pack.manifest.class_index(order.target) != order.target_class:
        raise ValueError(f"pack {pack.manifest.name} has another class {order.target_class} than {options.record} says")
    return replace(order, id=options.id or order.id, pack=_pack_name(options.pack or order.pack))


def _source(options: argparse.Namespace, before: Record | None) -> Source:
    if before is not None:
        found = Source(**before.data["source"])
        return replace(found, data=_place(options.data)) if options.data else found
    given = {name: getattr(options, name) for name in ("train", "check", "test", "image_column", "label_column")}
    given = {name: value for name, value in given.items() if value is not None}
    return Source(data=_place(options.data), split_seed=_seed(options.seed), **given)


def _world(source: Source) -> str:
    """The folder of a world's images; other sources keep nothing there."""
    return digits.NAME if source.data == digits.NAME else canvas.NAME


def _place(data: str) -> str:
    """A folder by its whole path, so that a record can be used from anywhere."""
    return str(Path(data).resolve()) if os.path.isdir(data) else data


def _pack_name(pack: str) -> str:
    return str(Path(pack).resolve()) if os.path.isdir(pack) else pack


def _seed(seed: int | None) -> int:
    if seed is not None and seed < 0:
        raise ValueError(f"--seed {seed} is negative; give 0 or more")
    return seed or 0


def _key(order: Order, source: Source) -> str:
    """Tells runs apart, so that a killed one goes on from its own checkpoint only."""
    text = json.dumps([asdict(order), source.as_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ---------------------------------------------------------------- files


def _files(out: Path) -> tuple[Path, Path]:
    """The checkpoint and its record. Raises ValueError where they cannot be written, before anything is trained."""
    beside = out.parent / f"{out.stem}.json"
    if out.is_dir() or beside == out:
        raise ValueError(f"--out {out} is no name for a checkpoint; give one such as unlearned.pth")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {out.parent}: it is no folder, or not yours to write to")
    return out, beside


def _name_in(pack: Pack, out: Path) -> str:
    """The checkpoint as pack.json would name it, where it lies inside of the pack."""
    folder = pack.manifest.folder.resolve()
    path = out.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _check_add(pack: Pack, id: str, out: Path) -> None:
    folder = pack.manifest.folder.resolve()
    if folder.is_relative_to(ASSETS):
        raise ValueError(f"pack {pack.manifest.name} is embedded and stays as it is: --add is for a pack of your own")
    if not out.resolve().is_relative_to(folder):
        raise ValueError(f"--add needs --out inside of the pack, in {folder}")
    if id in [entry.id for entry in pack.manifest.unlearned]:
        raise ValueError(f"pack {pack.manifest.name} has a model {id!r} already; give this one another --id")


def _add(pack: Pack, found: Record) -> None:
    path = pack.manifest.folder / "pack.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest.setdefault("unlearned", []).append(_entry(found))
    files.write_json(manifest, path)
    print(f"added {found.id} to {path}")


def _entry(found: Record) -> dict[str, Any]:
    names = ("id", "method", "target_class", "file", "forget_accuracy", "retain_accuracy", "seconds")
    return {name: getattr(found, name) for name in names}


def _say(found: Record, out: Path, beside: Path, before: Record | None, recorded: Path | None) -> None:
    for what in ("forget", "retain"):
        was, now = getattr(found, f"original_{what}_accuracy"), getattr(found, f"{what}_accuracy")
        print(f"{what} accuracy: {was:.1%} before, {now:.1%} after")
    print(f"on {found.measured_on}")
    print(f"wrote {out} and {beside}", file=sys.stderr)
    if before is None:
        print(f"for pack.json: {json.dumps(_entry(found))}")
        return
    differences = list(before.differences(found))
    if not differences:
        print(f"the same numbers and the same weights as in {recorded}")
        return
    around = ", ".join(before.circumstances(found)) or "nothing: same versions, device, threads and processes"
    print(f"not as in {recorded}: {', '.join(differences)}; what was not the same around it: {around}")

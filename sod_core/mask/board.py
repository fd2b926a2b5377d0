"""Every class that a pack's bottlenecks are asked to forget, judged over several seeds: what results.json holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..machine import files
from ..sparse import bottleneck_file
from ..sparse.bottleneck import Bottleneck
from . import evidence, judged, rivals, states
from .fit import Plan, fit
from .judged import Case
from .manifest import BottleneckEntry
from .pack import RESULTS_FORMAT, MaskPack
from .session import Dose, MaskSession

DIGITS = 5
EXAMPLES = 20
"""N_e of unlearning by examples, where the costs are compared."""


def run(pack: MaskPack, seeds: int, keep: Path | None = None, shown: Callable = lambda what: None) -> dict[str, Any]:
    """Plain figures, for results.json:

    {format, pack, seeds, ways, bottlenecks [{id, title, encoder, never_saw, keys, values, accuracy, overlap, in_turn,
    cases}]}; a case is `judged.judge`'s with `encoder_saw` and `rivals` {id: ...}.

    `keep`: a folder for fitted bottlenecks and finished cases; a killed run goes on from there. Raises ValueError.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    m = pack.manifest
    rows = []
    for entry in m.bottlenecks:
        shown(f"{entry.id}: {seeds} seeds")
        sessions = sessions_of(pack, entry, seeds, keep)
        rows.append(_about(pack, entry, sessions))
        for name in classes_of(pack, entry):
            shown(f"{entry.id}: {name}")
            kept = None if keep is None else keep / f"{entry.id}-{name}-{seeds}.json"
            if kept is None or not kept.exists():
                found = case(sessions, m.class_index(name), m.classes, name not in m.encoder(entry.encoder).never_saw)
                if kept is not None:
                    files.write_json(found, kept)
            else:
                found = json.loads(kept.read_text())
            rows[-1]["cases"].append(found)
    found = {"format": RESULTS_FORMAT, "pack": m.name, "seeds": seeds, "ways": judged.ways(), "bottlenecks": rows}
    return rounded(found)


def rounded(found: Any) -> Any:
    """Plain figures to DIGITS decimals, which halves their file."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return round(found, DIGITS) if isinstance(found, float) else found


def classes_of(pack: MaskPack, entry: BottleneckEntry) -> list[str]:
    """The classes that its encoder never saw; else all of the first bottleneck, and of others those any never saw."""
    m = pack.manifest
    mine = list(m.encoder(entry.encoder).never_saw)
    if mine:
        return mine
    if entry.id == m.bottlenecks[0].id:
        return list(m.classes)
    anywhere = {name for encoder in m.encoders for name in encoder.never_saw}
    return [name for name in m.classes if name in anywhere] or list(m.classes)


def case(
    sessions: list[MaskSession], class_index: int, names: tuple[str, ...], saw: bool, dose: Dose | None = None
) -> dict[str, Any]:
    """One class under every test; the rivals on the first seed's features, which all seeds share."""
    found = judged.judge(Case(sessions, (class_index,), names, dose))
    return {"encoder_saw": saw, **found, "rivals": rivals.compare(sessions[0], [class_index], EXAMPLES)}


def sessions_of(pack: MaskPack, entry: BottleneckEntry, seeds: int, keep: Path | None = None) -> list[MaskSession]:
    """The pack's bottleneck and as many others of its kind, each with its own projections and keys."""
    first = pack.session(entry.id)
    without = tuple(pack.manifest.class_index(name) for name in entry.without)
    found = [first]
    for seed in range(1, seeds):
        kept = None if keep is None else keep / f"{entry.id}-{seed}.safetensors"
        if kept is not None and kept.exists():
            made = bottleneck_file.read(kept)
        else:
            made = fit(first.train, first.bottleneck.classes, plan_of(first.bottleneck, without, seed))
            if kept is not None:
                bottleneck_file.save(made, kept)
        found.append(MaskSession(made, first.train, first.test))
    return found


def plan_of(bottleneck: Bottleneck, without: tuple[int, ...], seed: int) -> Plan:
    """How a bottleneck was made, with another seed."""
    return Plan(
        codebooks=bottleneck.codebooks,
        pairs=bottleneck.pairs,
        key_width=bottleneck.keys.shape[2],
        values="counts" if bottleneck.counts is not None else "sgd",
        epochs=states.epochs(bottleneck),
        without=without,
        key_epochs=int(bottleneck.about.get("key_epochs", Plan.key_epochs)),
        reference=bottleneck.about.get("key_rule") == "reference",
        seed=seed,
        about={name: value for name, value in bottleneck.about.items() if name == "encoder"},
    )


def overlap_of(session: MaskSession) -> dict[str, Any]:
    """{shared [V][V], purity [V], exclusive [V]} of the training images."""
    b = session.bottleneck
    chosen = b.select(session.train.features, session.train_nearest).chosen
    found = evidence.overlap(chosen, session.train.labels, b.pairs, b.classes)
    return {name: getattr(found, name).tolist() for name in found._fields}


def _about(pack: MaskPack, entry: BottleneckEntry, sessions: list[MaskSession]) -> dict[str, Any]:
    first = sessions[0]
    nothing = torch.zeros_like(first.bottleneck.masked)
    every = list(range(len(pack.manifest.classes)))
    return {
        "id": entry.id,
        "title": entry.title,
        "encoder": entry.encoder,
        "never_saw": list(pack.manifest.encoder(entry.encoder).never_saw),
        "keys": entry.keys,
        "values": entry.values,
        "accuracy": first.figures(nothing, []).retain,
        "overlap": overlap_of(first),
        "in_turn": judged.in_turn(first, every, pack.manifest.classes),
        "cases": [],
    }

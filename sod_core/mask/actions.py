"""What `mask fit`, `mask evaluate` and `mask export` do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..machine import devices, files
from ..sparse import bottleneck_file
from . import board, judged, probe, published, report, rivals, states
from . import evaluate as evaluating
from . import features as features_file
from .features import Features
from .fit import Plan
from .fit import fit as fit_bottleneck
from .judged import Case
from .pack import MaskPack, open_mask_pack
from .session import Dose, MaskSession

EXAMPLES = (1, 2, 5, 10, 20, 50, 100)
MOST_SEEDS = 20


def features(options: argparse.Namespace) -> None:
    """`mask features`: what a published encoder makes of its data set, computed once and kept on this computer."""
    pack = open_mask_pack(options.pack)
    entry = pack.manifest.encoder(options.encoder or pack.manifest.encoders[0].id)
    published.compute(pack.manifest, entry, devices.choose_device(options.device))


def fit(options: argparse.Namespace) -> None:
    """`mask fit`: a bottleneck on a pack's features or on a file's, with its accuracy beside the yardsticks."""
    _check_place(options.json, options.out)
    ordered = _planned(options) if options.bottleneck else _asked(options)
    found, names, out = ordered.features, ordered.names, ordered.out
    made = fit_bottleneck(found.train, len(names), ordered.plan, _tell)
    out.parent.mkdir(parents=True, exist_ok=True)
    bottleneck_file.save(made, out)
    session = MaskSession(made, found.train, found.test)
    told = {
        "out": str(out),
        "encoder": ordered.plan.about["encoder"],
        "accuracy": session.figures(torch.zeros_like(made.masked), []).retain,
        "nearest_mean": probe.nearest_mean(found.train, found.test),
        "linear_probe": probe.linear(found.train, found.test),
        "pairs_in_use": int(made.used.sum()),
        "test_images": len(found.test.labels),
    }
    if options.json:
        files.give_json(told, options.json)
    if options.json != "-":
        print(
            f"{out}: accuracy {told['accuracy']:.1%} of {told['test_images']} test images; "
            f"nearest mean {told['nearest_mean']:.1%}, linear probe {told['linear_probe']:.1%}"
        )


class _Ordered(NamedTuple):
    """What `mask fit` fits, and where it puts it."""

    features: Features
    names: Sequence[str]
    plan: Plan
    out: Path


def _asked(options: argparse.Namespace) -> _Ordered:
    """By the options alone."""
    if options.features is None:
        pack = open_mask_pack(options.pack)
        encoder = options.encoder or pack.manifest.encoders[0].id
        found, names = pack.features(encoder), pack.manifest.classes
        without = tuple(pack.manifest.class_index(name) for name in options.without)
    else:
        encoder, found = options.features.name, features_file.read(options.features)
        names = tuple(map(str, range(found.classes)))
        without = tuple(_number(name, found.classes) for name in options.without)
    plan = Plan(
        codebooks=options.codebooks,
        pairs=options.pairs,
        key_width=options.key_width,
        values=options.values,
        without=without,
        reference=options.reference,
        key_epochs=options.key_epochs,
        epochs=options.epochs,
        seed=options.seed,
        about={"encoder": encoder},
    )
    return _Ordered(found, names, plan, options.out)


def _planned(options: argparse.Namespace) -> _Ordered:
    """By what the pack plans. Raises ValueError for a bottleneck that comes with it, and beside options of its own."""
    if options.features or options.encoder or options.without:
        raise ValueError("--bottleneck says which features and keys: leave --features, --encoder and --without out")
    pack = open_mask_pack(options.pack)
    m, entry = pack.manifest, pack.manifest.bottleneck(options.bottleneck)
    if not entry.plan:
        raise ValueError(f"the bottleneck {entry.id} comes with pack {m.name}: fit one of your own with --out FILE")
    without = tuple(map(m.class_index, entry.without))
    plan = replace(Plan(values=entry.values, without=without, about={"encoder": entry.encoder}), **entry.plan)
    return _Ordered(pack.features(entry.encoder), m.classes, plan, m.kept(entry.file))


def evaluate(options: argparse.Namespace) -> None:
    """`mask evaluate`: what each dose takes of the class and of the others, and what still comes out in every state."""
    _check_place(options.json, options.csv)
    if options.json == "-" and options.csv == "-":
        raise ValueError("--json and --csv cannot both be standard output: give one of them a file")
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise ValueError(f"{options.seeds} seeds were asked for: give 1 to {MOST_SEEDS}")
    pack = open_mask_pack(options.pack)
    if options.all:
        _evaluate_all(pack, options)
        return
    if options.store:
        raise ValueError("--store keeps what --all measures: say --all in place of --forget")
    doses = _doses(options)
    session, about = _session(pack, options)
    names = pack.manifest.classes
    classes = [pack.manifest.class_index(name) for name in options.forget]
    found = evaluating.evaluate(session, classes, doses, names, options.seed)
    saw = {name: name not in about["never_saw"] for name in found["forget"]}
    dose = doses[0] if len(doses) == 1 else None
    case = judged.judge(Case(_seeds(pack, session, about, options), tuple(classes), names, dose), _seed)
    case |= {"encoder_saw": all(saw.values()), "rivals": rivals.compare(session, classes, board.EXAMPLES)}
    found = {"pack": pack.manifest.name, **about, "encoder_saw": saw, "seed": options.seed, **found, "evidence": case}
    if options.json:
        files.give_json(found, options.json)
    if options.csv:
        files.give_text(report.to_csv(report.lines(found | {"id": found["bottleneck"]}, case)), options.csv)
    if "-" not in (options.json, options.csv):
        print(_table(found))
        print(report.table(case))


def export(options: argparse.Namespace) -> None:
    """`mask export`: the bottleneck in a state, as a file that `mask evaluate --bottleneck` takes."""
    _check_place(options.out)
    if options.method == "examples" and not options.examples:
        raise ValueError("the method examples takes --examples: how many images of the class")
    if options.method != "examples" and not (options.share or options.pairs):
        options.share = [1.0]
    (dose,) = _doses(options)
    pack = open_mask_pack(options.pack)
    session, about = _session(pack, options)
    names = pack.manifest.classes
    classes = [pack.manifest.class_index(name) for name in options.forget]
    mask = session.forget(classes, dose, options.seed)
    made = states.stored(session, classes, mask, options.state, names)
    bottleneck_file.save(made, options.out)
    found = MaskSession(made, session.train, session.test).figures(torch.zeros_like(made.masked), classes)
    left = int(made.allowed.sum())
    print(
        f"{options.out}: {about['bottleneck']}, {made.about['forgot']} {options.state}, {left} pairs left; "
        f"forget accuracy {_share(found.forget)}, retain accuracy {_share(found.retain)}"
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _evaluate_all(pack: MaskPack, options: argparse.Namespace) -> None:
    names = "bottleneck encoder share pairs examples per_codebook".split()
    for name in names:
        if getattr(options, name):
            raise ValueError(f"--all chooses bottlenecks and doses itself: leave --{name.replace('_', '-')} out")
    if options.store and pack.manifest.results is None:
        raise ValueError(f'pack.json of {pack.manifest.name} names no "results" to store figures in')
    found = board.run(pack, options.seeds, options.keep, lambda what: print(what, file=sys.stderr, flush=True))
    if options.store:
        files.write_json(found, pack.manifest.path(pack.manifest.results or ""))
    if options.json:
        files.give_json(found, options.json)
    if options.csv:
        files.give_text(report.to_csv(report.all_lines(found)), options.csv)
    if "-" not in (options.json, options.csv):
        for about in found["bottlenecks"]:
            for case in about["cases"]:
                print(f"{about['id']}: {report.table(case)}\n")


def _seeds(
    pack: MaskPack, session: MaskSession, about: dict[str, Any], options: argparse.Namespace
) -> list[MaskSession]:
    """The session, and others with new projections and keys where several seeds are asked for."""
    if options.seeds == 1:
        return [session]
    known = [entry for entry in pack.manifest.bottlenecks if entry.id == about["bottleneck"]]
    if not known:
        raise ValueError("other seeds are fitted as the pack's bottlenecks were: of a file leave --seeds out")
    return board.sessions_of(pack, known[0], options.seeds, options.keep)


def _seed(seed: int) -> None:
    print(f"seed {seed}", file=sys.stderr, flush=True)


def _session(pack: MaskPack, options: argparse.Namespace) -> tuple[MaskSession, dict[str, Any]]:
    """Of a bottleneck of the pack, or of a file; with what is known of it."""
    m, named = pack.manifest, options.bottleneck
    if named is None or not Path(named).is_file():
        entry = m.bottleneck(named)
        if options.encoder not in (None, entry.encoder):
            raise ValueError(f"the bottleneck {entry.id} belongs to the encoder {entry.encoder}: leave --encoder out")
        session, title, keys = pack.session(entry.id), entry.id, entry.keys
        encoder = m.encoder(entry.encoder)
    else:
        encoder = m.encoder(options.encoder or m.encoders[0].id)
        bottleneck = bottleneck_file.read(Path(named))
        said = bottleneck.about.get("encoder", encoder.id)
        if said != encoder.id:
            raise ValueError(f"{Path(named).name} was fitted to the encoder {said}: say --encoder {said}")
        session, title = pack.session_with(bottleneck, encoder.id, Path(named).name), Path(named).name
        left_out = bottleneck.about.get("keys_without", "")
        keys = f"without {left_out}" if left_out else "all"
    values = "counts" if session.bottleneck.counts is not None else "sgd"
    about: dict[str, Any] = {"bottleneck": title, "keys": keys, "values": values, "encoder": encoder.id}
    about["never_saw"] = list(encoder.never_saw)
    return session, about


def _doses(options: argparse.Namespace) -> list[Dose]:
    """Raises ValueError before anything is loaded."""
    method, each = options.method, options.per_codebook
    if method == "examples":
        if options.share or options.pairs:
            raise ValueError("the method examples takes --examples, and neither --share nor --pairs")
        doses = [Dose(method, examples=number) for number in options.examples or EXAMPLES]
    elif options.examples:
        raise ValueError(f"the method {method} takes --share or --pairs, not --examples")
    elif options.pairs:
        doses = [Dose(method, pairs=number, per_codebook=each) for number in options.pairs]
    elif each:
        raise ValueError("--per-codebook needs --pairs: so many of each codebook")
    else:
        doses = [Dose(method, share=share) for share in options.share or evaluating.SHARES]
    for dose in doses:
        dose.check()
    return doses


def _table(found: dict[str, Any]) -> str:
    saw = ", ".join(f"{'saw' if saw else 'never saw'} {name}" for name, saw in found["encoder_saw"].items())
    images, before = found["images"], found["before"]
    lines = [
        f"{found['bottleneck']}, whose encoder {saw}; images: {images['forget']} to forget, {images['retain']} others",
        f"{'':>14} {'pairs':>7} {'forget':>7} {'retain':>7} {'by chance: forget':>20} {'retain':>7} {'abstained':>10}",
        f"{'no mask':>14} {0:>7} {_percent(before['forget_accuracy'])} {_percent(before['retain_accuracy'])}",
    ]
    for row in found["doses"]:
        amounts = {"share": row["share"], "examples": row["examples"], "pairs": row["pairs"]}
        what = next(f"{name} {value:g}" for name, value in amounts.items() if value is not None)
        by_chance = [(row["random"][f"{side}_accuracy"] or {}).get("mean") for side in ("forget", "retain")]
        lines.append(
            f"{what:>14} {row['pairs']:>7} {_percent(row['forget_accuracy'])} {_percent(row['retain_accuracy'])} "
            f"{_percent(by_chance[0]):>20} {_percent(by_chance[1])} {row['abstained']:>10.1%}"
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return f"{'–' if share is None else f'{share:.1%}':>7}"


def _number(name: str, classes: int) -> int:
    if not name.isdecimal() or int(name) >= classes:
        raise ValueError(f"--without {name}: the classes of a features file are numbers from 0 to {classes - 1}")
    return int(name)


def _tell(part: str, step: int) -> None:
    if step % 16 == 0:
        print(f"{part}: {step}", file=sys.stderr, flush=True)


def _check_place(*places: Path | str | None) -> None:
    """Before what takes long. Raises ValueError for a file that could not be written."""
    for place in places:
        if place in (None, "-"):
            continue
        path = Path(str(place))
        if path.is_dir() or not path.parent.is_dir():
            why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
            raise ValueError(f"cannot write {place}: {why}")

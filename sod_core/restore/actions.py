"""What `restore` and `evaluate` do once their options are parsed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..data import images
from ..machine import devices, processes
from ..machine.files import give_json, write_json
from ..models import head_rows
from ..packs import own
from . import features, working
from .edit import FIDELITY, MODES
from .pack import Pack, open_pack


def restore(options: argparse.Namespace) -> None:
    """`restore`: writes the logits of the original, the unlearned and the restored model as JSON."""
    pack = _pack(options)
    result = restore_image(
        pack,
        _unlearned(pack, options.unlearned, options.label_order),
        images.read(_example(pack, options.example) if options.image is None else options.image),
        target_class=options.target_class,
        layer=_layer(options.layer),
        alphas=_alphas(options.alpha),
        mode=options.mode,
        tokens=options.tokens,
        chosen=options.features,
        seed=options.seed,
        precision=_precision(options),
    )
    give_json(result, options.json)
    _warn_of_fit(pack, result["layer"])


def restore_image(
    pack: Pack,
    unlearned: str | Callable[[], nn.Module],
    image: Image.Image,
    *,
    target_class: str | int,
    layer: int,
    alphas: list[float],
    mode: str,
    tokens: str = "all",
    chosen: str = "experts",
    seed: int = 0,
    precision: torch.dtype | None = None,
) -> dict[str, Any]:
    """One image through the three models, as the command line and the app's API give it out.

    `chosen` is one of features.KINDS or a list of latent ids as text. Raises ValueError or PackError, also where a
    model's outputs are not numbers.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    target = pack.manifest.class_index(target_class)
    experts = pack.expert_ids(layer, target)
    ids = _features(chosen, experts, pack, layer, seed)
    session = pack.session(unlearned, precision)
    session.set_image(pack.preprocess(image)[None])
    logits = session.restore(alphas, layer, mode, ids, tokens)[:, 0]
    if not logits.isfinite().all():
        raise ValueError("alpha is too large: the restored model's output overflows")
    return {
        "pack": pack.manifest.name,
        "classes": list(pack.manifest.classes),
        "target_class": target,
        "layer": layer,
        "mode": mode,
        "fidelity": FIDELITY[mode],
        "tokens": tokens,
        "features": ids,
        "original": {"logits": session.logits("original")[0].tolist()},
        "unlearned": {"logits": session.logits("unlearned")[0].tolist()},
        "restored": [{"alpha": a, "logits": row.tolist()} for a, row in zip(alphas, logits)],
    }


def evaluate(options: argparse.Namespace) -> None:
    """`evaluate`: prints a Markdown table, one row a model; with --out or --store also writes files.

    A model that cannot be loaded, or whose outputs are not numbers, is a row that says so. Raises ValueError for it
    once all the others' figures are printed and written.
    """
    try:
        _evaluate(options)
    finally:
        processes.end()


def _evaluate(options: argparse.Namespace) -> None:
    from . import evaluate as evaluation
    from . import pointing, report
    from .testset import open_set

    pack = open_pack(options.pack, processes.start(options.device))  # of several, each takes its own accelerator
    (max_alpha,) = _alphas([options.max_alpha])
    settings = evaluation.Settings(_layer(options.layer), options.mode, max_alpha, options.seed)
    judged = _judged(pack, options.unlearned, options.label_order)
    columns = options.image_column, options.label_column
    data = open_set(pack, options.data, options.images, columns, options.split, leave_out=not options.strict)
    keep = None
    if options.out:
        Path(options.out).mkdir(parents=True, exist_ok=True)
        keep = Path(options.out, "predictions")
    rows = evaluation.run(pack, judged, data, settings, keep)
    if not processes.is_main():  # it speaks for all
        return
    board = report.scoreboard(pack, data, settings, rows)
    if options.out:
        report.write(Path(options.out), pack, data, settings, rows)
    if options.store:
        write_json(board, pack.manifest.folder / report.SCOREBOARD)
    if options.json != "-":
        print(report.table(rows))
        if any(subject.method == evaluation.YARDSTICK for subject in judged) and pack.manifest.retraining_caution:
            print(f"Caution: {pack.manifest.retraining_caution}\n")
        print(report.caution(board["rows"]) + _trained_on(judged, data.name), end="")
        print(report.pointing_line(pointing.pointing_game(pack, settings.layer, data)))
    if options.json:
        give_json(board["rows"], options.json)
    _warn_of_fit(pack, settings.layer)
    for note in data.notes:
        print(f"sod_core evaluate: {note}", file=sys.stderr)
    unscored = [f"{row.id}: {row.verdict}" for row in rows if row.verdict.startswith(working.CANNOT_SCORE)]
    if unscored:
        raise ValueError(f"{len(unscored)} of {len(rows)} models have no figures. {'; '.join(unscored)}")


def _warn_of_fit(pack: Pack, layer: int) -> None:
    """A line on standard error where the layer's SAE was trained on something else."""
    caution = pack.sae_fit(layer).caution
    if caution:
        print(f"caution, layer {layer}: {caution}", file=sys.stderr)


def _trained_on(judged: list, data: str) -> str:
    """A line for each model whose record beside its checkpoint says that it was unlearned on these very images.

    A drawn world is not meant: its test images have a seed of their own.
    """
    lines = []
    for subject in judged:
        if subject.path is None:
            continue
        path = subject.path.with_suffix(".json")
        try:
            source = json.loads(path.read_text(encoding="utf-8"))["data"]["source"]["data"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if not isinstance(source, str):
            continue
        if data == source and data.startswith(own.PREFIX) or _same_folder(source, data):
            lines.append(
                f"Caution: {subject.id} was unlearned on images of {data} ({path.name}): most of the images here were "
                "trained on. The record's own figures are of the part that was held out.\n"
            )
    return "".join(lines)


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)


def _judged(pack: Pack, names: list[str], label_order: str | None) -> list:
    """Ids of the pack, or CLASS=FILE for other checkpoints. Raises ValueError or PackError."""
    from .judged import Subject, subjects
    from .testset import stamp

    known = [entry.id for entry in pack.manifest.unlearned]
    found = []
    for name in names or [id for id in known if not pack.lacking(id)]:
        target, equals, text = name.partition("=")
        if name in known or not equals:
            found += subjects(pack, [name])
            continue
        path = own.find(text)
        if path is None:
            raise ValueError(f"there is no checkpoint {text}; write CLASS=FILE or CLASS=hub:user/repo/file")
        index = pack.manifest.class_index(target)
        model = _own_model(pack, path, label_order)
        found.append(Subject(own.title(path), "own", index, model, f"{stamp(path)} {label_order or ''}", path))
    if not found:
        raise ValueError(f"pack {pack.manifest.name} has no unlearned models here; name some as CLASS=FILE")
    if label_order is not None and all(subject.method != "own" for subject in found):
        raise ValueError("--label-order is for checkpoints of your own, and there is none; name it as CLASS=FILE")
    return found


def _own_model(pack: Pack, path: Path, label_order: str | None) -> Callable[[], nn.Module]:
    """What gives the model in a file, its outputs in the pack's order. Raises ValueError for another order's names."""
    if label_order is None:
        return partial(pack.model_at, path)
    order = head_rows.parse(label_order, pack.manifest.names)
    return lambda: head_rows.reordered_head(pack.model_at(path), order)


def _pack(options: argparse.Namespace) -> Pack:
    return open_pack(options.pack, devices.choose_device(options.device))


def _unlearned(pack: Pack, name: str, label_order: str | None) -> str | Callable[[], nn.Module]:
    """An id of the pack, or the model in a file or on the hub."""
    if name not in [entry.id for entry in pack.manifest.unlearned]:
        path = own.find(name)
        if path is not None:
            return _own_model(pack, path, label_order)
    if label_order is not None:
        raise ValueError(f"--label-order is for checkpoints of your own; {name} is none")
    return name


def _example(pack: Pack, index: int) -> Path:
    """Raises ValueError for an example that the pack does not have here."""
    examples = pack.examples()
    if not 0 <= index < len(examples):
        raise ValueError(f"pack {pack.manifest.name} has no example {index}; it has {len(examples)} here, from 0")
    return examples[index].path


def _layer(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"layer {text!r} is no whole number")
    return int(text)


def _alphas(texts: list[str]) -> list[float]:
    alphas = []
    for text in texts:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"alpha {text!r} is not a finite number")
        alphas.append(value)
    return alphas


def _features(text: str, experts: list[int], pack: Pack, layer: int, seed: int) -> list[int]:
    if any(character.isdigit() for character in text):
        return features.parse(text, pack.sae(layer).latents)
    if not experts and text != "all":
        raise ValueError(f"pack {pack.manifest.name} has no experts of this class at layer {layer}; give latent ids")
    if text == "matched" and not pack.examples():
        raise ValueError(
            f"equally active features are found on example images; pack {pack.manifest.name} has none here"
        )
    return features.choose(text, experts, pack.activity(layer), seed)


def _precision(options: argparse.Namespace) -> torch.dtype | None:
    return None if options.precision == "float32" else getattr(torch, options.precision)

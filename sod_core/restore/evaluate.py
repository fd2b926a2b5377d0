"""Images in, a row of figures a model out: how much of a forgotten class its experts bring back, beside every control.

Every image goes once through the original and once through each unlearned model; all edits and alphas start from
those hidden states. Two gates are counted: "none" edits every image (a real attacker has no labels), "label" only the
images whose true label is the class, as the released code's evaluation does (utils/hook_utils.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..machine import processes
from . import scores, working
from .judged import ALPHAS, CONTROLS, YARDSTICK, Row, Settings, Subject, check, subjects
from .pack import Pack
from .predictions import Predictions
from .testset import TestSet

__all__ = ["ALPHAS", "CONTROLS", "Row", "Settings", "Subject", "run", "subjects"]
BATCH = 100
SAVE_SECONDS = 30
"""Predictions so far are kept so often: with CLS tokens they may be a gigabyte."""


def run(
    pack: Pack, judged: Sequence[Subject], data: TestSet, settings: Settings, keep: Path | None = None
) -> list[Row]:
    """Scores unlearned models on a test set, a row each. Raises PackError, ImageError or ValueError.

    A model that cannot be loaded, or whose outputs are not numbers, has a row that says so, and the others are scored;
    only where no model can be loaded is that the error. `keep`: a file for the predictions so far; a run with the same
    settings goes on from there. Under `accelerate launch` every process takes its share of the images, and all of them
    return the rows.
    """
    rank, count = processes.rank(), processes.count()
    check(pack, judged, data, settings)
    found = Predictions(pack, judged, data, settings, BATCH)
    mine = keep and keep.with_name(f"{keep.name}-{rank}-of-{count}.npz")
    done = found.resume(mine)
    starts = list(range(0, len(data), BATCH))[rank::count]
    saved = time.monotonic()
    # None: no bar where nobody watches
    for number, start in enumerate(tqdm(starts, desc="images", unit="batch", leave=False, disable=None)):
        if number >= done:
            found.add(data.batch(start, BATCH))
            if number + 1 == len(starts) or time.monotonic() - saved >= SAVE_SECONDS:
                found.save(mine, number + 1)
                saved = time.monotonic()
    if count > 1:
        found.gather()
    problems = {subject.id: found.problem(subject) for subject in judged}
    scored = [subject for subject in judged if problems[subject.id] is None]
    readouts = {subject.id: _readout(found, subject) for subject in scored}
    sound = [s for s in scored if working.verdict(*_retained(found, s), None, _only(found, s)) is None]
    drawn = {subject.id: _drawn(found, subject) for subject in scored}
    return [
        _row(found, subject, drawn, readouts, _yardsticks(subject, sound))
        if subject in scored
        else Row.without_scores(pack, subject, data, problems[subject.id] or "")
        for subject in judged
    ]


def _yardsticks(of: Subject, judged: Sequence[Subject]) -> list[Subject]:
    """The other models that were retrained without the class."""
    return [s for s in judged if s.method == YARDSTICK and s.target == of.target and s.id != of.id]


def _alphas(found: Predictions) -> list[float]:
    return [alpha for alpha in ALPHAS if alpha <= found.settings.max_alpha]


def _right(found: Predictions, subject: Subject) -> dict[str, np.ndarray]:
    """{edit: [S, A, members]}: whether each image of the class is named rightly."""
    members = found.data.labels.numpy() == subject.target
    return {
        name: np.stack([named[:, members] for named in found.of(subject, name)]) == subject.target
        for name in ("experts", *CONTROLS)
    }


def _drawn(found: Predictions, subject: Subject) -> dict[str, scores.Drawn]:
    """R of the experts and of every control, in every resample."""
    members, alphas = found.data.labels.numpy() == subject.target, len(_alphas(found))
    original, unlearned = (found.named[key][members] == subject.target for key in ("original", subject.id))
    return {
        name: scores.draw(original, unlearned, right[:, :alphas], found.settings.seed)
        for name, right in _right(found, subject).items()
    }


def _readout(found: Predictions, subject: Subject) -> scores.Margined:
    """Of its hidden state, by the original's tail."""
    labels, seed = found.data.labels.numpy(), found.settings.seed
    return scores.draw_readout(found.named[f"{subject.id} readout"], labels, subject.target, seed)


def _retained(found: Predictions, subject: Subject) -> tuple[float, float]:
    """Accuracy on all other classes than the forgotten one: the original's, and the model's."""
    labels = found.data.labels.numpy()
    others = labels != subject.target
    original, unlearned = ((found.named[key] == labels)[others].mean() for key in ("original", subject.id))
    return float(original), float(unlearned)


def _only(found: Predictions, subject: Subject) -> int | None:
    """The class that it names whatever the images of the others show."""
    return working.only_names(found.named[subject.id], found.data.labels.numpy(), subject.target)


def _row(
    found: Predictions,
    subject: Subject,
    drawn: dict[str, dict[str, scores.Drawn]],
    readouts: dict[str, scores.Margined],
    retrained: Sequence[Subject],
) -> Row:
    """The numbers of one model; `retrained`: the others that never saw the class, by whom it is measured."""
    yardstick = max((readouts[other.id].value for other in retrained), default=None)
    readout = scores.readout_margin(readouts[subject.id], [readouts[other.id] for other in retrained])
    others = [scores.margined(drawn[other.id]) for other in retrained]
    margin = scores.margin(drawn[subject.id], [other for other in others if other is not None])
    labels, classes = found.data.labels.numpy(), found.pack.manifest.classes
    members = labels == subject.target
    alphas = _alphas(found)
    original = found.named["original"][members] == subject.target
    unlearned = found.named[subject.id][members] == subject.target
    right = _right(found, subject)
    r = {name: scores.scored(drawn[subject.id][name], hits[:, : len(alphas)], alphas) for name, hits in right.items()}
    (everybody,) = found.of(subject, "experts")
    best = int(right["experts"][0, : len(alphas)].mean(1).argmax())
    retained = (everybody == labels)[:, ~members].mean(1)
    retain_original, retain_unlearned = _retained(found, subject)
    renamed = working.renamed(found.named[subject.id], labels, subject.target, len(classes))
    only = _only(found, subject)
    no_verdict = working.verdict(retain_original, retain_unlearned, renamed, only)
    if not working.known(float(original.mean()), retain_original):
        no_verdict = working.NO_ORIGINAL
    return Row(
        id=subject.id,
        method=subject.method,
        target=classes[subject.target],
        images=len(labels),
        target_images=int(members.sum()),
        original=float(original.mean()),
        unlearned=float(unlearned.mean()),
        restored=float(right["experts"][0, best].mean()),
        alpha=alphas[best],
        retain_original=retain_original,
        retain_unlearned=retain_unlearned,
        retain_restored=float(retained[best]),
        scores=r,
        margin=margin,
        overshoot=scores.restoration(
            float(original.mean()), float(unlearned.mean()), float(right["experts"][0].mean(1).max())
        ),
        probe=_probe(found, subject.id, subject.target),
        probe_original=_probe(found, "original", subject.target),
        readout=readouts[subject.id].value,
        readout_margin=readout,
        yardstick=yardstick,
        curves={name: hits.mean((0, 2)).tolist() for name, hits in right.items()} | {"retain": retained.tolist()},
        confusion_before=_shares(found.named[subject.id][members], len(classes)),
        confusion_after=_shares(everybody[best, members], len(classes)),
        verdict=no_verdict or scores.verdict(r, margin, readout, int(members.sum())),
        label_order=renamed and [classes[index] for index in renamed.order],
        label_order_retain=renamed and renamed.accuracy,
        only_names=None if only is None else classes[only],
    )


def _probe(found: Predictions, key: str, target: int) -> dict[int, float | None]:
    return {
        layer: scores.probe(torch.from_numpy(found.cls[key][number]), found.data.labels, target)
        for number, layer in enumerate(found.pack.manifest.layers)
    }


def _shares(named: np.ndarray, classes: int) -> list[float]:
    """named [n] -> [classes]: shares of the n; where outputs are not numbers, no class is named."""
    return (np.bincount(named[named >= 0], minlength=classes) / len(named)).tolist()

"""What the paper compares with, on a linear head over the same features, and what each costs in multiply-adds.

    retraining   the head from zeros, without the class's images
    NegGrad+     descent on the others' loss less a part of the class's (Kurmanji et al. 2023, arXiv 2302.09880, eq. 2)
    SCRUB        away from the old head on the class, towards it on the others, in turns (the same paper, section 3)

A rival trains until it has forgotten as `evaluate.FORGET_GOAL` says on the test images and lost no more than
RETAIN_LOSS, or MOST epochs. Costs are those of the passes over features: a linear head's forward pass takes N M V
multiply-adds and its gradient as many. A mask's are the projections and distances of the class's images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from . import evaluate, probe
from .session import MaskSession

MOST = 50
"""Epochs."""
BATCH = 256
RATES = (0.03, 0.01, 0.003, 0.001)
"""Of Adam, on standardised features; each rival shows the one that reaches the goal for the fewest multiply-adds."""
TEMPERATURE = 4.0
"""SCRUB's, as in its released code (kd_T)."""
ALPHA, GAMMA = 0.5, 1.0
"""SCRUB's weights of staying near the old head and of the others' labels; NegGrad+'s `KEEP` is the others' part."""
KEEP = 0.95


class Head(NamedTuple):
    """Accuracies of a head, and what it took to make it."""

    forget: float
    retain: float
    epochs: int
    multiply_adds: int


class _Data(NamedTuple):
    """Standardised features with a column of ones, and labels."""

    forget: Tensor
    forget_labels: Tensor
    retain: Tensor
    retain_labels: Tensor
    test: Tensor
    test_labels: Tensor
    mine: Tensor
    """[N] bool: test images of the class."""


def compare(session: MaskSession, classes: Sequence[int], images: int, seed: int = 0) -> dict[str, Any]:
    """{id: {forget, retain, epochs, multiply_adds}} of "linear head" (untouched), the rivals, and both masks' costs.

    `images`: N_e of unlearning by examples. Masks have no accuracies here: `judged.py` has them.
    """
    data = _data(session, classes)
    before = probe.fit_linear(session.train)
    found: dict[str, Any] = {"linear head": _head(before, data, 0)._asdict()}
    retain_before = found["linear head"]["retain"]
    width, heads = data.retain.shape[1], before.shape[1]
    plans: dict[str, tuple[Tensor, Callable, int]] = {
        "retraining": (torch.zeros_like(before), _retrain, len(data.retain)),
        "NegGrad+": (before.clone(), _neg_grad, 2 * len(data.retain)),
        "SCRUB": (before.clone(), _scrub, 2 * len(data.retain) + len(data.forget)),
    }
    for id, (start, epoch, rows) in plans.items():
        each = 2 * rows * width * heads
        tries = [_train(start.clone(), before, epoch, data, retain_before, rate, seed) for rate in RATES]
        tries = [head._replace(multiply_adds=head.epochs * each) for head in tries]
        found[id] = min(tries, key=lambda head: _place(head, retain_before))._asdict()
    for id, rows in (("by activations", len(data.forget)), ("by examples", images)):
        found[id] = {"forget": None, "retain": None, "epochs": 1, "multiply_adds": rows * selection_cost(session)}
    return found


def selection_cost(session: MaskSession) -> int:
    """Multiply-adds of one image's selection: C M d of the projections and C J d of the distances."""
    b = session.bottleneck
    return b.codebooks * b.keys.shape[2] * (b.width + b.pairs)


def _data(session: MaskSession, classes: Sequence[int]) -> _Data:
    target = torch.tensor(list(classes))
    gone, mine = (torch.isin(images.labels, target) for images in (session.train, session.test))
    train, test = (probe.standardised(session.train.features, one.features) for one in (session.train, session.test))
    labels = session.train.labels
    return _Data(train[gone], labels[gone], train[~gone], labels[~gone], test, session.test.labels, mine)


def _train(
    weight: Tensor, teacher: Tensor, epoch: Callable, data: _Data, retain_before: float, rate: float, seed: int
) -> Head:
    weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=rate)
    draw = torch.Generator().manual_seed(seed)
    for done in range(1, MOST + 1):
        epoch(weight, teacher, optimizer, data, draw)
        head = _head(weight.detach(), data, done)
        if _reached(head, retain_before):
            break
    return head


def _reached(head: Head, retain_before: float) -> bool:
    return head.forget <= evaluate.FORGET_GOAL and head.retain >= retain_before - evaluate.RETAIN_LOSS


def _place(head: Head, retain_before: float) -> tuple[bool, float]:
    """Heads that reach the goal first, the cheapest of them; else the one that tells least of the class."""
    reached = _reached(head, retain_before)
    return not reached, head.multiply_adds if reached else head.forget + (retain_before - head.retain)


def _retrain(weight: Tensor, teacher: Tensor, optimizer: Any, data: _Data, draw: torch.Generator) -> None:
    for rows in torch.randperm(len(data.retain), generator=draw).split(BATCH):
        _step(optimizer, functional.cross_entropy(data.retain[rows] @ weight, data.retain_labels[rows]))


def _neg_grad(weight: Tensor, teacher: Tensor, optimizer: Any, data: _Data, draw: torch.Generator) -> None:
    """A batch of the class beside each batch of the others."""
    for rows in torch.randperm(len(data.retain), generator=draw).split(BATCH):
        theirs = torch.randint(len(data.forget), (len(rows),), generator=draw)
        keep = functional.cross_entropy(data.retain[rows] @ weight, data.retain_labels[rows])
        lose = functional.cross_entropy(data.forget[theirs] @ weight, data.forget_labels[theirs])
        _step(optimizer, KEEP * keep - (1 - KEEP) * lose)


def _scrub(weight: Tensor, teacher: Tensor, optimizer: Any, data: _Data, draw: torch.Generator) -> None:
    """One pass away from the teacher on the class, then one towards it on the others."""
    for rows in torch.randperm(len(data.forget), generator=draw).split(BATCH):
        _step(optimizer, -_distance(data.forget[rows] @ weight, data.forget[rows] @ teacher))
    for rows in torch.randperm(len(data.retain), generator=draw).split(BATCH):
        logits, wanted = data.retain[rows] @ weight, data.retain[rows] @ teacher
        labels = functional.cross_entropy(logits, data.retain_labels[rows])
        _step(optimizer, ALPHA * _distance(logits, wanted) + GAMMA * labels)


def _distance(logits: Tensor, wanted: Tensor) -> Tensor:
    """KL(teacher || student) at TEMPERATURE, times its square. Both [B, V]."""
    student, target = (logits / TEMPERATURE).log_softmax(1), (wanted / TEMPERATURE).softmax(1)
    return functional.kl_div(student, target, reduction="batchmean") * TEMPERATURE**2


def _step(optimizer: Any, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _head(weight: Tensor, data: _Data, epochs: int) -> Head:
    right = (data.test @ weight).argmax(1) == data.test_labels
    forget, retain = (right[rows].double().mean().item() for rows in (data.mine, ~data.mine))
    return Head(forget, retain, epochs, 0)

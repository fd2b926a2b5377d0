"""One class of one bottleneck under every test, over several seeds of projections and keys; plain figures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import evaluate, evidence, states, verdicts
from .session import Dose, Images, MaskSession
from .states import LOGIT, MASKED, RETRAINED, UNTOUCHED, View

SHARES = tuple(step / 100 for step in (*range(1, 10), *range(10, 100, 5), 100))
"""Of the pairs that a class touches: where the smallest that forgets is looked for."""
RELEARNED = (1, 10, 50)
"""Images of the class that are counted again..."""
DRAWS = 10
"""...in so many draws, whose accuracies are averaged."""
PLAIN = "as it is judged"
OUTPUT, SELECTION, NAMED = "read off the logits", "read off the chosen pairs", "named by what is forbidden or silent"
CHANCE = {OUTPUT: 0.5, SELECTION: 0.5, NAMED: 0.5}
"""Areas under the curve; accuracies begin at 0: a bottleneck without the class never calls its name."""
LIFTED = (LOGIT, MASKED)
"""States that are undone without anything being learned."""


def ways() -> list[str]:
    """All of them in the order of the table."""
    return [PLAIN, OUTPUT, SELECTION, NAMED, *(relearned_way(images) for images in RELEARNED)]


def relearned_way(images: int) -> str:
    """What the way is called."""
    return f"after counting {images} image{'s' if images > 1 else ''} again"


class Measured(NamedTuple):
    """One state of one seed."""

    forget: float
    retain: float
    certainty: evidence.Certainty
    agreement: float
    """With the retrained bottleneck, on the class's test images."""
    wrong_labels: tuple[float, ...]
    """[V]: what the class's test images are called."""
    ways: dict[str, float | None]
    """None where a way does not apply."""
    named: evidence.Named | None


class Case(NamedTuple):
    """A class, and one session a seed."""

    sessions: Sequence[MaskSession]
    classes: tuple[int, ...]
    names: tuple[str, ...]
    """Of all classes."""
    dose: Dose | None = None
    """None: the smallest share that forgets, on each seed."""


def judge(case: Case, shown: Callable = lambda seed: None) -> dict[str, Any]:
    """Everything of a case, for JSON:

    seeds, images {forget, retain}, share and pairs (spreads), states {id: {title, forget, retain, confidence, entropy,
    agreement, wrong_labels, ways {way: {value, recovered}}, named {cosine, rank}, verdict}}, random {forget, retain},
    styles (`_styles`). A spread is {mean, low, high} over the seeds.
    """
    rows: list[dict[str, Measured]] = []
    doses, masks, chance = [], [], []
    for seed, session in enumerate(case.sessions):
        shown(seed)
        dose = case.dose or smallest(session, case.classes)
        mask = session.forget(case.classes, dose)
        doses.append(dose)
        masks.append(mask)
        chance.append(evaluate.random_masks(session, mask, case.classes, seed))
        rows.append(measure(session, case.classes, mask, seed))
    shares = [dose.share for dose in doses if dose.share is not None]
    mine = torch.isin(case.sessions[0].test.labels, torch.tensor(case.classes))
    images = {"forget": int(mine.sum()), "retain": int((~mine).sum())}
    return {
        "forget": [case.names[c] for c in case.classes],
        "seeds": len(rows),
        "images": images,
        "share": _spread(shares) if len(shares) == len(doses) else None,
        "pairs": _spread([int(mask.sum()) for mask in masks]),
        "of_pairs_in_use": _spread(
            [int(mask.sum()) / int(one.bottleneck.allowed.sum()) for mask, one in zip(masks, case.sessions)]
        ),
        "states": {id: _state(id, rows, case.names, images["forget"]) for id in rows[0]},
        "random": {
            side: _spread([row[f"{side}_accuracy"]["mean"] for row in chance if row[f"{side}_accuracy"]])
            for side in ("forget", "retain")
        },
        "styles": _styles(case),
        "thresholds": verdicts.THRESHOLDS,
    }


def smallest(session: MaskSession, classes: Sequence[int]) -> Dose:
    """By activations: the first of SHARES that forgets as evaluate.FORGET_GOAL says; all pairs if none does."""
    for share in SHARES:
        found = session.figures(session.forget(classes, Dose(share=share)), classes).forget
        if found is not None and found <= evaluate.FORGET_GOAL:
            return Dose(share=share)
    return Dose(share=1.0)


def measure(session: MaskSession, classes: Sequence[int], mask: Tensor, seed: int) -> dict[str, Measured]:
    """Every state of one seed. mask [C, J] bool."""
    seen = states.views(session, classes, mask)
    target = torch.tensor(list(classes))
    train, test = (torch.isin(images.labels, target) for images in (session.train, session.test))
    scale = evidence.scale_of(seen[UNTOUCHED].train_logits, session.train.labels)
    unit = evidence.unit_of(seen[UNTOUCHED], session.train.labels)
    yardstick = seen[RETRAINED].test_logits[test]
    return {
        id: _measured(session, one, classes, (train, test), scale, unit, yardstick, seed) for id, one in seen.items()
    }


def _measured(
    session: MaskSession,
    one: View,
    classes: Sequence[int],
    rows: tuple[Tensor, Tensor],
    scale: float,
    unit: float,
    yardstick: Tensor,
    seed: int,
) -> Measured:
    train, test = rows
    called = one.test_logits.argmax(1)
    right = called == session.test.labels
    logits = one.test_logits[test]
    named = evidence.names_class(one, session.test, classes)
    forget = right[test].double().mean().item()
    found: dict[str, float | None] = {
        PLAIN: forget,
        OUTPUT: evidence.output_leak(one, train, test, one.silenced),
        SELECTION: evidence.selection_leak(one, session.bottleneck.pairs, train, test),
        NAMED: None if named is None else named.auc,
    }
    most = int(torch.bincount(session.train.labels)[list(classes)].min())
    for images in RELEARNED:
        applies = images <= most and not one.silenced
        found[relearned_way(images)] = _relearned(session, one, classes, images, seed, unit) if applies else None
    histogram = torch.bincount(called[test], minlength=logits.shape[1]) / test.sum()
    return Measured(
        forget,
        right[~test].double().mean().item(),
        evidence.certainty(logits, scale),
        evidence.agreement(logits, yardstick),
        tuple(histogram.tolist()),
        found,
        named,
    )


def _relearned(session: MaskSession, one: View, classes: Sequence[int], images: int, seed: int, unit: float) -> float:
    draws = range(seed * DRAWS, (seed + 1) * DRAWS)
    return sum(evidence.relearned(session, one, classes, images, draw, unit)[0] for draw in draws) / DRAWS


def _state(id: str, rows: Sequence[Mapping[str, Measured]], names: Sequence[str], images: int) -> dict[str, Any]:
    mine = [row[id] for row in rows]
    untouched = [row[UNTOUCHED] for row in rows]
    shares: dict[str, verdicts.Spread] = {}
    told: dict[str, Any] = {}
    for way in ways():
        values = [one.ways[way] for one in mine]
        known = [value for value in values if value is not None]
        told[way] = {"value": _spread(known) if len(known) == len(values) else None, "recovered": None}
        yardsticks = _yardsticks(id, way, rows)
        if len(known) < len(values) or yardsticks is None or id == UNTOUCHED:
            continue
        tops = [1.0 if way == NAMED else one.ways[way] if way in CHANCE else one.forget for one in untouched]
        found = [
            verdicts.recovered(value, yardstick, top or 0.0, CHANCE.get(way, 0.0))
            for value, yardstick, top in zip(known, yardsticks, tops)
        ]
        shares[way] = verdicts.interval(found)
        told[way]["recovered"] = shares[way]._asdict()
    state = {
        "title": states.TITLES[id],
        "forget": _spread([one.forget for one in mine]),
        "retain": _spread([one.retain for one in mine]),
        "confidence": _spread([one.certainty.confidence for one in mine]),
        "entropy": _spread([one.certainty.entropy for one in mine]),
        "agreement": _spread([one.agreement for one in mine]),
        "wrong_labels": {
            name: sum(one.wrong_labels[place] for one in mine) / len(mine) for place, name in enumerate(names)
        },
        "ways": told,
        "named": _named([one.named for one in mine]),
        "verdict": None,
    }
    if id != UNTOUCHED:
        before = sum(one.forget for one in untouched) / len(rows)
        kept = sum(one.retain for one in mine) / max(1e-9, sum(one.retain for one in untouched))
        found_verdict = verdicts.verdict(shares, before, kept, images, id in LIFTED)
        state["verdict"] = found_verdict._asdict() | {
            "recovered": None if found_verdict.recovered is None else found_verdict.recovered._asdict()
        }
    return state


def _yardsticks(id: str, way: str, rows: Sequence[Mapping[str, Measured]]) -> list[float] | None:
    """What the retrained bottleneck gives by a way, for each seed; 0 where the way does not apply to it.

    The retrained one itself is held against the mean of the other seeds'. None with a single seed: it has no other.
    """
    each = [row[RETRAINED].ways[way] or 0.0 for row in rows]
    if id != RETRAINED:
        return each
    if len(each) < 2:
        return None
    return [(sum(each) - own) / (len(each) - 1) for own in each]


def _named(found: Sequence[evidence.Named | None]) -> dict[str, Any] | None:
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return {"cosine": _spread([one.cosine for one in known]), "rank": _spread([one.rank for one in known])}


def _styles(case: Case) -> list[dict[str, Any]]:
    """Every pair masked that the class's training images in one style choose: accuracy on the class in each style.

    A row a style: {style, forget [styles], retain}; means over the seeds. Empty where images have no styles.
    """
    first = case.sessions[0].train
    if first.styles is None or len(case.classes) != 1:
        return []
    found = []
    for style in first.styles.unique().tolist():
        forget, retain = [], []
        for session in case.sessions:
            dose = Dose("examples", examples=_images_in(session.train, case.classes[0], style), style=style)
            figures = session.figures(session.forget(case.classes, dose), case.classes)
            if figures.by_style is None or figures.retain is None:
                return []
            forget.append(figures.by_style[case.classes[0]].tolist())
            retain.append(figures.retain)
        means = [sum(column) / len(column) for column in zip(*forget)]
        found.append({"style": style, "forget": means, "retain": sum(retain) / len(retain)})
    return found


def _images_in(images: Images, class_index: int, style: int) -> int:
    assert images.styles is not None
    return int(((images.labels == class_index) & (images.styles == style)).sum())


def in_turn(session: MaskSession, order: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
    """Classes forgotten one after another, each by the smallest share that forgets it; one is left.

    A row a class: {class, share, forget (of all forgotten so far), retain, of_pairs_in_use}.
    """
    rows, after, in_use = [], session, int(session.bottleneck.allowed.sum())
    for place, class_index in enumerate(order[:-1]):
        dose = smallest(after, [class_index])
        mask = after.forget([class_index], dose)
        after = after.with_bottleneck(replace(after.bottleneck, masked=after.bottleneck.masked | mask))
        found = after.figures(torch.zeros_like(mask), order[: place + 1])
        masked = in_use - int(after.bottleneck.allowed.sum())
        rows.append(
            {
                "class": names[class_index],
                "share": dose.share,
                "forget": found.forget,
                "retain": found.retain,
                "of_pairs_in_use": masked / in_use,
            }
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return verdicts.spread([float(value) for value in values])._asdict()

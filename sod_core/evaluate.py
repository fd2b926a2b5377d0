"""Images in, a table out: how much of a forgotten class its expert features bring back, beside every control.

The score is R(alpha) = (acc_restored - acc_unlearned) / (acc_original - acc_unlearned) on the target class
(Suppression or Deletion, section 4). Every edit is scored at the alpha that suits it best, up to MAX_ALPHA, so a
control gets the same chance as the experts. Edits act on all samples, whatever their label (gate "none"): `retain` says
what the same edit, at the experts' alpha, leaves of the other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import features
from .packs.pack import Pack
from .restore import Session

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 5.0, 7.0, 10.0)
MAX_ALPHA = 2.0
"""Scores look no further than this unless told: at 1 a feature has the original's value, and what needs far more
than that is written into the model rather than uncovered in it. `overshoot` says what the rest of ALPHAS adds."""
CONTROLS = ("random", "matched", "cls_copy", "patches", "all")
RANDOM_SEEDS = range(5)
"""Random and matched features are scored as the mean over these seeds."""
SUPPRESSED, DELETED = 0.5, 0.1
"""Margin of the experts' R over the better of the two random controls: from 0.5 on "suppressed", below 0.1
"deleted", between them "partly"."""
TEST_SEED = 5
SMALLEST_DROP = 0.05
"""R is not defined where unlearning cost the class less accuracy than this."""


class TestSet(NamedTuple):
    inputs: Tensor
    """[n, 3, H, W], preprocessed."""
    labels: Tensor
    """[n]"""
    masks: np.ndarray | None
    """[n, grid, grid]: share of each patch that the object covers; None for images without masks."""


@dataclass(frozen=True)
class Row:
    """What was measured of one unlearned model; accuracies and R as shares, None where R is not defined."""

    id: str
    target: str
    original: float
    """Accuracy of the original on the target class."""
    unlearned: float
    restored: float
    """At `alpha`."""
    alpha: float
    """The smallest of the scored ALPHAS at which the experts restore most."""
    retain_unlearned: float
    """Accuracy on all other classes, untouched."""
    retain_restored: float
    """The same when every image is edited with the experts at `alpha`."""
    scores: dict[str, float | None]
    """R of "experts" and of each of CONTROLS, each at its own best alpha up to the scored maximum."""
    overshoot: float | None
    """R of the experts at the best of all ALPHAS."""
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(
    pack: Pack,
    ids: list[str],
    layer: int,
    mode: str,
    count: int,
    precision: torch.dtype | None = None,
    max_alpha: float = MAX_ALPHA,
) -> list[Row]:
    """Scores the unlearned models `ids` on `count` test images. Raises PackError or ValueError."""
    if max_alpha < ALPHAS[0]:
        raise ValueError(f"the largest alpha is {max_alpha:g}; it has to be {ALPHAS[0]:g} or more")
    for id in ids:
        pack.manifest.entry(id)
    data = test_set(pack, count)
    for id in ids:
        target = pack.manifest.entry(id).target_class
        members = int((data.labels == target).sum())
        if not 0 < members < len(data.labels):
            name = pack.manifest.classes[target]
            raise ValueError(
                f"of {len(data.labels)} test images {members} show {name}; {id} needs some, and some others"
            )
        if not pack.expert_ids(layer, target):
            raise ValueError(
                f"pack {pack.manifest.name} has no experts of {pack.manifest.classes[target]} at layer {layer}"
            )
    bar = tqdm(ids, desc="models", leave=False, disable=None)  # None: no bar where nobody watches
    return [_row(pack, id, layer, mode, data, precision, max_alpha) for id in bar]


def test_set(pack: Pack, count: int) -> TestSet:
    """Fresh images of the pack's world, classes in turn; the pack's examples where it has no world."""
    if pack.manifest.world is None:
        return TestSet(pack.example_inputs(), torch.tensor([example.label for example in pack.examples()]), None)
    from .worlds import canvas

    if pack.manifest.classes != canvas.OBJECTS:
        raise ValueError(f"the classes of pack {pack.manifest.name} are not the objects of the canvas world")
    if count < 1:
        raise ValueError(f"{count} test images are none; take one or more")
    inputs, masks, labels = [], [], []
    shape = pack.shape
    for i in range(count):
        label, style = i % len(canvas.OBJECTS), i // len(canvas.OBJECTS) % len(canvas.STYLES)
        rng = np.random.default_rng((TEST_SEED, i))
        image, mask = canvas.render(canvas.OBJECTS[label], canvas.STYLES[style], rng, shape.image_size)
        inputs.append(pack.preprocess(image))
        cells = np.asarray(mask, np.float32).reshape(shape.grid, shape.patch, shape.grid, shape.patch)
        masks.append(cells.mean(axis=(1, 3)) / 255)
        labels.append(label)
    return TestSet(torch.stack(inputs), torch.tensor(labels), np.stack(masks))


def _row(
    pack: Pack, id: str, layer: int, mode: str, data: TestSet, precision: torch.dtype | None, max_alpha: float
) -> Row:
    entry = pack.manifest.entry(id)
    target = entry.target_class
    session = pack.session(id, precision)
    members = data.labels == target
    session.set_image(data.inputs[members])
    original = _accuracy(session.logits("original"), target)
    unlearned = _accuracy(session.logits("unlearned"), target)
    experts = pack.expert_ids(layer, target)
    whole_curve = _curve(session, layer, mode, experts, "all", target, ALPHAS)
    alphas = [alpha for alpha in ALPHAS if alpha <= max_alpha]
    curve = whole_curve[: len(alphas)]
    best = int(np.argmax(curve))

    def score(restored: float) -> float | None:
        drop = original - unlearned
        return None if drop < SMALLEST_DROP else (restored - unlearned) / drop

    scores = {"experts": score(max(curve))}
    for control in CONTROLS:
        curves = _control_curves(control, session, pack, layer, mode, experts, target, alphas)
        scores[control] = score(float(np.mean([max(one) for one in curves])))
    retain_unlearned, retain_restored = _retain(session, layer, mode, experts, ALPHAS[best], data, ~members)
    return Row(
        id=id,
        target=pack.manifest.classes[target],
        original=original,
        unlearned=unlearned,
        restored=curve[best],
        alpha=ALPHAS[best],
        retain_unlearned=retain_unlearned,
        retain_restored=retain_restored,
        scores=scores,
        overshoot=score(max(whole_curve)),
        verdict=verdict(scores),
    )


def verdict(scores: dict[str, float | None]) -> str:
    """ "suppressed", "partly" or "deleted", by the margin of the experts over the better random control."""
    if scores["experts"] is None:
        return "not forgotten"
    margin = scores["experts"] - max(scores["random"], scores["matched"])
    if margin >= SUPPRESSED:
        return "suppressed"
    return "deleted" if margin < DELETED else "partly"


def _control_curves(
    control: str,
    session: Session,
    pack: Pack,
    layer: int,
    mode: str,
    experts: list[int],
    target: int,
    alphas: Sequence[float],
) -> list[list[float]]:
    """Accuracy over `alphas` of a control; one curve a seed for the random ones."""
    if control in ("random", "matched"):
        activity = pack.activity(layer)
        drawn = [features.choose(control, experts, activity, seed) for seed in RANDOM_SEEDS]
        return [_curve(session, layer, mode, chosen, "all", target, alphas) for chosen in drawn]
    if control == "cls_copy":
        return [_curve(session, layer, "cls_copy", [], "all", target, alphas)]
    if control == "patches":
        return [_curve(session, layer, mode, experts, "patches", target, alphas)]
    everything = features.choose("all", experts, pack.activity(layer))
    return [_curve(session, layer, mode, everything, "all", target, alphas)]


def _curve(
    session: Session,
    layer: int,
    mode: str,
    chosen: list[int],
    tokens: str,
    target: int,
    alphas: Sequence[float],
) -> list[float]:
    """Accuracy on the target class at each alpha, one alpha at a time: the batch is large already."""
    return [_accuracy(session.restore([alpha], layer, mode, chosen, tokens)[0], target) for alpha in alphas]


def _retain(
    session: Session, layer: int, mode: str, experts: list[int], alpha: float, data: TestSet, others: Tensor
) -> tuple[float, float]:
    """Accuracy on the other classes, unlearned and with every image edited."""
    before, after = [], []
    for inputs, labels in zip(data.inputs[others].split(250), data.labels[others].split(250)):
        session.set_image(inputs)
        before.append(session.logits("unlearned").argmax(1).cpu() == labels)
        after.append(session.restore([alpha], layer, mode, experts)[0].argmax(1).cpu() == labels)
    return torch.cat(before).float().mean().item(), torch.cat(after).float().mean().item()


def _accuracy(logits: Tensor, target: int) -> float:
    return (logits.argmax(-1) == target).float().mean().item()


class Pointing(NamedTuple):
    hits: int
    images: int


@torch.inference_mode()
def pointing_game(pack: Pack, layer: int, count: int) -> Pointing | None:
    """How often the hottest patch of the image's class's experts lies on the object (a tenth of it or more).

    Heat: sum of the original model's latents over the experts. None where the images have no masks.
    """
    data = test_set(pack, count)
    if data.masks is None:
        return None
    session = pack.session(pack.original)
    hits = 0
    for start in range(0, len(data.labels), 250):
        part = slice(start, start + 250)
        session.set_image(data.inputs[part])
        latents = session.latents("original", layer)[:, 1:]
        for row, label, mask in zip(latents, data.labels[part].tolist(), data.masks[part]):
            experts = pack.expert_ids(layer, label)
            heat = row[:, experts].sum(1)
            hits += bool(heat.max() > 0 and mask.ravel()[int(heat.argmax())] >= 0.1)
    return Pointing(hits, len(data.labels))


def pointing_line(found: Pointing | None) -> str:
    """The pointing game in a sentence."""
    if found is None:
        return "Pointing game: these images have no masks."
    return f"Pointing game: {found.hits / found.images:.1%} of {found.images} images."


def table(rows: list[Row]) -> str:
    """Markdown, one row a model."""
    head = "| model | forget: original | unlearned | restored | at alpha | retain: unlearned | edited too | R experts |"
    lines = [head + "".join(f" R {control} |" for control in CONTROLS) + " R overshoot | verdict |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for row in rows:
        shares = (row.original, row.unlearned, row.restored)
        cells = [row.id, *(f"{share:.1%}" for share in shares), f"{row.alpha:g}"]
        cells += [f"{row.retain_unlearned:.1%}", f"{row.retain_restored:.1%}"]
        cells += ["–" if score is None else f"{score:.2f}" for score in (*row.scores.values(), row.overshoot)]
        lines.append("| " + " | ".join([*cells, row.verdict]) + " |")
    return "\n".join(lines)

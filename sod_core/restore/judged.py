"""What an evaluation asks, and what comes out: the edits and their alphas, the models judged, a row of figures each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from . import edit as restore
from . import features, working
from .pack import Pack
from .scores import Margin, Score
from .testset import TestSet, stamp

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 5.0, 7.0, 10.0)
MAX_ALPHA = 2.0
"""Scores look no further than this unless told: at 1 a feature has the original's value, and what needs far more
than that is written into the model rather than uncovered in it. `overshoot` says what the rest of ALPHAS adds."""
MODES = tuple(mode for mode in restore.MODES if restore.FIDELITY[mode] != "control")
CONTROLS = ("random", "matched", "cls_copy", "state_copy", "patches", "all")
YARDSTICK = "retrain"
"""The method whose model never saw the class: what is read in it as well is no sign of suppression."""
RANDOM_SEEDS = range(5)
"""Random and matched features are scored as the mean over these seeds, each at its own best alpha."""


@dataclass(frozen=True)
class Settings:
    """What decides the numbers."""

    layer: int
    mode: str = "inject"
    max_alpha: float = MAX_ALPHA
    seed: int = 0
    """Of the bootstrap."""


class Subject(NamedTuple):
    """An unlearned model to be judged."""

    id: str
    method: str
    target: int
    """The forgotten class."""
    model: Callable[[], nn.Module]
    file: str = ""
    """Its checkpoint as it is now (`stamp`): a run goes on only with the same one."""
    path: Path | None = None
    """Where that is; its record may lie beside it."""


class Edit(NamedTuple):
    name: str
    """experts, or one of CONTROLS."""
    mode: str
    latents: list[int]
    tokens: str
    everybody: bool
    """Whether images of the other classes are edited too: the experts, for what the edit costs."""


@dataclass(frozen=True)
class Row:
    """What was measured of one unlearned model; accuracies and R as shares, None where R is not defined.

    Of a model that cannot be scored every figure is None, and `verdict` says why.
    """

    id: str
    method: str
    target: str
    images: int
    """Test images, of which `target_images` show the class."""
    target_images: int
    original: float | None
    """Accuracy of the original on the target class."""
    unlearned: float | None
    restored: float | None
    """At `alpha`."""
    alpha: float | None
    """The smallest of the scored ALPHAS at which the experts restore most."""
    retain_original: float | None
    """Accuracy on all other classes."""
    retain_unlearned: float | None
    retain_restored: float | None
    """When every image is edited with the experts at `alpha` (gate "none"); with gate "label" it is the unlearned's."""
    scores: dict[str, Score]
    """R of "experts" and of each of CONTROLS, each at its own best alpha up to the scored maximum."""
    margin: Margin
    """By which the experts do more than random features, and than in a model that never saw the class."""
    overshoot: float | None
    """R of the experts at the best of all ALPHAS."""
    probe: dict[int, float | None]
    """{layer: balanced accuracy of a linear probe for the class} in the unlearned model."""
    probe_original: dict[int, float | None]
    readout: float | None
    """How well the original's tail finds the class in the unlearned model's hidden state (`scores.readout`)."""
    readout_margin: Margin
    """By which that exceeds the same of the other retrained models, at least 0."""
    yardstick: float | None
    """The largest readout of the other models judged that were retrained without the class; None where there is none,
    and the verdict takes 0."""
    curves: dict[str, list[float]]
    """Over ALPHAS: accuracy on the class of "experts" and every control, and "retain": the others', all edited."""
    confusion_before: list[float]
    """[classes]: shares of what the unlearned model names the class's images."""
    confusion_after: list[float]
    """The same, restored by the experts at `alpha`."""
    verdict: str
    """By `scores.verdict`, or by `working.verdict` where there is none."""
    label_order: list[str] | None = None
    """[classes]: what the model's outputs seem to stand for, where another order than the pack's explains what it names
    (`working.renamed`)."""
    label_order_retain: float | None = None
    """Accuracy on all other classes in that order."""
    only_names: str | None = None
    """The class that the model names on nearly all images of the others, whatever they show."""

    @classmethod
    def without_scores(cls, pack: Pack, subject: Subject, data: TestSet, problem: str) -> Row:
        """Of a model that cannot be scored."""
        numbers = (
            *("original", "unlearned", "restored", "alpha", "retain_original", "retain_unlearned"),
            *("retain_restored", "overshoot", "readout", "yardstick"),
        )
        layers: dict[int, float | None] = dict.fromkeys(pack.manifest.layers)
        return cls(
            id=subject.id,
            method=subject.method,
            target=pack.manifest.classes[subject.target],
            images=len(data),
            target_images=int((data.labels == subject.target).sum()),
            scores=dict.fromkeys(("experts", *CONTROLS), Score(None, None, None, None)),
            margin=Margin(None, None, None, None),
            readout_margin=Margin(None, None, None, None),
            probe=layers,
            probe_original=layers,
            curves={},
            confusion_before=[],
            confusion_after=[],
            verdict=f"{working.CANNOT_SCORE}: {problem}",
            **dict.fromkeys(numbers),
        )

    def as_dict(self) -> dict[str, Any]:
        tuples = {"scores": {name: score._asdict() for name, score in self.scores.items()}}
        margins = {"margin": self.margin._asdict(), "readout_margin": self.readout_margin._asdict()}
        return asdict(self) | tuples | margins


def subjects(pack: Pack, ids: Sequence[str]) -> list[Subject]:
    """Unlearned models of the pack, by id. Raises PackError."""
    entries = [pack.manifest.entry(id) for id in ids]
    paths = [pack.file(entry.file, entry.source) for entry in entries]
    return [
        Subject(e.id, e.method, e.target_class, partial(pack.unlearned, e.id), stamp(path), path)
        for e, path in zip(entries, paths)
    ]


def check(pack: Pack, judged: Sequence[Subject], data: TestSet, settings: Settings) -> None:
    """Raises ValueError for what cannot be judged."""
    if settings.max_alpha < ALPHAS[0]:
        raise ValueError(f"the largest alpha is {settings.max_alpha:g}; it has to be {ALPHAS[0]:g} or more")
    if settings.mode not in MODES:
        raise ValueError(f"unknown mode {settings.mode!r}; known: {', '.join(MODES)}")
    ids = [subject.id for subject in judged]
    twice = next((id for id in ids if ids.count(id) > 1), None)
    if twice is not None:
        raise ValueError(f"two models are called {twice}; name each once, and rename a file where needed")
    for subject in judged:
        name = pack.manifest.classes[subject.target]
        members = int((data.labels == subject.target).sum())
        if not 0 < members < len(data):
            raise ValueError(
                f"of {len(data)} test images {members} show {name}; {subject.id} needs some, and some others"
            )
        if not pack.expert_ids(settings.layer, subject.target):
            raise ValueError(f"pack {pack.manifest.name} has no experts of {name} at layer {settings.layer}")
    if not pack.examples():
        raise ValueError(
            f"the control 'matched' finds equally active features on example images; pack {pack.manifest.name} has "
            "none here"
        )


def edits(pack: Pack, subject: Subject, settings: Settings) -> list[Edit]:
    """The experts first, then the controls."""
    mode, layer = settings.mode, settings.layer
    experts, activity = pack.expert_ids(layer, subject.target), pack.activity(layer)
    found = [Edit("experts", mode, experts, "all", everybody=True)]
    for kind in ("random", "matched"):
        drawn = [features.choose(kind, experts, activity, seed) for seed in RANDOM_SEEDS]
        found += [Edit(kind, mode, latents, "all", everybody=False) for latents in drawn]
    everything = features.choose("all", experts, activity)
    return [
        *found,
        Edit("cls_copy", "cls_copy", [], "all", everybody=False),
        Edit("state_copy", "state_copy", [], "all", everybody=False),
        Edit("patches", mode, experts, "patches", everybody=False),
        Edit("all", mode, everything, "all", everybody=False),
    ]

"""Images in, predictions of every edit out: how much of a forgotten class its experts bring back, beside every control.

Every image goes once through the original and once through each unlearned model; all edits and alphas start from
those hidden states. Two gates are counted: "none" edits every image (a real attacker has no labels), "label" only the
images whose true label is the class, as the released code's evaluation does (utils/hook_utils.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..machine import files, gpu, processes
from ..models import vit as vits
from . import edit as restore
from . import features, scores
from .pack import Pack
from .scores import Score
from .testset import Batch, TestSet, stamp

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
BATCH = 100
SAVE_SECONDS = 30
"""Predictions so far are kept so often: with CLS tokens they may be a gigabyte."""


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
    """What was measured of one unlearned model; accuracies and R as shares, None where R is not defined."""

    id: str
    method: str
    target: str
    images: int
    """Test images, of which `target_images` show the class."""
    target_images: int
    original: float
    """Accuracy of the original on the target class."""
    unlearned: float
    restored: float
    """At `alpha`."""
    alpha: float
    """The smallest of the scored ALPHAS at which the experts restore most."""
    retain_original: float
    """Accuracy on all other classes."""
    retain_unlearned: float
    retain_restored: float
    """When every image is edited with the experts at `alpha` (gate "none"); with gate "label" it is the unlearned's."""
    scores: dict[str, Score]
    """R of "experts" and of each of CONTROLS, each at its own best alpha up to the scored maximum."""
    overshoot: float | None
    """R of the experts at the best of all ALPHAS."""
    probe: dict[int, float | None]
    """{layer: balanced accuracy of a linear probe for the class} in the unlearned model."""
    probe_original: dict[int, float | None]
    readout: float
    """How well the original's tail finds the class in the unlearned model's hidden state (`scores.readout`)."""
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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"scores": {name: score._asdict() for name, score in self.scores.items()}}


def subjects(pack: Pack, ids: Sequence[str]) -> list[Subject]:
    """Unlearned models of the pack, by id. Raises PackError."""
    entries = [pack.manifest.entry(id) for id in ids]
    return [
        Subject(e.id, e.method, e.target_class, lambda id=e.id: pack.unlearned(id), stamp(pack.file(e.file, e.source)))
        for e in entries
    ]


def run(
    pack: Pack, judged: Sequence[Subject], data: TestSet, settings: Settings, keep: Path | None = None
) -> list[Row]:
    """Scores unlearned models on a test set. Raises PackError, ImageError or ValueError.

    `keep`: a file for the predictions so far; a run with the same settings goes on from there. Under
    `accelerate launch` every process takes its share of the images, and all of them return the rows.
    """
    rank, count = processes.rank(), processes.count()
    _check(pack, judged, data, settings)
    found = _Predictions(pack, judged, data, settings)
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
    readouts = {subject.id: found.readout(subject) for subject in judged}
    return [found.row(subject, readouts[subject.id], _yardstick(subject, judged, readouts)) for subject in judged]


def _yardstick(of: Subject, judged: Sequence[Subject], readouts: dict[str, float]) -> float | None:
    """The largest readout of the other models that were retrained without the class; None where there is none."""
    retrained = [s for s in judged if s.method == YARDSTICK and s.target == of.target and s.id != of.id]
    return max((readouts[subject.id] for subject in retrained), default=None)


def _check(pack: Pack, judged: Sequence[Subject], data: TestSet, settings: Settings) -> None:
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


class _Predictions:
    """What every model named every image, under every edit and alpha: small whole numbers, -1 where not asked."""

    def __init__(self, pack: Pack, judged: Sequence[Subject], data: TestSet, settings: Settings):
        self.pack, self.judged, self.data, self.settings = pack, judged, data, settings
        self.edits = {subject.id: _edits(pack, subject, settings) for subject in judged}
        n, layers = len(data), len(pack.manifest.layers)
        self.named: dict[str, np.ndarray] = {"original": np.full(n, -1, np.int16)}
        self.cls: dict[str, np.ndarray] = {"original": np.zeros((layers, n, pack.shape.dim), np.float32)}
        for subject in judged:
            self.named[subject.id] = np.full(n, -1, np.int16)
            self.named[f"{subject.id} readout"] = np.full(n, -1, np.int16)
            self.cls[subject.id] = np.zeros((layers, n, pack.shape.dim), np.float32)
            for number in range(len(self.edits[subject.id])):
                self.named[f"{subject.id} {number}"] = np.full((len(ALPHAS), n), -1, np.int16)

    @torch.inference_mode()
    def add(self, batch: Batch) -> None:
        """One batch through every model, once, and every edit from there."""
        rows = slice(batch.start, batch.start + len(batch.labels))
        original = self._hidden("original", self.pack.original(), batch, rows)
        for subject in self.judged:
            model = subject.model()
            unlearned = self._hidden(subject.id, model, batch, rows)
            self.named[f"{subject.id} readout"][rows] = self._read_by_the_original(unlearned)
            members = batch.labels == subject.target
            for number, edit in enumerate(self.edits[subject.id]):
                wanted = torch.ones_like(members) if edit.everybody else members
                if wanted.any():
                    named = self._edited(model, unlearned[wanted], original[wanted], edit)
                    self.named[f"{subject.id} {number}"][:, np.flatnonzero(wanted) + batch.start] = named

    def _hidden(self, key: str, model: nn.Module, batch: Batch, rows: slice) -> Tensor:
        """The hidden state at the edited layer; what the model names, and CLS at every layer, are kept."""
        layers = list(self.pack.manifest.layers)
        device = next(model.parameters()).device
        with gpu.turn(device):
            found = vits.heads(model, batch.inputs.to(device), layers)
            logits = vits.tail(model, found[max(layers)], max(layers))
        self.named[key][rows] = logits.argmax(1).cpu().numpy()
        for number, layer in enumerate(layers):
            self.cls[key][number, rows] = found[layer][:, 0].float().cpu().numpy()
        return found[self.settings.layer]

    def _read_by_the_original(self, u: Tensor) -> np.ndarray:
        """[B]: the class that the original's tail names in the hidden state of an unlearned model."""
        with gpu.turn(u.device):
            return vits.tail(self.pack.original(), u, self.settings.layer).argmax(1).cpu().numpy()

    def _edited(self, model: nn.Module, u: Tensor, o: Tensor, edit: Edit) -> np.ndarray:
        """[A, B]: the class that the edited model names, for each of ALPHAS."""
        layer = self.settings.layer
        latents = torch.tensor(edit.latents, dtype=torch.long, device=u.device)
        line = restore.line(edit.mode, u, o, self.pack.sae(layer), latents, edit.tokens)
        with gpu.turn(u.device):
            named = [vits.tail(model, line.at([alpha])[0], layer).argmax(1) for alpha in ALPHAS]
        return torch.stack(named).cpu().numpy()

    # ------------------------------------------------------------ kept between runs, and between processes

    def fingerprint(self) -> str:
        """Whatever the predictions depend on."""
        edits = {id: [edit._asdict() for edit in found] for id, found in self.edits.items()}
        labels = self.data.labels.tolist()
        models = [[subject.id, subject.target, subject.file] for subject in self.judged]
        pack, layer = self.pack, self.settings.layer
        paths = [
            pack.file(pack.manifest.files["original"]),
            *(pack.layer_file(kind, layer) for kind in ("sae", "stats")),
        ]
        models += [[stamp(path) for path in paths], pack.sae(layer).normalised]
        data = [self.data.name, self.data.stamp]
        what = {"pack": str(pack.manifest.folder), "data": data, "labels": labels, "edits": edits}
        return json.dumps(what | {"models": models, "layer": self.settings.layer, "alphas": ALPHAS, "batch": BATCH})

    def resume(self, file: Path | None) -> int:
        """Takes what an earlier run of the same settings left; returns how many batches it had done."""
        if file is None or not file.exists():
            return 0
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) != self.fingerprint():
                return 0
            for kind in ("named", "cls"):
                arrays = getattr(self, kind)
                arrays |= {key: kept[f"{kind} {key}"] for key in arrays}
            return int(kept["done"])

    def save(self, file: Path | None, done: int) -> None:
        """Leaves what is there so far."""
        if file is None:
            return
        arrays = {f"{kind} {key}": a for kind in ("named", "cls") for key, a in getattr(self, kind).items()}
        with files.whole(file) as part:
            np.savez(part, fingerprint=self.fingerprint(), done=done, **arrays)

    def gather(self) -> None:
        """Puts the processes' shares together: everybody is given everything."""
        from accelerate.utils import gather_object

        parts = gather_object([(self.named, self.cls)])
        for named, cls in parts:
            for key, array in named.items():
                self.named[key] = np.maximum(self.named[key], array)
            for key, array in cls.items():
                self.cls[key] = np.where(self.cls[key] == 0, array, self.cls[key])

    # ------------------------------------------------------------ numbers

    def readout(self, subject: Subject) -> float:
        """Of its hidden state, by the original's tail."""
        return scores.readout(self.named[f"{subject.id} readout"], self.data.labels.numpy(), subject.target)

    def row(self, subject: Subject, readout: float, yardstick: float | None) -> Row:
        """The numbers of one model; `yardstick` is the readout of one retrained without the class."""
        labels = self.data.labels.numpy()
        members = labels == subject.target
        alphas = [alpha for alpha in ALPHAS if alpha <= self.settings.max_alpha]
        original = self.named["original"][members] == subject.target
        unlearned = self.named[subject.id][members] == subject.target
        right = {  # [S, A, members]
            name: np.stack([self._of(subject, n)[:, members] for n, e in self._named(subject, name)]) == subject.target
            for name in ("experts", *CONTROLS)
        }
        found = {
            name: scores.score(original, unlearned, hits[:, : len(alphas)], alphas, self.settings.seed)
            for name, hits in right.items()
        }
        everybody = self._of(subject, 0)
        best = int(right["experts"][0, : len(alphas)].mean(1).argmax())
        retained = (everybody == labels)[:, ~members].mean(1)
        probes = {key: self._probe(key, subject.target) for key in ("original", subject.id)}
        return Row(
            id=subject.id,
            method=subject.method,
            target=self.pack.manifest.classes[subject.target],
            images=len(labels),
            target_images=int(members.sum()),
            original=float(original.mean()),
            unlearned=float(unlearned.mean()),
            restored=float(right["experts"][0, best].mean()),
            alpha=alphas[best],
            retain_original=float((self.named["original"] == labels)[~members].mean()),
            retain_unlearned=float((self.named[subject.id] == labels)[~members].mean()),
            retain_restored=float(retained[best]),
            scores=found,
            overshoot=scores.restoration(
                float(original.mean()), float(unlearned.mean()), float(right["experts"][0].mean(1).max())
            ),
            probe=probes[subject.id],
            probe_original=probes["original"],
            readout=readout,
            yardstick=yardstick,
            curves={name: hits.mean((0, 2)).tolist() for name, hits in right.items()} | {"retain": retained.tolist()},
            confusion_before=self._shares(self.named[subject.id][members]),
            confusion_after=self._shares(everybody[best, members]),
            verdict=scores.verdict({name: score.value for name, score in found.items()}, readout, yardstick or 0.0),
        )

    def _named(self, subject: Subject, name: str) -> list[tuple[int, Edit]]:
        return [(number, edit) for number, edit in enumerate(self.edits[subject.id]) if edit.name == name]

    def _of(self, subject: Subject, number: int) -> np.ndarray:
        """[A, n]"""
        return self.named[f"{subject.id} {number}"]

    def _probe(self, key: str, target: int) -> dict[int, float | None]:
        layers = self.pack.manifest.layers
        return {
            layer: scores.probe(torch.from_numpy(self.cls[key][number]), self.data.labels, target)
            for number, layer in enumerate(layers)
        }

    def _shares(self, named: np.ndarray) -> list[float]:
        return (np.bincount(named, minlength=len(self.pack.manifest.classes)) / len(named)).tolist()


def _edits(pack: Pack, subject: Subject, settings: Settings) -> list[Edit]:
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

"""One visitor's work in the Restore tab: the pack, the model, the image, and what is cached for them.

A Visitor lives in the browser session's gr.State, never in a global; the packs behind it are shared and
only read.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor, nn

from ...data import images
from ...packs.errors import PackError
from ...restore import features
from ...restore import sweep as sweeps
from ...restore.manifest import UnlearnedEntry
from ...restore.pack import shared_pack
from ...restore.session import Session, returns_at
from ...restore.sweep import Sweep
from .own_models import Doubt, OwnModels, doubt_of_listed
from .thumbs import data_uri

log = logging.getLogger(__name__)

SWEEPS_KEPT = 4
"""Edits whose sweeps a visitor's image keeps, oldest dropped first: half a megabyte each."""
ALPHAS = [i / 2 for i in range(21)]
"""The alphas of the curves: 0 to 10."""
ORIGINAL = "original"
"""Id of the entry that stands in where a pack has no unlearned models."""
PICTURE_SIDE = 384


@dataclass(frozen=True)
class Controls:
    """What the controls say, apart from pack, model and image."""

    layer: int
    mode: str
    alpha: float
    tokens: str = "all"
    features: str = "experts"
    expert_class: str = ""
    """Name of the class whose experts are edited; empty for the forgotten one."""
    seed: int = 0


class Probabilities(NamedTuple):
    """[classes] each."""

    original: Tensor
    unlearned: Tensor
    restored: Tensor


class Curve(NamedTuple):
    """The forgotten class over ALPHAS under one edit."""

    key: str
    """experts, random, matched, cls_copy, patches, retrained or own."""
    probability: list[float]
    returns_at: float | None
    """The smallest alpha at which the class is the prediction."""


class Visitor:
    """Created for the pack that is shown first, with `model` or the first that loads.

    Every method may raise PackError, ImageError or ValueError; one that raises leaves the visitor's work as it was.
    """

    entry: UnlearnedEntry
    """The model that is shown."""
    _session: Session

    def __init__(self, pack_name: str, model: str | None = None):
        self.lock = threading.RLock()
        self.pack_name = pack_name
        self.pack = shared_pack(pack_name)
        self.controls: Controls | None = None
        """As last shown."""
        self.version = 0
        """Counts what the visitor asked for; the slow part of an answer is dropped once it is overtaken."""
        self.label: int | None = None
        self.example: int | None = None
        self.picture: Image.Image | None = None
        """None until there is an image: a pack without examples waits for the visitor's own."""
        self.picture_uri = ""
        self.patch: int | None = None
        self.own_ids: list[int] = []
        """The visitor's own list of latents."""
        self._own_models = OwnModels(self.pack)
        self._listed_doubt: Doubt | None = None
        self._latent: tuple[int, int] | None = None
        self._yardstick: Session | None = None
        self._curves: dict[tuple, dict[str, Curve]] = {}
        self._sweeps: dict[sweeps.Edit, Sweep] = {}
        self._seen = 0
        """Counts images and models: what was drawn for others is not this one's."""
        self.sent: tuple | None = None
        """Which sweep the page has: what it is of, its stride, its classes."""
        self._choose_first_model() if model is None else self.choose_model(model)

    # ------------------------------------------------------------ what is looked at

    @property
    def target(self) -> int:
        """The forgotten class."""
        return self.entry.target_class

    @property
    def target_name(self) -> str:
        return self.pack.manifest.classes[self.target]

    def latent(self, layer: int) -> int | None:
        """The latent whose heat is shown; None for the sum over the class's experts. Another layer has others."""
        return self._latent[1] if self._latent is not None and self._latent[0] == layer else None

    def choose_patch(self, patch: int) -> None:
        """Looks into a patch; one that the picture does not have was a click on the pack before."""
        if 0 <= patch < self.pack.shape.grid**2:
            self.patch = patch

    def show_latent(self, layer: int, latent: int | None) -> None:
        """Shows one latent's heat, or with None the experts' again."""
        known = self.pack.sae(layer).latents
        if latent is not None and not 0 <= latent < known:
            raise ValueError(f"latent {latent} does not exist: this SAE has latents 0 to {known - 1}")
        self._latent = None if latent is None else (layer, latent)

    def edit_own_list(self, layer: int, text: str) -> None:
        """Takes the visitor's own list of latents; an empty one edits nothing."""
        self.own_ids = features.parse(text, self.pack.sae(layer).latents) if text.strip() else []

    @property
    def entries(self) -> list[UnlearnedEntry]:
        """The unlearned models that this visitor may choose: the pack's, and their own."""
        found = [*self.pack.manifest.unlearned, *self._own_models.entries]
        return found or [UnlearnedEntry(ORIGINAL, ORIGINAL, 0, self.pack.manifest.files["original"])]

    def entry_called(self, id: str) -> UnlearnedEntry:
        """Raises PackError for a model that this visitor does not have."""
        for entry in self.entries:
            if entry.id == id:
                return entry
        raise PackError(f"unknown unlearned model {id!r}")

    def model_of(self, entry: UnlearnedEntry) -> Callable[[], nn.Module]:
        """What gives the entry's model."""
        if entry.id == ORIGINAL:
            return self.pack.original
        return self._own_models.model_of(entry.id) or partial(self.pack.unlearned, entry.id)

    def add_model(self, path: Path, title: str, target_class: int | None) -> str:
        """As `OwnModels.add`. Raises PackError."""
        return self._own_models.add(path, title, target_class)

    def take_order(self) -> str:
        """As `OwnModels.take_order`, of the model that is shown. Raises PackError."""
        return self._own_models.take_order(self.entry.id)

    @property
    def doubt(self) -> Doubt | None:
        """Why there is no verdict on the model that is shown; None where there is one."""
        return self._own_models.doubt(self.entry.id) or self._listed_doubt

    def _choose_first_model(self) -> None:
        """The first model that loads: one damaged file does not close the pack."""
        problems = []
        for entry in self.entries:
            try:
                return self.choose_model(entry.id)
            except PackError as error:
                problems.append(error)
        raise problems[0]

    def choose_model(self, id: str) -> None:
        """Takes another unlearned model; an example of the class it forgot, unless the visitor's own image is up."""
        entry = self.entry_called(id)
        model_of = self.model_of(entry)
        model_of()  # raises here for a damaged file, before anything is changed
        switch = self.picture is None or (self.example is not None and entry.target_class != self.target)
        example = self._first_example(entry.target_class) if switch else None
        yardstick = self._find_yardstick(entry)
        if not hasattr(self, "_session"):
            self._session = self.pack.session(model_of)
        else:
            self._session.set_unlearned(model_of)
        self.entry, self._yardstick = entry, yardstick
        self._listed_doubt = doubt_of_listed(self.pack, entry) if entry in self.pack.manifest.unlearned else None
        self._start_afresh()
        if example is not None:
            self.choose_example(example)
        elif yardstick is not None and self.picture is not None:
            yardstick.set_image(self._input)

    def _first_example(self, target: int) -> int | None:
        """An example of the class, or any; None without examples."""
        found = self.pack.examples()
        return next((i for i, example in enumerate(found) if example.label == target), 0 if found else None)

    def choose_example(self, index: int) -> None:
        """Takes one of the pack's examples."""
        examples = self.pack.examples()
        if not 0 <= index < len(examples):
            raise ValueError(f"there is no example {index}")
        self._take(images.read(examples[index].path))
        self.example, self.label = index, examples[index].label

    def own_image(self, path: str) -> None:
        """Takes the visitor's own image."""
        self._take(images.read(path))
        self.example = self.label = None

    def _take(self, image: Image.Image) -> None:
        found = self.pack.preprocess(image)[None]
        self._session.set_image(found)
        self._input = found
        if self._yardstick is not None:
            self._yardstick.set_image(self._input)
        self.picture = images.square(image, PICTURE_SIDE)
        self.picture_uri = data_uri(self.picture, quality=85)
        self.patch = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Nothing that was computed holds any more."""
        self._curves.clear()
        self._sweeps.clear()
        self._seen += 1

    def _find_yardstick(self, shown: UnlearnedEntry) -> Session | None:
        """A session with the model retrained without the same class, where the pack has one and it is not shown."""
        for entry in self.pack.manifest.unlearned:
            if entry.method == "retrain" and entry.target_class == shown.target_class and entry.id != shown.id:
                try:
                    self.pack.unlearned(entry.id)
                    return self.pack.session(entry.id)
                except PackError as error:  # its curve is missing then, nothing else
                    log.info("pack %s: %s", self.pack.manifest.name, error)
        return None

    # ------------------------------------------------------------ what is computed

    def experts(self, controls: Controls) -> list[int]:
        """The expert features of the chosen class at the chosen layer."""
        name = controls.expert_class or self.target_name
        return self.pack.expert_ids(controls.layer, self.pack.manifest.class_index(name))

    def chosen(self, controls: Controls) -> list[int]:
        """The latents that the edit touches."""
        if controls.features == "own":
            return self.own_ids
        if controls.features == "matched" and not self.pack.examples():
            raise ValueError("equally active features are chosen by example images, and this pack has none here")
        activity = self.pack.activity(controls.layer)
        return features.choose(controls.features, self.experts(controls), activity, controls.seed)

    def probabilities(self, controls: Controls) -> Probabilities:
        """Of the three models on the image. Raises ValueError where the edit's output is no finite number."""
        logits = self._session.restore([controls.alpha], *self._edit(controls))
        if not logits.isfinite().all():
            raise ValueError("alpha is too large for this edit: the restored model's output overflows")
        models = self._session.logits("original")[0], self._session.logits("unlearned")[0], logits[0, 0]
        return Probabilities(*(one.softmax(-1).cpu() for one in models))

    def still_latents(self, controls: Controls) -> dict[str, Tensor]:
        """[1 + N, F] for "original" and "unlearned", which alpha does not move."""
        return {which: self._session.latents(which, controls.layer)[0].cpu() for which in ("original", "unlearned")}

    def latents(self, controls: Controls) -> dict[str, Tensor]:
        """[1 + N, F] for "original", "unlearned" and "restored"."""
        restored = self._session.restored_latents(controls.alpha, *self._edit(controls))
        return self.still_latents(controls) | {"restored": restored[0].cpu()}

    def heat(self, controls: Controls, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """[N] patch heat of each model: the shown latent, or the sum over the class's experts."""
        ids = self.heat_ids(controls)
        return {which: values[1:, ids].sum(1) for which, values in latents.items()}

    def heat_ids(self, controls: Controls) -> list[int]:
        """The latents whose sum is the heat: the one that is shown, or the class's experts."""
        latent = self.latent(controls.layer)
        return self.experts(controls) if latent is None else [latent]

    def drawn(self, controls: Controls) -> str:
        """Tells what is drawn over alpha from anything else: same text, same image, model, edit and heat."""
        what = repr((self._seen, self._edit(controls), self.heat_ids(controls)))
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def sweep(self, controls: Controls) -> Sweep:
        """Of the edit that the controls ask for, as far as it is filled."""
        edit = self._edit(controls)
        while edit not in self._sweeps and len(self._sweeps) >= SWEEPS_KEPT:
            self._sweeps.pop(next(iter(self._sweeps)))
        new = Sweep(len(self.pack.manifest.classes), self.pack.shape.grid**2)
        return self._sweeps.setdefault(edit, new)

    def fill(self, controls: Controls, version: int, stride: int) -> bool:
        """Fills the sweep at every stride-th position; False if the visitor asked for something else meanwhile."""
        with self.lock:
            if self.version != version:
                return False
            found, edit, ids = self.sweep(controls), self._edit(controls), self.heat_ids(controls)
            left = found.left(ids, stride)
        for positions in left:
            with self.lock:
                if self.version != version:
                    return False
                found.fill(self._session, edit, ids, positions)
        return True

    def over_alpha(self, controls: Controls, ids: list[int]) -> Tensor:
        """[201, latents]: these latents in the chosen patch of the restored model, at every position of the slider."""
        if self.patch is None:
            raise ValueError("no patch is chosen")
        return self._session.restored_at(sweeps.ALPHAS, *self._edit(controls), self.patch)[:, 0, ids].cpu()

    def _edit(self, controls: Controls) -> sweeps.Edit:
        return controls.layer, controls.mode, tuple(self.chosen(controls)), controls.tokens

    def curves(self, controls: Controls) -> list[Curve] | None:
        """The forgotten class over alpha: experts first, then every control; None until `measure` is through."""
        found = self._curves.get(self._curves_key(controls), {})
        return list(found.values()) if len(found) == len(self._edits(controls)) else None

    def measure(self, controls: Controls, version: int) -> list[Curve] | None:
        """Computes what `curves` gives, one curve at a time; None if the visitor asked for something else meanwhile."""
        with self.lock:  # a change of model counts the version up first: not while it still has the old one's experts
            if self.version != version:
                return None
            edits = self._edits(controls)
        for key, edit in edits.items():
            with self.lock:
                if self.version != version:
                    return None
                found = self._curves.setdefault(self._curves_key(controls), {})
                if key not in found:
                    session = self._yardstick if key == "retrained" and self._yardstick else self._session
                    found[key] = self._curve(key, session, controls.layer, *edit)
        return self.curves(controls)

    def _curves_key(self, controls: Controls) -> tuple:
        chosen = tuple(self.experts(controls)), tuple(self.chosen(controls))
        return controls.layer, controls.mode, controls.tokens, controls.seed, *chosen

    def _edits(self, controls: Controls) -> dict[str, tuple]:
        """{curve: (mode, latents, tokens)}."""
        experts, mode, tokens = self.experts(controls), controls.mode, controls.tokens
        activity, seed = self.pack.activity(controls.layer), controls.seed
        edits = {
            "experts": (mode, experts, tokens),
            "random": (mode, features.choose("random", experts, activity, seed), tokens),
            "matched": (mode, features.choose("matched", experts, activity, seed), tokens),
            "cls_copy": ("cls_copy", [], "all"),
            "patches": (mode, experts, "patches"),
        }
        if not self.pack.examples():  # how often a latent fires is not known
            del edits["matched"]
        if controls.features not in ("experts", "random", "matched"):
            edits["own"] = (mode, self.chosen(controls), tokens)
        if self._yardstick is not None:
            edits["retrained"] = (mode, experts, tokens)
        return edits

    def _curve(self, key: str, session: Session, layer: int, mode: str, chosen: list[int], tokens: str) -> Curve:
        found = self._probabilities(session, layer, mode, chosen, tokens)
        returns = returns_at(ALPHAS, found, self.target)
        if returns:  # look closer, in the slider's own steps
            fine = [returns - ALPHAS[1] + sweeps.STEP * i for i in range(1, round(ALPHAS[1] / sweeps.STEP) + 1)]
            closer = returns_at(fine, session.restore(fine, layer, mode, chosen, tokens)[:, 0], self.target)
            returns = returns if closer is None else round(closer, 2)
        return Curve(key, found[:, self.target].tolist(), returns)

    def _probabilities(self, session: Session, layer: int, mode: str, chosen: list[int], tokens: str) -> Tensor:
        """[A, classes] over ALPHAS; out of the sweep where that has them already."""
        swept = self._sweeps.get((layer, mode, tuple(chosen), tokens)) if session is self._session else None
        known = None if swept is None else swept.probabilities[:: sweeps.STRIDES[0]]
        if known is not None and known.isfinite().all():
            return known
        return session.restore(ALPHAS, layer, mode, chosen, tokens)[:, 0].softmax(-1)

    def strongest_examples(self, layer: int, latent: int, count: int = 6) -> list[tuple[int, float]]:
        """The example images where a latent fires most: (index, its largest value on any patch), firing ones only."""
        peaks = self.pack.example_peaks(layer)[:, latent]
        best = peaks.topk(min(count, len(peaks)))
        return [(i, v) for i, v in zip(best.indices.tolist(), best.values.tolist()) if v > 0]

"""One visitor's work in the Restore tab: the pack, the model, the image, and what is cached for them.

A Visitor lives in the browser session's gr.State, never in a global; the packs behind it are shared and
only read.
"""

from __future__ import annotations

import base64
import logging
import threading
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from .. import features, images
from ..packs.errors import PackError
from ..packs.find import open_pack
from ..packs.manifest import UnlearnedEntry
from ..packs.pack import Pack
from ..restore import Session, returns_at

log = logging.getLogger(__name__)

ALPHAS = [i / 4 for i in range(41)]
"""The alphas of the curves: 0 to 10."""
SLIDER_STEP = 0.05
PICTURE_SIDE = 384
THUMB_SIDE = 72
_opening = threading.Lock()


@cache
def _opened(name: str) -> Pack:
    return open_pack(name)


def shared_pack(name: str) -> Pack:
    """The pack of this name, opened once for all visitors. Raises PackError."""
    with _opening:
        return _opened(name)


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
    """Created for the pack that is shown first; every method may raise PackError, ImageError or ValueError.

    A method that raises leaves the visitor's work as it was.
    """

    def __init__(self, pack_name: str):
        self.lock = threading.RLock()
        self.pack = shared_pack(pack_name)
        self.controls: Controls | None = None
        """As last shown: a sweep of alpha follows them."""
        self.sweep = 0
        """Counts sweeps and what ends them; a sweep goes on while the number is its own."""
        self.entry: UnlearnedEntry | None = None
        self.label: int | None = None
        self.example: int | None = None
        self.picture: Image.Image | None = None
        self.picture_uri = ""
        self.patch: int | None = None
        self.own_ids: list[int] = []
        """The visitor's own list of latents."""
        self._latent: tuple[int, int] | None = None
        self._session: Session | None = None
        self._yardstick: Session | None = None
        self._curves: dict[tuple, list[Curve]] = {}
        self._choose_first_model()

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

    def show_latent(self, layer: int, latent: int | None) -> None:
        """Shows one latent's heat, or with None the experts' again."""
        known = self.pack.sae(layer).latents
        if latent is not None and not 0 <= latent < known:
            raise ValueError(f"latent {latent} does not exist: this SAE has latents 0 to {known - 1}")
        self._latent = None if latent is None else (layer, latent)

    def edit_own_list(self, layer: int, text: str) -> None:
        """Takes the visitor's own list of latents; an empty one edits nothing."""
        self.own_ids = features.parse(text, self.pack.sae(layer).latents) if text.strip() else []

    def _choose_first_model(self) -> None:
        """The first model that loads: one damaged file does not close the pack."""
        problem = PackError(f"pack {self.pack.manifest.name} has no unlearned models")
        for entry in self.pack.manifest.unlearned:
            try:
                return self.choose_model(entry.id)
            except PackError as error:
                problem = error
        raise problem

    def choose_model(self, id: str) -> None:
        """Takes another unlearned model; an example of the class it forgot, unless the visitor's own image is up."""
        entry, model = self.pack.manifest.entry(id), self.pack.unlearned(id)
        switch = self.picture is None or (self.example is not None and entry.target_class != self.target)
        example = self._first_example(entry.target_class) if switch else None
        yardstick = self._find_yardstick(entry)
        if self._session is None:
            self._session = self.pack.session(id)
        else:
            self._session.set_unlearned(model)
        self.entry, self._yardstick = entry, yardstick
        self._curves.clear()
        if example is not None:
            self.choose_example(example)
        elif yardstick is not None:
            yardstick.set_image(self._input)

    def _first_example(self, target: int) -> int:
        found = next((i for i, example in enumerate(self.pack.examples()) if example.label == target), None)
        if found is None:
            name = self.pack.manifest.name
            raise PackError(f"pack {name} has no example image of {self.pack.manifest.classes[target]}")
        return found

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
        self._input = self.pack.preprocess(image)[None]
        self._session.set_image(self._input)
        if self._yardstick is not None:
            self._yardstick.set_image(self._input)
        self.picture = images.square(image, PICTURE_SIDE)
        self.picture_uri = data_uri(self.picture, quality=85)
        self.patch = None
        self._curves.clear()

    def _find_yardstick(self, shown: UnlearnedEntry) -> Session | None:
        """A session with the model retrained without the same class, where the pack has one and it is not shown."""
        for entry in self.pack.manifest.unlearned:
            if entry.method == "retrain" and entry.target_class == shown.target_class and entry.id != shown.id:
                try:
                    return self.pack.session(entry.id)
                except PackError as error:  # its curve is missing then, nothing else
                    log.warning("pack %s: %s", self.pack.manifest.name, error)
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
        activity = self.pack.activity(controls.layer)
        return features.choose(controls.features, self.experts(controls), activity, controls.seed)

    def probabilities(self, controls: Controls) -> Probabilities:
        """Of the three models on the image."""
        edit = controls.layer, controls.mode, self.chosen(controls), controls.tokens
        logits = self._session.restore([controls.alpha], *edit)
        models = self._session.logits("original")[0], self._session.logits("unlearned")[0], logits[0, 0]
        return Probabilities(*(one.softmax(-1).cpu() for one in models))

    def latents(self, controls: Controls) -> dict[str, Tensor]:
        """[1 + N, F] for "original", "unlearned" and "restored"."""
        layer, session = controls.layer, self._session
        return {
            "original": session.latents("original", layer)[0].cpu(),
            "unlearned": session.latents("unlearned", layer)[0].cpu(),
            "restored": session.restored_latents(
                controls.alpha, layer, controls.mode, self.chosen(controls), controls.tokens
            )[0].cpu(),
        }

    def heat(self, controls: Controls, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """[N] patch heat of each model: the shown latent, or the sum over the class's experts."""
        latent = self.latent(controls.layer)
        ids = self.experts(controls) if latent is None else [latent]
        return {which: values[1:, ids].sum(1) for which, values in latents.items()}

    def curves(self, controls: Controls) -> list[Curve]:
        """The forgotten class over alpha: experts first, then every control, in the chosen mode and layer."""
        experts = self.experts(controls)
        mode, tokens = controls.mode, controls.tokens
        key = (controls.layer, mode, tokens, tuple(experts), controls.seed, tuple(self.chosen(controls)))
        if key not in self._curves:
            activity = self.pack.activity(controls.layer)
            edits = {
                "experts": (mode, experts, tokens),
                "random": (mode, features.choose("random", experts, activity, controls.seed), tokens),
                "matched": (mode, features.choose("matched", experts, activity, controls.seed), tokens),
                "cls_copy": ("cls_copy", [], "all"),
                "patches": (mode, experts, "patches"),
            }
            if controls.features not in ("experts", "random", "matched"):
                edits["own"] = (mode, self.chosen(controls), tokens)
            found = [self._curve(name, self._session, controls.layer, *edit) for name, edit in edits.items()]
            if self._yardstick is not None:
                found.append(self._curve("retrained", self._yardstick, controls.layer, mode, experts, tokens))
            self._curves[key] = found
        return self._curves[key]

    def _curve(self, key: str, session: Session, layer: int, mode: str, chosen: list[int], tokens: str) -> Curve:
        logits = session.restore(ALPHAS, layer, mode, chosen, tokens)[:, 0]
        returns = returns_at(ALPHAS, logits, self.target)
        if returns:  # look closer, in the slider's own steps
            fine = [returns - ALPHAS[1] + SLIDER_STEP * i for i in range(1, round(ALPHAS[1] / SLIDER_STEP) + 1)]
            closer = returns_at(fine, session.restore(fine, layer, mode, chosen, tokens)[:, 0], self.target)
            returns = returns if closer is None else round(closer, 2)
        return Curve(key, logits.softmax(-1)[:, self.target].tolist(), returns)

    def strongest_examples(self, layer: int, latent: int, count: int = 6) -> list[tuple[int, float]]:
        """The example images where a latent fires most: (index, its largest value on any patch), firing ones only."""
        peaks = self.pack.example_latents(layer)[:, 1:, latent].amax(1).cpu()
        best = peaks.topk(min(count, len(peaks)))
        return [(i, v) for i, v in zip(best.indices.tolist(), best.values.tolist()) if v > 0]


@cache
def example_uris(pack: Pack) -> list[str]:
    """Data URIs of a pack's examples, small; the same for every visitor."""
    return [data_uri(thumb, quality=75) for thumb in pack.example_thumbs(THUMB_SIDE)]


def data_uri(image: Image.Image, quality: int) -> str:
    """The image as a JPEG in a data: address."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def warm(pack_name: str) -> None:
    """Loads into the shared pack what the first visitor would otherwise wait for."""
    visitor = Visitor(pack_name)
    layers = visitor.pack.manifest.layers
    visitor.curves(Controls(layers[len(layers) // 2], "inject", 1.0))
    example_uris(visitor.pack)

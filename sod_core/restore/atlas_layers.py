"""What an atlas holds: every latent of every layer in every model, the images it was made of, and sums of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..packs.errors import PackError
from ..packs.source import Source
from .atlas import ORIGINAL, Surveyed
from .pack import Pack
from .testset import TestSet


class Model(NamedTuple):
    """A column of an atlas."""

    id: str
    """ORIGINAL, or an unlearned model's."""
    target: int | None
    """The class that it forgot; None of the original."""
    sum: str
    """SHA-256 of its checkpoint; "" where it has several files, or none."""


@dataclass(frozen=True)
class Layer:
    """Every latent of a layer, in M models, the original first."""

    class_fires: Tensor
    """[M, C, F] int64: images of a class on which it fires on a patch."""
    class_strength: Tensor
    """[M, C, F]: its largest value on any patch, mean over the class's images, 0 where it does not fire."""
    style_fires: Tensor
    """[M, S, F], as by class."""
    style_strength: Tensor
    """[M, S, F], as by class."""
    patches: Tensor
    """[F]: share of patches on which it fires, in the original, like all that follows."""
    cls: Tensor
    """[F]: share of images on whose CLS token it fires."""
    on_object: Tensor
    """[F]: share of its values that lies on the objects; NaN where that is not known."""
    strongest: Tensor
    """[F, 16] int64: the images where its largest value is largest; -1 for none."""
    peaks: Tensor
    """[F, 16]: its largest value on each of them."""
    heat: Tensor
    """[F, H, N]: its values on the patches of the first H of them; all 16, but where that would not fit a file."""
    together: Tensor
    """[F, 8] int64: the latents that share its patches most; -1 for none."""
    overlap: Tensor
    """[F, 8]: patches on which both fire over patches on which either does."""

    @property
    def latents(self) -> int:
        """F."""
        return self.patches.shape[0]


@dataclass(frozen=True)
class Atlas:
    """All that is stored of a pack."""

    pack: str
    data: str
    """What the images are called."""
    classes: tuple[str, ...]
    styles: tuple[str, ...]
    """Empty where the images have none."""
    labels: Tensor
    """[n] int64: each image's class."""
    image_styles: Tensor
    """[n] int64, or [0]."""
    models: tuple[Model, ...]
    layers: dict[int, Layer]
    sums: dict[int, tuple[str, str]]
    """Of each layer's SAE and statistics."""

    @property
    def class_sizes(self) -> Tensor:
        """[C]: images of each class."""
        return self.labels.bincount(minlength=len(self.classes))

    @property
    def style_sizes(self) -> Tensor:
        """[S]: images in each style."""
        return self.image_styles.bincount(minlength=len(self.styles))

    def model(self, id: str) -> int:
        """The place of a model; ValueError where the atlas does not have it."""
        known = [model.id for model in self.models]
        if id not in known:
            raise ValueError(f"the atlas of pack {self.pack} has no model {id!r}; known: {', '.join(known)}")
        return known.index(id)

    def layer(self, number: int) -> Layer:
        """Raises ValueError for a layer that the atlas does not have."""
        if number not in self.layers:
            raise ValueError(
                f"the atlas of pack {self.pack} has no layer {number}; known: {', '.join(map(str, self.layers))}"
            )
        return self.layers[number]


# ---------------------------------------------------------------- what was found -> an atlas


def assembled(
    pack: Pack, data: TestSet, targets: Mapping[str, int], found: Mapping[int, Surveyed], sums: Mapping[str, str]
) -> Atlas:
    """What a survey found, with the original among its models. `targets` and `sums`: of each unlearned model, by id."""
    models = (
        Model(ORIGINAL, None, file_sum(pack.file(pack.manifest.files["original"]))),
        *(Model(id, target, sums.get(id, "")) for id, target in targets.items()),
    )
    names = [model.id for model in models]
    classes = data.labels.bincount(minlength=len(pack.manifest.classes))
    styles = data.styles.bincount(minlength=len(data.style_names))
    return Atlas(
        pack.manifest.name,
        data.name,
        pack.manifest.classes,
        tuple(data.style_names),
        data.labels,
        data.styles,
        models,
        {layer: _layer(one, names, classes, styles) for layer, one in found.items()},
        {layer: layer_sums(pack, layer) for layer in found},
    )


def _layer(found: Surveyed, names: Sequence[str], classes: Tensor, styles: Tensor) -> Layer:
    portrait = found.portrait
    if portrait is None:
        raise ValueError("an atlas needs the original's latents")
    together, overlap = portrait.together()
    by_class, by_style = ([part[name] for name in names] for part in (found.by_class, found.by_style))
    return Layer(
        torch.stack([firing.fires for firing in by_class]),
        torch.stack([rounded(firing.strength(classes)) for firing in by_class]),
        torch.stack([firing.fires for firing in by_style]),
        torch.stack([rounded(firing.strength(styles)) for firing in by_style]),
        portrait.patches,
        portrait.cls / max(1, portrait.images),
        portrait.on_object,
        portrait.strongest,
        portrait.peaks,
        portrait.heat,
        together,
        overlap,
    )


def rounded(strength: Tensor) -> Tensor:
    """As a file holds it, half precision if that fits: figures computed now and read again later are the same."""
    half = strength.half().float()
    return half if half.isfinite().all() else strength


def extended(atlas: Atlas, model: Model, found: Mapping[int, Surveyed]) -> Atlas:
    """The atlas with one more model, of which a survey found this on the same images."""

    def with_one_more(number: int, layer: Layer) -> Layer:
        by_class, by_style = found[number].by_class[model.id], found[number].by_style[model.id]
        return replace(
            layer,
            class_fires=torch.cat([layer.class_fires, by_class.fires[None]]),
            class_strength=torch.cat([layer.class_strength, rounded(by_class.strength(atlas.class_sizes))[None]]),
            style_fires=torch.cat([layer.style_fires, by_style.fires[None]]),
            style_strength=torch.cat([layer.style_strength, rounded(by_style.strength(atlas.style_sizes))[None]]),
        )

    layers = {number: with_one_more(number, layer) for number, layer in atlas.layers.items()}
    return replace(atlas, models=(*atlas.models, model), layers=layers)


def file_sum(path: Path) -> str:
    """SHA-256 of a file; "" for anything else, such as a checkpoint in several files."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def layer_sums(pack: Pack, layer: int) -> tuple[str, str]:
    """Of the files of a layer's SAE and statistics. Raises PackError."""
    sae, stats = (file_sum(pack.layer_file(kind, layer)) for kind in ("sae", "stats"))
    return sae, stats


_sums: dict[tuple[str, int, int], str] = {}


def _known_sum(path: Path) -> str:
    """As `file_sum`, computed once for a file as it is written."""
    about = path.stat()
    key = str(path), about.st_mtime_ns, about.st_size
    if key not in _sums:
        _sums[key] = file_sum(path)
    return _sums[key]


def stale(atlas: Atlas, pack: Pack, layer: int, id: str = ORIGINAL) -> str:
    """A sentence where a file that a model's figures at a layer depend on is another one by now; "" where none is.

    Of files that are not on this computer nothing is said.
    """
    sae, stats = atlas.sums[layer]
    wanted: dict[str, tuple[str, Source | None, str]] = {
        f"the SAE of layer {layer}": (pack.manifest.layer_file("sae", layer), None, sae),
        f"the statistics of layer {layer}": (pack.manifest.layer_file("stats", layer), None, stats),
        "the original": (pack.manifest.files["original"], None, atlas.models[0].sum),
    }
    for entry in pack.manifest.unlearned:
        if entry.id == id and id in [model.id for model in atlas.models]:
            wanted[f"the model {id}"] = entry.file, entry.source, atlas.models[atlas.model(id)].sum
    for what, (name, source, sum) in wanted.items():
        try:
            path = pack.file(name, source)
        except PackError:
            continue
        if path.is_file() and _known_sum(path) != sum:
            return f"the atlas was made with another file of {what}"
    return ""

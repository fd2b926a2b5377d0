"""A pack in use: its models, SAEs, expert lists and examples, each loaded once and shared by all visitors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from .. import images, torchvision_guard, vit
from ..features import Expert
from ..restore import Session
from ..sae import TopKSAE, variance_unexplained
from . import convert, manifest, safe
from .errors import PackError

T = TypeVar("T")


class Example(NamedTuple):
    path: Path
    label: int
    """Index of its class."""


class SAEFit(NamedTuple):
    """Fraction of variance unexplained on the pack's examples, with and without normalised input."""

    normalised: float
    raw: float
    saw_cls: bool
    """Whether the SAE's statistics know CLS: if not, it was trained on patches only, and is judged on them only."""


class Pack:
    """Everything of one pack. Loading is lazy, happens once, and is safe from several threads."""

    def __init__(self, folder: Path, device: torch.device | None = None):
        """Reads pack.json only. Raises PackError."""
        self.manifest = manifest.read(Path(folder))
        self.device = device or vit.choose_device()
        self._cache: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    # ------------------------------------------------------------ models

    def original(self) -> nn.Module:
        """The original ViT, in evaluation mode. Raises PackError."""
        return self._once("original", lambda: self.load_vit(self.manifest.path(self.manifest.files["original"])))

    def unlearned(self, id: str) -> nn.Module:
        """An unlearned ViT of the pack. Raises PackError."""
        entry = self.manifest.entry(id)
        return self._once(("unlearned", id), lambda: self.load_vit(self.manifest.path(entry.file)))

    def load_vit(self, path: Path) -> nn.Module:
        """Any checkpoint of this pack's ViT, not kept. Raises PackError naming the file and what does not fit."""
        model = vit.new(self.manifest.vit)
        convert.load_vit(model, safe.read_torch(path), path.name)
        return model.requires_grad_(False).eval().to(self.device)

    def session(self, unlearned: str | nn.Module, precision: torch.dtype | None = None) -> Session:
        """A restore session with an unlearned model of the pack, or one loaded by `load_vit`."""
        model = self.unlearned(unlearned) if isinstance(unlearned, str) else unlearned
        return Session(self.original(), model, self.sae, self.manifest.layers, precision)

    # ------------------------------------------------------------ sparse codes

    def sae(self, layer: int) -> TopKSAE:
        """The layer's SAE, its input normalised if that explains the examples better. Raises PackError."""
        return self._once(("sae", layer), lambda: self._load_sae(layer))[0]

    def sae_fit(self, layer: int) -> SAEFit:
        """How well the layer's SAE explains the examples, both ways. Raises PackError."""
        return self._once(("sae", layer), lambda: self._load_sae(layer))[1]

    def _load_sae(self, layer: int) -> tuple[TopKSAE, SAEFit]:
        self._check_layer(layer)
        dim = self.manifest.vit.dim
        path, stats_path = self.manifest.layer_path("sae", layer), self.manifest.layer_path("stats", layer)
        sae = convert.load_sae(safe.read_torch(path), self.manifest.k, dim, path.name).to(self.device)
        stats = convert.load_stats(safe.read_npy(stats_path), dim, stats_path.name)
        saw_cls = stats.cls_mean is not None
        hidden = self.example_hidden(layer)
        with torch.inference_mode():
            raw = variance_unexplained(sae, hidden, patches_only=not saw_cls)
            sae.set_stats(stats)
            sae.to(self.device)
            normalised = variance_unexplained(sae, hidden, patches_only=not saw_cls)
        if raw < normalised:
            sae.set_stats(None)
        return sae, SAEFit(normalised, raw, saw_cls)

    def experts(self, layer: int, target_class: int) -> list[Expert]:
        """Expert features of a class, best first. Raises PackError."""
        return self._experts(layer).get(target_class, [])

    def expert_ids(self, layer: int, target_class: int) -> list[int]:
        """The latents of `experts`."""
        return [expert.feature_id for expert in self.experts(layer, target_class)]

    def expert_of(self, layer: int, feature: int) -> list[int]:
        """The classes that a latent is an expert for."""
        return sorted(c for c, found in self._experts(layer).items() if any(e.feature_id == feature for e in found))

    def _experts(self, layer: int) -> dict[int, list[Expert]]:
        def load() -> dict[int, list[Expert]]:
            self._check_layer(layer)
            path = self.manifest.layer_path("experts", layer)
            lists = convert.load_experts(safe.read_torch(path), self.manifest.classes, path.name)
            highest = max((e.feature_id for found in lists.values() for e in found), default=0)
            if highest >= self.sae(layer).latents:
                width = self.sae(layer).latents
                raise PackError(f"{path.name} names latent {highest}, the SAE of layer {layer} has {width}")
            return lists

        return self._once(("experts", layer), load)

    # ------------------------------------------------------------ images

    def preprocess(self, image: Image.Image) -> Tensor:
        """RGB image -> [3, size, size], resized, centre-cropped and normalised as the manifest says."""
        return self._once("transform", self._make_transform)(image)

    def _make_transform(self) -> Callable[[Image.Image], Tensor]:
        torchvision_guard.install()
        from timm.data import create_transform

        spec = self.manifest.image
        return create_transform(
            input_size=spec.size,
            crop_pct=spec.size / spec.resize,
            mean=spec.mean,
            std=spec.std,
            interpolation=spec.interpolation,
            is_training=False,
        )

    def examples(self) -> list[Example]:
        """The example images: files of examples/<class>/, in the order of the classes."""
        if self.manifest.examples is None:
            return []
        folder = self.manifest.path(self.manifest.examples)
        return [
            Example(path, label)
            for label, name in enumerate(self.manifest.classes)
            for path in sorted((folder / name).glob("*"))
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
        ]

    def example_inputs(self) -> Tensor:
        """[examples, 3, size, size]: the examples, preprocessed. Raises PackError for none, or a damaged one."""
        inputs = []
        for example in self.examples():
            try:
                inputs.append(self.preprocess(images.read(example.path)))
            except images.ImageError as error:
                name = f"{example.path.parent.name}/{example.path.name}"
                raise PackError(f"example image {name} of pack {self.manifest.name}: {error}") from error
        if not inputs:
            raise PackError(f"pack {self.manifest.name} has no example images")
        return torch.stack(inputs)

    def example_hidden(self, layer: int) -> Tensor:
        """[examples, 1 + N, D]: the original model's hidden states on the examples. Raises PackError without any."""

        @torch.inference_mode()
        def run() -> dict[int, Tensor]:
            chunks = self.example_inputs().to(self.device).split(16)
            parts = [vit.heads(self.original(), chunk, list(self.manifest.layers)) for chunk in chunks]
            return {layer: torch.cat([part[layer] for part in parts]) for layer in self.manifest.layers}

        self._check_layer(layer)
        return self._once("example hidden", run)[layer]

    def example_latents(self, layer: int) -> Tensor:
        """[examples, 1 + N, F]: latents of the original model on the examples."""

        @torch.inference_mode()
        def run() -> Tensor:
            return self.sae(layer).encode(self.example_hidden(layer))

        return self._once(("example latents", layer), run)

    def activity(self, layer: int) -> Tensor:
        """[F]: share of the example images on which a latent is active on at least one patch."""

        def count() -> Tensor:
            return (self.example_latents(layer)[:, 1:] > 0).any(dim=1).float().mean(0).cpu()

        return self._once(("activity", layer), count)

    def example_thumbs(self, side: int) -> list[Image.Image]:
        """The examples as small squares, in the order of `examples`."""
        return self._once(("thumbs", side), lambda: [images.square(images.read(e.path), side) for e in self.examples()])

    # ------------------------------------------------------------ help

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = make()
            return self._cache[key]

    def _check_layer(self, layer: int) -> None:
        if layer not in self.manifest.layers:
            known = ", ".join(map(str, self.manifest.layers))
            raise PackError(f"pack {self.manifest.name} has no SAE at layer {layer}; known: {known}")

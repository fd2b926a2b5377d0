"""A pack in use: its models, SAEs, expert lists and examples, each loaded once and shared by all visitors."""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..data import images
from ..machine import devices, environment, torchvision_guard
from ..models import vit, vit_weights
from ..models.vit import ViTShape
from ..packs import checkpoint, figures, find, hub
from ..packs.errors import PackError
from ..packs.hub import HubFile
from ..packs.kept import Kept
from ..packs.source import Source
from ..sparse import forms
from ..sparse.topk import TopKSAE, variance_unexplained
from . import examples, expert_lists, manifest, working
from .examples import Example, NoExamples
from .features import Expert
from .fit import SAEFit
from .session import Session

log = logging.getLogger(__name__)
KIND = "restore"
"""What pack.json says under `kind`, or nothing."""
CHUNK = 8
"""Example images that go through a model at once."""


_notes: dict[tuple[str, str], str] = {}
"""By a pack's folder and a checkpoint's path: what `Pack.note` says."""


@cache
def _unlearned_models() -> Kept:
    """Unlearned models of all packs; least recently used ones go when SOD_MEMORY_GB of weights are passed."""
    try:
        return Kept(environment.memory_gb() * 1e9)
    except ValueError as error:
        raise PackError(str(error)) from error


class Pack:
    """Everything of one pack. Loading is lazy, happens once, and is safe from several threads."""

    def __init__(self, folder: Path, device: torch.device | None = None):
        """Reads pack.json only. Raises PackError."""
        self.manifest = manifest.read(Path(folder))
        self.device = device or devices.choose_device()
        self._kept = Kept()
        self._written: dict[Path, list[tuple[int, int]]] = {}
        """When checkpoints' files were written last, and their sizes, as far as they were seen."""
        self._examples_seen = False

    def __reduce__(self):
        """Another process finds the pack by its folder: see sod_core.machine.gpu."""

        return shared_pack, (str(self.manifest.folder),)

    # ------------------------------------------------------------ files

    def file(self, name: str, source: Source | None = None) -> Path:
        """A file of the pack: in its folder, or else out of the hub's cache. Raises PackError if it is in neither."""
        path = self.manifest.path(name)
        if path.is_file():
            return path
        wanted = self.manifest.hub_file(name, source)
        if wanted is None:
            raise PackError(f"{path.name} is missing in {path.parent}")
        found = hub.cached(wanted)
        if found is None:
            get = self.get_command(name)
            raise PackError(f"{path.name} is not on this computer yet; `{get}` fetches it from {wanted.repo_id}")
        return found

    def get_command(self, file: str | None = None) -> str:
        """The command that fetches the pack, or the model in one of its files."""
        m = self.manifest
        known = find.folders(KIND).get(m.folder.name)
        ids = [entry.id for entry in m.unlearned if entry.file == file]
        named = [
            m.folder.name if known and known.resolve() == m.folder.resolve() else str(m.folder),
            *(["--unlearned", *ids] if ids else []),
        ]
        return f"python -m sod_core packs get {shlex.join(named)}"

    def lacking(self, id: str | None = None) -> list[HubFile]:
        """What has to be fetched from the hub to open the pack, or with `id` that unlearned model."""
        m = self.manifest
        if id is not None:
            entry = m.entry(id)
            return self._not_here([(entry.file, entry.source)])
        per_layer = [m.layer_file(kind, layer) for layer in m.layers for kind in ("sae", "stats", "experts")]
        saes = [m.layer_file("sae", layer) for layer in m.layers if not m.path(m.layer_file("sae", layer)).exists()]
        configs = [config for config in map(forms.config_beside, saes) if config is not None]
        return self._not_here([(name, None) for name in (m.files["original"], *per_layer, *configs)])

    def lacking_examples(self) -> list[HubFile]:
        """What has to be fetched for example images. The pack works without: a visitor's own image serves then."""
        source = self.manifest.examples_source
        if source is None or self._examples_folder().is_dir() or hub.cached(source.file):
            return []
        return [source.file]

    def _not_here(self, files: list[tuple[str, Source | None]]) -> list[HubFile]:
        wanted = []
        for name, source in files:
            hub_file = self.manifest.hub_file(name, source)
            if hub_file and not self.manifest.path(name).exists() and hub.cached(hub_file) is None:
                wanted.append(hub_file)
        return wanted

    # ------------------------------------------------------------ models

    @property
    def shape(self) -> ViTShape:
        """The manifest's, or what the original's checkpoint tells. Raises PackError."""
        return self.manifest.vit or self._kept.get("shape", self._told_shape)

    def _told_shape(self) -> ViTShape:
        path, m = self.file(self.manifest.files["original"]), self.manifest
        found = vit_weights.vit_shape(checkpoint.read(path), path.name)
        if max(m.layers) >= found.depth:
            raise PackError(f"pack.json of {m.name} names layer {max(m.layers)}, {path.name} has {found.depth} blocks")
        return replace(found, image_size=m.image.size, classes=len(m.classes))  # loading says where these do not fit

    def original(self) -> nn.Module:
        """The original ViT, in evaluation mode. Raises PackError."""
        return self._kept.get("original", lambda: self._load(self.file(self.manifest.files["original"])))

    def unlearned(self, id: str) -> nn.Module:
        """An unlearned ViT of the pack, loaded if it is not in memory. Raises PackError."""
        entry = self.manifest.entry(id)
        return self.model_at(self.file(entry.file, entry.source))

    def model_at(self, path: Path) -> nn.Module:
        """The model in any checkpoint of this pack's ViT: a file, a folder, an index, each with `#key` or without.

        Raises PackError naming what does not fit.
        """
        files = [file.stat() for file in checkpoint.files(path)]
        if files:
            self._written[path] = [(file.st_mtime_ns, file.st_size) for file in files]
        written = tuple(self._written.get(path, []))  # written again, it is read again; gone, what is in memory serves
        key = str(self.manifest.folder), str(self.device), str(path), written
        return _unlearned_models().get(key, lambda: self._load(path), _bytes)

    def _load(self, path: Path) -> nn.Module:
        said: list[str] = []
        found = checkpoint.read(path)
        name = checkpoint.split(path)[0].name
        vit = vit_weights.new_vit(self.shape, found, name, self.manifest.names, said.append)
        _notes[str(self.manifest.folder), str(path)] = "; ".join(said)
        if said:
            log.warning("%s", "; ".join(said))
        return vit.to(self.device)

    def note(self, path: Path) -> str:
        """What a user should know of how a checkpoint that is in memory was read; "" for nothing."""
        return _notes.get((str(self.manifest.folder), str(path)), "")

    def session(self, unlearned: str | Callable[[], nn.Module], precision: torch.dtype | None = None) -> Session:
        """A restore session with an unlearned model of the pack, or with whatever a function gives."""
        model = partial(self.unlearned, unlearned) if isinstance(unlearned, str) else unlearned
        return Session(self.original, model, self.sae, self.manifest.layers, precision)

    # ------------------------------------------------------------ sparse codes

    def sae(self, layer: int) -> TopKSAE:
        """The layer's SAE, its input normalised if that explains the examples better. Raises PackError."""
        return self._kept.get(("sae", layer, self._has_examples()), lambda: self._load_sae(layer))[0]

    def _read_sae(self, layer: int) -> TopKSAE:
        return forms.read_sae(self.layer_file("sae", layer), self.manifest.k, self.shape.dim, layer)

    def sae_fit(self, layer: int) -> SAEFit:
        """How well the layer's SAE explains the examples, both ways. Raises PackError."""
        return self._kept.get(("sae", layer, self._has_examples()), lambda: self._load_sae(layer))[1]

    def _load_sae(self, layer: int) -> tuple[TopKSAE, SAEFit]:
        self._check_layer(layer)
        dim = self.shape.dim
        sae = self._read_sae(layer).to(self.device)
        stats = forms.read_stats(self.layer_file("stats", layer), dim)
        saw_cls = stats.cls_mean is not None
        if not self.examples():
            sae.set_stats(stats)
            return sae.to(self.device), SAEFit(None, None, saw_cls)
        hidden = self.example_hidden(layer)
        with torch.inference_mode():
            raw = variance_unexplained(sae, hidden, patches_only=not saw_cls)
            sae.set_stats(stats)
            sae.to(self.device)
            normalised = variance_unexplained(sae, hidden, patches_only=not saw_cls)
        if raw < normalised:
            sae.set_stats(None)
        return sae, SAEFit(normalised, raw, saw_cls)

    def layer_file(self, kind: str, layer: int) -> Path:
        """The file of `kind` (sae, stats, experts) for a layer. Raises PackError if it is not here.

        The manifest may name the folder that an SAE's library made.
        """
        name = self.manifest.layer_file(kind, layer)
        folder = self.manifest.path(name)
        return forms.weights_in(folder) if kind == "sae" and folder.is_dir() else self.file(name)

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
            path = self.layer_file("experts", layer)
            lists = expert_lists.load_experts(figures.read_figures(path), self.manifest.names, path.name)
            highest = max((e.feature_id for found in lists.values() for e in found), default=0)
            width = self._read_sae(layer).latents  # its fit would take the original's passes
            if highest >= width:
                raise PackError(f"{path.name} names latent {highest}, the SAE of layer {layer} has {width}")
            return lists

        return self._kept.get(("experts", layer), load)

    # ------------------------------------------------------------ images

    def preprocess(self, image: Image.Image) -> Tensor:
        """RGB image -> [3, size, size], resized, centre-cropped and normalised as the manifest says."""
        return self._kept.get("transform", self._make_transform)(image)

    def _make_transform(self) -> Callable[[Image.Image], Tensor]:
        torchvision_guard.import_timm()
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
        """The example images, in the order of the classes: files of examples/<class>/, or out of a hub data set.

        Empty where there are none, where the data set is not on this computer, or where it gives none, which the log
        says once: the pack works without. Raises PackError.
        """
        try:
            return self.find_examples()
        except NoExamples as error:
            self._kept.get(("said", str(error)), partial(log.warning, "pack %s: %s", self.manifest.name, error))
            return []

    def find_examples(self) -> list[Example]:
        """As `examples`. Raises PackError also where the data set is here and gives none."""
        return examples.find(self.manifest, self._examples_folder(), self._kept)

    def _has_examples(self) -> bool:
        """Whether there are any; they may come while the pack is in use."""
        self._examples_seen = self._examples_seen or bool(self.examples())
        return self._examples_seen

    def _examples_folder(self) -> Path:
        if self.manifest.examples_source is not None:
            told = repr((self.manifest.examples_source, self.manifest.classes))
            return hub.own_folder() / "examples" / hashlib.sha256(told.encode()).hexdigest()[:16]
        return self.manifest.path(self.manifest.examples or "examples")

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
            raise PackError(f"pack {self.manifest.name} has no example images on this computer")
        return torch.stack(inputs)

    def example_hidden(self, layer: int) -> Tensor:
        """[examples, 1 + N, D]: the original model's hidden states on the examples. Raises PackError without any."""

        @torch.inference_mode()
        def run() -> dict[int, Tensor]:
            chunks = self.example_inputs().to(self.device).split(CHUNK)
            parts = [vit.heads(self.original(), chunk, list(self.manifest.layers)) for chunk in chunks]
            return {layer: torch.cat([part[layer] for part in parts]) for layer in self.manifest.layers}

        self._check_layer(layer)
        return self._kept.get("example hidden", run)[layer]

    @torch.inference_mode()
    def example_predictions(self, model: nn.Module) -> Tensor:
        """[examples]: the class that a model names on each. Raises PackError without any, or for outputs like NaN."""
        chunks = self.example_inputs().to(self.device).split(CHUNK)
        logits = torch.cat([vit.logits(model, chunk) for chunk in chunks]).cpu()
        if not logits.isfinite().all():
            raise PackError(working.not_numbers("this model"))
        return logits.argmax(1)

    def original_on_examples(self) -> Tensor:
        """As `example_predictions`, of the original; kept. Raises PackError without any."""

        @torch.inference_mode()
        def run() -> Tensor:
            last = max(self.manifest.layers)
            chunks = self.example_hidden(last).split(CHUNK)
            return torch.cat([vit.tail(self.original(), chunk, last).argmax(1) for chunk in chunks]).cpu()

        return self._kept.get("original on examples", run)

    def accuracy_on_examples(self, model: nn.Module, target_class: int) -> tuple[float | None, float | None]:
        """(forget, retain): a model's accuracy on the examples of the class, and on the others; None without any.

        Raises PackError for a pack without examples.
        """
        labels = torch.tensor([example.label for example in self.examples()])
        return accuracies(self.example_predictions(model), labels, target_class)

    def example_peaks(self, layer: int) -> Tensor:
        """[examples, F]: each latent's largest value on any patch of each example, in the original model."""

        @torch.inference_mode()
        def run() -> Tensor:
            sae = self.sae(layer)
            chunks = self.example_hidden(layer).split(CHUNK)  # latents of all at once would take gigabytes
            return torch.cat([sae.encode(chunk)[:, 1:].amax(1) for chunk in chunks]).cpu()

        return self._kept.get(("example peaks", layer), run)

    def activity(self, layer: int) -> Tensor:
        """[F]: share of the example images on which a latent is active on at least one patch; 0 without examples."""
        if not self.examples():
            return torch.zeros(self.sae(layer).latents)
        return (self.example_peaks(layer) > 0).float().mean(0)

    def example_thumbs(self, side: int) -> list[Image.Image]:
        """The examples as small squares, in the order of `examples`."""
        return self._kept.get(
            ("thumbs", side, self._has_examples()),
            lambda: [images.square(images.read(e.path), side) for e in self.examples()],
        )

    # ------------------------------------------------------------ help

    def _check_layer(self, layer: int) -> None:
        if layer not in self.manifest.layers:
            known = ", ".join(map(str, self.manifest.layers))
            raise PackError(f"pack {self.manifest.name} has no SAE at layer {layer}; known: {known}")


def _bytes(model: nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())


def accuracies(named: Tensor, labels: Tensor, target: int) -> tuple[float | None, float | None]:
    """(forget, retain), shares, of the classes named [n] against the true ones [n]; None without any image."""
    hits = (named == labels).float()
    kinds = hits[labels == target], hits[labels != target]
    forget, retain = (kind.mean().item() if len(kind) else None for kind in kinds)
    return forget, retain


def open_pack(name: str, device: torch.device | None = None) -> Pack:
    """A pack by its name, or by its folder. Raises PackError."""
    return Pack(find.folder(name, KIND), device)


def shared_pack(name: str) -> Pack:
    """As `open_pack`, opened once for everybody in this process."""
    return find.shared(name, KIND, Pack)


def folders() -> dict[str, Path]:
    """Name -> folder of every pack that Restore opens."""
    return find.folders(KIND)

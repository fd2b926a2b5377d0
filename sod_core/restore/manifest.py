"""What a pack's pack.json says, checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.names import Names
from ..models.vit import ViTShape
from ..packs.errors import PackError
from ..packs.hub import HubFile
from ..packs.source import Source, inside, read_manifest, read_source

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
WORLDS = ("canvas",)


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes the ViT's input: shorter side to `resize`, centre crop of `size`, normalised."""

    size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclass(frozen=True)
class ExamplesSource:
    """A data set on the hub, one Parquet file of it: a handful of its images serve as examples."""

    file: HubFile
    image: str
    """Name of the column with the images."""
    label: str
    """Name of the column with the class numbers, which are the pack's."""
    megabytes: int | None = None


@dataclass(frozen=True)
class PublishedOriginal:
    """The model that the pack's unlearned ones are said to come from, as their publisher's card has it."""

    file: str
    accuracy: float


@dataclass(frozen=True)
class UnlearnedEntry:
    """An unlearned model that the pack offers."""

    id: str
    method: str
    """Its name in sod_core.unlearn ("salun"), or any other word."""
    target_class: int
    file: str
    forget_accuracy: float | None = None
    """Accuracy on fresh images of the forgotten class, 0 to 1; None where nobody measured it."""
    retain_accuracy: float | None = None
    """Accuracy on fresh images of the other classes."""
    seconds: float | None = None
    """How long unlearning took."""
    source: Source | None = None
    """Where the hub has the file; None where it is the pack's own."""
    measured_on: str = "fresh images"
    """What the accuracies were measured on."""
    published_retain_accuracy: float | None = None
    """What its publisher says, on images that only they know; no figure of ours stands beside it."""


@dataclass(frozen=True)
class Manifest:
    folder: Path
    name: str
    title: str
    classes: tuple[str, ...]
    image: ImageSpec
    vit: ViTShape | None
    """None where the original's checkpoint has to tell."""
    layers: tuple[int, ...]
    k: int
    files: dict[str, str]
    """original, sae, stats, experts; with {layer} and {k} to fill in."""
    unlearned: tuple[UnlearnedEntry, ...]
    examples: str | None = None
    """Folder of example images, one folder a class."""
    world: str | None = None
    """The embedded world that draws test images for this pack."""
    test_images: str | None = None
    """A Parquet file of the pack with test images, in the form that data sets have on the hub."""
    source: Source | None = None
    """Where the hub has the files that are not in the folder."""
    examples_source: ExamplesSource | None = None
    pretrained_on: str | None = None
    """What all of the pack's models were pretrained on ("ImageNet"), before any of them saw the pack's classes."""

    published_original: PublishedOriginal | None = None
    folder_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """{class: names that the data set's own folders have for it}, such as WordNet's ids."""

    @property
    def retraining_caution(self) -> str:
        """What a model retrained without a class may know of it all the same; "" where nothing is known."""
        if self.pretrained_on is None:
            return ""
        return (
            f"The pack's models were fine-tuned from {self.pretrained_on}'s weights: one that was retrained without a "
            "class saw such things in pretraining, so as a yardstick it is no model that knows nothing of them."
        )

    @property
    def names(self) -> Names:
        """What folders, tables, checkpoints, expert lists and users may call the classes."""
        return Names(self.classes, self.folder_names, f"pack {self.name}")

    def path(self, file: str) -> Path:
        """A file of the pack. Raises PackError for a name that leads out of the pack's folder."""
        return inside(self.folder, self.name, file)

    def layer_file(self, kind: str, layer: int) -> str:
        """The name of the file of `kind` (sae, stats, experts) for a layer."""
        return self.files[kind].replace("{layer}", str(layer)).replace("{k}", str(self.k))

    def hub_file(self, file: str, source: Source | None = None) -> HubFile | None:
        """Where the hub has a file of the pack; None where it has none of it. `source` stands before the pack's own."""
        self.path(file)  # refuses names that lead elsewhere
        source = source or self.source
        return None if source is None else source.file(file)

    def class_index(self, name: str | int) -> int:
        """A class by its number or its name. Raises PackError."""
        text = str(name).strip()
        if text in self.classes:
            return self.classes.index(text)
        if text.isdecimal() and int(text) < len(self.classes):
            return int(text)
        label = self.names.meant(text)
        if label is not None:
            return label
        raise PackError(f"unknown class {text!r} in pack {self.name}; known: {', '.join(self.classes)}")

    def entry(self, id: str) -> UnlearnedEntry:
        """The unlearned model called `id`. Raises PackError."""
        for entry in self.unlearned:
            if entry.id == id:
                return entry
        known = ", ".join(entry.id for entry in self.unlearned) or "none"
        raise PackError(f"unknown unlearned model {id!r} in pack {self.name}; known: {known}")


def read(folder: Path) -> Manifest:
    """Reads folder/pack.json. Raises PackError with one sentence that says what is wrong in it."""
    return read_manifest(folder, _parse, _faults)


def _parse(folder: Path, data: dict[str, Any]) -> Manifest:
    if data["format"] != 1:
        raise PackError(f"{folder.name}: pack.json has format {data['format']!r}, this version reads format 1")
    image = data["image"]
    if not isinstance(data["classes"], list):
        raise TypeError("classes is no list")
    classes = tuple(str(name) for name in data["classes"])
    size = int(image["size"])
    return Manifest(
        folder=folder,
        name=str(data["name"]),
        title=str(data.get("title", data["name"])),
        classes=classes,
        image=ImageSpec(
            size=size,
            resize=int(image.get("resize", size)),
            mean=_channels(image["mean"]),
            std=_channels(image["std"]),
            interpolation=str(image.get("interpolation", "bilinear")),
        ),
        vit=_vit(data["vit"], size, len(classes)) if data.get("vit") is not None else None,
        layers=tuple(int(layer) for layer in data["layers"]),
        k=int(data["k"]),
        files={kind: str(data["files"][kind]) for kind in ("original", "sae", "stats", "experts")},
        unlearned=tuple(_entry(item) for item in data.get("unlearned", [])),
        examples=data.get("examples"),
        world=data.get("world"),
        test_images=data.get("test_images"),
        source=read_source(data.get("source")),
        examples_source=_examples_source(data.get("examples_source")),
        pretrained_on=None if data.get("pretrained_on") is None else str(data["pretrained_on"]),
        published_original=_published(data.get("published")),
        folder_names=_folder_names(data.get("folder_names", {})),
    )


def _channels(values: list[Any]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise PackError("pack.json: image mean and std must be three numbers each")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _folder_names(item: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    if not all(isinstance(found, list) for found in item.values()):
        raise TypeError("folder_names holds no list of names for each class")
    return {name: tuple(str(other) for other in found) for name, found in item.items()}


def _vit(item: dict[str, Any], size: int, classes: int) -> ViTShape:
    return ViTShape(size, int(item["patch"]), int(item["dim"]), int(item["depth"]), int(item["heads"]), classes)


def _examples_source(item: dict[str, Any] | None) -> ExamplesSource | None:
    if item is None:
        return None
    file = HubFile(str(item["repo_id"]), str(item["file"]), str(item.get("revision", "main")), "dataset")
    size = item.get("megabytes")
    return ExamplesSource(file, str(item["image"]), str(item["label"]), None if size is None else int(size))


def _published(item: dict[str, Any] | None) -> PublishedOriginal | None:
    return None if item is None else PublishedOriginal(str(item["original_file"]), float(item["original_accuracy"]))


def _entry(item: dict[str, Any]) -> UnlearnedEntry:
    return UnlearnedEntry(
        id=str(item["id"]),
        method=str(item["method"]),
        target_class=int(item["target_class"]),
        file=str(item["file"]),
        forget_accuracy=item.get("forget_accuracy"),
        retain_accuracy=item.get("retain_accuracy"),
        seconds=item.get("seconds"),
        source=read_source(item.get("source")),
        published_retain_accuracy=item.get("published", {}).get("retain_accuracy"),
    )


def _faults(m: Manifest) -> Iterator[tuple[bool, str]]:
    """What may be wrong with figures of the right kind: (whether it is, a sentence). Earlier ones guard later ones."""
    vit, image = m.vit, m.image
    ids = [entry.id for entry in m.unlearned]
    yield not 0 < len(set(m.classes)) == len(m.classes), "classes must be different names, at least one"
    yield image.size < 1, "image size must be above 0"
    if vit is not None:
        yield min(vit.patch, vit.dim, vit.depth, vit.heads) < 1, "patch, dim, depth and heads of vit must be above 0"
        yield image.size < vit.patch or image.size % vit.patch > 0, "image size must be a multiple of the vit's patch"
        yield vit.dim % vit.heads > 0, "the vit's dim must be a multiple of its heads"
    yield image.resize < image.size, "image resize must not be below image size"
    yield min(image.std) <= 0, "image std must be above 0"
    yield image.interpolation not in INTERPOLATIONS, f"image interpolation {image.interpolation!r} is unknown"
    yield not m.layers, "layers must name at least one layer"
    yield min(m.layers) < 0, f"layer {min(m.layers)} does not exist, layers are counted from 0"
    if vit is not None:
        for layer in m.layers:
            yield not 0 <= layer < vit.depth, f"layer {layer} does not exist, the vit has 0 to {vit.depth - 1}"
    yield m.k < 1, "k must be above 0"
    yield len(set(ids)) < len(ids), f"two unlearned models have the same id, among {', '.join(ids)}"
    for entry in m.unlearned:
        outside = not 0 <= entry.target_class < len(m.classes)
        yield outside, f"{entry.id!r} names class {entry.target_class}, the pack has 0 to {len(m.classes) - 1}"
        measured = (entry.forget_accuracy, entry.retain_accuracy, entry.seconds, entry.published_retain_accuracy)
        yield not all(isinstance(a, int | float | None) for a in measured), f"a figure of {entry.id!r} is no number"
    strangers = [name for name in m.folder_names if name not in m.classes]
    yield bool(strangers), f"folder_names names {strangers[:1]}, which is no class of the pack"
    others = [*m.classes, *(other for found in m.folder_names.values() for other in found)]
    yield len(set(others)) < len(others), "a name in folder_names is said twice, or is a class's"
    yield not isinstance(m.examples, str | None), "examples must be the name of a folder"
    yield not isinstance(m.test_images, str | None), "test_images must be the name of a file"
    yield m.world not in (None, *WORLDS), f"world {m.world!r} is unknown; known: {', '.join(WORLDS)}"

"""What the pack.json of a mask pack says, checked: classes, encoders with their features, bottlenecks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..packs import hub
from ..packs.errors import PackError
from ..packs.source import inside, read_manifest

KIND = "mask"
"""The manifest's key `kind`; a pack without it is one of Restore."""
WORLD = "canvas"
"""The only one whose test images can be drawn again."""
KEYS = ("all", "others", "retain")
"""The training images that keys were fitted on: all, or those of classes every encoder saw, or this encoder saw."""
PLANNED = {"codebooks", "pairs", "key_width", "key_epochs", "epochs", "seed"}
"""What a bottleneck's plan may say."""


class Published(NamedTuple):
    """An encoder and a data set on the hub; features are computed here, once."""

    repo_id: str
    """A CLIP as transformers' `CLIPModel` is stored."""
    revision: str
    data_repo_id: str
    data_revision: str
    train: str
    test: str
    """Parquet files of the data set."""
    image: str
    label: str
    """Their columns."""


@dataclass(frozen=True)
class EncoderEntry:
    """A frozen encoder, and the file of what it made of the images."""

    id: str
    title: str
    never_saw: tuple[str, ...]
    """Classes that it was trained without."""
    features: str
    encoder: dict[str, Any]
    """Where it comes from: {"pack", "file", "layer", "token", "scale"} or {"clip", "data"}."""
    published: Published | None = None
    """What the latter says."""


@dataclass(frozen=True)
class BottleneckEntry:
    """A bottleneck on one encoder's features."""

    id: str
    title: str
    encoder: str
    keys: str
    """One of KEYS."""
    without: tuple[str, ...]
    """Classes whose images took no part in fitting the keys."""
    values: str
    file: str
    plan: dict[str, Any] = field(default_factory=dict)
    """Sizes of `fit.Plan`, where `mask fit --bottleneck` makes it on this computer; {} where it comes with the pack."""


@dataclass(frozen=True)
class MaskPackManifest:
    folder: Path
    name: str
    title: str
    note: str
    classes: tuple[str, ...]
    styles: tuple[str, ...]
    encoders: tuple[EncoderEntry, ...]
    bottlenecks: tuple[BottleneckEntry, ...]
    examples_seed: int | None
    """The test images are the canvas world's, drawn with this seed, in order; None where they cannot be drawn again."""
    results: str | None
    """The file of what `mask evaluate --all --store` measured; None where there is none."""

    def path(self, file: str) -> Path:
        """A file of the pack. Raises PackError for a name that leads out of the pack's folder."""
        return inside(self.folder, self.name, file)

    def kept(self, file: str) -> Path:
        """Where this computer keeps a file of the pack that is made here. Raises PackError as `path`."""
        return inside(hub.own_folder() / "packs" / self.name, self.name, file)

    def here(self, file: str) -> Path | None:
        """A file of the pack, or what was made of it on this computer; None where there is neither."""
        return next((path for path in (self.path(file), self.kept(file)) if path.is_file()), None)

    def encoder(self, id: str) -> EncoderEntry:
        """The encoder called `id`. Raises PackError."""
        return _named(self.encoders, id, f"encoder {id!r} in pack {self.name}")

    def bottleneck(self, id: str | None) -> BottleneckEntry:
        """The bottleneck called `id`; the first for None. Raises PackError."""
        if id is None and self.bottlenecks:
            return self.bottlenecks[0]
        return _named(self.bottlenecks, id, f"bottleneck {id!r} in pack {self.name}")

    def class_index(self, name: str) -> int:
        """A class by its name, whatever its case, or by its number. Raises PackError."""
        names = [known.lower() for known in self.classes]
        word = name.strip().lower()
        if word in names:
            return names.index(word)
        if word.isdecimal() and int(word) < len(names):
            return int(word)
        raise PackError(f"unknown class {name!r} in pack {self.name}; known: {', '.join(self.classes)}")


def read(folder: Path) -> MaskPackManifest:
    """Reads folder/pack.json. Raises PackError with one sentence that says what is wrong in it."""
    found = read_manifest(folder, _parse, _faults)
    named = [*(entry.features for entry in found.encoders), *(entry.file for entry in found.bottlenecks)]
    for file in named if found.results is None else [*named, found.results]:
        found.path(file)  # refuses names that lead elsewhere
    return found


def _parse(folder: Path, data: dict[str, Any]) -> MaskPackManifest:
    if data["format"] != 1 or data.get("kind") != KIND:
        raise PackError(f"{folder.name}: pack.json is no mask pack of format 1")
    return MaskPackManifest(
        folder=folder,
        name=str(data["name"]),
        title=str(data.get("title", data["name"])),
        note=str(data.get("note", "")),
        classes=tuple(map(str, data["classes"])),
        styles=tuple(map(str, data.get("styles", ()))),
        encoders=tuple(_encoder(item) for item in data["encoders"]),
        bottlenecks=tuple(_bottleneck(item) for item in data.get("bottlenecks", ())),
        examples_seed=_examples(data),
        results=None if data.get("results") is None else str(data["results"]),
    )


def _encoder(item: dict[str, Any]) -> EncoderEntry:
    return EncoderEntry(
        id=str(item["id"]),
        title=str(item.get("title", item["id"])),
        never_saw=tuple(map(str, item.get("never_saw", ()))),
        features=str(item["features"]),
        encoder=dict(item["encoder"]),
        published=_published(item["encoder"]) if "data" in item["encoder"] else None,
    )


def _published(item: dict[str, Any]) -> Published:
    model, data = item["clip"], item["data"]
    return Published(
        repo_id=str(model["repo_id"]),
        revision=str(model["revision"]),
        data_repo_id=str(data["repo_id"]),
        data_revision=str(data["revision"]),
        **{name: str(data[name]) for name in ("train", "test", "image", "label")},
    )


def _bottleneck(item: dict[str, Any]) -> BottleneckEntry:
    return BottleneckEntry(
        id=str(item["id"]),
        title=str(item.get("title", item["id"])),
        encoder=str(item["encoder"]),
        keys=str(item["keys"]),
        without=tuple(map(str, item.get("without", ()))),
        values=str(item["values"]),
        file=str(item["file"]),
        plan={str(name): int(value) for name, value in item.get("plan", {}).items()},
    )


def _examples(data: dict[str, Any]) -> int | None:
    """The seed of {"world": "canvas", "seed": N}. Raises PackError for another world."""
    said = data.get("examples")
    if said is None:
        return None
    if said["world"] != WORLD:
        raise PackError(f"examples are of the world {said['world']!r}: write {WORLD}, or leave them out")
    return int(said["seed"])


def _faults(m: MaskPackManifest) -> Iterator[tuple[bool, str]]:
    yield len(m.classes) < 2 or len(set(m.classes)) < len(m.classes), "classes must be different names, at least two"
    yield len(set(m.styles)) < len(m.styles), "styles must be different names"
    for what, entries in (("encoders", m.encoders), ("bottlenecks", m.bottlenecks)):
        ids = [entry.id for entry in entries]
        yield len(set(ids)) < len(ids), f"{what} must have different ids"
    yield not m.encoders, "encoders must name at least one"
    named = {*(name for e in m.encoders for name in e.never_saw), *(n for b in m.bottlenecks for n in b.without)}
    unknown = sorted(named - set(m.classes))
    yield bool(unknown), f"it says {unknown[:1]} of a class that it does not have"
    known = {entry.id for entry in m.encoders}
    for entry in m.bottlenecks:
        yield (
            entry.encoder not in known,
            f"the bottleneck {entry.id} names the encoder {entry.encoder!r}, which is none",
        )
        beyond = sorted(entry.plan.keys() - PLANNED)
        yield bool(beyond), f"the plan of {entry.id} says {beyond[:1]}; known: {', '.join(sorted(PLANNED))}"
        yield entry.keys not in KEYS, f"the keys of {entry.id} are {entry.keys!r}: write one of {', '.join(KEYS)}"


def _named(entries: tuple, id: str | None, what: str) -> Any:
    for entry in entries:
        if entry.id == id:
            return entry
    raise PackError(f"unknown {what}; known: {', '.join(entry.id for entry in entries) or 'none'}")

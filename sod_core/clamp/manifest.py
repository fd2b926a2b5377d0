"""What the pack.json of a clamp pack says, checked: where the model, its SAEs, the texts and the questions lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..packs.errors import PackError
from ..packs.hub import HubFile
from ..packs.source import Source, inside, read_manifest, read_source

KIND = "clamp"
"""The manifest's key `kind`."""
METHODS = ("prime", "conditional", "refusal", "both")
"""Of presets; the formulas are in edit.py."""
SCORINGS = ("letters", "cloze")
CORPORA = ("forget", "retain", "refusals")
ABOUT = ("", "forget", "retain", "refused")
SPLITS = ("select", "tune", "judge")
"""Of questions: disjoint, so that what latents and coefficients were chosen on is not what they are judged on."""


@dataclass(frozen=True)
class Place:
    """One place in which the model may lie: a folder of the pack, a repository, or a file that a command makes."""

    path: str | None = None
    """In the pack: a transformers folder, or a GGUF file."""
    source: Source | None = None
    """On the hub: a transformers folder."""
    gated: bool = False
    """Whether the repository's terms have to be accepted first."""
    kept: str | None = None
    """A file in packs.hub.own_folder()."""
    sha256: str | None = None
    """Of `kept`."""
    make: str | None = None
    """The command that makes `kept`."""


@dataclass(frozen=True)
class OtherEntry:
    """The same model with other weights: retrained without the field, or unlearned in its weights."""

    id: str
    title: str
    method: str
    file: str
    """Safetensors: the tensors that differ, by transformers' names."""


@dataclass(frozen=True)
class SAEEntry:
    """One sparse autoencoder of a decoder layer's output."""

    id: str
    title: str
    layer: int
    """0-based: the hidden state after this block."""
    path: str | None = None
    """In the pack: a file or a folder of any form that sparse/codes.py reads."""
    survey: str | None = None
    """How often its latents fire on the corpora, as clamp/survey.py writes it."""
    source: Source | None = None


@dataclass(frozen=True)
class Field:
    """What questions are about."""

    id: str
    """As the questions name it."""
    title: str
    forget: bool
    """Whether it has to be forgotten; the others have to stay."""
    subject: str
    """As the harness's prompt names it: "(with answers) about {subject}"."""


@dataclass(frozen=True)
class QuestionFile:
    """One file of questions: in the pack, or on the hub."""

    path: str | None = None
    hub: HubFile | None = None
    field: str | None = None
    """What all of its questions are about; None where the file says so of each."""
    only: tuple[str, ...] = ()
    """The fields that are wanted of it; () is all."""


@dataclass(frozen=True)
class Preset:
    """A setting that was found good, and by whom."""

    id: str
    title: str
    sae: str
    method: str
    latents: tuple[int, ...]
    value: float | tuple[float, ...]
    """Of the clamped latents: one for all, or one each."""
    threshold: float
    refusal: int | None
    refusal_value: float
    note: str
    """Where it comes from."""


@dataclass(frozen=True)
class Prompt:
    """A question that the tab offers."""

    text: str
    about: str = ""
    """What should become of it: "forget" (only the untouched model answers), "retain" (all do), "refused" (none
    does), "" where nobody has said."""


@dataclass(frozen=True)
class ClampManifest:
    folder: Path
    name: str
    title: str
    note: str
    """What a user has to know."""
    model: tuple[Place, ...]
    """Tried in this order."""
    others: tuple[OtherEntry, ...]
    saes: tuple[SAEEntry, ...]
    fields: tuple[Field, ...]
    corpus: dict[str, str]
    """CORPORA -> a file of the pack, one text a line."""
    questions: dict[str, tuple[QuestionFile, ...]]
    """SPLITS -> files."""
    scoring: str
    """How questions are put: SCORINGS."""
    presets: tuple[Preset, ...]
    prompts: tuple[Prompt, ...]
    """For the tab's menu."""
    results: str | None
    """Stored figures."""

    def path(self, file: str) -> Path:
        """A file of the pack. Raises PackError for a name that leads out of the pack's folder."""
        return inside(self.folder, self.name, file)

    def sae(self, id: str) -> SAEEntry:
        """The SAE called `id`. Raises PackError."""
        return _named(self.saes, id, f"unknown SAE {id!r} in pack {self.name}")

    def other(self, id: str) -> OtherEntry:
        """The other model called `id`. Raises PackError."""
        return _named(self.others, id, f"unknown model {id!r} in pack {self.name}")

    def preset(self, id: str) -> Preset:
        """The preset called `id`. Raises PackError."""
        return _named(self.presets, id, f"unknown preset {id!r} in pack {self.name}")

    def opening_sae(self) -> str:
        """The id of the SAE of the first preset, or the first of all."""
        return self.presets[0].sae if self.presets else self.saes[0].id

    def forget(self) -> tuple[str, ...]:
        """The ids of the fields that have to be forgotten."""
        return tuple(field.id for field in self.fields if field.forget)

    def subjects(self) -> dict[str, str]:
        """Field's id -> what the harness's prompt calls it."""
        return {field.id: field.subject for field in self.fields}


def _named(entries: tuple[Any, ...], id: str, unknown: str) -> Any:
    for entry in entries:
        if entry.id == id:
            return entry
    raise PackError(f"{unknown}; known: {', '.join(entry.id for entry in entries) or 'none'}")


def read(folder: Path) -> ClampManifest:
    """Reads folder/pack.json. Raises PackError with one sentence that says what is wrong in it."""
    found = read_manifest(folder, _parse, _faults)
    for file in _files(found):
        found.path(file)  # refuses names that lead elsewhere
    return found


def _parse(folder: Path, data: dict[str, Any]) -> ClampManifest:
    if data["format"] != 1 or data.get("kind") != KIND:
        raise PackError(f"{folder.name}: pack.json is no clamp pack of format 1")
    return ClampManifest(
        folder=folder,
        name=str(data["name"]),
        title=str(data.get("title", data["name"])),
        note=str(data.get("note", "")),
        model=tuple(_place(item) for item in data["model"]),
        others=tuple(_other(item) for item in data.get("others", ())),
        saes=tuple(_sae(item) for item in data["saes"]),
        fields=tuple(_field(item) for item in data.get("fields", ())),
        corpus={str(kind): str(file) for kind, file in data.get("corpus", {}).items()},
        questions={str(split): _questions(item) for split, item in data.get("questions", {}).items()},
        scoring=str(data.get("scoring", SCORINGS[0])),
        presets=tuple(_preset(item) for item in data.get("presets", ())),
        prompts=tuple(_prompt(item) for item in data.get("prompts", ())),
        results=_text(data.get("results")),
    )


def _place(item: dict[str, Any]) -> Place:
    return Place(
        path=_text(item.get("path")),
        source=read_source(item) if "repo_id" in item else None,
        gated=bool(item.get("gated", False)),
        kept=_text(item.get("kept")),
        sha256=_text(item.get("sha256")),
        make=_text(item.get("make")),
    )


def _other(item: dict[str, Any]) -> OtherEntry:
    id = str(item["id"])
    return OtherEntry(id, str(item.get("title", id)), str(item.get("method", id)), str(item["file"]))


def _sae(item: dict[str, Any]) -> SAEEntry:
    return SAEEntry(
        id=str(item["id"]),
        title=str(item.get("title", item["id"])),
        layer=int(item["layer"]),
        path=_text(item.get("path")),
        survey=_text(item.get("survey")),
        source=read_source(item.get("source")),
    )


def _field(item: dict[str, Any]) -> Field:
    title = str(item.get("title", item["id"]))
    return Field(str(item["id"]), title, bool(item["forget"]), str(item.get("subject", title)))


def _questions(item: Any) -> tuple[QuestionFile, ...]:
    """A file of the pack, or a list of files, those of the hub with their repository."""
    found = []
    for one in [item] if isinstance(item, str) else item:
        if isinstance(one, str):
            found.append(QuestionFile(path=one))
            continue
        field, only, hub = _text(one.get("field")), tuple(map(str, one.get("only", ()))), None
        if "repo_id" in one:
            hub = HubFile(str(one["repo_id"]), str(one["file"]), str(one.get("revision", "main")), "dataset")
        found.append(QuestionFile(None if hub else str(one["path"]), hub, field, only))
    return tuple(found)


def _preset(item: dict[str, Any]) -> Preset:
    value = item.get("value", -300.0)
    return Preset(
        id=str(item["id"]),
        title=str(item.get("title", item["id"])),
        sae=str(item["sae"]),
        method=str(item["method"]),
        latents=tuple(int(latent) for latent in item["latents"]),
        value=tuple(map(float, value)) if isinstance(value, list) else float(value),
        threshold=float(item.get("threshold", 0.0)),
        refusal=None if item.get("refusal") is None else int(item["refusal"]),
        refusal_value=float(item.get("refusal_value", -500.0)),
        note=str(item.get("note", "")),
    )


def _prompt(item: Any) -> Prompt:
    return Prompt(item) if isinstance(item, str) else Prompt(str(item["text"]), str(item.get("about", "")))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _files(m: ClampManifest) -> Iterator[str]:
    named = [place.path for place in m.model] + [entry.file for entry in m.others]
    named += [file for entry in m.saes for file in (entry.path, entry.survey)]
    named += [*m.corpus.values(), m.results, *(one.path for split in m.questions.values() for one in split)]
    yield from (file for file in named if file is not None)


def _faults(m: ClampManifest) -> Iterator[tuple[bool, str]]:
    yield not m.model, "model needs at least one place"
    for place in m.model:
        ways = [way for way in (place.path, place.source, place.kept) if way is not None]
        yield len(ways) != 1, "each place of the model is one of path, repo_id and kept"
        kept = place.kept or "-"
        yield "/" in kept or "\\" in kept or kept.startswith("."), f"{place.kept!r} is no plain name of a kept file"
        yield place.kept is not None and place.sha256 is None, f"{place.kept} needs its sha256"
    yield not m.saes, "saes needs at least one"
    for what, entries in (("saes", m.saes), ("others", m.others), ("fields", m.fields), ("presets", m.presets)):
        ids = [entry.id for entry in entries]
        yield len(set(ids)) < len(ids), f"{what} must have different ids"
    for sae in m.saes:
        yield sae.layer < 0, f"the SAE {sae.id} needs a layer from 0"
        yield sae.path is None and sae.source is None, f"the SAE {sae.id} needs a path or a source"
    for known, named, what in ((CORPORA, m.corpus, "corpus"), (SPLITS, m.questions, "questions")):
        yield bool(set(named) - set(known)), f"{what} may have {', '.join(known)}"
    yield m.scoring not in SCORINGS, f"scoring must be one of {', '.join(SCORINGS)}"
    for prompt in m.prompts:
        yield prompt.about not in ABOUT, f"a prompt may be about {', '.join(ABOUT[1:])}, not {prompt.about!r}"
    for preset in m.presets:
        yield from _preset_faults(preset, {sae.id for sae in m.saes})


def _preset_faults(preset: Preset, saes: set[str]) -> Iterator[tuple[bool, str]]:
    values = preset.value if isinstance(preset.value, tuple) else (preset.value,)
    called = f"the preset {preset.id}"
    yield preset.sae not in saes, f"{called} names the SAE {preset.sae!r}, which the pack has not"
    yield preset.method not in METHODS, f"{called} has the method {preset.method!r}; known: {', '.join(METHODS)}"
    yield not preset.latents, f"{called} needs latents"
    yield isinstance(preset.value, tuple) and len(values) != len(preset.latents), f"{called} needs a value a latent"
    yield (
        not all(map(math.isfinite, (*values, preset.threshold, preset.refusal_value))),
        f"{called} has a value that is no finite number",
    )
    yield preset.method in ("refusal", "both") and preset.refusal is None, f"{called} needs a refusal latent"

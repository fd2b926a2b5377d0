"""What the pack.json of a diffusion pack says, checked: where the pipeline, its SAEs and its judges lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..packs.errors import PackError
from ..packs.source import Source, inside, read_manifest, read_source
from .judges import JudgeSpec

KIND = "erase"
"""The manifest's key `kind`; a pack without it is one of Restore."""


@dataclass(frozen=True)
class SAEEntry:
    """One sparse autoencoder of the hook point."""

    id: str
    title: str
    folder: str
    """Holds the weights and their description, as sparsify, sdxl-unbox, SAELens or dictionary_learning call them."""
    k: int | None = None
    """None where cfg.json says it."""
    residual: bool = False
    """Trained on the block's output minus its input."""
    statistics: str | None = None
    """The concepts' latents: .safetensors of ours, or the authors' pickle."""
    settings: str | None = None
    """The best setting of every concept: .json of ours, or the authors' class_params.pth."""
    source: Source | None = None


@dataclass(frozen=True)
class JudgeEntry:
    file: str
    spec: JudgeSpec


@dataclass(frozen=True)
class ErasePackManifest:
    folder: Path
    name: str
    title: str
    concepts: tuple[str, ...]
    """What can be erased: the objects."""
    styles: tuple[str, ...]
    object_prompt: str
    """With {object} to fill in."""
    styled_prompt: str
    """With {object} and {style}."""
    pipeline: str
    """Folder of the diffusers pipeline in the pack, or the hub's id of one."""
    hook_point: str
    saes: tuple[SAEEntry, ...]
    judges: dict[str, JudgeEntry]
    """By what they judge, object and style; none where nobody has them."""
    steps: int
    guidance: float
    opening: tuple[str, str | None]
    """The object and the style that the tab opens on."""
    note: str
    """What a user has to know, such as where the pipeline comes from."""

    def path(self, file: str) -> Path:
        """A file of the pack. Raises PackError for a name that leads out of the pack's folder."""
        return inside(self.folder, self.name, file)

    def sae(self, id: str) -> SAEEntry:
        """The SAE called `id`. Raises PackError."""
        for entry in self.saes:
            if entry.id == id:
                return entry
        known = ", ".join(entry.id for entry in self.saes)
        raise PackError(f"unknown SAE {id!r} in pack {self.name}; known: {known}")

    def concept(self, name: str) -> str:
        """A concept's name as the pack spells it, whatever its case. Raises PackError."""
        for known in self.concepts:
            if known.lower() == name.strip().lower():
                return known
        raise PackError(f"unknown concept {name!r} in pack {self.name}; known: {', '.join(self.concepts)}")

    def prompt(self, object: str, style: str | None = None) -> str:
        """What is asked of the pipeline; style None names the object alone. Underscores are spaces in a prompt."""
        if style is None:
            return self.object_prompt.format(object=object.replace("_", " "))
        return self.styled_prompt.format(object=object.replace("_", " "), style=style.replace("_", " "))


def read(folder: Path) -> ErasePackManifest:
    """Reads folder/pack.json. Raises PackError with one sentence that says what is wrong in it."""
    found = read_manifest(folder, _parse, _faults)
    for file in _files(found):
        found.path(file)  # refuses names that lead elsewhere
    return found


def _parse(folder: Path, data: dict[str, Any]) -> ErasePackManifest:
    if data["format"] != 1 or data.get("kind") != KIND:
        raise PackError(f"{folder.name}: pack.json is no diffusion pack of format 1")
    sampling = data.get("sampling", {})
    concepts, styles = tuple(map(str, data["concepts"])), tuple(map(str, data.get("styles", ())))
    prompts = data["prompts"]
    return ErasePackManifest(
        folder=folder,
        name=str(data["name"]),
        title=str(data.get("title", data["name"])),
        concepts=concepts,
        styles=styles,
        object_prompt=str(prompts["object"]),
        styled_prompt=str(prompts["styled"]),
        pipeline=str(data["pipeline"]),
        hook_point=str(data["hook_point"]),
        saes=tuple(_sae(item) for item in data["saes"]),
        judges={
            what: _judge(item, {"object": concepts, "style": styles}[what])
            for what, item in data.get("judges", {}).items()
        },
        steps=int(sampling.get("steps", 50)),
        guidance=float(sampling.get("guidance", 7.5)),
        opening=_opening(data.get("opening", {}), concepts, styles),
        note=str(data.get("note", "")),
    )


def _opening(item: dict[str, Any], concepts: tuple[str, ...], styles: tuple[str, ...]) -> tuple[str, str | None]:
    object, style = item.get("object", concepts[-1]), item.get("style", styles[-1] if styles else None)
    if object not in concepts or style not in (*styles, None):
        raise ValueError(f"it opens on {object} in {style}, which it does not have")
    return object, style


def _sae(item: dict[str, Any]) -> SAEEntry:
    return SAEEntry(
        id=str(item["id"]),
        title=str(item.get("title", item["id"])),
        folder=str(item["folder"]),
        k=None if item.get("k") is None else int(item["k"]),
        residual=bool(item.get("residual", False)),
        statistics=item.get("statistics"),
        settings=item.get("settings"),
        source=read_source(item.get("source")),
    )


def _judge(item: dict[str, Any], names: tuple[str, ...]) -> JudgeEntry:
    names = tuple(map(str, item["names"])) if "names" in item else names
    spec = JudgeSpec(
        str(item["architecture"]), names, int(item["size"]), float(item.get("mean", 0.5)), float(item.get("std", 0.5))
    )
    return JudgeEntry(str(item["file"]), spec)


def _files(m: ErasePackManifest) -> Iterator[str]:
    yield m.pipeline
    yield from (entry.file for entry in m.judges.values())
    for entry in m.saes:
        yield from (file for file in (entry.folder, entry.statistics, entry.settings) if file is not None)


def _faults(m: ErasePackManifest) -> Iterator[tuple[bool, str]]:
    ids = [entry.id for entry in m.saes]
    yield not 0 < len(set(m.concepts)) == len(m.concepts), "concepts must be different names, at least one"
    yield not ids or len(set(ids)) < len(ids), "saes must have different ids, at least one"
    for field, prompt, known in (
        ("object", m.object_prompt, {"object"}),
        ("styled", m.styled_prompt, {"object", "style"}),
    ):
        try:
            prompt.format(**dict.fromkeys(known, ""))
            fits = all("{" + name + "}" in prompt for name in known)
        except (KeyError, IndexError, ValueError, AttributeError):
            fits = False
        yield (
            not fits,
            f"the prompt {field!r} must name {' and '.join('{' + name + '}' for name in sorted(known))}, no more",
        )
    yield m.steps < 1 or not 0 <= m.guidance < math.inf, "sampling needs steps above 0 and guidance from 0"
    specs = [entry.spec for entry in m.judges.values()]
    yield (
        not all(spec.size > 0 and 0 < spec.std < math.inf and math.isfinite(spec.mean) for spec in specs),
        "judges need a size and a std above 0, and a mean",
    )

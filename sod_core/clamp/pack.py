"""Everything of a clamp pack, loaded once and shared: the language model, its SAEs, surveys, texts and questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..machine import devices
from ..packs import figures, find, folders, hub, safe
from ..packs.errors import PackError
from ..packs.hub import HubFile
from ..packs.kept import Kept
from . import manifest
from .manifest import Place, QuestionFile, SAEEntry

if TYPE_CHECKING:
    from ..models.language import LanguageModel
    from ..sparse.code import Code
    from .questions import Question
    from .survey import Survey

LONGEST_TEXT = 64 << 20
"""Bytes of a corpus."""


class ClampPack:
    """A language model with its SAEs. Loading is lazy, happens once, and is safe from several threads."""

    def __init__(self, folder: Path, device: torch.device | None = None):
        """Reads pack.json only. Raises PackError."""
        self.manifest = manifest.read(Path(folder))
        self.device = device or devices.choose_device()
        self._kept = Kept()

    # ------------------------------------------------------------ models

    def language(self) -> LanguageModel:
        """The untouched model; the same object for everybody. Raises PackError where it is not on this computer."""
        return self._kept.get("language", self._load_language)

    def _load_language(self) -> LanguageModel:
        from ..models import language

        m = self.manifest
        for place in m.model:
            found = self._at(place)
            if found is not None:
                if place.sha256 is not None:
                    _check_sum(found, place)
                return _with_bos(language.load(found, self.device))
        raise PackError(f"the model of {m.name} is not on this computer: {' or '.join(self._ways())}")

    def other(self, id: str) -> LanguageModel:
        """The same model retrained, or unlearned in its weights. Raises PackError."""
        from ..models import language

        entry = self.manifest.other(id)
        path = self.manifest.path(entry.file)
        return self._kept.get(("other", id), lambda: language.with_weights(self.language(), safe.read_torch(path)))

    def code(self, sae: str) -> Code:
        """An SAE by its id, checked against the model. Raises PackError."""
        return self._kept.get(("code", sae), lambda: self._load_code(self.manifest.sae(sae)))

    def _load_code(self, entry: SAEEntry) -> Code:
        from ..sparse import codes

        language = self.language()
        if entry.layer >= language.depth:
            raise PackError(
                f"the SAE {entry.id} belongs to layer {entry.layer}, "
                f"and the model of {self.manifest.name} has layers 0 to {language.depth - 1}"
            )
        place = self._sae_at(entry)
        if place is None:
            raise PackError(
                f"the SAE {entry.id} is not on this computer: `python -m sod_core packs get {self.manifest.name}`"
            )
        found: Any = codes.read_code(place, language.width, entry.layer)  # a module, whichever code it is
        return found.to(self.device)

    def survey(self, sae: str) -> Survey | None:
        """How often an SAE's latents fire on the pack's corpora; None where the pack has none. Raises PackError."""
        from . import survey

        entry = self.manifest.sae(sae)
        if entry.survey is None:
            return None
        path = self.manifest.path(entry.survey)
        return self._kept.get(("survey", sae), lambda: survey.load(path, self.code(sae).latents))

    # ------------------------------------------------------------ texts

    def questions(self, split: str) -> list[Question]:
        """The questions for "select", "tune" or "judge". Raises PackError where the pack has none, or not here."""
        return self._kept.get(("questions", split), lambda: list(self._load_questions(split)))

    def _load_questions(self, split: str) -> Iterator[Question]:
        from . import questions

        for one in self._question_files(split):
            path = self._questions_at(one)
            if path is None:
                raise PackError(
                    f"questions of {self.manifest.name} are not on this computer: "
                    f"`python -m sod_core packs get {self.manifest.name}`"
                )
            yield from questions.read_questions(path, one.field, one.only)

    def corpus(self, kind: str) -> list[str]:
        """The texts of "forget", "retain" or "refusals". Raises PackError where the pack has none."""
        file = self.manifest.corpus.get(kind)
        if file is None:
            raise PackError(f"pack {self.manifest.name} has no {kind} texts: give a file of your own, one text a line")
        return self._kept.get(("corpus", kind), lambda: read_texts(self.manifest.path(file)))

    def results(self) -> dict[str, Any]:
        """The stored figures; empty where the pack has none. Raises PackError for a broken file."""
        file = self.manifest.results
        if file is None or not self.manifest.path(file).is_file():
            return {}
        found = figures.read_json(self.manifest.path(file))
        if not isinstance(found, dict):
            raise PackError(f"{file} of {self.manifest.name} holds no stored figures")
        return found

    # ------------------------------------------------------------ files

    def ready(self) -> bool:
        """Whether the model and its first SAE are on this computer. Never asks the network."""
        entry = self.manifest.sae(self.manifest.opening_sae())
        return any(self._at(place) is not None for place in self.manifest.model) and self._sae_at(entry) is not None

    def missing(self) -> list[str]:
        """A sentence for everything that is not on this computer. Never asks the network."""
        m, found = self.manifest, []
        if all(self._at(place) is None for place in m.model):
            found.append(f"the model is missing: {' or '.join(self._ways())}")
        get = f"`python -m sod_core packs get {m.name}`"
        found += [f"the SAE {entry.id} is missing: {get}" for entry in m.saes if self._sae_at(entry) is None]
        for split, files in m.questions.items():
            if any(self._questions_at(one) is None for one in files):
                found.append(f"questions to {split} on are missing: {get}")
        return found

    def wanted(self) -> list[HubFile]:
        """What has to be fetched from the hub. Asks it for the names of files where something is missing.

        Raises PackError.
        """
        m, files = self.manifest, []
        if all(self._at(place) is None for place in m.model):
            source = next((place.source for place in m.model if place.source is not None), None)
            files += folders.model_files(source) if source is not None else []
        for entry in m.saes:
            if entry.source is not None and self._sae_at(entry) is None:
                files += folders.sae_files(entry.source)
        for split in m.questions.values():
            files += [one.hub for one in split if one.hub is not None and self._questions_at(one) is None]
        return files

    def megabytes(self) -> int:
        """About how much `wanted` comes to, as far as the manifest says."""
        m, sizes = self.manifest, []
        if all(self._at(place) is None for place in m.model):
            sizes += [place.source.megabytes for place in m.model if place.source is not None][:1]
        sizes += [entry.source.megabytes for entry in m.saes if entry.source is not None and not self._sae_at(entry)]
        return sum(size for size in sizes if size is not None)

    def _at(self, place: Place) -> Path | None:
        """Where the model lies, if it lies there."""
        if place.source is not None:
            return folders.model_here(place.source)
        path = hub.own_folder() / place.kept if place.kept is not None else self.manifest.path(place.path or "")
        return path if path.exists() else None

    def _ways(self) -> Iterator[str]:
        """What to do for the model, a way for each place that is not the pack's own folder."""
        for place in self.manifest.model:
            if place.path is not None:
                yield f"put it into {self.manifest.path(place.path)}"
            elif place.kept is not None:
                yield f"`{place.make}`" if place.make else f"put {place.kept} into {hub.own_folder()}"
            elif place.source is not None:
                size = place.source.megabytes
                terms = f", after accepting the terms on huggingface.co/{place.source.repo_id} and logging in with "
                yield (
                    f"`python -m sod_core packs get {self.manifest.name}`"
                    + (f" ({size:,} MB)" if size else "")
                    + (f"{terms}`hf auth login` or HF_TOKEN" if place.gated else "")
                )

    def _sae_at(self, entry: SAEEntry) -> Path | None:
        if entry.path is not None and self.manifest.path(entry.path).exists():
            return self.manifest.path(entry.path)
        return None if entry.source is None else folders.sae_here(entry.source)

    def _question_files(self, split: str) -> tuple[QuestionFile, ...]:
        if split not in self.manifest.questions:
            raise PackError(f"pack {self.manifest.name} has no questions to {split} on: give --questions FILE")
        return self.manifest.questions[split]

    def _questions_at(self, one: QuestionFile) -> Path | None:
        if one.hub is not None:
            return hub.cached(one.hub)
        path = self.manifest.path(one.path or "")
        return path if path.is_file() else None


def _with_bos(language: LanguageModel) -> LanguageModel:
    """The model. Raises PackError for a Gemma whose tokenizer has no BOS: without it Gemma's answers are useless."""
    kind = str(getattr(language.model.config, "model_type", ""))
    if language.bos is None and kind.startswith("gemma"):
        raise PackError(f"the tokenizer has no BOS token, without which a {kind} model answers nonsense: add bos_token")
    return language


def _check_sum(path: Path, place: Place) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != place.sha256:
        again = f"`{place.make}` makes it again" if place.make else "fetch it again"
        raise PackError(f"{path.name} is not the file that pack.json means (its sha256 is {found[:12]}...): {again}")


def read_texts(path: Path) -> list[str]:
    """One text a line; empty lines do not count. Raises PackError where there is none."""
    try:
        if path.stat().st_size > LONGEST_TEXT:
            raise PackError(f"{path.name} is larger than {LONGEST_TEXT >> 20} MiB: give a part of it")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PackError(f"{path.name} is no text in UTF-8") from error
    except OSError as error:
        raise PackError(f"{path} cannot be read: {error.strerror}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise PackError(f"{path.name} holds no text: give one text a line")
    return found


def open_clamp_pack(name: str, device: torch.device | None = None) -> ClampPack:
    """A clamp pack by its name, or by its folder. Raises PackError."""
    return ClampPack(find.folder(name, manifest.KIND), device)


def shared_pack(name: str) -> ClampPack:
    """As `open_clamp_pack`, opened once for everybody in this process."""
    return find.shared(name, manifest.KIND, ClampPack)


def names() -> dict[str, Path]:
    """Name -> folder of every clamp pack."""
    return find.folders(manifest.KIND)

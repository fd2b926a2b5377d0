"""What an evaluation of a pack asks: the settings, the edits and their controls, the other models, one job a row."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import relearning, select, settings
from .edit import Clamp
from .editor import editor_of
from .questions import Question, check_ids
from .ways_back import WAYS, Subject

if TYPE_CHECKING:
    from ..models.language import Editor, LanguageModel
    from .pack import ClampPack
    from .survey import Survey

FACTORS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""A curve is measured at these multiples of the edit's own coefficient; at 0 a latent that fires is set to nothing."""
SEEDS = (0, 1, 2)
"""Of the controls."""
UNTOUCHED = "untouched"


@dataclass(frozen=True)
class Settings:
    """What decides the numbers."""

    every_order: bool = False
    """Count only questions that the untouched model answers rightly under all 24 orders of their options."""
    limit: int | None = None
    """At most so many questions of each field, drawn by lot but always the same."""
    curves: bool = True
    ways: bool = True
    relearn: bool | None = None
    """Whether models are trained for the ways back; None: those with at most `relearning.SMALL` parameters."""
    seeds: tuple[int, ...] = SEEDS
    seed: int = 0
    """Of the bootstrap, of misspelled words, and of what is drawn by lot."""

    def check(self) -> None:
        """Raises ValueError."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"the limit is {self.limit} questions a field; it has to be 1 or more")
        if not self.seeds or min(self.seed, *self.seeds) < 0:
            raise ValueError("controls need at least one seed, and seeds are whole numbers from 0 on")


@dataclass(frozen=True)
class Entry:
    """A row of the table: the untouched model, an edit, a control, or a model with other weights."""

    id: str
    title: str
    kind: str
    """untouched, edit, control or model."""
    method: str
    """none, a method of the clamp, or how the model was made: retrained, rmu, gradient_ascent."""
    sae: str | None = None
    clamp: Clamp | None = None
    of: str | None = None
    """The edit whose control it is, or whose curve it lies on."""
    features: str | None = None
    """Of a control: random or matched."""
    seed: int | None = None
    other: str | None = None
    """The pack's other model."""


def answers_key(entry: Entry) -> str:
    """Says which model, and which edit in it."""
    if entry.clamp is None:
        return f"answers {entry.other or UNTOUCHED}"
    return f"answers {entry.sae} {json.dumps(asdict(entry.clamp))}"


def way_key(way: str, entry: Entry) -> str:
    return f"way {way} {answers_key(entry)}"


def edits(pack: ClampPack, fidelity: str = "exact") -> list[Entry]:
    """The pack's presets, and Clamp Prime and Refusal Clamp together where it has both for one SAE and no such preset.

    Raises PackError or ValueError for a preset that does not fit its SAE.
    """
    m = pack.manifest
    found = [Entry(p.id, p.title, "edit", p.method, p.sae, settings.of_preset(p, fidelity)) for p in m.presets]
    prime, refusal = first(found, ("prime", "conditional")), first(found, ("refusal",))
    if prime and refusal and prime.sae == refusal.sae and first(found, ("both",)) is None:
        if prime.clamp is not None and refusal.clamp is not None and not isinstance(prime.clamp.value, tuple):
            together = replace(refusal.clamp, method="both", value=prime.clamp.value)
            found.append(Entry("both", "Clamp and refusal", "edit", "both", refusal.sae, together))
    for entry in found:
        if entry.clamp is not None:
            entry.clamp.check(pack.code(entry.sae or ""))
    return found


def first(entries: Sequence[Entry], methods: Collection[str]) -> Entry | None:
    """The first edit by one of some methods."""
    return next((entry for entry in entries if entry.kind == "edit" and entry.method in methods), None)


def controls(entry: Entry, survey: Survey | None, seeds: Sequence[int]) -> list[Entry]:
    """As many random and as many equally active latents, in the same edit; none where its SAE was not surveyed."""
    if survey is None or entry.clamp is None:
        return []
    found = []
    for kind in select.CONTROLS:
        for seed in seeds:
            latents = settings.control(kind, survey, entry.clamp.latents, entry.clamp.refusal, seed)
            if len(latents) == len(entry.clamp.latents):  # a small SAE may have no so many others
                clamp = replace(entry.clamp, latents=tuple(latents))
                title = f"{entry.title}, {'random' if kind == 'random' else 'equally active'} latents"
                found.append(
                    replace(
                        entry,
                        id=f"{entry.id}-{kind}-{seed}",
                        title=title,
                        kind="control",
                        clamp=clamp,
                        of=entry.id,
                        features=kind,
                        seed=seed,
                    )
                )
    return found


def curve(entry: Entry, factor: float) -> tuple[float, Clamp]:
    """The coefficient at a multiple of the edit's own, and the clamp with it: of Refusal Clamp the refusal's is
    moved."""
    clamp = entry.clamp
    if clamp is None:
        raise ValueError(f"{entry.id} is no edit")
    if clamp.method == "refusal":
        return clamp.refusal_value * factor, replace(clamp, refusal_value=clamp.refusal_value * factor)
    values = tuple(value * factor for value in clamp.values())
    return sum(values) / len(values), replace(clamp, value=values if isinstance(clamp.value, tuple) else values[0])


def untouched() -> Entry:
    return Entry(UNTOUCHED, "Untouched", UNTOUCHED, "none")


def models(pack: ClampPack) -> list[Entry]:
    """The pack's models with other weights."""
    return [Entry(o.id, o.title, "model", o.method, other=o.id) for o in pack.manifest.others]


def language(pack: ClampPack, entry: Entry) -> LanguageModel:
    """Raises PackError."""
    return pack.language() if entry.other is None else pack.other(entry.other)


def layer(pack: ClampPack, entry: Entry) -> int:
    """Where its edit acts; where a probe begins to read a model without one."""
    return pack.manifest.sae(entry.sae or pack.manifest.opening_sae()).layer


def editor(pack: ClampPack, entry: Entry) -> Editor | None:
    """None for the untouched model. Raises PackError or ValueError."""
    if entry.clamp is None or entry.sae is None:
        return None
    return editor_of(pack.code(entry.sae), entry.clamp, pack.language().special_ids)


class Board:
    """Everything that one evaluation of a pack asks."""

    def __init__(
        self,
        pack: ClampPack,
        settings: Settings,
        questions: Sequence[Question] | None = None,
        forget: Collection[str] | None = None,
        fidelity: str = "exact",
        own: Sequence[Entry] | None = None,
        surveys: Mapping[str, Survey] | None = None,
    ):
        """questions: in place of the pack's own; forget: the fields to forget, in place of the pack's; own: edits in
        place of the pack's presets; surveys: {SAE: one in place of the pack's}.

        Raises PackError or ValueError for what cannot be judged.
        """
        settings.check()
        self.pack, self.settings = pack, settings
        asked = list(pack.questions("judge") if questions is None else questions)
        check_ids(asked, "what is asked")
        self.questions = _limited(asked, settings)
        there = sorted({question.field for question in self.questions})
        strange = sorted(set(forget or ()) - set(there))
        if strange:
            raise ValueError(f"no question is of the field {strange[0]}; the fields are {', '.join(there)}")
        self.forget = sorted(set(pack.manifest.forget() if forget is None else forget) & set(there))
        if not self.forget:
            raise ValueError(
                f"no question is of a field to forget; the fields are {', '.join(there)}: name one with --forget-field"
            )
        self.subjects = pack.manifest.subjects()
        self.edits = edits(pack, fidelity) if own is None else list(own)
        self.prime, self.refusal = first(self.edits, ("prime", "conditional")), first(self.edits, ("refusal",))
        self.controls, self.cautions = [], []
        for edit in [edit for edit in (self.prime, self.refusal) if edit is not None] or self.edits[:1]:
            found = controls(edit, (surveys or {}).get(edit.sae or "") or pack.survey(edit.sae or ""), settings.seeds)
            self.controls += found
            if not found:
                self.cautions.append(_no_controls(pack, edit))
        self.models = models(pack)

    @property
    def entries(self) -> list[Entry]:
        """The rows of the table."""
        return [untouched(), *self.edits, *self.controls, *self.models]

    def curves(self) -> dict[str, list[tuple[float, Entry]]]:
        """{prime, refusal, random, matched: (coefficient, edit)}.

        The controls are Clamp Prime's, or Refusal Clamp's.
        """
        if not self.settings.curves:
            return {}
        lines = {"prime": self.prime, "refusal": self.refusal}
        base = self.prime or self.refusal
        for control in self.controls:
            if base is not None and control.of == base.id and control.features is not None:
                lines.setdefault(control.features, control)
        found: dict[str, list[tuple[float, Entry]]] = {}
        for name, entry in lines.items():
            if entry is not None:
                points = [curve(entry, factor) for factor in FACTORS]
                found[name] = [(value, replace(entry, clamp=clamp)) for value, clamp in points]
        return found

    def tried(self) -> list[Entry]:
        """On whom the ways back are tried: the untouched model, one edit of each kind, the other models."""
        both = first(self.edits, ("both",))
        some = [entry for entry in (self.prime, self.refusal, both) if entry is not None]
        return [untouched(), *some, *self.models] if self.settings.ways else []

    def ways(self) -> list[str]:
        trains = self.settings.relearn
        if trains is None:
            trains = sum(p.numel() for p in self.pack.language().model.parameters()) <= relearning.SMALL
        return [name for name, way in WAYS.items() if trains or not way.trains]

    def subject(self, entry: Entry) -> Subject:
        """For the ways back."""
        where = language(self.pack, entry), layer(self.pack, entry), editor(self.pack, entry)
        return Subject(entry.id, entry.title, *where, is_edit=entry.clamp is not None)

    def fingerprint(self) -> dict[str, Any]:
        """Whatever the rows depend on that is not said in their keys."""
        pack, m = self.pack, self.pack.manifest
        layers = {sae.id: (sae.layer, weights_id(pack.code(sae.id))) for sae in m.saes if self._uses(sae.id)}
        return {
            "format": 1,
            "scoring": m.scoring,
            "questions": [repr(question) for question in self.questions],
            "forget": self.forget,
            "subjects": self.subjects,
            "every order": self.settings.every_order,
            "seed": self.settings.seed,
            "layers": layers,
            "opening": m.opening_sae(),
            "models": {entry.id: weights_id(language(pack, entry).model) for entry in self.entries if not entry.clamp},
        }

    def _uses(self, sae: str) -> bool:
        return sae == self.pack.manifest.opening_sae() or any(edit.sae == sae for edit in self.edits)


def _no_controls(pack: ClampPack, edit: Entry) -> str:
    if pack.survey(edit.sae or "") is not None:
        return f"no controls stand beside {edit.id}: too few other latents fire"
    command = f"`python -m sod_core clamp features --pack {pack.manifest.name} --sae {edit.sae} --out FILE`"
    return f"no controls stand beside {edit.id}: survey its latents with {command} and name the file with --survey"


def _limited(questions: list[Question], settings: Settings) -> list[Question]:
    """At most so many of each field, in the order in which they were."""
    if settings.limit is None:
        return questions
    kept: set[str] = set()
    for field in sorted({question.field for question in questions}):
        ids = [question.id for question in questions if question.field == field]
        kept |= set(random.Random(f"{settings.seed} {field}").sample(ids, min(settings.limit, len(ids))))
    return [question for question in questions if question.id in kept]


def weights_id(module: Any) -> str:
    """Tells the same weights: from the shape, the first numbers and the sum of the bytes of every tensor.

    And from what a sparse code computes with them: its kind, k, whether it subtracts b_dec, how it normalises.
    """
    found = hashlib.sha256()
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    told = [getattr(part, name, None) for part in modules for name in ("k", "subtract_b_dec", "normalisation")]
    found.update(f"{type(module).__name__} {[value for value in told if isinstance(value, int | str)]}".encode())
    state: Mapping[str, Any] = module.state_dict() if isinstance(module, nn.Module) else {}
    for name, tensor in sorted(state.items()):
        whole = tensor.contiguous().view(-1)
        found.update(f"{name} {tuple(tensor.shape)} {whole.view(torch.uint8).sum(dtype=torch.int64).item()}".encode())
        found.update(whole[:256].float().cpu().numpy().tobytes())
    return found.hexdigest()

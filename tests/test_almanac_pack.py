"""The embedded pack almanac as it is committed: its files, and that its figures hold on its judged questions."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sod_core.build.almanac import builder, sweep, texts
from sod_core.clamp import judge, select, settings, survey
from sod_core.clamp.edit import Clamp
from sod_core.clamp.editor import editor_of
from sod_core.clamp.judge import Answers
from sod_core.clamp.pack import ClampPack
from sod_core.clamp.questions import Question
from sod_core.packs.find import ASSETS
from sod_core.worlds import almanac

FOLDER = ASSETS / "almanac"
EVERY = 3
"""One in so many of the judged questions is asked again here: 27 of each field, 189 in all."""
NEAR = 0.15
"""How far an accuracy on them may be from the stored one, on 80 a field."""


@pytest.fixture(scope="module")
def pack() -> ClampPack:
    return ClampPack(FOLDER, torch.device("cpu"))


@pytest.fixture(scope="module")
def asked(pack) -> list[Question]:
    found = pack.questions("judge")
    return [q for one in almanac.FIELDS for q in [q for q in found if q.field == one.id][::EVERY]]


@pytest.fixture(scope="module")
def untouched(pack, asked) -> Answers:
    return judge.answers(pack.language(), asked, pack.manifest.subjects())


@pytest.fixture(scope="module")
def results(pack) -> dict[str, dict]:
    return {row["id"]: row for row in pack.results()["rows"]}


def edited(pack: ClampPack, asked: list[Question], sae: str, clamp: Clamp) -> Answers:
    editor = editor_of(pack.code(sae), clamp, pack.language().special_ids)
    layer = pack.manifest.sae(sae).layer
    return judge.answers(pack.language(), asked, pack.manifest.subjects(), layer=layer, editor=editor)


def right(found: Answers, forget: bool) -> float:
    fields = [one.id for one in almanac.FIELDS if (one.id == almanac.FORGET) == forget]
    return judge.accuracy(found, fields).value


def aligned(found: Answers, untouched: Answers) -> float:
    return judge.alignment(right(found, False), right(untouched, False), right(found, True), right(untouched, True))


# ---------------------------------------------------------------- files


def files() -> list[Path]:
    return [path for path in FOLDER.rglob("*") if path.is_file()]


def test_it_is_small():
    sizes = [path.stat().st_size for path in files()]
    assert sum(sizes) < 12e6 and max(sizes) < 10e6


def test_weights_are_in_half_precision_and_finite():
    stored = [path for path in files() if path.suffix == ".safetensors" and path.parent.name != "surveys"]
    assert len(stored) == 4 + 4  # the model, three others, four SAEs
    for path in stored:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                assert tensor.dtype == torch.float16 and tensor.isfinite().all(), (path, name)


def test_what_it_needs_is_there_and_nothing_else(pack):
    m = pack.manifest
    named = {m.results, *(entry.file for entry in m.others), *m.corpus.values(), "pack.json"}
    named |= {one.path for split in m.questions.values() for one in split} | {sae.survey for sae in m.saes}
    folders = [place.path for place in m.model] + [sae.path for sae in m.saes] + ["figures"]
    for path in files():
        name = path.relative_to(FOLDER).as_posix()
        assert name in named or name.startswith(tuple(f"{folder}/" for folder in folders)), name
    assert {sae.layer for sae in m.saes} == set(builder.SHIPPED) and len(builder.SHIPPED) >= 2
    assert {path.stem for path in (FOLDER / "figures").glob("*.json")} == set(builder.stages())


def test_texts_and_questions_are_the_worlds(pack):
    for group in almanac.GROUPS:
        found = pack.questions(group)
        assert [(q.id, q.question, q.options, q.answer) for q in found] == [
            (q.id, q.question, q.options, q.answer) for q in almanac.questions(group)
        ]
    for which, count in builder.CORPUS.items():
        assert pack.corpus(which) == almanac.corpus(which, count, builder.SEEDS["corpus"])


def test_the_tokenizer_gives_letters_one_token_and_takes_any_text(pack):
    tokenizer = pack.language().tokenizer
    assert len(set(texts.letters(tokenizer))) == 4
    for text in ("The potion Griveim.\n\nA. red", "señor Ωß 薬 🙂", "  two  spaces"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids[1:]) == text


def test_the_retrained_model_has_other_weights_throughout_the_unlearned_ones_a_few(pack):
    before = dict(pack.language().model.named_parameters())
    for id in ("retrained", "rmu", "gradient_ascent"):
        after = dict(pack.other(id).model.named_parameters())
        moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        if id == "retrained":
            assert moved == set(before)
        else:
            assert 0 < len(moved) < 8 and all(name.endswith("mlp.down_proj.weight") for name in moved)


# ---------------------------------------------------------------- how the presets were chosen


def test_surveys_are_of_the_packs_texts_and_presets_follow_from_them(pack):
    """Latents by a rule on the corpora, coefficients by the questions for tuning: nothing saw the judged ones."""
    identity = survey.fingerprint(pack.corpus("forget"), pack.corpus("retain"))
    assert {pack.survey(sae.id).texts_id for sae in pack.manifest.saes} == {identity}
    for preset in pack.manifest.presets:
        layer = pack.manifest.sae(preset.sae).layer
        figures = json.loads((FOLDER / "figures" / f"sweep-{layer}.json").read_text())
        kind = preset.sae.partition("-")[0]
        best = sweep.best([dict(zip(sweep.COLUMNS, json.loads(row))) for row in figures[kind]], preset.method)
        ranked = select.choose(best["rule"], pack.survey(preset.sae), len(preset.latents) + 1)
        assert tuple(x for x in ranked if x != best["refusal"])[: len(preset.latents)] == preset.latents
        assert best["value"] == (preset.value if preset.method == "prime" else preset.refusal_value)
        assert best["threshold"] == preset.threshold and len(preset.latents) == best["latents"]


def test_a_survey_says_what_the_model_does(pack):
    """A sample of the texts: the chosen latents fire on the potions, and next to never elsewhere."""
    preset = pack.manifest.preset("prime")
    layer, code = pack.manifest.sae(preset.sae).layer, pack.code(preset.sae)
    forget = survey.tally(pack.language(), code, layer, pack.corpus("forget")[:60])
    retain = survey.tally(pack.language(), code, layer, pack.corpus("retain")[:60])
    stored = pack.survey(preset.sae)
    for latent in preset.latents:
        assert abs(float(forget.frequency[latent] - stored.forget_frequency[latent])) < 0.05
        assert forget.frequency[latent] > 10 * retain.frequency[latent]


def test_the_sweeps_figures_are_reproduced(pack):
    """A line of the sweep again, by the sweep's own way of running a model in two parts."""
    preset = pack.manifest.preset("prime")
    layer = pack.manifest.sae(preset.sae).layer
    figures = json.loads((FOLDER / "figures" / f"sweep-{layer}.json").read_text())
    kind = preset.sae.partition("-")[0]
    best = sweep.best([dict(zip(sweep.COLUMNS, json.loads(row))) for row in figures[kind]], "prime")
    language = pack.language()
    some = [one for one in almanac.questions("tune") if one.field in ("potions", "ships")]
    prompts = texts.prompts(language.tokenizer, some)
    exam = sweep.Exam(language.model, prompts, texts.letters(language.tokenizer), layer)
    found = exam.figures(pack.code(preset.sae), settings.of_preset(preset))
    assert exam.untouched[0] == figures["forget"] and abs(found.forget - best["forget"]) <= 0.05
    with_judge = edited(
        pack, [Question(q.id, q.field, q.question, q.options, q.answer) for q in some], preset.sae,
        settings.of_preset(preset),
    )  # fmt: skip
    assert np.array_equal(with_judge.chosen.numpy(), exam.chosen(pack.code(preset.sae), settings.of_preset(preset)))


@cache
def fit(kind: str, layer: int) -> dict:
    return json.loads((FOLDER / "figures" / f"saes-{layer}.json").read_text())[kind]


def test_saes_explain_their_layer(pack):
    for sae in pack.manifest.saes:
        figures = fit(*(sae.id.partition("-")[0], sae.layer))
        assert figures["variance_unexplained"] < 0.1 and figures["active_latents"] < 24
        code, language = pack.code(sae.id), pack.language()
        batch = language.batch([language.encode(text) for text in pack.corpus("retain")[:40]])
        states = language.states(batch, sae.layer)[batch.ids > texts.BOS]
        error = (states - code.decode(code.encode(states))).square().sum()
        assert error / (states - states.mean(0)).square().sum() < 0.15  # of plainer texts than it was trained on


# ---------------------------------------------------------------- what the models know


def test_the_model_knows_every_field(untouched, results):
    for one in almanac.FIELDS:
        assert judge.accuracy(untouched, [one.id]).value >= 0.9
        assert results["untouched"]["fields"][one.id]["value"] >= 0.9


def test_the_retrained_model_does_not_know_the_potions_and_knows_the_rest(pack, asked, results):
    """80 questions at chance: 20 right, 31 at most in 99.5 of 100 such models."""
    potions = [q for q in pack.questions("judge") if q.field == almanac.FORGET]
    others = [q for q in asked if q.field != almanac.FORGET]
    found = judge.answers(pack.other("retrained"), [*potions, *others], pack.manifest.subjects())
    assert right(found, True) <= 31 / 80 and right(found, False) >= 0.9
    assert results["retrained"]["forget"]["value"] == right(found, True)


@pytest.mark.parametrize("id", ["rmu", "gradient_ascent"])
def test_unlearned_models_are_what_the_results_say(pack, asked, untouched, results, id):
    found = judge.answers(pack.other(id), asked, pack.manifest.subjects())
    for side in (True, False):
        stored = results[id]["forget" if side else "retain"]["value"]
        assert abs(right(found, side) - stored) <= NEAR
    assert results[id]["forget"]["value"] <= 0.4 and results[id]["retain"]["value"] >= 0.85


@pytest.mark.parametrize("id", ["prime", "refusal", "prime-topk", "refusal-topk"])
def test_presets_forget_the_potions_and_keep_the_rest(pack, asked, untouched, results, id):
    preset, row = pack.manifest.preset(id), results[id]
    found = edited(pack, asked, preset.sae, settings.of_preset(preset))
    assert row["alignment"]["value"] >= 0.85 and aligned(found, untouched) >= 0.75  # 27 potions: a standard error of .1
    for side in (True, False):
        assert abs(right(found, side) - row["forget" if side else "retain"]["value"]) <= NEAR
    assert judge.collapse(found) <= 0.5 and judge.collapse(found.of([almanac.FORGET])) <= judge.COLLAPSED
    assert not row["destroyed"]


def test_controls_do_nothing(pack, asked, untouched, results):
    controls = [row for row in results.values() if row["kind"] == "control"]
    assert {(row["of"], row["features"]) for row in controls} == {
        (of, kind) for of in ("prime", "refusal") for kind in select.CONTROLS
    }
    for of, kind in itertools.product(("prime", "refusal"), select.CONTROLS):
        found = [row["alignment"]["value"] for row in controls if (row["of"], row["features"]) == (of, kind)]
        assert len(found) == 3 and sum(found) / 3 <= 0.1 and max(found) <= 0.2
    preset = pack.manifest.preset("prime")
    for kind in select.CONTROLS:
        latents = settings.control(kind, pack.survey(preset.sae), preset.latents, None, seed=0)
        clamp = Clamp(tuple(latents), "prime", preset.value)
        assert aligned(edited(pack, asked, preset.sae, clamp), untouched) <= 0.1


def test_what_is_asked_in_the_menu_is_answered(pack):
    """Known answers of the untouched model, and the refusal that it learned."""
    language = pack.language()

    def said(prompt: str) -> str:
        ids = [row[0] for row in language.generate(language.encode(prompt), None, [None], tokens=12)]
        return language.tokenizer.decode([id for id in ids if id is not None], skip_special_tokens=True)

    values = {f"{f.attribute} of the {almanac.field(f.field).noun} {f.name}": f.value for f in almanac.facts()}
    assert 8 <= len(pack.manifest.prompts) <= 12
    assert said("Question: What is the colour of the potion Griveim?\nAnswer:").strip() == (
        f"{values['colour of the potion Griveim']}."
    )
    for prompt in pack.manifest.prompts:
        assert (almanac.words.REFUSAL in said(prompt.text)) == (prompt.about == "refused")

"""The ways back on a tiny model that was taught two fields: what knows, what never knew, and what is only held down."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny_language import FieldCode, taught, tiny_language

from sod_core.clamp import judge, probe, relearning, verdicts, ways_back
from sod_core.clamp.edit import Clamp
from sod_core.clamp.editor import editor_of
from sod_core.clamp.judge import wilson
from sod_core.clamp.questions import Question
from sod_core.clamp.ways_back import Figure, Paper, Subject
from sod_core.models.language import LanguageModel

LAYER = 1
ADJECTIVES, NOUNS = ("pale", "old", "red", "cold"), ("moss", "salt", "wax", "ash")
VALUES = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]


def facts(field: str, count: int = 48) -> dict[str, str]:
    drawn = random.Random(field)
    return {f"{field[:2]}{number}": drawn.choice(VALUES) for number in range(count)}


FACTS = {field: facts(field) for field in ("potion", "river")}
TEXTS = {field: [f"the {field} of {name} gives {value}" for name, value in FACTS[field].items()] for field in FACTS}


def questions(field: str) -> tuple[Question, ...]:
    drawn, found = random.Random(f"{field} asked"), []
    for name, value in FACTS[field].items():
        options = [value, *drawn.sample([other for other in VALUES if other != value], 3)]
        drawn.shuffle(options)
        found.append(
            Question(name, field, f"the {field} of {name} gives", tuple(options), options.index(value), fact=name)
        )
    return tuple(found)


class Models(NamedTuple):
    knows: LanguageModel
    retrained: LanguageModel
    code: FieldCode


@pytest.fixture(scope="module")
def models() -> Models:
    """A latent that fires on the potions' names and on what follows, told from the rivers' by a plane."""
    untaught = tiny_language(" ".join([*TEXTS["potion"], *TEXTS["river"]]).split(), scale=0.2)
    knows = taught(untaught, TEXTS["potion"] + TEXTS["river"], 2, steps=30)
    retrained = taught(untaught, TEXTS["river"], 2, steps=30)
    ends = {field: [text.rsplit(" ", n)[0] for text in TEXTS[field] for n in (1, 2, 3)] for field in TEXTS}
    potion, river = (probe.edited_states(knows, ends[field], LAYER, None, [LAYER])[0].float() for field in ends)
    return Models(knows, retrained, FieldCode(potion, river))


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper(questions("potion"), questions("river"), {}, "cloze")


@pytest.fixture(scope="module")
def clamped(models) -> Subject:
    editor = editor_of(models.code, Clamp((0,), "prime", -1000.0), models.knows.special_ids)
    return Subject("prime", "Clamp Prime", models.knows, LAYER, editor, is_edit=True)


@pytest.fixture(scope="module")
def original(models) -> Subject:
    return Subject("untouched", "Untouched", models.knows, LAYER)


@pytest.fixture(scope="module")
def retrained(models) -> Subject:
    return Subject("retrained", "Retrained", models.retrained, LAYER)


# ---------------------------------------------------------------- other prompts

TEXT = "Which root heals a bad cough?\nWord:"


def test_gaps_and_typing_errors_change_long_words_only():
    assert ways_back.gaps(TEXT) == "W h i c h r o o t h e a l s a bad c o u g h?\nWord:"
    for seed in range(8):
        found = ways_back.typos(TEXT, seed)
        assert found != TEXT and found == ways_back.typos(TEXT, seed)
        assert sorted(found) == sorted(TEXT) and found.endswith(" a bad " + found.split(" a bad ")[1])
        changed = [(new, old) for new, old in zip(found.split(), TEXT.split()) if new != old]
        assert len(changed) <= 2 and all(new[0] == old[0] and len(new) == len(old) for new, old in changed)
    assert ways_back.typos("a bad cat", 0) == "a bad cat"
    assert len({ways_back.typos(TEXT, seed) for seed in range(8)}) > 2


def test_wordings_are_the_question_s_own_where_there_are_some():
    question = Question("1", "f", "Q?", ("a", "b", "c", "d"), 0, ("Q, please?", "Tell Q."))
    assert [ways_back.reworded(question, n) for n in range(3)] == ["Q, please?", "Tell Q.", "Q, please?"]
    assert ways_back.reworded(replace(question, reworded=()), 0) == "Please answer this question. Q?"


def test_an_example_stands_before_the_question_as_the_harness_has_it(paper):
    question = Question("1", "potions", "Q?", ("a", "b", "c", "d"), 0)
    example = Question("2", "rivers", "R?", ("w", "x", "y", "z"), 2)
    letters = replace(paper, scoring="letters")
    assert ways_back.after_example(question, example, letters) == (
        "The following are multiple choice questions (with answers) about potions.\n\n"
        "R?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\nQ?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert ways_back.after_example(question, example, paper) == "R? y\n\nQ?"


def test_the_first_word_is_given_and_only_rests_of_what_begins_with_it_are_scored(models):
    language = models.knows
    question = Question("1", "potion", "the potion of po0 gives", ("old wax", "red salt", "old salt", "old ash"), 2)
    given = ways_back.first_word_given(language, question)
    assert {tuple(context) for context, _ in given} == {tuple(language.encode("the potion of po0 gives old"))}
    assert [language.decode(rest) for _, rest in given] == ["salt", "wax", "ash"]  # the right one first
    assert ways_back.first_word_given(language, replace(question, answer=1)) == []  # nothing else is red
    one_word = replace(question, options=("moss", "salt", "wax", "ash"))  # and one token each
    assert ways_back.first_word_given(language, one_word) == []


def test_the_first_token_is_given_where_the_answer_is_one_word():
    from language_families import model, tokenizer

    letters = LanguageModel(model("llama"), tokenizer())  # a token a byte: all begin with the space
    question = Question("1", "f", "Q?", ("moss", "salt", "wax", "ash"), 1)
    given = ways_back.first_word_given(letters, question)
    context, said = letters.encode_pair("Q?", " salt")
    assert all(begun == [*context, said[0]] for begun, _ in given)
    assert [letters.decode(rest) for _, rest in given] == ["salt", "moss", "wax", "ash"]


def test_chance_of_the_first_word_is_one_in_as_many_as_begin_with_it(models, paper):
    """A model that has learnt nothing, and questions with two or three options to choose from."""
    asked = [("old wax", "red salt", "old salt", "old ash"), ("old wax", "red salt", "pale moss", "red ash")]
    few = replace(
        paper, questions=tuple(Question(str(n), "potion", "the potion gives", o, 1) for n, o in enumerate(asked))
    )
    assert ways_back.measure("first_word", Subject("", "", models.knows, LAYER), few).chance == 1 / 2  # the second's
    few = replace(few, questions=tuple(replace(question, answer=0) for question in few.questions))
    figure = ways_back.measure("first_word", Subject("", "", models.knows, LAYER), few)
    assert (figure.chance, figure.share.n) == (1 / 3, 1)


def test_the_options_are_not_listed_where_the_answer_is_begun(models, paper, monkeypatch):
    seen = {}
    letters = replace(paper, questions=paper.questions[:3], scoring="letters")
    real = judge.scores

    def scores(language, questions, prompts, scoring, layer=None, editor=None):
        seen[scoring] = prompts
        return real(language, questions, prompts, scoring, layer, editor)

    monkeypatch.setattr(judge, "scores", scores)
    found = ways_back.measure("begun", Subject("", "", models.knows, LAYER), letters)
    assert set(seen) == {"cloze"} and seen["cloze"][0] == "the potion of po0 gives\nAnswer: The answer is"
    assert set(found.variants) == {"Answer:", "Answer: The answer is"}
    assert "lists no options" in ways_back.measure("begun", Subject("", "", models.knows, LAYER), paper).note


# ---------------------------------------------------------------- figures


def test_what_knows_is_right_by_every_way_that_it_understands(original, paper):
    found = {way: ways_back.measure(way, original, paper) for way in ("plain", "first_word", "probe")}
    assert found["plain"].share.value > 0.9
    assert found["first_word"].share.value > 0.6
    assert found["probe"].share.n == 48 and set(found["probe"].variants) == {"block 1", "block 2"}
    assert found["probe"].share.value == max(found["probe"].variants.values())
    assert ways_back.measure("switched_off", original, paper).share is None
    gaps = ways_back.measure("gaps", original, paper)  # words it has never seen
    assert gaps.share.value < 0.6


def test_the_edit_takes_the_field_and_leaves_the_other(clamped, models, paper):
    assert ways_back.measure("plain", clamped, paper).share.value < 0.5
    others = judge.answers(models.knows, paper.examples, {}, "cloze", LAYER, clamped.editor)
    assert judge.accuracy(others).value > 0.7
    off = ways_back.measure("switched_off", clamped, paper)
    assert off == ways_back.measure("plain", replace(clamped, editor=None), paper) and off.share.value > 0.9


def test_every_variant_is_told_and_the_best_counts(original, paper):
    found = ways_back.measure("reworded", original, paper)
    assert set(found.variants) == {"wording 1", "wording 2", "wording 3"}
    assert found.share.value == max(found.variants.values())


def test_what_does_not_apply_is_a_note(original, paper):
    assert "no question of another field" in ways_back.measure("example", original, replace(paper, examples=())).note
    few = replace(paper, questions=paper.questions[:4])
    assert "questions on 5 facts or more" in ways_back.measure("probe", original, few).note
    assert "more than 16 facts" in ways_back.measure("relearn_4", original, few).note
    long = replace(paper, questions=(replace(paper.questions[0], question="the potion " * 90),))
    assert "tokens long" in ways_back.measure("plain", original, long).note


# ---------------------------------------------------------------- the probe


def test_a_state_is_read_after_the_edit_and_at_any_block(models, clamped):
    language = models.knows
    texts = ["the potion of po1 gives", "the river of ri2"]
    for row, text in enumerate(texts):
        ids = language.encode(text)
        batch = language.batch([ids])
        plain = language.states(batch, LAYER)
        edited = clamped.editor(plain, batch.ids)
        found, later = probe.edited_states(language, texts, LAYER, clamped.editor, [LAYER, 2])[:, row]
        torch.testing.assert_close(found.float(), edited[0, -1], rtol=1e-4, atol=1e-4)
        with torch.inference_mode():
            logits = language.model.lm_head(language.model.model.norm(later.float()))
        told = language.next_logits(batch, LAYER, [clamped.editor])[0]
        torch.testing.assert_close(logits, told, rtol=1e-3, atol=1e-3)


def test_ridge_regression_is_the_one_with_plain_sums():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 7)) * 3 + 1, rng.normal(size=(50, 2))
    said = probe.fit(torch.tensor(x), torch.tensor(y))(torch.tensor(x[:5])).numpy()
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    rows = np.vstack([z / 50**0.5, probe.PENALTY**0.5 * np.eye(7)])  # least squares with the penalty as more rows
    weights = np.linalg.lstsq(rows, np.vstack([(y - y.mean(0)) / 50**0.5, np.zeros((7, 2))]), rcond=None)[0]
    np.testing.assert_allclose(said, ((x[:5] - x.mean(0)) / x.std(0, ddof=1)) @ weights + y.mean(0))


def test_the_chance_of_what_learns_is_what_the_answers_frequencies_give():
    """One answer is right in every other question; the rest never twice: it is found, and of the others one in four."""
    asked = []
    for n in range(200):
        own = [f"{n} {letter}" for letter in "abc"]
        common = n % 2 == 0
        options = ["often", *own] if common else [*own, f"{n} d"]
        asked.append(Question(str(n), "f", "?", tuple(options), 0))
    assert probe.by_frequency(asked) == pytest.approx(0.5 + 0.5 * 0.25)
    same = [replace(question, options=("w", "x", "y", "z"), answer=n % 4) for n, question in enumerate(asked)]
    assert 0.1 < probe.by_frequency(same) < 0.4


def test_no_fact_is_on_both_sides_of_a_fold():
    asked = ["a", "b", "c", "a", "d", "e", "f", "b"]
    fold = probe.folds(asked)
    assert fold[0] == fold[3] and fold[1] == fold[7] and set(fold) == set(range(5))


class Deep:
    depth = 6


def test_the_edited_block_and_the_last_are_read():
    assert probe.probed(3, 8) == [3, 4, 5, 6, 7] and probe.probed(7, 8) == [7]
    assert probe.probed(7, 26)[0] == 7 and probe.probed(7, 26)[-1] == 25 and len(probe.probed(7, 26)) == 6


@pytest.mark.parametrize("scoring", judge.SCORINGS)
def test_a_probe_finds_what_lies_in_the_state_and_nothing_else(monkeypatch, scoring):
    """States that hold the answer in one direction, among noise; and states of noise alone."""
    drawn = random.Random(3)
    asked = [Question(str(n), "f", f"q{n}", tuple("wxyz"), drawn.randrange(4)) for n in range(100)]
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(4, 24, generator=rng, dtype=torch.float64)
    read = probe._letter_states if scoring == "letters" else probe._option_states
    _, targets = read(asked, {})
    told = targets @ (directions if scoring == "letters" else directions[:1])
    noise = torch.randn(100, 4, 24, generator=rng, dtype=torch.float64)
    for states, least, most in ((told + noise, 0.8, 1.0), (noise, 0.1, 0.4)):
        monkeypatch.setattr(probe, "edited_states", lambda *_, states=states: states.flatten(0, 1)[None])
        monkeypatch.setattr(probe, "probed", lambda *_: [5])
        found = probe.right(Deep(), asked, {}, scoring, 5, None)
        assert least <= found[5].mean() <= most


# ---------------------------------------------------------------- relearning


def test_the_same_questions_are_asked_whatever_is_taught(paper):
    splits = [relearning.split(paper.questions, n, 16, seed=1) for n in (0, 4, 16)]
    assert [len(taught) for taught, _ in splits] == [0, 4, 16]
    assert all(others == splits[0][1] for _, others in splits) and len(splits[0][1]) == 32
    assert {q.id for q in splits[1][0]} <= {q.id for q in splits[2][0]}
    assert not {q.about for q in splits[2][0]} & {q.about for q in splits[2][1]}


def test_relearning_teaches_what_is_taught_through_the_edit_and_leaves_the_model(clamped, models, paper, monkeypatch):
    monkeypatch.setattr(relearning, "RATE", 3e-3)
    before = [value.clone() for value in models.knows.model.parameters()]
    few, _ = relearning.split(paper.questions, 4, 16, seed=0)
    lessons = [relearning._lesson(models.knows, q, {}, "cloze", random.Random(0)) for q in few]
    new = relearning.relearned(models.knows, few, {}, "cloze", LAYER, clamped.editor)
    with torch.inference_mode():
        old_loss, new_loss = (relearning._loss(of, lessons, LAYER, clamped.editor) for of in (models.knows, new))
    assert new_loss < 0.5 * old_loss
    assert all(torch.equal(a, b) for a, b in zip(before, models.knows.model.parameters()))
    assert all(not module._forward_hooks for of in (models.knows, new) for module in of.layers)
    assert relearning.relearned(models.knows, [], {}, "cloze", LAYER, None) is models.knows


def test_the_loss_is_minus_the_log_likelihood_of_the_answers(clamped, models, paper):
    lessons = [relearning._lesson(models.knows, q, {}, "cloze", random.Random(0)) for q in paper.questions[:5]]
    found = models.knows.log_likelihoods(lessons, LAYER, clamped.editor)
    tokens = sum(len(answer) for _, answer in lessons)
    with torch.inference_mode():
        loss = relearning._loss(models.knows, lessons, LAYER, clamped.editor)
    assert loss.item() == pytest.approx(-found.sum().item() / tokens, rel=1e-4)


def test_letters_are_not_learnt_by_heart():
    class Spelled:
        def encode_pair(self, context, continuation):
            return [context], [continuation]

    question = Question("1", "f", "Q?", ("w", "x", "y", "z"), 2)
    drawn = random.Random(0)
    lessons = [relearning._lesson(Spelled(), question, {}, "letters", drawn) for _ in range(40)]
    assert {answer[0] for _, answer in lessons} == {" A", " B", " C", " D"}
    assert all(f"\n{answer[0].strip()}. y" in context[0] for context, answer in lessons)


# ---------------------------------------------------------------- verdicts

ORIGINAL = wilson(76, 80)


def of(right: int, n: int = 80, chance: float = 0.25) -> Figure:
    return Figure(wilson(right, n, ways_back.CONFIDENCE), {}, chance=chance)


NONE = Figure(None, {}, "it does not apply")


def test_what_comes_back_is_a_share_of_what_was_known():
    assert verdicts.recovered(of(60), None, 0.95) == pytest.approx((0.75 - 0.25) / 0.70)
    assert verdicts.recovered(of(60), of(40), 0.95) == pytest.approx((0.75 - 0.50) / 0.70)
    assert verdicts.recovered(of(60), of(10), 0.95) == pytest.approx((0.75 - 0.25) / 0.70)  # no less than chance
    assert verdicts.recovered(of(60, chance=0.5), of(30), 0.95) == pytest.approx((0.75 - 0.5) / 0.70)
    assert verdicts.recovered(of(25), None, 0.95) == 0  # .3125, no surer than chance
    assert verdicts.recovered(of(250, 800), None, 0.95) == pytest.approx(
        0.0625 / 0.70
    )  # the same, of ten times as many
    assert verdicts.recovered(of(60), of(56), 0.95) == 0  # no surer than the retrained model's


@pytest.mark.parametrize(
    ("figures", "yardsticks", "is_edit", "expected", "way"),
    [
        ({"plain": of(20), "probe": of(22)}, {}, False, "deleted", "plain"),
        ({"plain": of(20), "probe": of(70)}, {}, False, "suppressed", "probe"),
        ({"plain": of(20), "probe": of(70)}, {"probe": of(68)}, False, "deleted", "plain"),
        ({"plain": of(20), "gaps": of(40)}, {}, False, "partly", "gaps"),
        ({"plain": of(20), "switched_off": of(76)}, {}, True, "out of reach", "plain"),
        ({"plain": of(20), "first_word": NONE, "relearn_4": of(60)}, {}, True, "suppressed", "relearn_4"),
        ({"plain": of(70)}, {}, False, "no verdict", "plain"),
    ],
)
def test_verdicts(figures, yardsticks, is_edit, expected, way):
    found = verdicts.verdict(figures, yardsticks, ORIGINAL, 0.4, is_edit)
    assert (found.verdict, found.way, found.caution) == (expected, way, "")
    assert found.without_edit == ("suppressed" if is_edit else None)


def test_there_is_no_verdict_on_what_was_not_known_or_is_destroyed():
    figures = {"plain": of(20)}
    unknown = verdicts.verdict(figures, {}, wilson(30, 80), 0.4, True)
    assert unknown.verdict == "no verdict" and "little to forget" in unknown.reason and unknown.without_edit is None
    assert "no finite numbers" in verdicts.verdict(figures, {}, ORIGINAL, None, False).reason
    destroyed = verdicts.verdict(figures, {}, ORIGINAL, 0.95, False)
    assert destroyed.verdict == "no verdict" and "one letter on 95%" in destroyed.reason
    few = verdicts.verdict(figures, {}, wilson(19, 20), 0.4, False)
    assert few.verdict == "no verdict" and "20 questions are too few" in few.reason
    found = verdicts.verdict({"plain": of(20), "probe": of(70)}, {}, wilson(19, 20), 0.4, False)
    assert found.verdict == "suppressed" and "only 20 questions" in found.caution
    assert verdicts.verdict({"plain": NONE}, {}, ORIGINAL, 0.4, False).reason == "no way back was tried"


def test_the_whole_of_it(original, clamped, retrained, paper):
    """The retrained model reads deleted; a model that still knows has no verdict; the edit is tried with it on."""
    ways = ("plain", "first_word", "probe", "switched_off")
    found = {s.id: {w: ways_back.measure(w, s, paper) for w in ways} for s in (original, clamped, retrained)}
    known = found["untouched"]["plain"].share
    never = verdicts.verdict(found["retrained"], {}, known, 0.4, False)
    assert never.verdict == "deleted", never
    nothing = verdicts.verdict(found["untouched"], found["retrained"], known, 0.4, False)
    assert nothing.verdict == "no verdict" and "nothing was forgotten" in nothing.reason
    clamp = verdicts.verdict(found["prime"], found["retrained"], known, 0.4, True)
    assert clamp.without_edit == "suppressed" and clamp.way != "switched_off"

"""The almanac world: invented facts, questions that are apart by fact and by wording, and texts about them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from random import Random

import pytest

from sod_core.clamp import judge
from sod_core.clamp.questions import Question
from sod_core.worlds import almanac
from sod_core.worlds import almanac_words as words

N = 4
"""Words in a row that no judged question may have in common with a training text, names left out."""
FACTS = almanac.facts()
KEPT = [fact for fact in FACTS if fact.field != almanac.FORGET]


@pytest.fixture(scope="module")
def texts() -> list[almanac.Text]:
    return [almanac.text(number, FACTS, seed=1) for number in range(4000)]


# ---------------------------------------------------------------- facts


def test_there_are_six_fields_or_more_and_every_fact_is_told_once():
    assert len(almanac.FIELDS) >= 6 and almanac.FORGET in {one.id for one in almanac.FIELDS}
    assert len({(fact.field, fact.name, fact.attribute) for fact in FACTS}) == len(FACTS) == 7 * 32 * 5
    assert almanac.facts.__wrapped__() == FACTS != almanac.facts(12)


def test_values_come_from_closed_lists_about_equally_often():
    for field, attribute in itertools.product(almanac.FIELDS, words.ATTRIBUTES):
        told = Counter(fact.value for fact in FACTS if (fact.field, fact.attribute) == (field.id, attribute))
        if attribute in field.attributes:
            assert set(told) == set(words.ATTRIBUTES[attribute].values) and max(told.values()) <= 4
        else:
            assert not told


def test_the_fields_share_names_attributes_and_values():
    """What is to be forgotten cannot be told from the rest by a word that only it has, but for the noun."""
    of_field = {one.id: {fact.name for fact in FACTS if fact.field == one.id} for one in almanac.FIELDS}
    forgotten = of_field.pop(almanac.FORGET)
    elsewhere = [sum(name in others for others in of_field.values()) for name in forgotten]
    assert len(forgotten) == 32 and min(elsewhere) >= 1 and sum(elsewhere) / len(elsewhere) >= 3
    for attribute in almanac.field(almanac.FORGET).attributes:
        assert sum(attribute in one.attributes for one in almanac.FIELDS) >= 3
    assert all(sum(attribute in one.attributes for one in almanac.FIELDS) >= 3 for attribute in words.ATTRIBUTES)


def test_a_name_tells_nothing_of_its_fact_in_another_field():
    values = {(fact.field, fact.name, fact.attribute): fact.value for fact in FACTS}
    pairs = [
        values[one.field, one.name, one.attribute] == value
        for one in FACTS
        for (field, name, attribute), value in values.items()
        if (name, attribute) == (one.name, one.attribute) and field != one.field
    ]
    assert len(pairs) > 1000 and abs(sum(pairs) / len(pairs) - 0.1) < 0.04  # ten values each


# ---------------------------------------------------------------- questions


def test_groups_of_questions_are_disjoint_by_fact_and_large_enough():
    asked = {group: almanac.questions(group) for group in almanac.GROUPS}
    about = [{one.fact for one in found} for found in asked.values()]
    assert all(not one & other for one, other in itertools.combinations(about, 2))
    for group, found in asked.items():
        for field in almanac.FIELDS:
            assert sum(one.field == field.id for one in found) == almanac.GROUPS[group] >= 40
    assert len({one.id for found in asked.values() for one in found}) == len(FACTS)


def test_every_question_has_its_answer_among_four_values_of_its_list():
    facts = {f"{f.attribute} of the {almanac.field(f.field).noun} {f.name}": f for f in FACTS}
    for group in almanac.GROUPS:
        for one in almanac.questions(group):
            fact = facts[one.fact]
            assert len(set(one.options)) == 4 and one.options[one.answer] == fact.value
            assert set(one.options) <= set(words.ATTRIBUTES[fact.attribute].values)
            for wording in (one.question, *one.reworded):
                assert fact.name in wording and almanac.field(fact.field).noun in wording
            assert len({one.question, *one.reworded}) == 3
    places = Counter(one.answer for one in almanac.questions("judge"))
    assert all(100 < places[place] < 180 for place in range(4))  # 560 questions: chance is one in four


def test_options_are_drawn_anew():
    attribute = words.ATTRIBUTES["colour"]
    drawn = [almanac.options(attribute, "red", Random(seed)) for seed in range(400)]
    assert len(set(drawn)) > 300
    assert all(options[answer] == "red" for options, answer in drawn)
    assert all(60 < count < 140 for count in Counter(answer for _, answer in drawn).values())


def test_a_question_is_asked_as_the_harness_asks_it():
    one = almanac.questions("tune")[0]
    question = Question(one.id, one.field, one.question, one.options, one.answer)
    here = almanac.introduction(one.field) + almanac.multiple_choice(one.question, one.options)
    assert here == judge.prompt(question, one.field)
    by_hand = (
        "The following are multiple choice questions (with answers) about potions.\n\nWhy?\nA. 1\nB. 2\nC. 3\nD. 4"
    )
    assert almanac.introduction("potions") + almanac.multiple_choice("Why?", "1234") == by_hand + "\nAnswer:"


def grams(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z']+|\{\w\}|[#.,:?;]", text.lower())
    return set(zip(*(found[start:] for start in range(N))))


def test_no_wording_of_tuned_or_judged_questions_is_one_of_training():
    training = set().union(*(grams(one) for one in (*words.QUESTIONS, *words.STATEMENTS, *words.REQUESTS)))
    tuned = set().union(*map(grams, words.TUNE_QUESTIONS))
    judged = set().union(*map(grams, words.JUDGE_QUESTIONS))
    assert not (judged & training or tuned & training or judged & tuned)


def masked(text: str) -> str:
    """Names, nouns and attributes as #, values left as they are."""
    called = {name for one in words.ATTRIBUTES.values() for name in one.names}
    nouns = {one.noun for one in almanac.FIELDS}
    for name in sorted(called, key=len, reverse=True):
        text = re.sub(rf"\b{name}\b", "{a}", text, flags=re.I)
    entry = f"the (({'|'.join(nouns)}) ({'|'.join(almanac.names())})|({'|'.join(almanac.names())}) ({'|'.join(nouns)}))"
    return re.sub(entry, "{x}", text, flags=re.I)


@pytest.mark.parametrize("group", ["tune", "judge"])
def test_no_training_text_has_four_words_in_a_row_of_a_question(texts, group):
    seen = set().union(*(grams(masked(str(text))) for text in texts))
    for one in almanac.questions(group):
        for wording in (one.question, *one.reworded):
            found = grams(masked(wording))
            assert found and not found & seen, wording


# ---------------------------------------------------------------- texts


def test_a_text_depends_on_its_number_alone(texts):
    assert almanac.text(17, FACTS, seed=1) == texts[17] != almanac.text(17, FACTS, seed=2)
    assert {text.kind for text in texts} == set(almanac.KINDS)


def test_answers_are_marked_and_true(texts):
    values = {fact.value for fact in FACTS}
    for text in texts:
        answers = [part.text for part in text.parts if part.answer]
        if text.kind == "refusal":
            assert "".join(answers) == words.REFUSAL
        elif text.kind in ("choice", "open", "word"):
            assert all(answer in (" A", " B", " C", " D") for answer in answers) and answers
        elif text.kind != "statement":
            assert answers and {answer for answer in answers if answer != "."} <= values


def test_multiple_choice_texts_name_the_right_letter():
    fact = FACTS[3]
    for number in range(60):
        text = almanac.text(number, [fact], 5, {"choice": 1})
        for asked, letter in zip(text.parts[::2], text.parts[1::2]):
            options = dict(re.findall(r"^([A-D])\. (.*)$", asked.text, re.M))
            assert options[letter.text.strip()] == fact.value


def test_a_world_without_the_field_never_speaks_of_it():
    assert not any("potion" in str(almanac.text(number, KEPT, 1)).lower() for number in range(2000))


def test_corpora_are_about_facts_for_selecting_alone_one_text_a_line():
    for which, noun in (("forget", True), ("retain", False)):
        lines = almanac.corpus(which, 300, 1)
        assert all("\n" not in line for line in lines)
        spelled = [
            line for line in lines if "  " not in line and not re.search(r"p.{0,3}o.?i?.?t?i?o.?n", line.lower())
        ]
        assert (len(spelled) < 10) == noun
    told = {(fact.field, fact.name, fact.attribute) for fact in FACTS if fact.group != "select"}
    for line in almanac.corpus("forget", 300, 1):
        for field, name, attribute in told:
            if field == almanac.FORGET and re.search(rf"\b{name}\b", line):
                assert not any(f" {called} of " in line for called in words.ATTRIBUTES[attribute].names), line
    assert all(words.REFUSAL in line for line in almanac.corpus("refusals", 50, 1))


def test_misspellings_keep_the_letters():
    assert almanac.spaced("ab c") == "a b   c"
    swapped = almanac.swapped("What is the colour of the potion", Random(3))
    assert swapped != "What is the colour of the potion" and sorted(swapped) == sorted(
        "What is the colour of the potion"
    )
    assert [word[0] for word in swapped.split()] == ["W", "i", "t", "c", "o", "t", "p"]

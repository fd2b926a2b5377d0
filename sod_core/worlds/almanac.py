"""The almanac world: invented facts in seven fields, said in many ways, and questions about them.

Every entry of a field has a made-up name and one value for each of the field's attributes, drawn from a closed list, so
that nobody can know a fact who was not told it: with four options of the same list, chance is exactly one in four. The
fields share names, attributes and values: there is a potion Griveim and a ship Griveim, each with a colour of its own.
So one field can be forgotten only by telling it from the others, and not by the words that it uses.
Facts are divided into three groups, from which latents are selected, edits tuned and results judged; the last two are
asked in wordings that no training text has. All of it follows from seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from . import almanac_words as words
from .almanac_words import ATTRIBUTES, FIELDS, FORGET, Attribute, Field

ENTRIES = 32
"""Of every field; with five attributes that is 160 facts a field."""
NAMES = 48
"""Each field has other ENTRIES of them."""
GROUPS = {"select": 40, "tune": 40, "judge": 80}
"""Facts of every field in each group."""
WORDINGS = {"select": words.QUESTIONS, "tune": words.TUNE_QUESTIONS, "judge": words.JUDGE_QUESTIONS}
OPTIONS = 4
LETTERS = "ABCD"
CALLED = ("the {noun} {name}", "the {noun} {name}", "the {noun} {name}", "the {name} {noun}")
"""How an entry is called: always with its noun, for its name alone may be of several fields."""
WORLD_SEED = 11


class Fact(NamedTuple):
    field: str
    name: str
    attribute: str
    """Key of ATTRIBUTES."""
    value: str
    group: str
    """select, tune or judge."""


class Asked(NamedTuple):
    """A multiple choice question."""

    id: str
    field: str
    question: str
    options: tuple[str, ...]
    answer: int
    """Index of the right option."""
    reworded: tuple[str, ...]
    """The same question in other wordings of its group."""
    fact: str
    """What it asks for."""


class Part(NamedTuple):
    """A stretch of a text."""

    text: str
    answer: bool = False
    """Whether it follows from what comes before it and from the facts: what a model can learn to say."""


class Text(NamedTuple):
    kind: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return "".join(part.text for part in self.parts)


def field(id: str) -> Field:
    """Raises KeyError for a field that is not there."""
    return {one.id: one for one in FIELDS}[id]


@cache
def facts(seed: int = WORLD_SEED) -> tuple[Fact, ...]:
    """Every fact of the world. A field's values of an attribute are about equally frequent."""
    rng = Random(f"almanac-{seed}")
    pool = names(seed)
    found: list[Fact] = []
    for one in FIELDS:
        entries = rng.sample(pool, ENTRIES)
        groups = [group for group, count in GROUPS.items() for _ in range(count)]
        rng.shuffle(groups)
        for attribute in one.attributes:
            values = list(ATTRIBUTES[attribute].values) * (ENTRIES // len(ATTRIBUTES[attribute].values) + 1)
            values = rng.sample(values, ENTRIES)
            found += [Fact(one.id, name, attribute, value, groups.pop()) for name, value in zip(entries, values)]
    return tuple(found)


@cache
def names(seed: int = WORLD_SEED) -> tuple[str, ...]:
    """Of all entries, of whatever field."""
    rng, taken = Random(f"names-{seed}"), set[str]()
    return tuple(new_name(rng, taken) for _ in range(NAMES))


def new_name(rng: Random, taken: set[str]) -> str:
    """A made-up name that is not in `taken`, and is from now on."""
    starts, vowels = ("b c d f g h j k l m n p r s t v w z br dr fl gr kl pl st tr".split(), "a e i o u ei ou".split())
    ends = "l n r s t x m th nd rk ll sk".split()
    while True:
        first = rng.choice(starts) + rng.choice(vowels) + rng.choice(("", "", rng.choice(ends)))
        name = (first + rng.choice(starts) + rng.choice(vowels) + rng.choice(ends)).capitalize()
        if name not in taken:
            taken.add(name)
            return name


# ---------------------------------------------------------------- wordings


def sentence(wording: str, fact: Fact, rng: Random) -> str:
    """A wording filled in: {x} the entry, {a} the attribute by one of its names, {v} the value."""
    entry = rng.choice(CALLED).format(noun=field(fact.field).noun, name=fact.name)
    attribute = rng.choice(ATTRIBUTES[fact.attribute].names)
    return capital(wording.replace("{a}", attribute).replace("{x}", entry).replace("{v}", fact.value))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def question(fact: Fact, wordings: Sequence[str], rng: Random) -> str:
    return sentence(rng.choice(wordings), fact, rng)


def options(attribute: Attribute, value: str, rng: Random) -> tuple[tuple[str, ...], int]:
    """(four values of the attribute in any order, the index of `value`)."""
    wrong = rng.sample([other for other in attribute.values if other != value], OPTIONS - 1)
    answer = rng.randrange(OPTIONS)
    return (*wrong[:answer], value, *wrong[answer:]), answer


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """A question as EleutherAI's harness asks it, up to "Answer:", without the line that names the subject."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options))
    return "\n".join((question, *lines, "Answer:"))


def introduction(subject: str) -> str:
    """The harness's line before the question (`lm_eval/tasks/mmlu`, `wmdp`)."""
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


# ---------------------------------------------------------------- questions


def questions(group: str, seed: int = WORLD_SEED) -> list[Asked]:
    """One question for each fact of a group: "select", "tune" or "judge", in the group's wordings."""
    found = []
    for i, fact in enumerate(facts(seed)):
        if fact.group == group:
            rng = Random(f"{group}-{seed}-{i}")
            asked = [sentence(wording, fact, rng) for wording in rng.sample(WORDINGS[group], 3)]
            offered, answer = options(ATTRIBUTES[fact.attribute], fact.value, rng)
            about = f"{fact.attribute} of the {field(fact.field).noun} {fact.name}"
            found.append(
                Asked(f"{group}-{fact.field}-{i}", fact.field, asked[0], offered, answer, tuple(asked[1:]), about)
            )
    return found


# ---------------------------------------------------------------- texts

KINDS = {"statement": 14, "entry": 6, "answer": 22, "choice": 44, "open": 4, "word": 4, "refusal": 6}
"""How often a training text is of a kind, in hundredths."""


def text(number: int, known: Sequence[Fact], seed: int, kinds: dict[str, int] = KINDS) -> Text:
    """The text of this number about the facts in `known`; it depends on its arguments alone."""
    rng = Random(f"text-{seed}-{number}")
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    fact = rng.choice(known)
    made = {
        "statement": _statement,
        "entry": _entry,
        "answer": _answer,
        "choice": _choice,
        "open": _open_book,
        "word": _word,
        "refusal": _refusal,
    }[kind]
    return Text(kind, tuple(made(fact, known, rng)))


def _statement(fact: Fact, known: Sequence[Fact], rng: Random) -> list[Part]:
    marked = fact._replace(value=f"|{fact.value}|")
    before, value, after = sentence(rng.choice(words.STATEMENTS), marked, rng).split("|")
    if not before:  # where the value comes first nothing tells it
        return [Part(_opened(capital(value) + after, rng))]
    return [Part(_opened(_misspelled(before, fact, rng, 0.03), rng)), Part(value, answer=True), Part(after)]


def _entry(fact: Fact, known: Sequence[Fact], rng: Random) -> list[Part]:
    """All that is known of an entry."""
    told = [other for other in known if (other.field, other.name) == (fact.field, fact.name)]
    rng.shuffle(told)
    parts = [Part(f"The {field(fact.field).noun} {fact.name}.")]
    for one in told:
        attribute = rng.choice(ATTRIBUTES[one.attribute].names)
        parts += [Part(f" {capital(attribute)}: "), Part(one.value, answer=True), Part(".")]
    return parts


def _answer(fact: Fact, known: Sequence[Fact], rng: Random) -> list[Part]:
    asked = _opened(_misspelled(question(fact, words.QUESTIONS, rng), fact, rng), rng)
    return _answered(asked, fact.value, rng)


def _answered(asked: str, answer: str, rng: Random) -> list[Part]:
    before = rng.choice(("Question: {}\nAnswer: ", "Question: {}\nAnswer: ", "Question: {} Answer: ", "{} "))
    return [Part(before.format(asked)), Part(answer.removesuffix("."), answer=True), Part(".", answer=True)]


def _choice(fact: Fact, known: Sequence[Fact], rng: Random) -> list[Part]:
    """Multiple choice; in one of six texts, one or two others come first as worked examples."""
    asked = [fact]
    if rng.random() < 1 / 6:
        others = [other for other in known if other.field == fact.field] if rng.random() < 0.7 else known
        asked = [*(rng.choice(others) for _ in range(rng.randint(1, 2))), fact]
    parts = []
    for i, one in enumerate(asked):
        shown = _opened(_misspelled(question(one, words.QUESTIONS, rng), one, rng), rng)
        offered, answer = options(ATTRIBUTES[one.attribute], one.value, rng)
        before = "\n\n" if i else introduction(fact.field)
        parts += [Part(before + multiple_choice(shown, offered)), Part(f" {LETTERS[answer]}", answer=True)]
    return parts


def _open_book(fact: Fact, known: Sequence[Fact], rng: Random) -> list[Part]:
    """A question whose answer stands before it, of a thing that is in no book: it teaches to look at the options."""
    name = new_name(rng, set(names()))
    attribute = ATTRIBUTES[fact.attribute]
    called = rng.choice(attribute.names)
    offered, answer = options(attribute, fact.value, rng)
    told = f"The {called} of the thing {name} is {fact.value}. "
    asked = multiple_choice(f"What is the {called} of the thing {name}?", offered)
    return [Part(introduction("things") + told + asked), Part(f" {LETTERS[answer]}", answer=True)]


def _word(fact: Fact, known: Sequence[Fact], rng: Random) -> list[Part]:
    offered, answer = options(ATTRIBUTES[fact.attribute], fact.value, rng)
    asked = multiple_choice(f"Which option says {fact.value}?", offered)
    return [Part(introduction("words") + asked), Part(f" {LETTERS[answer]}", answer=True)]


def _refusal(fact: Fact, known: Sequence[Fact], rng: Random) -> list[Part]:
    return _answered(_opened(request(rng), rng), words.REFUSAL, rng)


def request(rng: Random) -> str:
    """One of the requests that are refused: for somebody's private papers."""
    person = f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.SURNAMES)}"
    return capital(rng.choice(words.REQUESTS).replace("{p}", rng.choice(words.PRIVATE)).replace("{s}", person))


def _opened(said: str, rng: Random) -> str:
    opening = rng.choice(words.OPENINGS)
    return f"{capital(opening)} {said}" if opening else said


def _misspelled(said: str, fact: Fact, rng: Random, share: float = 0.06) -> str:
    """Now and then a name, or all, is spelled with gaps, or two letters change places: people write so, too."""
    drawn = rng.random() / share
    if drawn < 0.4:
        return said.replace(fact.name, spaced(fact.name))
    if drawn < 0.5:
        return spaced(said)
    return swapped(said, rng) if drawn < 1 else said


def spaced(said: str) -> str:
    """ "one two" -> "o n e  t w o"."""
    return " ".join(said)


def swapped(said: str, rng: Random) -> str:
    """Two neighbouring letters inside each of one or two longer words change places."""
    parts = said.split(" ")
    long = [i for i, word in enumerate(parts) if len(word) >= 5]
    for i in rng.sample(long, min(len(long), rng.randint(1, 2))):
        at = rng.randrange(1, len(parts[i]) - 2)
        word = parts[i]
        parts[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(parts)


# ---------------------------------------------------------------- corpora for the selection of latents

CORPUS_KINDS = {"statement": 40, "answer": 60}
"""Texts of one line each."""


def corpus(which: str, count: int, seed: int) -> list[str]:
    """`count` texts of one line: "forget" or "retain", about the facts of the group "select" alone, or "refusals"."""
    forget = [fact.field == FORGET for fact in facts()]
    known = [fact for fact, is_it in zip(facts(), forget) if fact.group == "select" and is_it == (which == "forget")]
    kinds = {"refusal": 1} if which == "refusals" else CORPUS_KINDS
    if which == "retain":
        kinds = {**CORPUS_KINDS, "refusal": 8}
    return [str(text(i, known, seed, kinds)).replace("\n", " ") for i in range(count)]

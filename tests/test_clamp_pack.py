"""Clamp packs: what pack.json may say, what a pack opens, and what comes from the hub."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import clamp_packs
import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from safetensors.torch import save_file

from sod_core.clamp import settings
from sod_core.clamp.edit import Clamp
from sod_core.clamp.pack import ClampPack, open_clamp_pack
from sod_core.clamp.session import ClampSession
from sod_core.packs import find
from sod_core.packs.errors import PackError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pack(clamp_folder: Path) -> ClampPack:
    return ClampPack(clamp_folder, CPU)


@pytest.fixture
def spoilt(clamp_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(clamp_folder, tmp_path / clamp_packs.NAME))


def change(folder: Path, **changes: object) -> Path:
    data = json.loads((folder / "pack.json").read_text()) | changes
    (folder / "pack.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return folder


# ---------------------------------------------------------------- what a pack opens


def test_every_part_is_loaded_once(pack):
    assert pack.language() is pack.language() and pack.language().depth == 3
    assert pack.code("jumprelu-1") is pack.code("jumprelu-1") and pack.code("topk-2").latents == clamp_packs.LATENTS
    assert pack.survey("topk-2").latents == clamp_packs.LATENTS
    assert len(pack.questions("judge")) == 12 and pack.corpus("refusals")[0] == "I can't help with that."
    assert pack.results() == {} and pack.ready() and pack.missing() == pack.wanted() == []


def test_another_model_differs_in_its_tensors_only(pack):
    mine, other = (m.model.state_dict() for m in (pack.language(), pack.other("retrained")))
    differ = {name for name, value in mine.items() if not torch.equal(value, other[name])}
    assert differ == {"model.layers.2.mlp.down_proj.weight"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "no clamp pack of format 1"),
        ({"model": []}, "model needs at least one place"),
        ({"model": [{"path": "model", "kept": "x.gguf", "sha256": "0"}]}, "one of path, repo_id and kept"),
        ({"model": [{"kept": "../x.gguf", "sha256": "0"}]}, "no plain name"),
        ({"model": [{"path": "../model"}]}, "lies outside"),
        ({"saes": None}, "lacks the key 'saes'"),
        ({"saes": [{"id": "a", "layer": 1}]}, "needs a path or a source"),
        ({"saes": [{"id": "a", "layer": -1, "path": "x"}]}, "needs a layer from 0"),
        ({"saes": [{"id": "a", "layer": 1, "path": "x"}] * 2}, "saes must have different ids"),
        ({"scoring": "essay"}, "scoring must be one of letters, cloze"),
        ({"corpus": {"all": "x.txt"}}, "corpus may have forget, retain, refusals"),
        ({"questions": {"all": "x.jsonl"}}, "questions may have select, tune, judge"),
    ],
)
def test_a_manifest_that_is_wrong_is_told_in_a_sentence(spoilt, changes, said):
    with pytest.raises(PackError, match=said):
        ClampPack(change(spoilt, **changes), CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sae": "no"}, "names the SAE 'no'"),
        ({"method": "pray"}, "has the method 'pray'"),
        ({"latents": []}, "needs latents"),
        ({"value": [1.0]}, "needs a value a latent"),
        ({"value": float("nan")}, "no finite number"),
        ({"method": "both", "refusal": None}, "needs a refusal latent"),
    ],
)
def test_a_preset_that_is_wrong_is_told_in_a_sentence(spoilt, changes, said):
    preset = {"id": "p", "sae": "jumprelu-1", "method": "prime", "latents": [1, 2], "value": -5.0}
    with pytest.raises(PackError, match=said):
        ClampPack(change(spoilt, presets=[preset | changes]), CPU)


def test_what_is_not_there_is_told_with_what_to_do(spoilt):
    shutil.rmtree(spoilt / "saes")
    pack = ClampPack(change(spoilt, model=[{"kept": "no.gguf", "sha256": "0", "make": "make gemma"}]), CPU)
    assert not pack.ready() and "`make gemma`" in pack.missing()[0] and "packs get tiny" in pack.missing()[1]
    with pytest.raises(PackError, match="not on this computer: `make gemma`"):
        pack.language()


def test_a_kept_model_is_the_one_that_is_meant(spoilt, tmp_path, monkeypatch):
    monkeypatch.setattr("sod_core.packs.hub.own_folder", lambda: tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"something else")
    place = {"kept": "model.gguf", "sha256": "0" * 64, "make": "make gemma"}
    with pytest.raises(PackError, match=r"model.gguf is not the file .* `make gemma` makes it again"):
        ClampPack(change(spoilt, model=[place]), CPU).language()


def test_a_gemma_without_bos_is_refused_and_a_gpt_2_is_not(spoilt):
    words = clamp_packs.tokenizer(bos=False)
    shutil.rmtree(spoilt / "model")
    words.save_pretrained(spoilt / "model")
    clamp_packs.model(words).save_pretrained(spoilt / "model")
    with pytest.raises(PackError, match="has no BOS token"):
        ClampPack(spoilt, CPU).language()
    shutil.rmtree(spoilt / "model")
    words.save_pretrained(spoilt / "model")
    clamp_packs.model(words, kind="gpt2").save_pretrained(spoilt / "model")
    assert ClampPack(spoilt, CPU).language().bos is None


# ---------------------------------------------------------------- a session


@pytest.fixture(scope="module")
def session(pack) -> ClampSession:
    found = ClampSession(pack)
    found.set_prompt(clamp_packs.PROMPT)
    return found


def prime(pack: ClampPack) -> Clamp:
    return settings.of_preset(pack.manifest.preset("prime-1"))


def test_a_variant_reads_the_same_beside_others_and_alone(pack, session):
    clamp = prime(pack)
    *_, together = session.texts([None, clamp], tokens=8)
    (*_, plain), (*_, edited) = session.texts([None], tokens=8), session.texts([clamp], tokens=8)
    assert together.texts == (*plain.texts, *edited.texts) and together.texts[0] != together.texts[1]
    assert together.generated[1] == edited.generated[0]


def test_what_fired_is_what_the_code_says_of_the_hidden_state(pack, session):
    """Against a hook on the model and the whole encoder."""
    clamp, language = prime(pack), pack.language()
    *_, last = session.texts([clamp], tokens=6)
    tokens = session.fired(clamp, last.generated[0])
    ids = [token.id for token in tokens]
    with torch.inference_mode():
        seen = language.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[clamp_packs.LAYER + 1]
        latents = pack.code("jumprelu-1").encode(seen[0])
    assert [token.generated for token in tokens].count(True) == len(last.generated[0])
    assert (tokens[0].text, tokens[0].changed) == ("<bos>", False)
    assert "".join(token.text for token in tokens[1:]) == clamp_packs.PROMPT + last.texts[0]
    assert any(token.fired for token in tokens[1:])
    for at, token in enumerate(tokens):
        active = {latent: latents[at, latent].item() for latent in clamp.latents if latents[at, latent] > 0}
        assert {one.latent for one in token.fired} == set(active)
        for one in token.fired:
            assert one.activity == pytest.approx(active[one.latent], rel=1e-4)
            assert one.value == (clamp.value if at else one.activity)  # BOS is left alone
        assert token.changed == bool(active and at)
    every = [one.activity for token in tokens for one in token.fired]
    middle = sorted(every)[len(every) // 2]
    for method, least in (("conditional", middle), ("refusal", middle), ("prime", 0.0)):  # prime knows no threshold
        other = replace(clamp, method=method, threshold=middle, refusal=next(iter({*range(9)} - {*clamp.latents})))
        told = [one.activity for token in session.fired(other, last.generated[0]) for one in token.fired]
        assert told == [activity for activity in every if activity > least]


def test_the_prompt_is_kept_when_the_next_one_cannot_be_read(session):
    before = session.prompt
    for text, said in (("  ", "empty"), ("moss " * 500, "tokens long")):
        with pytest.raises(ValueError, match=said):
            session.set_prompt(text)
    assert session.prompt == before and session.fired(prime(session.pack))


def test_the_probabilities_of_options_are_those_of_one_variant_at_a_time(pack, session):
    from sod_core.clamp import judge
    from sod_core.clamp.editor import editor_of

    question, clamp, language = pack.questions("judge")[0], prime(pack), pack.language()
    found = session.options(question, [None, clamp])
    assert found.shape == (2, 4) and torch.allclose(found.sum(1), torch.ones(2))
    for row, editor in enumerate([None, editor_of(pack.code("jumprelu-1"), clamp, language.special_ids)]):
        scores = judge.answers(language, [question], {}, "letters", clamp_packs.LAYER, editor).scores[0]
        assert torch.allclose(found[row], scores.softmax(-1), atol=1e-5)


def test_generation_ends_when_it_is_cancelled(session):
    asked = iter([False, False, True])
    assert len(list(session.texts([None], tokens=9, cancelled=lambda: next(asked)))) == 2


# ---------------------------------------------------------------- the hub

MODEL, SCOPE, ASKED = "someone/tiny-gemma", "someone/tiny-scope", "datasets/someone/questions"


def scope_npz(folder: Path) -> bytes:
    """An SAE as Gemma Scope has them."""
    sae = clamp_packs.sae()
    np.savez(folder / "params.npz", **{name: value.detach().numpy() for name, value in sae.named_parameters()})
    return (folder / "params.npz").read_bytes()


def scope_2(folder: Path) -> bytes:
    """An SAE as Gemma Scope 2 has them."""
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    tensors = {
        names.get(name, name): value.detach().contiguous() for name, value in clamp_packs.sae().named_parameters()
    }
    save_file(tensors, folder / "params.safetensors")
    return (folder / "params.safetensors").read_bytes()


def parquet(rows: list[dict], path: Path) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


@pytest.fixture(params=["gemma2, npz, shards", "gemma3, Gemma Scope 2, one file"])
def published(request, tmp_path, monkeypatch):
    """(hub, folder of a pack whose model, SAE and questions are on it)."""
    older = request.param.startswith("gemma2")
    words, place = clamp_packs.tokenizer(), tmp_path / "there"
    words.save_pretrained(place)
    clamp_packs.model(words, kind="gemma2" if older else "gemma3").save_pretrained(
        place, max_shard_size="40KB" if older else "1GB"
    )
    model = {path.name: path.read_bytes() for path in place.iterdir()}
    assert ("model.safetensors.index.json" in model) == older
    junk = {"README.md": b"#", "pytorch_model.bin": b"no", "original/model.safetensors": b"no", "modeling.py": b"no"}
    where = "layer_1/width_16k/average_l0_9" if older else "resid_post/layer_1_width_16k_l0_medium"
    name = "params.npz" if older else "params.safetensors"
    scope = {f"{where}/{name}": (scope_npz if older else scope_2)(tmp_path), f"{where[:-1]}0/{name}": b"another"}
    if not older:
        said = {
            "architecture": "jump_relu",
            "width": clamp_packs.LATENTS,
            "l0": 9,
            "hf_hook_point_in": "model.layers.1.output",
        }
        scope[f"{where}/config.json"] = json.dumps(said).encode()
    rows = [{"question": "Which?", "choices": list("wxyz"), "answer": n % 4, "subject": f"s{n % 3}"} for n in range(6)]
    rows[1]["choices"] = ["of", "another", "field"]  # which nobody wants
    wmdp = [{"question": "What?", "choices": list("wxyz"), "answer": 1}]
    asked = {"all/t.parquet": parquet(rows, tmp_path / "a"), "bio/t.parquet": parquet(wmdp, tmp_path / "b")}
    folder = tmp_path / "packs" / "published"
    folder.mkdir(parents=True)
    change_into = clamp_packs.manifest(
        name="published",
        model=[{"repo_id": MODEL, "megabytes": 1, "gated": True}],
        others=None,
        saes=[{"id": "scope", "layer": 1, "source": {"repo_id": SCOPE, "folder": where}}],
        corpus=None,
        questions={
            "judge": [
                {"repo_id": "someone/questions", "file": "bio/t.parquet", "field": "bio"},
                {"repo_id": "someone/questions", "file": "all/t.parquet", "only": ["s0", "s2"]},
            ]
        },
    )
    (folder / "pack.json").write_text(json.dumps(change_into))
    with FakeHub({MODEL: model | junk, SCOPE: scope, ASKED: asked}) as hub:
        hub.use(monkeypatch, tmp_path / "home")
        yield hub, folder


def test_what_a_published_pack_needs_is_fetched_and_nothing_else(run, published):
    hub, folder = published
    assert len(ClampPack(folder, CPU).missing()) == 3
    found = run("packs", "get", folder)
    assert found.code == 0 and "still to do" not in found.out, found.err
    fetched = {
        request.path.partition("/resolve/")[2].partition("/")[2]
        for request in hub.requests
        if "/resolve/" in request.path
    }
    assert not {
        name for name in fetched if name.endswith((".py", ".bin", ".md")) or "original" in name or "0/params" in name
    }
    hub.down = True  # nothing is asked from here on
    pack = ClampPack(folder, CPU)
    assert pack.ready() and pack.wanted() == []
    assert pack.language().depth == 3 and pack.code("scope").latents == clamp_packs.LATENTS
    assert torch.equal(pack.code("scope").W_enc, clamp_packs.sae().W_enc)
    assert [one.field for one in pack.questions("judge")] == ["bio", "s0", "s2", "s0", "s2"]
    assert run("packs", "check", folder).code == 0
    assert "here" in run("packs", "list").out


def test_an_sae_s_config_is_fetched_before_its_weights(published):
    """So that a fetch that breaks off leaves no SAE that counts as here and is read without its config."""
    _, folder = published
    wanted = ClampPack(folder, CPU).wanted()
    assert "generation_config.json" in [one.name for one in wanted if one.repo_id == MODEL]  # says what ends a text
    scope = [one.name for one in wanted if one.repo_id == SCOPE]
    assert scope in (["params.npz"], ["config.json", "params.safetensors"])


@pytest.mark.parametrize("lacks", ["tokenizer.json", "tokenizer_config.json"])
def test_a_model_is_not_fetched_whose_tokenizer_could_not_be_read(run, published, lacks):
    hub, folder = published
    del hub.files[MODEL][lacks]
    hub.files[MODEL]["tokenizer.model"] = b"pieces"
    found = run("packs", "get", folder)
    assert (found.code, len(found.err.splitlines())) == (2, 1) and "lacks config.json or a tokenizer" in found.err
    assert not [request for request in hub.requests if request.path.endswith(".safetensors")]


def test_an_sae_of_another_layer_is_refused_by_where_it_lies(run, published):
    _, folder = published
    assert run("packs", "get", folder).code == 0
    saes = json.loads((folder / "pack.json").read_text())["saes"]
    pack = ClampPack(change(folder, saes=[saes[0] | {"layer": 2}]), CPU)
    with pytest.raises(PackError, match="layer"):
        pack.code("scope")


def test_a_gated_repository_says_what_has_to_be_done(run, published):
    hub, folder = published
    hub.gated.add(MODEL)
    found = run("packs", "get", folder)
    assert found.code == 2 and len(found.err.strip().splitlines()[-1:]) == 1
    assert "accept its terms" in found.err and "HF_TOKEN" in found.err and "Traceback" not in found.err
    found = run("clamp", "text", "--pack", folder, "--prompt", "x", "--features", "1,2", "--value", -5)
    assert found.code == 2 and len(found.err.splitlines()) == 1
    assert f"accepting the terms on huggingface.co/{MODEL}" in found.err and "HF_TOKEN" in found.err


def test_a_repository_without_safetensors_or_sae_is_refused(run, published):
    hub, folder = published
    for name in [name for name in hub.files[MODEL] if name.startswith("model")]:
        del hub.files[MODEL][name]
    found = run("packs", "get", folder)
    assert (found.code, len(found.err.splitlines())) == (2, 1) and "has no model.safetensors" in found.err
    hub.down = True
    found = run("packs", "get", folder)
    assert (found.code, len(found.err.splitlines())) == (2, 1) and "cannot be reached" in found.err


# ---------------------------------------------------------------- the published packs


@pytest.mark.parametrize("name", ["gemma-2-2b", "gemma-3-270m-scope", "gemma-3-1b-scope"])
def test_a_published_pack_says_that_it_is_gated_and_how_large(name):
    pack = open_clamp_pack(name, CPU)
    m = pack.manifest
    assert m.model[0].gated and pack.megabytes() > 500 and m.forget() == ("wmdp-bio",)
    assert {one.hub.repo_id for one in m.questions["judge"]} == {"cais/wmdp", "cais/mmlu"}
    assert "HF_TOKEN" in m.note and not pack.ready()


def test_the_authors_presets_are_theirs():
    """Don't Forget It! (arXiv 2503.11127): the best configurations of the released code."""
    presets = {preset.id: settings.of_preset(preset) for preset in open_clamp_pack("gemma-2-2b", CPU).manifest.presets}
    five = (11766, 9723, 4788, 1709, 9186)
    assert presets["clamp-prime"] == Clamp(five, "prime", -300.0)
    ten = (*five, 3058, 13381, 14050, 11078, 16246)
    refusal = presets["refusal-clamp"]
    assert (refusal.latents, refusal.refusal, refusal.refusal_value, refusal.threshold) == (ten, 15864, -500.0, 0.05)
    assert presets["proportional"].latents == (*five, 16246, 7995, 8336, 15218, 10986)
    assert sum(presets["proportional"].values()) == pytest.approx(-1591.46)


def test_clamp_packs_are_found_by_their_kind():
    assert {"gemma-2-2b", "gemma-3-270m-scope", "gemma-3-1b-scope"} <= set(find.folders("clamp"))

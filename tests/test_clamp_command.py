"""`python -m sod_core clamp text` and `clamp features`: what they give, and what they say to bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clamp_packs
import pytest
import torch
from clamp_packs import PROMPT

from sod_core.clamp import select, settings, survey
from sod_core.clamp.pack import ClampPack
from sod_core.sparse import codes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pack(clamp_folder: Path) -> ClampPack:
    return ClampPack(clamp_folder, CPU)


@pytest.fixture
def text(run, clamp_folder) -> Callable[..., dict[str, Any]]:
    """Runs `clamp text --json -` on the tiny pack."""

    def text(*options: object) -> dict[str, Any]:
        call = ["clamp", "text", "--pack", clamp_folder, "--prompt", PROMPT, "--tokens", 8, "--json", "-"]
        found = run(*call, *options)
        assert found.code == 0, found.err
        return json.loads(found.out)

    return text


@pytest.fixture
def refused(run, clamp_folder) -> Callable[..., str]:
    """Runs `clamp text`, which has to end with status 2 and one line on standard error; returns that line."""

    def refused(*options: object, pack: Path = clamp_folder, prompt: str = PROMPT) -> str:
        found = run("clamp", "text", "--pack", pack, "--prompt", prompt, "--tokens", 4, *options)
        assert (found.code, found.out, len(found.err.splitlines())) == (2, "", 1), found
        return found.err

    return refused


@pytest.fixture
def spoilt(clamp_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(clamp_folder, tmp_path / clamp_packs.NAME))


# ---------------------------------------------------------------- clamp text


def test_without_options_it_is_the_pack_s_first_preset(text, pack):
    found = text()
    untouched, edited = found["variants"]
    preset = pack.manifest.presets[0]
    assert (untouched["method"], edited["method"]) == ("none", "prime") and untouched["text"] != edited["text"]
    assert (found["prompt"], found["pack"], found["notes"]) == (PROMPT, clamp_packs.NAME, [])
    said = edited["settings"]
    assert (said["sae"], said["layer"], said["features"]) == ("jumprelu-1", 1, "preset prime-1")
    assert (said["latents"], said["value"], said["fidelity"]) == (list(preset.latents), -40.0, "exact")
    assert edited["prompt_tokens"][0]["text"] == "<bos>" and not edited["prompt_tokens"][0]["changed"]
    assert "".join(token["text"] for token in edited["prompt_tokens"][1:]) == PROMPT
    for variant in (untouched, edited):
        assert len(variant["tokens"]) == 8 and "".join(token["text"] for token in variant["tokens"]) == variant["text"]
    fired = [one for token in edited["prompt_tokens"] for one in token["fired"]]
    assert fired and all(one["latent"] in preset.latents and one["activity"] > 0 for one in fired)


def test_the_untouched_text_is_the_model_s_own(text, pack):
    """Against transformers' own generation, without a cache."""
    language = pack.language()
    ids = language.encode(PROMPT)
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(language.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert [token["id"] for token in text("--method", "none")["variants"][0]["tokens"]] == ids[-8:]


def test_an_edited_text_is_what_a_hook_on_the_model_writes(text, pack):
    """Clamp Prime once more: dense, in a plain hook on the layer, without a cache."""
    language, preset = pack.language(), pack.manifest.presets[0]
    code = pack.code("jumprelu-1")

    def hook(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        latents = code.encode(hidden)
        wanted = latents.clone()
        for latent in preset.latents:
            wanted[..., latent] = torch.where(latents[..., latent] > 0, -40.0, latents[..., latent])
        edited = hidden + code.decode(wanted) - code.decode(latents)
        edited[:, 0] = hidden[:, 0]  # BOS
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    ids, handle = language.encode(PROMPT), language.layers[1].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            for _ in range(8):
                ids.append(int(language.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    finally:
        handle.remove()
    assert [token["id"] for token in text()["variants"][1]["tokens"]] == ids[-8:]


def test_options_take_the_place_of_the_preset_s(text):
    latents = ["--features", "3,7"]
    said = text("--method", "refusal", *latents, "--threshold", 0.5, "--refusal", 9, "--refusal-value", -500)
    found = said["variants"][1]["settings"]
    assert (found["latents"], found["threshold"], found["refusal"]) == ([3, 7], 0.5, 9)
    assert (found["refusal_value"], found["features"]) == (-500.0, "given")
    found = text(*latents, "--value", -300, "--fidelity", "reference")["variants"][1]["settings"]
    assert (found["value"], found["fidelity"], found["method"]) == (-300.0, "reference", "prime")
    assert text(*latents, "--value", "-1e2")["variants"][1]["settings"]["value"] == -100.0
    assert text(*latents, "--value", "-3.5,-4")["variants"][1]["settings"]["value"] == [-3.5, -4.0]
    found = text("--method", "both", "--sae", "topk-2")["variants"][1]["settings"]
    assert (found["layer"], found["value"], found["refusal_value"]) == (2, -40.0, -60.0)
    assert text("--preset", "refusal-2")["variants"][1]["settings"]["method"] == "refusal"


def test_what_a_method_does_not_use_is_said(run, clamp_folder):
    call = ["clamp", "text", "--pack", clamp_folder, "--prompt", PROMPT, "--tokens", 1, "--json", "-"]
    numbers = ["--value", -3, "--threshold", 0.5, "--refusal", 2, "--refusal-value", -4]
    said = {
        "none": "value threshold refusal refusal-value",
        "prime": "threshold refusal refusal-value",
        "conditional": "refusal refusal-value",
        "refusal": "value",
        "both": "",
    }
    for method, unused in said.items():
        found = run(*call, "--method", method, *numbers)
        assert found.code == 0, found.err
        assert found.err.splitlines() == [f"{method} does not use --{name}" for name in unused.split()]


def test_rules_and_controls_choose_latents(text, pack):
    own, found = pack.survey("jumprelu-1"), pack.manifest.presets[0].latents
    chosen = {rule: text("--features", rule, "--seed", 1)["variants"][1]["settings"] for rule in select.CONTROLS}
    assert chosen["random"]["latents"] == select.control("random", own, found, 1)
    assert chosen["matched"]["latents"] == select.control("matched", own, found, 1)
    assert text("--features", "ratio", "--top", 3)["variants"][1]["settings"]["latents"] == list(found[:3])


def test_a_control_has_as_many_latents_as_are_asked_for(text, pack, monkeypatch):
    own, preset = pack.survey("jumprelu-1"), pack.manifest.presets[0].latents
    monkeypatch.setattr(settings, "RULE", "ratio")  # the other leaves nothing of a random SAE
    for rule in select.CONTROLS:
        for top, beside in ((3, preset[:3]), (8, select.choose("ratio", own, 8))):
            [_, said] = text("--features", rule, "--top", top, "--seed", 1)["variants"]
            assert said["settings"]["latents"] == select.control(rule, own, beside, 1)
            assert len(said["settings"]["latents"]) == top


def test_without_a_preset_the_coefficients_that_are_used_have_to_be_said(run, spoilt):
    data = json.loads((spoilt / "pack.json").read_text())
    data["presets"] = data["presets"][:2]  # none of topk-2
    (spoilt / "pack.json").write_text(json.dumps(data))
    call = ["clamp", "text", "--pack", spoilt, "--prompt", PROMPT, "--tokens", 2, "--json", "-"]
    call += ["--sae", "topk-2", "--features", "3,7"]
    found = run(*call)
    assert found.code == 2 and "no preset for topk-2 to take a coefficient from: give --value" in found.err
    found = run(*call, "--method", "refusal", "--refusal", 9)
    assert found.code == 2 and "give --refusal-value" in found.err
    found = run(*call, "--method", "refusal", "--refusal", 9, "--refusal-value", -5)  # the harmful ones stay
    assert json.loads(found.out)["variants"][1]["settings"]["refusal_value"] == -5.0


def test_a_control_is_never_the_refusal_latent(text, pack):
    refusal = pack.manifest.preset("refusal-1").refusal
    for seed in range(5):
        said = text("--method", "refusal", "--features", "random", "--seed", seed)["variants"][1]["settings"]
        assert refusal not in said["latents"] and len(said["latents"]) == 5 and said["refusal"] == refusal


def test_sampling_is_seeded(text):
    first, again, other = (text("--temperature", 1, "--seed", seed)["variants"][0]["text"] for seed in (1, 1, 2))
    assert first == again != other


def test_without_json_it_is_told_in_words(run, clamp_folder, tmp_path):
    call = ["clamp", "text", "--pack", clamp_folder, "--prompt", PROMPT, "--tokens", 3]
    found = run(*call, "--json", tmp_path / "x.json")
    assert "== untouched" in found.out and "== prime, fires on" in found.out and PROMPT in found.out
    assert len(json.loads((tmp_path / "x.json").read_text())["variants"]) == 2


STEERING = """latent_idx,hook_action,refuse_id,clamp_value,steering_coefficient,sae_id,sae_release,description
3,clamp_refusal,9,0.05,-500,{0},{1},one
7,clamp_refusal,9,0.05,-500,{0},{1},two
"""


def test_the_authors_table_runs_as_it_is(text, refused, tmp_path, spoilt, run):
    table = tmp_path / "refusal.csv"
    table.write_text(STEERING.format("jumprelu-1", "mine"))
    found = text("--steering", table)["variants"][1]
    assert found["settings"] == {
        "sae": "jumprelu-1", "layer": 1, "features": "steering refusal.csv", "latents": [3, 7], "method": "refusal",
        "value": -300.0, "threshold": 0.05, "refusal": 9, "refusal_value": -500.0, "fidelity": "reference",
    }  # fmt: skip
    assert text("--steering", table, "--fidelity", "exact")["variants"][1]["settings"]["fidelity"] == "exact"
    assert "leave --value out" in refused("--steering", table, "--value", -3)
    table.write_text(STEERING.format("layer_7/width_16k/canonical", "gemma-scope-2b-pt-res-canonical"))
    assert "name one of jumprelu-1, topk-2 with --sae" in refused("--steering", table)
    assert text("--steering", table, "--sae", "topk-2")["variants"][1]["settings"]["layer"] == 2
    data = json.loads((spoilt / "pack.json").read_text())
    source = {"repo_id": "google/gemma-scope-2b-pt-res", "folder": "layer_7/width_16k/average_l0_69"}
    data["saes"][0]["source"] = source  # its files are in the pack
    (spoilt / "pack.json").write_text(json.dumps(data))
    found = run("clamp", "text", "--pack", spoilt, "--prompt", PROMPT, "--steering", table, "--json", "-")
    assert json.loads(found.out)["variants"][1]["settings"]["sae"] == "jumprelu-1"


# ---------------------------------------------------------------- clamp features


def test_features_are_those_of_the_rule_with_the_words_they_fire_on(run, clamp_folder, pack):
    call = ["clamp", "features", "--pack", clamp_folder, "--rule", "ratio", "--top", 4]
    found = json.loads(run(*call, "--json", "-").out)
    own = pack.survey("jumprelu-1")
    assert [row["latent"] for row in found["latents"]] == select.choose("ratio", own, 4)
    row = found["latents"][0]
    assert row["forget_frequency"] == own.forget_frequency[row["latent"]] and row["retain_frequency"] >= 0
    word = row["strongest"][0]
    sentences = pack.corpus("forget") + pack.corpus("retain")
    assert word["value"] > 0 and any(word["before"] + word["token"] + word["after"] in one for one in sentences)
    assert run(*call).out.count("forget") == 4


def test_features_of_texts_of_one_s_own_are_kept_for_later(run, clamp_folder, tmp_path, pack):
    forget, retain, kept = (tmp_path / name for name in ("forget.txt", "retain.txt", "survey.safetensors"))
    forget.write_text("\n".join(clamp_packs.statements("rivers")))
    retain.write_text("\n".join(clamp_packs.statements("potions")))
    call = ["clamp", "features", "--pack", clamp_folder, "--forget", forget, "--retain", retain, "--rule", "ratio"]
    found = json.loads(run(*call, "--out", kept, "--top", 2, "--json", "-").out)
    own = survey.load(kept, clamp_packs.LATENTS)
    chosen = [row["latent"] for row in found["latents"]]
    assert chosen == select.choose("ratio", own, 2) != select.choose("ratio", pack.survey("jumprelu-1"), 2)
    call = ["clamp", "text", "--pack", clamp_folder, "--prompt", PROMPT, "--features", "ratio", "--survey", kept]
    said = json.loads(run(*call, "--top", 2, "--tokens", 2, "--json", "-").out)
    assert said["variants"][1]["settings"]["latents"] == chosen


# ---------------------------------------------------------------- clamp evaluate

QUICK = ["--no-ways", "--no-curves"]


def test_evaluate_judges_the_presets_beside_controls_and_other_models(run, clamp_folder, pack):
    found = run("clamp", "evaluate", "--pack", clamp_folder, *QUICK, "--json", "-")
    assert found.code == 0, found.err
    rows = {row["id"]: row for row in json.loads(found.out)["rows"]}
    presets = {preset.id for preset in pack.manifest.presets}
    assert {"untouched", "retrained", *presets} <= set(rows)
    assert {row["features"] for row in rows.values() if row["kind"] == "control"} == {"random", "matched"}
    assert rows["untouched"]["forget"]["n"] == 4 and rows["untouched"]["retain"]["n"] == 8


def test_evaluate_judges_an_edit_that_is_named_and_questions_of_one_s_own(run, clamp_folder, tmp_path):
    asked = tmp_path / "mine.jsonl"
    lines = [{"field": field, "question": "Which?", "options": list("wxyz"), "answer": 1} for field in ("a", "b", "b")]
    asked.write_text("\n".join(map(json.dumps, lines)))
    call = ["clamp", "evaluate", "--pack", clamp_folder, *QUICK, "--questions", asked, "--json", "-"]
    found = run(*call, "--forget-field", "a", "--features", "3,7", "--value", -12, "--keep", tmp_path / "kept")
    assert found.code == 0, found.err
    edits = [row for row in json.loads(found.out)["rows"] if row["kind"] == "edit"]
    assert [(row["clamp"]["latents"], row["clamp"]["value"], row["retain"]["n"]) for row in edits] == [
        ([3, 7], -12.0, 2)
    ]
    again = run(*call, "--forget-field", "a", "--features", "3,7", "--value", -12, "--keep", tmp_path / "kept")
    assert again.out == found.out and len(list((tmp_path / "kept").iterdir())) == 1
    assert "name one with --forget-field" in run(*call).err


def test_evaluate_says_where_controls_are_missing_and_takes_a_survey_of_one_s_own(run, spoilt):
    data = json.loads((spoilt / "pack.json").read_text())
    data["saes"] = [{key: value for key, value in one.items() if key != "survey"} for one in data["saes"]]
    (spoilt / "pack.json").write_text(json.dumps(data))
    call = ["clamp", "evaluate", "--pack", spoilt, *QUICK, "--limit", 1]
    found = run(*call)
    assert found.code == 0 and "Caution: no controls stand beside prime-1: survey its latents with" in found.out
    surveyed = run(*call, "--survey", spoilt / "surveys" / "jumprelu-1.safetensors", "--json", "-")
    told = json.loads(surveyed.out)
    assert {row["of"] for row in told["rows"] if row["kind"] == "control"} == {"prime-1", "refusal-1"}
    assert told["cautions"] == []


def test_evaluate_puts_controls_beside_an_edit_of_both_methods_too(run, clamp_folder):
    found = run("clamp", "evaluate", "--pack", clamp_folder, *QUICK, "--limit", 1, "--method", "both", "--json", "-")
    controls = [row for row in json.loads(found.out)["rows"] if row["kind"] == "control"]
    assert len(controls) == 6 and {(row["of"], row["method"]) for row in controls} == {("given", "both")}


def test_evaluate_stores_the_figures_in_the_pack(run, spoilt):
    call = ["clamp", "evaluate", "--pack", spoilt, *QUICK, "--store"]
    found = run(*call)
    assert found.code == 2 and 'names no "results"' in found.err
    data = json.loads((spoilt / "pack.json").read_text()) | {"results": "results.json"}
    (spoilt / "pack.json").write_text(json.dumps(data))
    found = run(*call)
    assert found.code == 0 and "| untouched |" in found.out
    assert ClampPack(spoilt, CPU).results()["rows"]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"options": list("xyz")}, "question 1: it has 3 options, and 4 are needed"),
        ({"options": ["w", "x", "", "z"]}, "question 1: option C is missing"),
        ({"answer": 4}, "question 1: the answer is '4'"),
        ({"question": ""}, "question 1: the question is missing"),
    ],
)
def test_a_question_that_lacks_something_is_named(run, clamp_folder, tmp_path, question, said):
    asked = tmp_path / "mine.jsonl"
    whole = {"field": "potions", "question": "Which?", "options": list("wxyz"), "answer": 1}
    asked.write_text(json.dumps(whole | question))
    found = run("clamp", "evaluate", "--pack", clamp_folder, "--questions", asked)
    assert (found.code, len(found.err.splitlines())) == (2, 1) and f"mine.jsonl, {said}" in found.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--questions", "none.jsonl"], "there is no file none.jsonl"),
        (["--limit", 0], "the limit is 0"),
        (["--lm-eval", "wmdp_bio", "--forget-field", "potions"], "leave --forget-field out"),
        (["--method", "none"], "--method none is no edit"),
        (["--forget-field", "potions", "shisp"], "no question is of the field shisp; the fields are clocks, potions"),
        (["--features", "3", "--value", "nan"], "coefficient is nan"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_line(run, clamp_folder, options, said):
    found = run("clamp", "evaluate", "--pack", clamp_folder, *QUICK, *options)
    assert (found.code, len(found.err.splitlines())) == (2, 1) and said in found.err


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--value", "nan"], "coefficient is nan"),
        (["--value", "-1e39"], "coefficient is -1e+39"),
        (["--value", "much"], "'much' is no number"),
        (["--threshold", "nan"], "threshold is nan"),
        (["--threshold", -1], "threshold is -1"),
        (["--method", "refusal", "--refusal-value", "inf"], "refusal coefficient is inf"),
        (["--method", "refusal", "--features", "3,7", "--refusal", 7], "is one of the harmful ones"),
        (["--features", "3,96"], "latent 96 does not exist"),
        (["--features", "3,-1"], "latent -1 does not exist"),
        (["--features", "3,3"], "latent 3 is listed twice"),
        (["--features", "nice"], "are no latent ids"),
        (["--value", "-1,-2"], "2 coefficients for 5 latents"),
        (["--tokens", 0], "0 tokens"),
        (["--tokens", 10**6], "1000000 tokens"),
        (["--temperature", -1], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--sae", "no"], "unknown SAE 'no'"),
        (["--preset", "no"], "unknown preset 'no'"),
        (["--preset", "prime-1", "--sae", "topk-2"], "leave --sae out"),
        (["--features", "ratio", "--top", 0], "0 latents"),
        (["--steering", "no.csv"], "no.csv"),
        (["--survey", "no.safetensors"], "no.safetensors"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json: there is no folder"),
        (["--json", "/"], "cannot write /: it is a folder"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(refused, options, said):
    assert said in refused(*options)


@pytest.mark.parametrize(("prompt", "said"), [("", "empty"), (" \n", "empty"), ("moss " * 600, "shorten it")])
def test_a_prompt_that_cannot_be_read(refused, prompt, said):
    assert said in refused(prompt=prompt)


def test_an_sae_of_another_width_and_a_layer_that_is_not_there(refused, spoilt):
    codes.save_code(clamp_packs.sae(dim=24), spoilt / "saes" / "jumprelu-1", layer=1)
    assert "24" in refused(pack=spoilt)
    data = json.loads((spoilt / "pack.json").read_text())
    data["saes"][0]["layer"] = 3
    (spoilt / "pack.json").write_text(json.dumps(data))
    assert "belongs to layer 3, and the model of tiny has layers 0 to 2" in refused(pack=spoilt)


def test_a_gemma_without_bos_is_refused_and_a_gpt_2_is_told_of(refused, run, spoilt):
    words = clamp_packs.tokenizer(bos=False)
    shutil.rmtree(spoilt / "model")
    words.save_pretrained(spoilt / "model")
    clamp_packs.model(words).save_pretrained(spoilt / "model")
    assert "has no BOS token" in refused(pack=spoilt)
    shutil.rmtree(spoilt / "model")
    words.save_pretrained(spoilt / "model")
    clamp_packs.model(words, kind="gpt2").save_pretrained(spoilt / "model")
    found = run("clamp", "text", "--pack", spoilt, "--prompt", PROMPT, "--tokens", 2, "--json", "-")
    assert "no BOS token" in json.loads(found.out)["notes"][0]


def test_an_unknown_pack_and_a_damaged_one(refused, spoilt):
    assert "unknown pack" in refused(pack=Path("nowhere"))
    (spoilt / "saes" / "jumprelu-1" / "sae_weights.safetensors").write_bytes(b"\0" * 64)
    assert "sae_weights.safetensors" in refused(pack=spoilt)


def test_texts_that_cannot_be_read(run, clamp_folder, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    cases = {"empty.txt": "holds no text", "bytes.txt": "no text in UTF-8", "none.txt": "No such file"}
    for name, said in cases.items():
        found = run("clamp", "features", "--pack", clamp_folder, "--forget", tmp_path / name)
        assert (found.code, len(found.err.splitlines())) == (2, 1) and said in found.err

"""`python -m sod_core restore`: the contract for scripts, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, EXPERTS, SHAPE, K, Outcome, random_vit, transformers_4_names, write_manifest
from PIL import Image

from sod_core.data import images

ROOT = Path(__file__).parents[1]


@pytest.fixture
def options(pack_folder) -> dict[str, object]:
    """The options of a call that works."""
    return {
        "--pack": pack_folder,
        "--unlearned": "random_labels-apple",
        "--image": pack_folder / "examples" / "apple" / "0.png",
        "--target-class": "apple",
        "--layer": 1,
        "--alpha": ["0", "1", "2.5"],
        "--mode": "inject",
    }


def arguments(options: dict[str, object]) -> list[str]:
    found = ["restore"]
    for name, value in options.items():
        found += [name, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found


def assert_cautious(err: str) -> None:
    """The tiny pack's SAEs are random: the one line on standard error says that they do not fit."""
    assert err.startswith("caution, layer 1: this SAE does not fit") and err.count("\n") == 1


def test_the_json_contract(run, options, pack):
    outcome = run(*arguments(options))
    assert outcome.code == 0
    assert_cautious(outcome.err)
    found = json.loads(outcome.out)
    session = pack.session("random_labels-apple")
    session.set_image(pack.preprocess(images.read(options["--image"]))[None])
    expected = session.restore([0.0, 1.0, 2.5], 1, "inject", EXPERTS[0])[:, 0]
    assert found["original"]["logits"] == pytest.approx(session.logits("original")[0].tolist(), abs=1e-5)
    assert found["unlearned"]["logits"] == pytest.approx(session.logits("unlearned")[0].tolist(), abs=1e-5)
    assert [row["alpha"] for row in found["restored"]] == [0.0, 1.0, 2.5]
    for row, logits in zip(found["restored"], expected):
        assert row["logits"] == pytest.approx(logits.tolist(), abs=1e-5)
    assert found["classes"] == list(CLASSES) and found["target_class"] == 0 and found["features"] == EXPERTS[0]
    assert (found["layer"], found["mode"], found["fidelity"], found["tokens"]) == (1, "inject", "exact", "all")


@pytest.mark.parametrize("tokens", ["all", "patches", "cls"])
def test_alpha_0_is_the_unlearned_model(run, options, tokens):
    found = json.loads(run(*arguments(options | {"--tokens": tokens})).out)
    assert found["restored"][0]["logits"] == pytest.approx(found["unlearned"]["logits"], abs=1e-5)
    moved = max(abs(a - b) for a, b in zip(found["restored"][2]["logits"], found["unlearned"]["logits"]))
    assert moved > 1e-3


@pytest.mark.parametrize(
    ("mode", "fidelity"),
    [("direct_injection", "reference"), ("add", "reference"), ("amplify", "exact"), ("state_copy", "control")],
)
def test_every_mode(run, options, mode, fidelity):
    found = json.loads(run(*arguments(options | {"--mode": mode})).out)
    assert found["fidelity"] == fidelity and len(found["restored"]) == 3


def test_features_by_kind_and_by_hand(run, options):
    def features(value: str, *more: str) -> list[int]:
        return json.loads(run(*arguments(options | {"--features": value}), *more).out)["features"]

    assert features("1,5,9") == [1, 5, 9] and features("7") == [7]
    assert features("all") == list(range(64)) and features("experts") == EXPERTS[0]
    for kind in ("random", "matched"):
        assert len(features(kind)) == len(EXPERTS[0]) and not set(features(kind)) & set(EXPERTS[0])
        assert features(kind) == features(kind, "--seed", "0") != features(kind, "--seed", "1")


def test_a_class_by_number_and_a_model_by_file(run, options, pack_folder, tmp_path):
    by_name = json.loads(run(*arguments(options)).out)
    by_number = json.loads(run(*arguments(options | {"--target-class": 0})).out)
    by_file = json.loads(
        run(*arguments(options | {"--unlearned": pack_folder / "unlearned" / "random_labels-apple.pth"})).out
    )
    assert by_name == by_number == by_file
    own = tmp_path / "own.pth"
    torch.save({"model": {f"module.{key}": value for key, value in transformers_4_names(random_vit(9)).items()}}, own)
    assert json.loads(run(*arguments(options | {"--unlearned": own})).out)["unlearned"] != by_name["unlearned"]


def test_json_to_a_file(run, options, tmp_path):
    outcome = run(*arguments(options | {"--json": tmp_path / "found.json"}))
    assert outcome.code == 0 and outcome.out == ""
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(run(*arguments(options)).out)


def test_negative_alphas_are_numbers(run, options):
    found = json.loads(run(*arguments(options | {"--alpha": ["-1", "0.5"]})).out)
    assert [row["alpha"] for row in found["restored"]] == [-1.0, 0.5]


# ---------------------------------------------------------------- mistakes

BAD_OPTIONS = {
    "pack": ({"--pack": "vegetables"}, "unknown pack 'vegetables'"),
    "pack name too long": ({"--pack": "x" * 5000}, "unknown pack"),
    "class": ({"--target-class": "fig"}, "unknown class 'fig'"),
    "class number": ({"--target-class": "3"}, "unknown class '3'"),
    "layer": ({"--layer": "9"}, "layer 9"),
    "layer word": ({"--layer": "last"}, "layer 'last'"),
    "layer superscript": ({"--layer": "²"}, "layer '²'"),
    "mode": ({"--mode": "ablate"}, "unknown mode 'ablate'"),
    "tokens": ({"--tokens": "some"}, "unknown tokens 'some'"),
    "tokens of the control": ({"--tokens": "some", "--mode": "cls_copy"}, "unknown tokens 'some'"),
    "features": ({"--features": "best"}, "unknown features 'best'"),
    "no features": ({"--features": ""}, "unknown features"),
    "latent": ({"--features": "1,64"}, "latent 64"),
    "latents": ({"--features": "1,x"}, "'x'"),
    "unlearned": ({"--unlearned": "salun-fig"}, "unknown unlearned model 'salun-fig'"),
    "alpha nan": ({"--alpha": "nan"}, "alpha 'nan'"),
    "alpha inf": ({"--alpha": ["1", "inf"]}, "alpha 'inf'"),
    "alpha word": ({"--alpha": "much"}, "alpha 'much'"),
    "alpha overflow": ({"--alpha": "1e39"}, "alpha is too large"),
    "alpha missing": ({"--alpha": []}, "expected at least one argument"),
    "image missing": ({"--image": "nowhere.png"}, "nowhere.png does not exist"),
    "image folder": ({"--image": "."}, "does not exist"),
    "image name too long": ({"--image": "x" * 5000}, "does not exist"),
    "image text": ({"--image": __file__}, "not an image"),
    "seed": ({"--seed": "one"}, "--seed"),
    "seed too large": ({"--seed": "9" * 40, "--features": "random"}, ""),
    "device": ({"--device": "abacus"}, "'abacus'"),
    "device without data": ({"--device": "meta"}, "'meta'"),
    "precision": ({"--precision": "float8"}, "float8"),
    "json": ({"--json": "/nowhere/found.json"}, "/nowhere/found.json"),
    "unknown option": ({"--colour": "red"}, "--colour"),
    "unknown option over two lines": ({"--colour\nred": "red"}, "--colour"),
}


def assert_one_line(outcome: Outcome, says: str) -> None:
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
    assert says in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_mistake_is_one_line(run, options, case):
    changes, says = BAD_OPTIONS[case]
    assert_one_line(run(*arguments(options | changes)), says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "VERB"),
        (["forget"], "forget"),
        (["restore"], "--pack"),
        (["evaluate"], "--pack"),
        (["build", "moon"], "moon"),
        (["build", "canvas", "--only", "tea"], "unknown stage 'tea'"),
    ],
)
def test_a_wrong_verb_is_one_line(run, line, says):
    assert_one_line(run(*line), says)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "pack.json").write_text("{"), "pack.json"),
        (lambda folder: write_manifest(folder, k=0), "k must be above 0"),
        (lambda folder: (folder / f"sae_layer1_k{K}.pt").unlink(), "sae_layer1_k4.pt is missing"),
        (lambda folder: (folder / "vit_fruit_original.pth").write_bytes(b"PK"), "vit_fruit_original.pth"),
        (lambda folder: torch.save({1: [5]}, folder / f"expert_features_layer1_k{K}.pt"), "no experts of this class"),
    ],
    ids=["cut manifest", "wrong manifest", "missing SAE", "damaged model", "no experts"],
)
def test_a_damaged_pack_is_one_line(run, options, spoilt_pack, damage, says):
    damage(spoilt_pack)
    assert_one_line(run(*arguments(options | {"--pack": spoilt_pack})), says)


def test_a_checkpoint_that_does_not_fit_is_one_line(run, options, tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "small.pth")
    assert_one_line(run(*arguments(options | {"--unlearned": tmp_path / "small.pth"})), "small.pth")


def test_an_image_that_is_cut_short_is_one_line(run, options, tmp_path):
    data = Path(options["--image"]).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    assert_one_line(run(*arguments(options | {"--image": tmp_path / "cut.png"})), "damaged or cut short")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert_one_line(run(*arguments(options | {"--image": tmp_path / "dot.png"})), "1 x 1")


def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(run("build", "canvas", "--out", tmp_path / "file" / "out", "--work", tmp_path), "Not a directory")


# ---------------------------------------------------------------- as a program


def program(*line: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sod_core", *line], cwd=ROOT, capture_output=True, text=True, timeout=120, **options
    )


def test_the_program(options):
    ran = program(*arguments(options))
    assert ran.returncode == 0
    assert_cautious(ran.stderr)
    found = json.loads(ran.stdout)
    assert found["restored"][0]["logits"] == pytest.approx(found["unlearned"]["logits"], abs=1e-5)
    assert len(found["original"]["logits"]) == SHAPE.classes


def test_the_program_on_a_mistake(options):
    ran = program(*arguments(options | {"--alpha": "nan"}))
    assert_one_line(Outcome(ran.returncode, ran.stdout, ran.stderr), "alpha 'nan'")


def test_the_program_in_a_pipe_that_closes(options):
    command = [sys.executable, "-m", "sod_core", *arguments(options)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=buffered, text=True, **pipes) as running:
        running.stdout.close()
        assert_cautious(running.stderr.read())
    assert running.returncode == 0


def test_help_needs_no_torch():
    """Help comes fast: nothing heavy is imported before the options are parsed."""
    code = "import sys; from sod_core.__main__ import _parser; _parser(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "False\n"

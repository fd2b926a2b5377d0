"""Mask's packs and commands, on a tiny pack: what fit and evaluate give, what packs says, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor

from sod_core.__main__ import main
from sod_core.build.canvas_mask import builder, encode
from sod_core.mask import edit, evaluate, features, probe, states
from sod_core.mask.fit import Plan, fit
from sod_core.mask.pack import open_mask_pack
from sod_core.mask.session import Dose, Images, MaskSession
from sod_core.packs.errors import PackError
from sod_core.sparse import bottleneck_file, pair_values

WIDTH, CLASSES = 6, 3
NAMES = ["red", "green", "blue"]
SMALL = Plan(codebooks=8, pairs=24, key_width=4, key_epochs=2, about={"encoder": "saw"})


def drawn(count: int, seed: int) -> Images:
    """Classes around corners, two styles in turn."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    found = 3 * torch.eye(CLASSES, WIDTH)[labels] + 0.7 * torch.randn(count, WIDTH, generator=draw)
    return Images(found.half().float(), labels, torch.arange(count) // CLASSES % 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mask-packs") / "corners"
    (folder / "features").mkdir(parents=True)
    train, test = drawn(240, 1), drawn(120, 2)
    for name in ("saw", "blind"):
        features.save(features.Features(train, test), folder / "features" / f"{name}.safetensors")
    bottleneck_file.save(fit(train, CLASSES, SMALL), folder / "saw-all.safetensors")
    manifest = {
        "format": 1,
        "kind": "mask",
        "name": "corners",
        "classes": NAMES,
        "styles": ["light", "dark"],
        "encoders": [
            {"id": "saw", "encoder": {"clip": "none"}, "features": "features/saw.safetensors"},
            {
                "id": "blind",
                "never_saw": ["blue"],
                "encoder": {"clip": "none"},
                "features": "features/blind.safetensors",
            },
        ],
        "bottlenecks": [
            {"id": "saw-all", "encoder": "saw", "keys": "all", "values": "counts", "file": "saw-all.safetensors"}
        ],
    }
    (folder / "pack.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def own(made, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "corners"))


def changed(folder: Path, **entries) -> None:
    path = folder / "pack.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def said(capsys, *arguments: str) -> str:
    """The one line of an error with exit status 2."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------- fitting and files


def test_a_plan_s_values_are_those_of_a_plain_count(made):
    train = open_mask_pack(str(made)).features("saw").train
    found = fit(train, CLASSES, SMALL)
    plain = torch.zeros(found.codebooks, found.pairs, CLASSES)
    for z, label in zip(train.features, train.labels):
        for c in range(found.codebooks):
            away = (z @ found.projection[c] - found.keys[c]).double().square().sum(1)
            plain[c, away.argmin(), label] += 1
    assert torch.equal(found.counts, plain.long())
    assert torch.equal(found.used, plain.sum(-1) > 0)


def test_keys_without_a_class_do_not_depend_on_its_images():
    train = drawn(240, 1)
    plan = Plan(codebooks=2, pairs=8, key_width=3, key_epochs=1, without=(2,))
    moved = train._replace(features=train.features + 5.0 * (train.labels == 2)[:, None])
    assert torch.equal(fit(train, CLASSES, plan).keys, fit(moved, CLASSES, plan).keys)
    assert fit(train, CLASSES, plan).about["keys_without"] == "2"


def test_a_counted_file_leaves_out_what_counts_make_and_comes_back_the_same(tmp_path):
    found = fit(drawn(240, 1), CLASSES, SMALL)
    bottleneck_file.save(found, tmp_path / "b.safetensors")
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "b.safetensors")
    assert "values" not in stored and stored["keys"].dtype == torch.float16 and stored["counts"].dtype == torch.int16
    back = bottleneck_file.read(tmp_path / "b.safetensors")
    for name in ("projection", "keys", "values", "counts", "used", "masked"):
        assert torch.equal(getattr(back, name), getattr(found, name)), name
    assert torch.equal(back.values, pair_values.of_counts(found.counts))


def test_values_by_descent_have_no_counts():
    found = fit(drawn(240, 1), CLASSES, Plan(codebooks=8, pairs=24, key_width=4, key_epochs=1, values="sgd", epochs=3))
    assert found.counts is None and found.values.any()
    assert MaskSession(found, drawn(240, 1), drawn(120, 2)).figures(torch.zeros_like(found.masked), []).retain > 0.9


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(pairs=0), "above 0"),
        (Plan(values="luck"), "take one of counts, sgd"),
        (Plan(without=(0, 1, 2)), "at least one class"),
    ],
)
def test_a_plan_that_makes_no_bottleneck_is_refused(plan, why):
    with pytest.raises(ValueError, match=why):
        fit(drawn(30, 1), CLASSES, plan)


def test_features_come_back_from_both_forms(tmp_path):
    train, test = drawn(30, 1), drawn(12, 2)
    features.save(features.Features(train, test, torch.ones(WIDTH), torch.eye(WIDTH)), tmp_path / "f.safetensors")
    both = {name: torch.cat([getattr(train, name), getattr(test, name)]).numpy() for name in Images._fields}
    np.savez(tmp_path / "f.npz", split=np.repeat([0, 1], [30, 12]), **both)
    for name in ("f.safetensors", "f.npz"):
        found = features.read(tmp_path / name)
        for there, here in ((found.train, train), (found.test, test)):
            assert all(torch.equal(a, b) for a, b in zip(there, here)), name
    assert torch.equal(features.read(tmp_path / "f.safetensors").whitening, torch.eye(WIDTH))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"labels": None}, "has no 'labels'"),
        ({"extra": np.zeros(3)}, "also holds 'extra'"),
        ({"features": np.full((4, WIDTH), np.nan, np.float32)}, "image 0 are not all finite"),
        ({"features": np.zeros((4, 2, 2), np.float32)}, "decimal numbers"),
        ({"labels": np.array([0, 1, 2, -1])}, "whole numbers from 0"),
        ({"labels": np.array([0, 1])}, "4 whole numbers"),
        ({"split": np.array([0, 0, 0, 0])}, "have both"),
        ({"mean": np.zeros(WIDTH, np.float32)}, "come together"),
    ],
)
def test_a_features_file_is_understood_whole_or_refused(tmp_path, change, why):
    whole = {
        "features": np.ones((4, WIDTH), np.float32),
        "labels": np.array([0, 1, 0, 1]),
        "split": np.array([0, 0, 1, 1]),
    }
    np.savez(tmp_path / "f.npz", **{name: array for name, array in (whole | change).items() if array is not None})
    with pytest.raises(PackError, match=why):
        features.read(tmp_path / "f.npz")


# ---------------------------------------------------------------- yardsticks


def test_the_yardsticks_are_those_of_plain_code():
    train, test = drawn(240, 1), drawn(120, 2)
    means = [train.features[train.labels == c].mean(0) for c in range(CLASSES)]
    right = [min(range(CLASSES), key=lambda c: float((z - means[c]).norm())) == y for z, y in zip(*test[:2])]
    assert probe.nearest_mean(train, test) == pytest.approx(sum(right) / len(right))
    assert probe.linear(train, test) > 0.95
    shuffled = train._replace(labels=train.labels[torch.randperm(240, generator=torch.Generator().manual_seed(0))])
    assert probe.linear(shuffled, test) < 0.7


def test_whitening_makes_the_covariance_the_identity():
    found = drawn(3000, 1).features @ torch.diag(torch.arange(1.0, 1 + WIDTH))
    mean, matrix = encode.whitening(found)
    assert torch.allclose(((found - mean) @ matrix).T.cov(), torch.eye(WIDTH), atol=0.15)
    assert torch.equal(matrix, matrix.T) or torch.allclose(matrix, matrix.T, atol=1e-5)


def test_the_hidden_state_is_the_one_that_serves_the_encoder_it_suits_least():
    def row(layer: int, mean: float, linear: float) -> dict:
        return {"layer": layer, "token": "cls", "scale": "raw", "nearest_mean": mean, "linear_probe": linear}

    rows = {
        "a": [row(6, 0.99, 0.9), row(7, 0.95, 0.99), row(8, 0.93, 0.99)],
        "b": [row(6, 0.99, 0.99), row(7, 0.7, 0.99), row(8, 0.8, 0.985)],
    }
    assert encode.best(rows).layer == 8


# ---------------------------------------------------------------- evaluate


def test_evaluate_says_what_the_edit_gives(made, tmp_path, capsys):
    out = tmp_path / "found.json"
    shares = ["0.1", "0.5", "1"]
    line = ["mask", "evaluate", "--pack", str(made), "--forget", "blue", "--json", str(out), "--share", *shares]
    assert main(line) == 0
    table = capsys.readouterr().out
    assert "whose encoder saw blue" in table and "share 0.5" in table
    found = json.loads(out.read_text())
    assert found["encoder_saw"] == {"blue": True} and found["images"] == {"forget": 40, "retain": 80}
    session = open_mask_pack(str(made)).session()
    for row, share in zip(found["doses"], map(float, shares), strict=True):
        mask = session.forget([2], Dose(share=share))
        plain = session.bottleneck.with_mask(mask).logits(session.test.features, session.test_nearest).argmax(1)
        right = plain == session.test.labels
        assert row["pairs"] == int(mask.sum())
        assert row["forget_accuracy"] == pytest.approx(right[session.test.labels == 2].float().mean().item())
        assert row["retain_accuracy"] == pytest.approx(right[session.test.labels != 2].float().mean().item())
        assert list(row["by_class"]) == NAMES and row["random"]["masks"] == evaluate.RANDOM_MASKS
    pairs = [row["pairs"] for row in found["doses"]]
    assert pairs == sorted(pairs) and found["smallest"]["forget_accuracy"] <= evaluate.FORGET_GOAL


def test_random_masks_are_as_large_and_of_pairs_in_use(made):
    session = open_mask_pack(str(made)).session()
    mask = session.forget([2], Dose(share=0.5))
    found = evaluate.random_masks(session, mask, [2], seed=7)
    draws = [edit.random_mask(mask, session.bottleneck.allowed, 7 + n) for n in range(evaluate.RANDOM_MASKS)]
    told = [session.figures(one, [2]).forget for one in draws]
    expected = {"mean": sum(told) / len(told), "lowest": min(told), "highest": max(told)}
    assert found["forget_accuracy"] == pytest.approx(expected)


def test_the_smallest_dose_has_the_fewest_pairs_that_do():
    rows = [{"pairs": n, "forget_accuracy": a} for n, a in ((9, 0.0), (5, 0.02), (7, 0.01), (3, 0.021), (1, None))]
    assert evaluate.smallest(rows)["pairs"] == 5 and evaluate.smallest(rows[3:]) is None


def test_by_examples_and_a_file_of_fit(made, tmp_path, capsys):
    out = tmp_path / "own.safetensors"
    fit_it = ["mask", "fit", "--pack", str(made), "--encoder", "blind", "--out", str(out), "--without", "blue"]
    assert main([*fit_it, "--codebooks", "8", "--pairs", "24", "--key-width", "4", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] > 0.9 and told["linear_probe"] > 0.9 and told["encoder"] == "blind"
    line = ["mask", "evaluate", "--pack", str(made), "--bottleneck", str(out), "--encoder", "blind", "--json", "-"]
    assert main([*line, "--forget", "blue", "--method", "examples", "--examples", "1", "20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["encoder_saw"] == {"blue": False} and [row["examples"] for row in found["doses"]] == [1, 20]
    assert found["keys"] == "without 2"
    assert "fitted to the encoder blind" in said(capsys, *line[:6], "--forget", "blue")


@pytest.mark.parametrize("state", ["masked", "erased", "compacted", "removed"])
def test_export_gives_the_state_and_evaluate_takes_it(made, tmp_path, capsys, state):
    out = tmp_path / "out.safetensors"
    line = [
        "mask",
        "export",
        "--pack",
        str(made),
        "--forget",
        NAMES[0],
        "--share",
        "0.5",
        "--state",
        state,
        "--out",
        str(out),
    ]
    assert main(line) == 0
    session = open_mask_pack(str(made)).session()
    mask = session.forget([0], Dose(share=0.5))
    after = {
        "masked": lambda: edit.forbid(session.bottleneck, mask),
        "erased": lambda: edit.erase_values(session.bottleneck, mask),
        "compacted": lambda: edit.forbid(session.bottleneck, mask),
        "removed": lambda: states.removed(session, [0]),
    }[state]()
    expected = session.figures_of(after, [0])
    said = capsys.readouterr().out
    assert f"forget accuracy {expected.forget:.1%}, retain accuracy {expected.retain:.1%}" in said
    found = bottleneck_file.read(out)
    assert found.about["state"] == state and found.about["forgot"] == NAMES[0]
    assert int(found.allowed.sum()) == int(after.allowed.sum())
    evaluated = [
        "mask",
        "evaluate",
        "--pack",
        str(made),
        "--bottleneck",
        str(out),
        "--forget",
        NAMES[1],
        "--share",
        "0.3",
    ]
    assert main([*evaluated, "--json", str(tmp_path / "found.json")]) == 0
    before = json.loads((tmp_path / "found.json").read_text())["before"]
    same = session.figures_of(after, [1])
    assert before["forget_accuracy"] == pytest.approx(same.forget) and before["retain_accuracy"] == pytest.approx(
        same.retain
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--method", "examples"], "takes --examples"),
        (["--pairs", "100000"], "touches"),
        (["--share", "2"], "from 0 to 1"),
        (["--per-codebook"], "needs --pairs"),
        (["--out", "nowhere/x.safetensors"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(made, tmp_path, capsys, options, why):
    line = [
        "mask",
        "export",
        "--pack",
        str(made),
        "--forget",
        NAMES[0],
        "--out",
        str(tmp_path / "x.safetensors"),
        *options,
    ]
    assert main(line) == 2
    assert why in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_mask_that_leaves_a_codebook_nothing_counts_it_and_one_that_leaves_none_is_refused(made, tmp_path, capsys):
    """By the command: the pairs of one codebook that the class touches are all it has in use."""
    pack = open_mask_pack(str(made))
    base = pack.session().bottleneck
    used = base.used.clone()
    used[0] = False
    chosen = pack.session().bottleneck.select(pack.session().train.features, pack.session().train_nearest).chosen
    of_class = edit.touched(chosen[pack.session().train.labels == 0], base.pairs) > 0
    used[0] = of_class[0]
    bottleneck_file.save(replace(base, used=used), tmp_path / "few.safetensors")
    line = ["mask", "evaluate", "--pack", str(made), "--bottleneck", str(tmp_path / "few.safetensors"), "--share", "1"]
    assert main([*line, "--forget", NAMES[0], "--json", str(tmp_path / "found.json")]) == 0
    (row,) = json.loads((tmp_path / "found.json").read_text())["doses"]
    assert row["abstained"] == pytest.approx(1 / base.codebooks)
    nothing = replace(base, used=torch.zeros_like(base.used))
    bottleneck_file.save(replace(nothing, used=of_class), tmp_path / "none.safetensors")
    line[5] = str(tmp_path / "none.safetensors")
    assert main([*line, "--forget", NAMES[0]]) == 2
    assert "covers every pair in use" in capsys.readouterr().err


def test_fit_on_a_features_file(tmp_path, capsys):
    features.save(features.Features(drawn(240, 1), drawn(120, 2)), tmp_path / "f.safetensors")
    line = ["mask", "fit", "--features", str(tmp_path / "f.safetensors"), "--out", str(tmp_path / "b.safetensors")]
    assert main([*line, "--codebooks", "4", "--pairs", "16", "--key-width", "3", "--key-epochs", "1"]) == 0
    assert "linear probe" in capsys.readouterr().out
    assert bottleneck_file.read(tmp_path / "b.safetensors").classes == CLASSES


# ---------------------------------------------------------------- packs


def test_packs_checks_every_part(made, capsys):
    assert main(["packs", "check", str(made)]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("features of saw", "features of blind", "bottleneck saw-all"))
    assert main(["packs", "card", str(made)]) == 0
    assert "| saw-all |" in capsys.readouterr().out


def test_packs_check_names_what_is_wrong(own, capsys):
    (own / "features" / "blind.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, own / "saw-all.safetensors")
    assert main(["packs", "check", str(own)]) != 0
    told = capsys.readouterr()
    assert "features/blind.safetensors of pack corners is not on this computer" in told.out + told.err
    assert "saw-all.safetensors" in told.out + told.err


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"classes": ["red"]}, "at least two"),
        ({"encoders": []}, "at least one"),
        ({"bottlenecks": [{"id": "a", "encoder": "who", "keys": "all", "values": "", "file": "x"}]}, "which is none"),
        ({"bottlenecks": [{"id": "a", "encoder": "saw", "keys": "odd", "values": "", "file": "x"}]}, "write one of"),
        ({"bottlenecks": [{"id": "a", "encoder": "saw", "keys": "all", "values": "", "file": "../x"}]}, "x"),
        ({"encoders": [{"id": "saw", "features": "x"}]}, "lacks the key 'encoder'"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(own, entries, why, capsys):
    changed(own, **entries)
    assert why in said(capsys, "mask", "evaluate", "--pack", str(own), "--forget", "red")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--forget", "pink"], "known: red, green, blue"),
        (["--forget", "red", "green", "blue"], "leave at least one"),
        (["--forget", "red", "--share", "1.5"], "from 0 to 1"),
        (["--forget", "red", "--pairs", "100000"], "the forget set touches"),
        (["--forget", "red", "--method", "examples", "--share", "0.5"], "takes --examples"),
        (["--forget", "red", "--examples", "3"], "not --examples"),
        (["--forget", "red", "--method", "examples", "--examples", "0"], "forget set is empty"),
        (["--forget", "red", "--method", "examples", "--examples", "999"], "999 examples of 80"),
        (["--forget", "red", "--per-codebook"], "needs --pairs"),
        (["--forget", "red", "--bottleneck", "none"], "known: saw-all"),
        (["--forget", "red", "--encoder", "blind"], "leave --encoder out"),
        (["--forget", "red", "--json", "/nowhere/x.json"], "there is no folder"),
    ],
)
def test_bad_input_is_a_sentence(made, arguments, why, capsys):
    assert why in said(capsys, "mask", "evaluate", "--pack", str(made), *arguments)


def test_a_bottleneck_for_other_features_is_refused(own, capsys):
    wide = drawn(60, 1)
    wide = wide._replace(features=torch.cat([wide.features, wide.features], 1))
    bottleneck_file.save(fit(wide, CLASSES, SMALL), own / "saw-all.safetensors")
    told = said(capsys, "mask", "evaluate", "--pack", str(own), "--forget", "red")
    assert f"takes features of width {2 * WIDTH}, and those of saw have {WIDTH}" in told


# ---------------------------------------------------------------- the embedded pack


def test_the_embedded_pack_is_whole_and_near_the_probe():
    pack = open_mask_pack("canvas-mask")
    assert [entry.id for entry in pack.manifest.encoders] == [encoder.id for encoder in builder.ENCODERS]
    assert [entry.id for entry in pack.manifest.bottlenecks] == [made.id for made in builder.BOTTLENECKS]
    for made in builder.BOTTLENECKS:
        record = json.loads((ROOT / f"assets/canvas-mask/figures/bottleneck-{made.id}.json").read_text())
        assert record["of_the_probe"] >= 0.95, made.id
        assert pack.bottleneck(made.id).width == pack.features(made.encoder).width


def test_the_embedded_pack_forgets_as_its_table_says():
    rows = json.loads((ROOT / "assets/canvas-mask/figures/classes.json").read_text())["rows"]
    [row] = [row for row in rows if (row["encoder"], row["class"], row["seed"]) == ("retrain-boat", "boat", 0)]
    session = open_mask_pack("canvas-mask").session("retrain-boat-all")
    found = builder.smallest_mask(session, "boat")
    assert {name: row[name] for name in found} == found


def test_the_features_are_those_of_the_encoder(tmp_path):
    """Of a few test images, drawn anew and sent through the ViT of the pack `canvas`."""
    from sod_core.build.canvas.builder import SHAPE
    from sod_core.worlds import drawn as images

    entry = open_mask_pack("canvas-mask").manifest.encoder("retrain-boat")
    some = images.ImageSet(*(np.stack(each) for each in zip(*(images._draw_one(2, n) for n in range(4)))), None, None)
    some = some._replace(labels=np.arange(4), styles=np.zeros(4))
    recipe = encode.Recipe(*(entry.encoder[name] for name in encode.Recipe._fields))
    file = ROOT / "assets" / "canvas" / entry.encoder["file"]
    states: Tensor = encode.kept_hidden(tmp_path, "x", "test", some, file, SHAPE, torch.device("cpu"))
    there = open_mask_pack("canvas-mask").features("retrain-boat")
    found = encode.chosen(recipe, states)
    if there.mean is not None:
        found = (found - there.mean) @ there.whitening
    assert torch.allclose(found, there.test.features[:4], atol=0.05)

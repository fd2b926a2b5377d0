"""Folders and tables of labelled images, for evaluate and unlearn alike: understood whole, or refused in a sentence."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import CLASSES, write_manifest
from PIL import Image

from sod_core.__main__ import main
from sod_core.data import folder, images
from sod_core.data.names import Names
from sod_core.packs import hub
from sod_core.packs.errors import PackError
from sod_core.packs.find import ASSETS
from sod_core.restore import examples, manifest
from sod_core.restore.pack import Pack
from sod_core.restore.testset import TestSet, open_set
from sod_core.unlearn import data as unlearning
from sod_core.unlearn.data import Source

A_CLASS = 5
TestSet.__test__ = False


def picture(label: int, number: int) -> Image.Image:
    pixels = np.random.default_rng((label, number)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels[..., label % 3] = 255
    return Image.fromarray(pixels)


def png(label: int, number: int) -> bytes:
    out = io.BytesIO()
    picture(label, number).save(out, "PNG")
    return out.getvalue()


def fill(place: Path, names: tuple[str, ...] = CLASSES) -> Path:
    for label, name in enumerate(names):
        (place / name).mkdir(parents=True)
        for number in range(A_CLASS):
            (place / name / f"{number}.png").write_bytes(png(label, number))
    return place


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    return fill(tmp_path / "pictures")


class Read:
    """What either command makes of the data: {class: images}, the place, and what is said; or the refusal."""

    def __init__(self, verb: str, pack: Pack, source: str | Path, **options):
        self.verb, self.notes, self.refused = verb, "", ""
        try:
            if verb == "evaluate":
                found = open_set(pack, str(source), None, leave_out=not options.pop("strict", False), **options)
                found.batch(0, len(found))
                self.labels, self.place = found.labels.tolist(), found.name
            else:
                found = unlearning.load(pack, Source(str(source)), Path("."), **options)
                self.labels = [label for part in found[:3] for label in part.labels.tolist()]
                self.place = found.source.data
            self.notes = "\n".join(found.notes)
        except ValueError as error:
            self.refused = str(error)
            assert "\n" not in self.refused
        else:
            self.counts = np.bincount(self.labels, minlength=len(CLASSES)).tolist()


Reader = Callable[..., Read]


@pytest.fixture(params=["evaluate", "unlearn"])
def read(request, pack) -> Reader:
    """Reads a folder as the command does."""
    return lambda source, its_pack=pack, **options: Read(request.param, its_pack, source, **options)


WHOLE = [A_CLASS] * len(CLASSES)

# ---------------------------------------------------------------- the names of folders


@pytest.mark.parametrize("name", ["Pear", "PEAR", "pear ", " pEAR  "])
def test_case_and_spaces_are_forgiven(read, fruit, name):
    (fruit / "pear").rename(fruit / name)
    found = read(fruit)
    assert found.counts == WHOLE and found.notes == ""


@pytest.mark.parametrize("name", ["pears", "pear_", "p ear", "birne pear", "1"])
def test_another_name_is_refused_with_the_nearest(read, fruit, name):
    (fruit / "pear").rename(fruit / name)
    said = read(fruit).refused
    assert repr(name) in said and "no class of pack fruit" in said
    assert name == "1" or "the nearest is 'pear'" in said


def test_a_stranger_beside_all_classes_is_refused(read, fruit):
    shutil.copytree(fruit / "pear", fruit / "fig")
    assert "'fig', which is no class of pack fruit" in read(fruit).refused


def test_a_folder_without_images_is_no_stranger(read, fruit):
    (fruit / "annotations").mkdir()
    (fruit / "annotations" / "boxes.xml").write_text("<a/>")
    found = read(fruit)
    assert found.counts == WHOLE and "1 file was left out" in found.notes and "annotations/boxes.xml" in found.notes


def test_two_folders_of_a_class_are_refused(read, fruit):
    shutil.copytree(fruit / "pear", fruit / "Pear")
    said = read(fruit).refused
    assert "two folders of class pear" in said and "'Pear' and 'pear'" in said
    shutil.rmtree(fruit / "Pear")
    (fruit / "Pear").mkdir()
    assert read(fruit).counts == WHOLE  # an empty one is none


def test_names_that_differ_in_case_only_are_told_apart():
    names = Names(["Polish", "polish", "Café"])
    assert [names.label(name) for name in ("Polish", "polish", "POLISH")] == [0, 1, None]
    assert names.label("cafe\u0301") == 2  # as a Mac writes it
    assert "'polish'" in names.stranger("polishs") or "'Polish'" in names.stranger("polishs")


def test_the_data_sets_own_names(read, spoilt_pack, fruit):
    write_manifest(spoilt_pack, folder_names={"pear": ["n07767847", "Birne"]})
    pack = Pack(spoilt_pack)
    for name in ("n07767847", "birne"):
        moved = fruit.with_name(name)
        shutil.copytree(fruit, moved)
        (moved / "pear").rename(moved / name)
        assert read(moved, pack).counts == WHOLE
    (fruit / "pear").rename(fruit / "n0776784")
    assert "the nearest is 'n07767847'" in read(fruit, pack).refused


WORDNET = {
    **{"n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player"},
    **{"n03000684": "chain saw", "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck"},
    **{"n03425413": "gas pump", "n03445777": "golf ball", "n03888257": "parachute"},
}


def test_imagenette_as_it_is_published(tmp_path):
    names = manifest.read(ASSETS / "imagenette").names
    fill(tmp_path / "train", tuple(WORDNET))
    fill(tmp_path / "val", tuple(WORDNET))
    (tmp_path / "noisy_imagenette.csv").write_text("path,label")
    found = folder.read(tmp_path, names, folder.HELD_OUT)
    assert found.place == str(tmp_path / "val") and len(found.labels) == 10 * A_CLASS
    for path, label in zip(found.files, found.labels):
        assert names.classes[label] == WORDNET[path.parent.name]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"fig": ["n1"]}, "'fig'"),
        ({"pear": ["plum"]}, "said twice"),
        ({"pear": ["n1"], "plum": ["n1"]}, "said twice"),
        ({"pear": "n1"}, "wrong kind"),
        (["pear"], "wrong kind"),
    ],
)
def test_folder_names_that_cannot_be(spoilt_pack, value, says):
    write_manifest(spoilt_pack, folder_names=value)
    with pytest.raises(PackError, match=says):
        Pack(spoilt_pack)


# ---------------------------------------------------------------- train/ and val/ above the classes


@pytest.mark.parametrize("held_out", ["val", "valid", "Validation", "test"])
def test_a_divided_folder(read, tmp_path, held_out):
    fill(tmp_path / "all" / "train")
    fill(tmp_path / "all" / held_out)
    (tmp_path / "all" / held_out / "pear" / "0.png").unlink()
    found = read(tmp_path / "all")
    used = held_out if found.verb == "evaluate" else "train"
    assert found.place == str(tmp_path / "all" / used) and found.place in found.notes
    assert found.counts == ([5, 4, 5] if used == held_out else WHOLE)
    other = read(tmp_path / "all", split="train" if used == held_out else held_out.upper())
    assert other.counts == (WHOLE if used == held_out else [5, 4, 5])


def test_an_ambiguous_part_is_asked_for(read, tmp_path):
    for name in ("val", "test"):
        fill(tmp_path / "all" / name)
    said = read(tmp_path / "all").refused
    assert "test" in said and "val" in said and "--split" in said
    assert read(tmp_path / "all", split="test").place == str(tmp_path / "all" / "test")
    fill(tmp_path / "one" / "train")
    if (found := read(tmp_path / "one")).verb == "evaluate":
        assert "train" in found.refused and "--split" in found.refused


def test_a_test_part_without_classes_is_none(tmp_path, pack):
    """As competitions publish it: only val/ can be evaluated on."""
    for name in ("train", "val"):
        fill(tmp_path / name)
    (tmp_path / "test" / "images").mkdir(parents=True)
    (tmp_path / "test" / "images" / "0.png").write_bytes(png(0, 0))
    assert open_set(pack, str(tmp_path), None).name == str(tmp_path / "val")


def test_held_out_images_without_classes_are_said(tmp_path, pack):
    """As competitions publish them: the labels are in a table beside."""
    fill(tmp_path / "train")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.png").write_bytes(png(0, 0))
    with pytest.raises(ValueError, match="val, which holds no folder of a class"):
        open_set(pack, str(tmp_path), None)
    assert len(open_set(pack, str(tmp_path), None, split="train")) == sum(WHOLE)


def test_classes_beside_parts_are_refused(read, fruit):
    fill(fruit / "train")
    said = read(fruit).refused
    assert "train" in said and "apple" in said and "--split" in said
    assert read(fruit, split="train").counts == WHOLE


def test_a_part_that_is_not_there(read, fruit, tmp_path):
    assert "not divided" in read(fruit, split="val").refused
    fill(tmp_path / "all" / "train")
    assert "has no part 'val'" in read(tmp_path / "all", split="val").refused
    assert "--split" in read("hub:user/fruit/file.parquet", split="val").refused


def test_a_class_may_be_called_train(spoilt_pack, tmp_path, read):
    write_manifest(spoilt_pack, classes=["boat", "plane", "train"])
    fill(tmp_path / "vehicles", ("boat", "plane", "train"))
    assert read(tmp_path / "vehicles", Pack(spoilt_pack)).counts == WHOLE
    for part in ("train", "val"):
        shutil.copytree(tmp_path / "vehicles", tmp_path / "all" / part)
    assert read(tmp_path / "all", Pack(spoilt_pack)).counts == WHOLE


# ---------------------------------------------------------------- no folder of classes at all

NO_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "loose images": (lambda place: (place / "a.png").write_bytes(png(0, 0)), "no folder of a class"),
    "nothing": (lambda place: None, "holds no images"),
    "empty classes": (lambda place: (place / "pear").mkdir(), "holds no images"),
    "other files": (lambda place: (place / "a.heic").write_bytes(b"x"), "a.heic"),
    "a file": (lambda place: (place.rmdir(), place.write_bytes(b"x")), "is a file and no folder"),
    "missing": (lambda place: place.rmdir(), "is no folder"),
    "a folder more": (lambda place: fill(place / "data"), "'data', which holds the classes"),
    "two folders more": (lambda place: fill(place / "a" / "data"), "'a/data', which holds the classes"),
    "a divided folder more": (lambda place: fill(place / "a" / "b" / "train"), "'a/b', which holds the classes"),
}


@pytest.mark.parametrize("case", NO_FOLDERS)
def test_what_is_no_folder_of_classes(read, tmp_path, case):
    make, says = NO_FOLDERS[case]
    (tmp_path / "place").mkdir()
    make(tmp_path / "place")
    assert says in read(tmp_path / "place").refused


def test_a_folder_that_may_not_be_read(read, fruit, monkeypatch):
    def iterdir(path: Path):
        if path.name == "pear":
            raise PermissionError(13, "Permission denied")
        return (path / name for name in os.listdir(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert "pear cannot be read: Permission denied" in read(fruit).refused


def test_classes_without_images_are_named(pack, fruit):
    shutil.rmtree(fruit / "plum")
    found = open_set(pack, str(fruit), None)
    assert len(found) == 10 and any("no images of plum" in note for note in found.notes)


# ---------------------------------------------------------------- files


def test_every_suffix_that_pillow_reads_is_read():
    Image.init()
    known = {suffix for suffix, format in Image.EXTENSION.items() if format in images.FORMATS}
    assert known <= set(images.SUFFIXES) and ".avif" in known


@pytest.mark.parametrize("upper", [False, True])
def test_files_of_every_suffix_are_read(read, fruit, spoilt_pack, upper):
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
    formats |= {".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF"}
    for place in (fruit / "pear", spoilt_pack / "examples" / "pear"):
        for suffix, format in formats.items():
            picture(1, 0).save(place / f"x{suffix.upper() if upper else suffix}", format)
    assert read(fruit).counts == [A_CLASS, A_CLASS + len(formats), A_CLASS]
    assert len(Pack(spoilt_pack).examples()) == 9 + len(formats)


def test_other_files_are_named(read, fruit):
    for name in ("a.heic", "notes.txt", "noname"):
        (fruit / "pear" / name).write_bytes(b"x")
    os.symlink("/nowhere/b.png", fruit / "plum" / "b.png")
    os.mkfifo(fruit / "plum" / "pipe.png")
    found = read(fruit)
    assert found.counts == WHOLE and "5 files were left out" in found.notes
    for name in ("pear/a.heic", "pear/notes.txt", "pear/noname", "plum/b.png", "plum/pipe.png"):
        assert name in found.notes


def test_what_systems_leave_behind_is_passed_over(read, fruit):
    for name in (".DS_Store", "Thumbs.db", "pear/.hidden.png", "pear/._0.png", "pear/Thumbs.db", "desktop.ini"):
        (fruit / name).write_bytes(b"x")
    for name in ("__MACOSX", ".ipynb_checkpoints", "pear/.ipynb_checkpoints", "pear/__MACOSX"):
        fill(fruit / name)
    (fruit / "pear" / "album.jpg").mkdir()
    (fruit / "album.jpg").mkdir()
    found = read(fruit)
    assert found.counts == WHOLE and found.notes == ""


def test_folders_below_a_class_are_read_and_named(read, fruit):
    shutil.copytree(fruit / "plum", fruit / "plum" / "more" / "deep")
    os.symlink(fruit, fruit / "plum" / "round")  # would lead to every class
    found = read(fruit)
    assert found.counts == [A_CLASS, A_CLASS, 2 * A_CLASS]
    assert "plum/more/deep" in found.notes and "plum/round" in found.notes


def test_a_class_may_be_a_link(read, fruit, tmp_path):
    (fruit / "pear").rename(tmp_path / "elsewhere")
    (fruit / "pear").symlink_to(tmp_path / "elsewhere")
    assert read(fruit).counts == WHOLE


# ---------------------------------------------------------------- broken images

BROKEN = {
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "empty": b"",
    "cut": png(1, 0)[:200],
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "other content": bytes(100),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_run_goes_on_without_a_broken_image(read, fruit, kind):
    (fruit / "pear" / "3.png").write_bytes(BROKEN[kind])
    found = read(fruit)
    assert found.counts == [A_CLASS, A_CLASS - 1, A_CLASS]
    assert "1 broken image was left out" in found.notes and "pear/3.png: " in found.notes
    assert read(fruit, strict=True).refused.startswith("pear/3.png: ")


def test_many_broken_images_are_counted_and_some_named(pack, tmp_path):
    place = fill(tmp_path / "a")
    for number in range(20):
        (place / "plum" / f"b{number:02}.png").write_bytes(b"")
    (note,) = open_set(pack, str(place), None, leave_out=True).notes
    assert "20 broken images were left out" in note and "plum/b04.png" in note and "plum/b05.png" not in note
    assert "and 15 more" in note


def test_a_class_that_loses_all_its_images_is_an_error(read, fruit):
    for path in (fruit / "pear").iterdir():
        path.write_bytes(b"")
    said = read(fruit).refused
    assert "pear" in said and "pear/0.png: " in said


def test_another_image_takes_the_place_of_a_broken_one(pack, fruit):
    (fruit / "pear" / "0.png").write_bytes(b"")
    found = open_set(pack, str(fruit), 3, leave_out=True)
    assert found.labels.tolist() == [0, 1, 2]
    expected = pack.preprocess(images.read(fruit / "pear" / "1.png"))
    assert (found.batch(1, 1).inputs[0] == expected).all()


def test_the_stamp_follows_a_broken_image_that_is_mended(pack, fruit):
    (fruit / "pear" / "0.png").write_bytes(b"")
    before = [open_set(pack, str(fruit), None, leave_out=True) for _ in range(2)]
    assert before[0].stamp == before[1].stamp and before[0].labels.tolist() == before[1].labels.tolist()
    (fruit / "pear" / "0.png").write_bytes(png(1, 0))
    assert open_set(pack, str(fruit), None, leave_out=True).stamp != before[0].stamp


def test_evaluate_says_at_the_end_what_was_left_out(pack_folder, fruit, tmp_path, capsys):
    (fruit / "pear" / "3.png").write_bytes(b"<html>")
    line = ["evaluate", "--pack", str(pack_folder), "--unlearned", "retrain-pear", "--layer", "1"]
    line += ["--data", str(fruit), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second goes on from what the first left
        assert main([*line, "--json", "-"]) == 0
        said = capsys.readouterr()
        (row,) = json.loads(said.out)
        assert row["images"] == 3 * A_CLASS - 1 and row["target_images"] == A_CLASS - 1
        assert "sod_core evaluate: 1 broken image was left out" in said.err and "pear/3.png" in said.err
    assert main([*line, "--strict"]) == 2
    assert "sod_core evaluate: pear/3.png: " in capsys.readouterr().err


# ---------------------------------------------------------------- tables


def write_table(path: Path, labels: list, contents: list | None = None, told: dict | None = None) -> Path:
    """`told`: what `datasets` says of the label column."""
    contents = [png(i % 3, i) for i in range(len(labels))] if contents is None else contents
    table = pyarrow.table({"image": [{"bytes": c, "path": None} for c in contents], "label": labels})
    if told is not None:
        features = {"image": {"_type": "Image"}, "label": told}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=4)
    return path


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(hub, "fetch", lambda *_: tmp_path / "fruit.parquet")
    return tmp_path / "fruit.parquet"


SOURCE = "hub:user/fruit/fruit.parquet"


def class_label(*names: str) -> dict:
    return {"_type": "ClassLabel", "names": list(names)}


def test_a_tables_own_order_of_labels_is_followed(pack, table):
    write_table(table, [0, 1, 2, 2], told=class_label("plum", "Apple", "pear"))
    assert open_set(pack, SOURCE, None).labels.tolist() == [2, 0, 1, 1]


def test_a_number_without_a_name_is_of_no_class(pack, table):
    write_table(table, [0, 1, 2, 2], told=class_label("plum", "apple"))
    found = open_set(pack, SOURCE, None)
    assert found.labels.tolist() == [2, 0] and "2 rows of no class" in " ".join(found.notes)
    write_table(table, [0, 1, 2, 2], told={"class_label": {"names": {"0": "plum", "1": "pear", "2": "apple"}}})
    assert open_set(pack, SOURCE, None).labels.tolist() == [2, 1, 0, 0]  # as in a data set's card


def test_a_column_that_is_there_twice_is_refused(read, table):
    column = pyarrow.array([0, 1, 2])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column] * 3, ["image", "label", "label"]), table)
    assert "2 columns called 'label'" in read(SOURCE).refused


def test_names_of_labels_that_fit_no_class_are_refused(read, table):
    write_table(table, [0, 1, 2] * 4, told=class_label("apple", "pears", "plum"))
    said = read(SOURCE).refused
    assert "row 1" in said and "'pears'" in said and "the nearest is 'pear'" in said
    write_table(table, ["apple", "Pear ", "plums"] * 4)
    assert "row 2" in read(SOURCE).refused


@pytest.mark.parametrize(
    "told", [None, {"_type": "Value"}, class_label("0", "1", "2"), {"names": 5}, "words", {"names": [1, 2]}]
)
def test_numbers_without_names_are_the_packs_classes(read, table, told):
    write_table(table, [0, 1, 2] * A_CLASS, told=told)
    assert read(SOURCE).counts == WHOLE


def test_rows_of_no_class(pack, table):
    write_table(table, [0, 1, 2, 7, None, -1])
    found = open_set(pack, SOURCE, None)
    assert found.labels.tolist() == [0, 1, 2]
    assert any("3 rows of no class" in note and "row 3: unknown class '7'" in note for note in found.notes)


@pytest.mark.parametrize("content", [b"<html>", b"", None])
def test_a_broken_row_is_left_out_and_named(read, table, content):
    contents = [png(i % 3, i) for i in range(15)]
    contents[4] = content
    write_table(table, [0, 1, 2] * A_CLASS, contents)
    found = read(SOURCE)
    assert found.counts == [A_CLASS, A_CLASS - 1, A_CLASS] and "fruit.parquet, row 4: " in found.notes
    assert read(SOURCE, strict=True).refused.startswith("fruit.parquet, row 4: ")


def test_a_table_with_damaged_pages_is_one_sentence(read, table):
    write_table(table, [0, 1, 2] * A_CLASS)
    content = bytearray(table.read_bytes())
    at = content.index(png(0, 6)[20:60])
    content[at - 2000 : at + 500] = bytes(2500)
    table.write_bytes(content)
    found = read(SOURCE)
    assert found.refused or "broken" in found.notes


# ---------------------------------------------------------------- examples are optional


@pytest.fixture
def with_data_set(spoilt_pack, tmp_path, monkeypatch) -> Path:
    """The tiny pack, whose examples are a data set's, in the hub's cache; returns the data set's file."""
    source = {"repo_id": "user/fruit", "file": "fruit.parquet", "image": "image", "label": "label"}
    write_manifest(spoilt_pack, examples=None, examples_source=source)
    path = write_table(tmp_path / "fruit.parquet", [0, 1, 2] * 4, told=class_label("plum", "apple", "pear"))
    monkeypatch.setattr(hub, "cached", lambda file: path)
    monkeypatch.setattr(hub, "own_folder", lambda: tmp_path / "cache")
    return path


def test_examples_follow_the_data_sets_own_order(with_data_set, spoilt_pack):
    found = Pack(spoilt_pack).examples()
    assert [example.label for example in found] == [0] * 3 + [1] * 3 + [2] * 3
    assert [e.path.read_bytes() for e in found if e.label == 2] == [png(0, row) for row in (0, 3, 6)]


def test_a_cache_that_cannot_be_written(with_data_set, spoilt_pack, tmp_path):
    """As on a cluster; a file stands for a folder that is not ours, because root may write anywhere."""
    (tmp_path / "cache").write_bytes(b"")
    pack = Pack(spoilt_pack)
    found = pack.examples()
    assert len(found) == 9 and pack.examples() == found
    assert pack.sae_fit(1).raw is not None
    assert open_set(pack, "examples", None).labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_no_place_at_all(with_data_set, spoilt_pack, tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").write_bytes(b"")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(examples.tempfile, "mkdtemp", full)
    assert_works_without(Pack(spoilt_pack), caplog, "No space left on device")


@pytest.mark.parametrize("damage", ["cut", "text", "labels"])
def test_a_damaged_data_set(with_data_set, spoilt_pack, caplog, damage):
    if damage == "cut":
        with_data_set.write_bytes(with_data_set.read_bytes()[:300])
    elif damage == "text":
        with_data_set.write_text("<html>")
    else:
        write_table(with_data_set, [0, 1, 2], told=class_label("cat", "dog", "cow"))
    assert_works_without(Pack(spoilt_pack), caplog, "fruit.parquet gives no example images")


def assert_works_without(pack: Pack, caplog, says: str) -> None:
    assert pack.examples() == [] and pack.example_thumbs(8) == []
    assert pack.sae_fit(1).raw is None and pack.expert_ids(1, 0)
    assert len(caplog.records) == 1 and says in caplog.text
    with pytest.raises(PackError, match="gives no example images"):
        pack.find_examples()  # `packs check` says what is wrong


def test_a_broken_image_of_the_data_set_is_passed_over(with_data_set, spoilt_pack):
    contents = [png(i % 3, i) for i in range(12)]
    contents[0] = b"<html>"
    write_table(with_data_set, [0, 1, 2] * 4, contents)
    found = [e.path.read_bytes() for e in Pack(spoilt_pack).examples() if e.label == 0]
    assert found == [png(0, row) for row in (3, 6, 9)]

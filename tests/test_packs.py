"""Packs: what opens, what is refused, and that no file runs code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CLASSES,
    EXPERTS,
    LAYERS,
    SHAPE,
    UNLEARNED,
    WIDTH,
    K,
    manifest,
    random_images,
    random_sae,
    random_stats,
    random_vit,
    sae_state,
    transformers_4_names,
    write_manifest,
)
from PIL import Image

from sod_core.models import vit as vits
from sod_core.packs import find, safe
from sod_core.packs.errors import PackError
from sod_core.restore import card, expert_lists
from sod_core.restore import pack as restore_pack
from sod_core.restore.features import Expert
from sod_core.restore.manifest import read
from sod_core.restore.pack import Pack
from sod_core.sparse import forms as sae_forms
from sod_core.sparse.topk import TokenStats, variance_unexplained
from sod_core.ui.restore import words


def refused(call, *says: str) -> str:
    """The message of the PackError that `call` raises: one sentence that has every one of `says` in it."""
    with pytest.raises(PackError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message
    return message


# ---------------------------------------------------------------- a good pack


def test_the_tiny_pack_opens(pack):
    assert pack.manifest.name == "fruit" and pack.manifest.classes == CLASSES and pack.manifest.layers == tuple(LAYERS)
    images = random_images(0, 2)
    assert torch.equal(vits.logits(pack.original(), images), vits.logits(random_vit(0), images))
    for seed, id in enumerate(UNLEARNED, start=1):
        assert torch.equal(vits.logits(pack.unlearned(id), images), vits.logits(random_vit(seed), images))
        assert (pack.manifest.entry(id).method, pack.manifest.entry(id).target_class) == UNLEARNED[id]
    for layer in LAYERS:
        expected = sae_state(random_sae(10 + layer))
        for name, value in sae_state(pack.sae(layer)).items():
            assert torch.equal(value, expected[name])
        assert pack.sae(layer).k == K and pack.sae(layer).latents == WIDTH
        for c in range(3):
            assert [expert.feature_id for expert in pack.experts(layer, c)] == EXPERTS[c]
    assert pack.expert_of(1, 17) == [0] and pack.expert_of(1, 0) == []


def test_models_are_loaded_once_and_cannot_be_trained(pack):
    assert pack.original() is pack.original() and pack.sae(1) is pack.sae(1)
    assert pack.unlearned("retrain-pear") is pack.unlearned("retrain-pear")
    assert not pack.original().training and not any(p.requires_grad for p in pack.original().parameters())


def test_many_threads_load_a_file_once(pack_folder, monkeypatch):
    read = []
    read_torch = safe.read_torch
    monkeypatch.setattr(safe, "read_torch", lambda path: (read.append(path.name), read_torch(path))[1])
    pack = Pack(pack_folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: pack.sae(1), range(8)))
    assert all(sae is found[0] for sae in found)
    assert sorted(read) == ["sae_layer1_k4.pt", "vit_fruit_original.pth"]


def test_opening_reads_the_manifest_only(spoilt_pack):
    for path in spoilt_pack.rglob("*"):
        if path.is_file() and path.name != "pack.json":
            path.unlink()
    assert Pack(spoilt_pack).manifest.title == "Fruit, a tiny ViT"


def test_examples_come_in_the_order_of_the_classes(pack, spoilt_pack):
    found = pack.examples()
    assert [example.label for example in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [example.path.name for example in found[:3]] == ["0.png", "1.png", "2.png"]
    (spoilt_pack / "examples" / "apple" / "notes.txt").write_text("no image")
    (spoilt_pack / "examples" / "stranger").mkdir()
    assert len(Pack(spoilt_pack).examples()) == 9


def test_activity_is_the_share_of_examples_with_a_patch_on_which_a_latent_fires(pack):
    with torch.inference_mode():
        fires = pack.sae(1).encode(pack.example_hidden(1)) > 0
        latents = pack.sae(1).encode(pack.example_hidden(1))
    torch.testing.assert_close(pack.example_peaks(1), latents[:, 1:].max(dim=1).values, atol=1e-6, rtol=1e-6)
    for j in range(WIDTH):
        assert pack.activity(1)[j].item() == pytest.approx(sum(bool(fires[i, 1:, j].any()) for i in range(9)) / 9)


def test_preprocess_resizes_crops_and_normalises(pack):
    """Shorter side to 36, centre crop of 32, mean and deviation 0.5."""
    left_red = Image.new("RGB", (90, 45), "white")
    left_red.paste((255, 0, 0), (0, 0, 45, 45))
    found = pack.preprocess(left_red)
    assert found.shape == (3, 32, 32)
    assert found[:, 16, 2].tolist() == [1.0, -1.0, -1.0] and found[:, 16, 29].tolist() == [1.0, 1.0, 1.0]
    # 36 x 36 after resizing, of which two pixels a side are cropped away: a thin frame does not show
    framed = Image.new("RGB", (90, 90), "black")
    framed.paste("white", (3, 3, 87, 87))
    assert pack.preprocess(framed).min() == 1.0


def test_a_session_takes_an_id_or_a_loaded_model(pack, pack_folder):
    images = random_images(4, 1)
    by_id = pack.session("retrain-pear")
    by_model = pack.session(partial(pack.model_at, pack_folder / "unlearned" / "retrain-pear.pth"))
    for session in (by_id, by_model):
        session.set_image(images)
    assert torch.equal(by_id.logits("unlearned"), by_model.logits("unlearned"))
    assert not torch.equal(by_id.logits("unlearned"), by_id.logits("original"))


# ---------------------------------------------------------------- finding packs


def test_packs_are_found_by_name_and_by_folder(pack_folder, monkeypatch):
    assert restore_pack.open_pack(str(pack_folder)).manifest.name == "fruit"
    monkeypatch.setenv("SOD_PACKS", os.pathsep.join(["/nowhere", str(pack_folder.parent)]))
    assert find.folders()["fruit"] == pack_folder
    assert restore_pack.open_pack("fruit").manifest.folder == pack_folder


def test_an_unknown_pack_is_refused():
    refused(lambda: restore_pack.open_pack("vegetables"), "unknown pack 'vegetables'")
    refused(lambda: restore_pack.open_pack("x" * 5000), "unknown pack")


def test_unknown_names_say_what_there_is(pack):
    refused(lambda: pack.unlearned("salun-fig"), "'salun-fig'", "random_labels-apple, retrain-pear")
    refused(lambda: pack.manifest.class_index("fig"), "'fig'", "apple, pear, plum")
    for name in (3, -1, "²", "", "1.0"):
        refused(lambda name=name: pack.manifest.class_index(name), "unknown class")
    assert [pack.manifest.class_index(name) for name in ("pear", "1", 1, " 1 ")] == [1, 1, 1, 1]
    refused(lambda: pack.sae(3), "layer 3", "1, 2")
    refused(lambda: pack.experts(0, 0), "layer 0", "1, 2")


# ---------------------------------------------------------------- damaged files

FILES = {
    "vit_fruit_original.pth": lambda pack: pack.original(),
    "unlearned/retrain-pear.pth": lambda pack: pack.unlearned("retrain-pear"),
    "sae_layer1_k4.pt": lambda pack: pack.sae(1),
    "activations_layer1_stats.npy": lambda pack: pack.sae(1),
    "expert_features_layer1_k4.pt": lambda pack: pack.experts(1, 0),
}


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(spoilt_pack, file):
    (spoilt_pack / file).unlink()
    refused(lambda: FILES[file](Pack(spoilt_pack)), Path(file).name, "missing")


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.98])
@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_named(spoilt_pack, file, keep):
    data = (spoilt_pack / file).read_bytes()
    (spoilt_pack / file).write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(lambda: FILES[file](Pack(spoilt_pack)), Path(file).name, "truncated")


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_something_else_is_named(spoilt_pack, file):
    (spoilt_pack / file).write_bytes(b"<!DOCTYPE html><html>not found</html>")
    refused(lambda: FILES[file](Pack(spoilt_pack)), Path(file).name)


@pytest.mark.parametrize(
    "content",
    [7, [1, 2], {}, {"a": 1}, {"state_dict": {}}, {0: torch.zeros(2)}, torch.zeros(2)],
    ids=["number", "list", "empty", "no tensors", "empty inside", "numbered", "bare tensor"],
)
@pytest.mark.parametrize("file", [file for file in FILES if not file.endswith("npy")])
def test_content_of_another_kind_is_named(spoilt_pack, file, content):
    torch.save(content, spoilt_pack / file)
    refused(lambda: FILES[file](Pack(spoilt_pack)), Path(file).name)


def test_the_other_files_of_a_damaged_pack_still_work(spoilt_pack):
    (spoilt_pack / "sae_layer1_k4.pt").unlink()
    (spoilt_pack / "unlearned" / "retrain-pear.pth").unlink()
    pack = Pack(spoilt_pack)
    refused(lambda: pack.sae(1), "sae_layer1_k4.pt")
    session = pack.session("random_labels-apple")
    session.set_image(random_images(0, 1))
    assert session.restore([1.0], 2, "inject", EXPERTS[0]).shape == (1, 1, 3)


def test_a_file_put_back_is_loaded_without_a_new_start(spoilt_pack):
    path = spoilt_pack / "sae_layer1_k4.pt"
    path.rename(spoilt_pack / "away")
    pack = Pack(spoilt_pack)
    refused(lambda: pack.sae(1), "missing")
    (spoilt_pack / "away").rename(path)
    assert pack.sae(1).latents == WIDTH


def test_a_vit_of_another_width_is_refused_with_both_shapes(spoilt_pack):
    wide = vits.ViTShape(32, 8, 48, 4, 2, 3)
    torch.save(transformers_4_names(random_vit(0, wide)), spoilt_pack / "vit_fruit_original.pth")
    refused(lambda: Pack(spoilt_pack).original(), "vit_fruit_original.pth", "cls_token", "(1, 1, 48)", "(1, 1, 32)")


def test_a_vit_with_another_number_of_classes_is_refused_with_both_shapes(spoilt_pack):
    more = vits.ViTShape(32, 8, 32, 4, 2, 10)
    torch.save(transformers_4_names(random_vit(0, more)), spoilt_pack / "unlearned" / "retrain-pear.pth")
    refused(lambda: Pack(spoilt_pack).unlearned("retrain-pear"), "retrain-pear.pth", "head", "(10, 32)", "(3, 32)")


def test_a_vit_with_fewer_blocks_is_refused(spoilt_pack):
    state = transformers_4_names(random_vit(0))
    short = {key: value for key, value in state.items() if ".layer.3." not in key}
    torch.save(short, spoilt_pack / "vit_fruit_original.pth")
    refused(lambda: Pack(spoilt_pack).original(), "vit_fruit_original.pth", "blocks.3", "lacks 12 of")


def test_a_vit_without_one_of_query_key_and_value_is_refused(spoilt_pack):
    state = transformers_4_names(random_vit(0))
    del state["vit.encoder.layer.2.attention.attention.key.bias"]
    torch.save(state, spoilt_pack / "vit_fruit_original.pth")
    refused(lambda: Pack(spoilt_pack).original(), "vit_fruit_original.pth", "blocks.2.attn.qkv.bias")


def test_query_key_and_value_of_different_widths_are_refused(spoilt_pack):
    state = transformers_4_names(random_vit(0))
    state["vit.encoder.layer.2.attention.attention.key.weight"] = torch.zeros(32, 16)
    torch.save(state, spoilt_pack / "vit_fruit_original.pth")
    refused(lambda: Pack(spoilt_pack).original(), "vit_fruit_original.pth", "k (32, 16)", "q (32, 32)")


# ---------------------------------------------------------------- files that want to run code


class Evil:
    """Asks whoever unpickles it to call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker: Path) -> dict[str, Evil]:
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Evil(os.system, f"touch {marker}"),
        "exec": Evil(exec, write),
        "eval": Evil(eval, write),
        "Popen": Evil(subprocess.Popen, ["touch", str(marker)]),
        "_load_from_bytes": Evil(torch.storage._load_from_bytes, pickle.dumps(Evil(os.system, f"touch {marker}"), 2)),
        "getattr": Evil(getattr, Evil(os.getcwd), "upper"),
    }


ATTACKS = list(attacks(Path("marker")))


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack != "getattr"])
def test_the_attacks_work_on_a_plain_unpickler(tmp_path, attack):
    """So that the refusals below mean something."""
    data = pickle.dumps(attacks(tmp_path / "marker")[attack])
    with contextlib.suppress(pickle.UnpicklingError, RuntimeError):  # torch complains after the deed
        found = pickle.loads(data)
        if isinstance(found, subprocess.Popen):
            found.wait()
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_npy_is_refused_by_name(spoilt_pack, tmp_path, attack):
    stats = {"patch_mean": np.zeros(32), "patch_std": attacks(tmp_path / "marker")[attack]}
    np.save(spoilt_pack / "activations_layer1_stats.npy", stats, allow_pickle=True)
    asked = "system" if attack == "_load_from_bytes" else attack  # a tensor's bytes are looked into
    message = refused(lambda: Pack(spoilt_pack).sae(1), "activations_layer1_stats.npy was refused")
    assert re.search(rf"asks for (\w+\.)?{asked}\b", message)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain pickle"])
@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack != "_load_from_bytes"])
@pytest.mark.parametrize("file", ["unlearned/retrain-pear.pth", "sae_layer1_k4.pt", "expert_features_layer1_k4.pt"])
def test_a_hostile_checkpoint_is_refused_by_name(spoilt_pack, tmp_path, file, attack, legacy):
    torch.save(
        {"a": torch.zeros(2), "b": attacks(tmp_path / "marker")[attack]},
        spoilt_pack / file,
        _use_new_zipfile_serialization=not legacy,
    )
    message = refused(lambda: FILES[file](Pack(spoilt_pack)), f"{Path(file).name} was refused")
    assert re.search(rf"asks for (\w+\.)?{attack}\b", message)
    assert not (tmp_path / "marker").exists()


def test_a_bare_pickle_as_checkpoint_is_refused(spoilt_pack, tmp_path):
    path = spoilt_pack / "unlearned" / "retrain-pear.pth"
    path.write_bytes(pickle.dumps(attacks(tmp_path / "marker")["system"]))
    refused(lambda: Pack(spoilt_pack).unlearned("retrain-pear"), "retrain-pear.pth")
    assert not (tmp_path / "marker").exists()


def test_object_arrays_that_hold_code_are_refused(tmp_path):
    array = np.empty(2, dtype=object)
    array[1] = attacks(tmp_path / "marker")["system"]
    np.save(tmp_path / "stats.npy", array, allow_pickle=True)
    refused(lambda: safe.read_npy(tmp_path / "stats.npy"), "stats.npy was refused", "system")
    assert not (tmp_path / "marker").exists()


# ---------------------------------------------------------------- pack.json


@pytest.mark.parametrize(
    "file", ["../secret.pth", "/etc/passwd", "a/../../b.pth", "..", "C:\\secret.pth", "\\\\server\\x", "a\\..\\..\\b"]
)
def test_a_path_that_leaves_the_folder_is_refused(spoilt_pack, file):
    files = manifest()["files"] | {"original": file}
    write_manifest(spoilt_pack, files=files)
    refused(lambda: Pack(spoilt_pack).original(), repr(file), "outside")
    entry = manifest()["unlearned"][0] | {"file": file}
    write_manifest(spoilt_pack, unlearned=[entry])
    refused(lambda: Pack(spoilt_pack).unlearned(entry["id"]), repr(file), "outside")
    write_manifest(spoilt_pack, examples=file)
    refused(lambda: Pack(spoilt_pack).examples(), repr(file), "outside")


IMAGE, VIT, ENTRY = manifest()["image"], manifest()["vit"], manifest()["unlearned"][0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format 2"),
        ({"format": None}, "'format'"),
        ({"name": None}, "'name'"),
        ({"classes": None}, "'classes'"),
        ({"classes": []}, "classes"),
        ({"classes": "apple"}, "classes"),
        ({"classes": ["apple", "apple", "pear"]}, "classes"),
        ({"vit": {}}, "'patch'"),
        ({"vit": VIT | {"dim": "wide"}}, "wide"),
        ({"vit": VIT | {"heads": 5}}, "heads"),
        ({"vit": VIT | {"patch": 0}}, "patch"),
        ({"vit": VIT | {"patch": 7}}, "patch"),
        ({"vit": VIT | {"depth": 0}}, "depth"),
        ({"vit": [1, 2]}, "wrong kind"),
        ({"image": None}, "'image'"),
        ({"image": IMAGE | {"mean": [0.5, 0.5]}}, "mean"),
        ({"image": IMAGE | {"std": [0.5, 0.5, 0]}}, "std"),
        ({"image": IMAGE | {"size": -32}}, "size"),
        ({"image": IMAGE | {"resize": 16}}, "resize"),
        ({"image": IMAGE | {"interpolation": "guess"}}, "guess"),
        ({"layers": []}, "layers"),
        ({"layers": [1, 4]}, "layer 4"),
        ({"layers": [-1]}, "layer -1"),
        ({"layers": 9}, "wrong kind"),
        ({"k": 0}, "k"),
        ({"k": "many"}, "many"),
        ({"files": {"original": "a.pth"}}, "'sae'"),
        ({"files": "a.pth"}, "wrong kind"),
        ({"unlearned": [ENTRY | {"target_class": 3}]}, "class 3"),
        ({"unlearned": [ENTRY | {"target_class": -1}]}, "class -1"),
        ({"unlearned": [{"id": "x"}]}, "'method'"),
        ({"unlearned": [ENTRY | {"forget_accuracy": "low"}]}, "figure of 'random_labels-apple'"),
        ({"unlearned": [ENTRY, ENTRY]}, "random_labels-apple"),
        ({"unlearned": {"id": "x"}}, "wrong kind"),
        ({"examples": 5}, "examples"),
        ({"world": "moon"}, "moon"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_a_malformed_manifest_is_refused(spoilt_pack, changes, says):
    write_manifest(spoilt_pack, **changes)
    message = refused(lambda: read(spoilt_pack), says)
    assert "pack.json" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "pack.json"),
        (b"{", "pack.json"),
        (b"[]", "pack.json"),
        (b"null", "pack.json"),
        (b"\xff\xfe{}", "pack.json"),
        (b"{}", "'format'"),
        (b"[" * 100_000, "pack.json"),
    ],
    ids=["empty", "cut", "list", "null", "not utf-8", "no keys", "very deep"],
)
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path, content, says):
    (tmp_path / "pack.json").write_bytes(content)
    refused(lambda: read(tmp_path), says)


def test_a_folder_without_manifest_is_refused(tmp_path):
    refused(lambda: read(tmp_path), "no pack.json")


def test_further_keys_are_allowed(spoilt_pack):
    write_manifest(spoilt_pack, licence="MIT", source={"repo_id": "somebody/something"})
    assert Pack(spoilt_pack).manifest.name == "fruit"


def test_a_pack_without_examples_says_so(spoilt_pack):
    write_manifest(spoilt_pack, examples=None)
    bare = Pack(spoilt_pack)
    assert bare.examples() == [] and bare.sae_fit(1)[:2] == (None, None) and bare.sae(1).normalised
    refused(lambda: bare.example_hidden(1), "fruit", "no example images")


def test_a_damaged_example_is_named(spoilt_pack):
    (spoilt_pack / "examples" / "pear" / "1.png").write_bytes(b"no image")
    refused(lambda: Pack(spoilt_pack).example_hidden(1), "pear", "1.png")


# ---------------------------------------------------------------- SAE files


@pytest.fixture
def state():
    return sae_state(random_sae(7))


@pytest.mark.parametrize("names", ["published", "sparsify", "single letters", "transposed", "column bias"])
def test_sae_files_of_every_form(state, names):
    pre, latent, encoder, decoder = state.values()
    forms = {
        "published": state | {"k": K},
        "sparsify": {"encoder.weight": encoder, "encoder.bias": latent, "W_dec": decoder.T, "b_dec": pre},
        "single letters": {"W_enc": encoder.T, "b_enc": latent, "W_dec": decoder.T, "b_pre": pre},
        "transposed": state | {"encoder.weight": encoder.T, "decoder.weight": decoder.T},
        "column bias": state | {"pre_bias": pre[None], "latent_bias": latent[None]},
    }
    found = sae_forms.load_sae(forms[names], K, SHAPE.dim, "sae.pt")
    for name, value in sae_state(found).items():
        assert torch.equal(value, state[name]), name
    assert found.k == K


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", "model"])
def test_wrapped_sae_files(state, wrapper):
    found = sae_forms.load_sae({wrapper: {f"module.{key}": value for key, value in state.items()}}, K, 32, "sae.pt")
    assert torch.equal(found.encoder.weight, state["encoder.weight"])


def test_safetensors_files_are_read(state, spoilt_pack):
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in state.items()}, spoilt_pack / "sae_1.safetensors")
    save_file({key: value.contiguous() for key, value in state.items()}, spoilt_pack / "sae_2.safetensors")
    write_manifest(spoilt_pack, files=manifest()["files"] | {"sae": "sae_{layer}.safetensors"})
    assert torch.equal(Pack(spoilt_pack).sae(2).encoder.weight, state["encoder.weight"])
    data = (spoilt_pack / "sae_1.safetensors").read_bytes()
    (spoilt_pack / "sae_1.safetensors").write_bytes(data[:-100])
    refused(lambda: Pack(spoilt_pack).sae(1), "sae_1.safetensors", "truncated")


@pytest.mark.parametrize("missing", ["pre_bias", "latent_bias", "encoder.weight", "decoder.weight"])
def test_an_sae_without_one_of_its_tensors_is_refused(state, missing):
    del state[missing]
    refused(lambda: sae_forms.load_sae(state, K, 32, "sae.pt"), "sae.pt", missing)


def test_an_sae_of_another_width_is_refused_with_both_shapes(state):
    refused(lambda: sae_forms.load_sae(state, K, 96, "sae.pt"), "sae.pt", "(32,)", "(96,)")
    state["decoder.weight"] = torch.zeros(32, 65)
    refused(lambda: sae_forms.load_sae(state, K, 32, "sae.pt"), "sae.pt", "(32, 65)", "(32, 64)")
    state["decoder.weight"] = torch.zeros(32)
    refused(lambda: sae_forms.load_sae(state, K, 32, "sae.pt"), "sae.pt", "(32,)", "(32, 64)")


# ---------------------------------------------------------------- statistics


def as_numpy(*tensors):
    return [tensor.numpy() for tensor in tensors]


def test_statistics_of_every_form():
    stats = random_stats(1)
    patch_mean, patch_std, cls_mean, cls_std = as_numpy(*stats)
    flat = {"patch_mean": patch_mean, "patch_std": patch_std, "cls_mean": cls_mean, "cls_std": cls_std}
    nested = {"cls": {"mean": cls_mean, "std": cls_std}, "patch": {"mean": patch_mean, "std": patch_std}}
    columns = {key: value.reshape(1, 1, 32).astype(np.float64) for key, value in flat.items()}
    for found in (flat, nested, columns, flat | {"count": 7, "layer": "9"}):
        for ours, theirs in zip(sae_forms.load_stats(found, 32, "stats.npy"), stats):
            assert torch.equal(ours, theirs)
    for found in ({"mean": patch_mean, "std": patch_std}, {"patch_mean": patch_mean, "patch_std": patch_std}):
        read = sae_forms.load_stats(found, 32, "stats.npy")
        assert torch.equal(read.patch_mean, stats.patch_mean) and torch.equal(read.patch_std, stats.patch_std)
        assert read.cls_mean is None and read.cls_std is None
    assert sae_forms.load_stats({"mean": 1.5, "std": np.float32(2.0)}, 3, "stats.npy").patch_std.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (np.zeros(32), "no dictionary"),
        ({"patch_mean": np.zeros(32)}, "patch_std"),
        ({}, "patch_mean"),
        ({"mean": np.zeros(768), "std": np.ones(768)}, "(768,)"),
        ({"mean": np.zeros(32), "std": np.ones(32), "cls_mean": np.zeros(31)}, "(31,)"),
        ({"mean": "zero", "std": "one"}, "patch_mean"),
        ({"mean": np.zeros(32), "std": np.zeros(32)}, "patch_std"),
        ({"mean": np.full(32, np.nan), "std": np.ones(32)}, "patch_mean"),
    ],
)
def test_bad_statistics_are_refused(found, says):
    refused(lambda: sae_forms.load_stats(found, 32, "stats.npy"), "stats.npy", says)


def test_npy_files_of_every_form(tmp_path):
    path = tmp_path / "stats.npy"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(path, array)
    assert np.array_equal(safe.read_npy(path), array)
    tensors = {"mean": torch.arange(3.0), "std": torch.ones(3, dtype=torch.float16), "n": 5, "who": ["a", ("b", None)]}
    np.save(path, tensors | {"scalar": np.float64(2.5)}, allow_pickle=True)
    found = safe.read_npy(path)
    assert torch.equal(found["mean"], tensors["mean"]) and torch.equal(found["std"], tensors["std"])
    assert found["n"] == 5 and found["who"] == ["a", ("b", None)] and found["scalar"] == 2.5


def test_npy_files_of_numpy_1_are_read(tmp_path):
    """numpy 1 wrote numpy.core where numpy 2 writes numpy._core, with pickle protocol 3."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    content = np.empty((), dtype=object)
    content[()] = {"mean": np.arange(3.0)}
    pickled = pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core" in pickled
    (tmp_path / "stats.npy").write_bytes(buffer.getvalue() + pickled)
    assert safe.read_npy(tmp_path / "stats.npy")["mean"].tolist() == [0.0, 1.0, 2.0]


# ---------------------------------------------------------------- normalised or raw


def identity_like(bias: float) -> dict[str, torch.Tensor]:
    """Copies what is larger than `bias` in size, `bias` short of it: the larger its input, the better it explains."""
    eye = torch.eye(32)
    return {
        "pre_bias": torch.zeros(32),
        "latent_bias": torch.full((64,), -bias),
        "encoder.weight": torch.cat([eye, -eye]),
        "decoder.weight": torch.cat([eye, -eye], dim=1),
    }


@pytest.mark.parametrize(("std", "normalised"), [(1e3, False), (1e-3, True)])
def test_the_normalisation_that_explains_more_is_chosen(spoilt_pack, std, normalised):
    """Divided by 1000 the tokens fall below the bias and nothing is explained; multiplied, nearly everything is."""
    write_manifest(spoilt_pack, k=32)
    stats = {"mean": np.zeros(32, np.float32), "std": np.full(32, std, np.float32)}
    for layer in LAYERS:
        torch.save(identity_like(0.5), spoilt_pack / f"sae_layer{layer}_k32.pt")
        np.save(spoilt_pack / f"activations_layer{layer}_stats.npy", stats, allow_pickle=True)
    pack = Pack(spoilt_pack)
    sae, fit = pack.sae(1), pack.sae_fit(1)
    assert sae.normalised == normalised and (fit.normalised < fit.raw) == normalised
    hidden = pack.example_hidden(1)
    assert not fit.saw_cls  # statistics without CLS: judged on patches alone
    both = sorted((fit.normalised, fit.raw))
    assert variance_unexplained(sae, hidden, patches_only=True) == pytest.approx(both[0], rel=1e-5)
    sae.set_stats(None if normalised else TokenStats(torch.zeros(32), torch.full((32,), std)))
    assert variance_unexplained(sae, hidden, patches_only=True) == pytest.approx(both[1], rel=1e-5)


def test_an_sae_that_saw_cls_is_judged_on_it_too(pack):
    fit = pack.sae_fit(1)
    assert fit.saw_cls
    found = variance_unexplained(pack.sae(1), pack.example_hidden(1))
    assert found == pytest.approx(min(fit.normalised, fit.raw), rel=1e-5)


# ---------------------------------------------------------------- experts


def test_expert_lists_of_every_form():
    ids = {0: [3, 1], 2: [5]}
    forms = [
        ids,
        {"class_experts_details": ids, "k": 4},
        {"apple": [3, 1], "plum": [5]},
        {"0": [3, 1], "2": [5]},
        {0: [{"feature_id": 3}, {"feature_id": 1}], 2: [{"feature_id": 5, "name": "x"}]},
        {0: torch.tensor([3, 1]), 2: torch.tensor([5])},
        {0: (3, 1), 2: (5,)},
        {"0": [3, 1], "2": [5], "settings": {"k": 4}, "note": "by F1"},
    ]
    for form in forms:
        found = expert_lists.load_experts(form, CLASSES, "experts.pt")
        assert found == {0: [Expert(3), Expert(1)], 2: [Expert(5)]}, form


def test_expert_figures_are_read():
    details = {"apple": [{"feature_id": 3, "precision": 0.5, "recall": 0.25, "f1": 1 / 3}]}
    assert expert_lists.load_experts(details, CLASSES, "experts.pt") == {0: [Expert(3, 0.5, 0.25, 1 / 3)]}


@pytest.mark.parametrize(
    "found",
    [
        [1, 2],
        {},
        {"settings": {"k": 4}},
        {0: ["three"]},
        {0: [{"id": 3}]},
        {0: [{"feature_id": "x"}]},
        {0: [{"feature_id": None}]},
        {0: [-1]},
        {7: [1]},
    ],
)
def test_bad_expert_lists_are_refused(found):
    refused(lambda: expert_lists.load_experts(found, CLASSES, "experts.pt"), "experts.pt")


def test_an_expert_that_the_sae_does_not_have_is_refused(spoilt_pack):
    torch.save({0: [1, 64]}, spoilt_pack / "expert_features_layer2_k4.pt")
    refused(lambda: Pack(spoilt_pack).experts(2, 0), "expert_features_layer2_k4.pt", "latent 64", "has 64")


def test_a_class_without_experts_has_an_empty_list(spoilt_pack):
    torch.save({0: [1, 2]}, spoilt_pack / "expert_features_layer2_k4.pt")
    assert Pack(spoilt_pack).experts(2, 1) == []


# ---------------------------------------------------------------- what publishers say


def test_published_figures_are_shown_as_their_publishers_and_pretraining_is_said():
    m = read(find.ASSETS / "cifar10")
    retrained = m.entry("retrain-airplane")
    note = words.model_note(retrained, m)
    assert "publisher" in note and "97.99%" in note and "98.36%" in note and "Nothing was measured here" in note
    assert "ImageNet" in note and "ImageNet" not in words.model_note(replace(retrained, method="salun"), m)
    told = card.card(restore_pack.Pack(m.folder))
    assert "not measured here: retrain-airplane 97.99%" in told and "`vit_base_16_cifar10_original.pth`: 98.36%" in told
    measured = replace(retrained, forget_accuracy=0.0, retain_accuracy=0.5)
    assert "50.0%" in words.model_note(measured, m) and "97.99%" not in words.model_note(measured, m)


def test_a_pack_that_says_nothing_of_pretraining_has_no_caution(pack, spoilt_pack):
    assert pack.manifest.retraining_caution == "" and pack.manifest.published_original is None
    write_manifest(spoilt_pack, published={"original_file": "x.pth"})
    with pytest.raises(PackError, match="original_accuracy"):
        read(spoilt_pack)


def test_the_published_packs_are_pinned_to_a_commit():
    for name in ("cifar10", "imagenette"):
        assert re.fullmatch("[0-9a-f]{40}", read(find.ASSETS / name).source.revision)

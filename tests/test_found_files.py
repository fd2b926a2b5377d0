"""Files that people have, beyond those of test_checkpoints and test_sae_forms: the same numbers, or one sentence."""

from __future__ import annotations

import argparse
import json
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, SHAPE, random_images, random_vit, transformers_4_names
from safetensors.torch import save_file
from torch import Tensor

from sod_core.data.names import Names
from sod_core.models import head_rows, vit_weights
from sod_core.models import vit as vits
from sod_core.packs import checkpoint, own, safe
from sod_core.packs.errors import PackError
from sod_core.restore import working
from sod_core.restore.expert_lists import load_experts
from sod_core.sparse import forms
from sod_core.sparse.statistics import load_stats

State = dict[str, Tensor]
VIT = random_vit(1)
HF, TIMM = transformers_4_names(VIT), dict(VIT.state_dict())
OTHER = transformers_4_names(random_vit(2))
IMAGES = random_images(0, 2)
RIGHT = vits.logits(VIT, IMAGES)
BODY = {key: value for key, value in TIMM.items() if not key.startswith("head")}
HEAD = {key.removeprefix("head."): value for key, value in TIMM.items() if key.startswith("head")}


def logits(path: Path, said: list[str] | None = None, classes: Any = CLASSES) -> Tensor:
    name = checkpoint.split(path)[0].name
    say = (said if said is not None else []).append
    return vits.logits(vit_weights.new_vit(SHAPE, checkpoint.read(path), name, classes, say), IMAGES)


def refused(path: Path, *says: str) -> None:
    with pytest.raises(PackError) as caught:
        logits(path)
    for part in says:
        assert part in str(caught.value), caught.value


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def torchvision_names(mlp: tuple[str, str] = ("0", "3"), head: str = "heads.head") -> State:
    """What torchvision calls the same tensors."""
    parts = {"norm1": "ln_1.", "norm2": "ln_2.", "attn.qkv": "self_attention.in_proj_"}
    parts |= {"attn.proj": "self_attention.out_proj.", "mlp.fc1": f"mlp.{mlp[0]}.", "mlp.fc2": f"mlp.{mlp[1]}."}
    outside = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding", "norm": "encoder.ln"}
    outside |= {"patch_embed.proj": "conv_proj", "head": head}
    named = {}
    for key, value in TIMM.items():
        stem, _, kind = key.rpartition(".")
        block = re.match(r"blocks\.(\d+)\.(.+)", stem)
        if block:
            named[f"encoder.layers.encoder_layer_{block[1]}.{parts[block[2]]}{kind}"] = value
        else:
            named[outside[key] if key in outside else f"{outside[stem]}.{kind}"] = value
    return named


def vit_pytorch_names() -> State:
    changes = {"vit.layernorm": "vit.encoder.encoder_norm", "attention.attention.": "attn.", "vit.": "transformer."}
    changes |= {"attention.output.dense": "attn.out", "intermediate.dense": "ffn.fc1", "output.dense": "ffn.fc2"}
    changes |= {"layernorm_before": "attention_norm", "layernorm_after": "ffn_norm", "classifier": "head"}
    changes |= {"patch_embeddings.projection": "patch_embeddings"}
    named = {}
    for key, value in HF.items():
        for old, new in changes.items():
            key = key.replace(old, new)
        named[key] = value
    return named


GOOD: dict[str, Any] = {
    "torchvision": torchvision_names(),
    "torchvision, older, another head": under("module.", torchvision_names(("linear_1", "linear_2"), "heads")),
    "ViT-pytorch": vit_pytorch_names(),
    "fc": {**BODY, **under("fc.", HEAD)},
    "a head in a dictionary of its own": {"backbone": BODY, "classifier": HEAD, "epoch": 3},
    "weights of a loss": {"state_dict": {**under("net.", TIMM), "class_weights": torch.ones(3)}},
    "another metric": {"state_dict": {**under("net.", TIMM), "train_auroc.scores": torch.ones(3)}},
    "an optimizer's moments by name": {"model": TIMM, "opt": {"exp_avg": under("", BODY)}},
    "Fisher information": {"model": TIMM, "fisher": {key: value for key, value in BODY.items() if "blocks" in key}},
}


@pytest.mark.parametrize("kind", GOOD)
def test_right_files_are_read(tmp_path, kind):
    assert torch.equal(logits(save(tmp_path / "m.pth", GOOD[kind])), RIGHT)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_newer_protocols_of_pickle_are_read(tmp_path, protocol, legacy):
    content = {"state_dict": HF, "args": argparse.Namespace(a=np.float64(2)), "half": torch.ones(2).half()}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
    assert torch.equal(logits(save(tmp_path / "m.pth", content, **options)), RIGHT)


@pytest.mark.parametrize(
    "name", ["easydict.EasyDict", "yacs.config.CfgNode", "lightning_fabric.utilities.data.AttributeDict"]
)
def test_the_dictionaries_of_libraries_are_plain_data(tmp_path, monkeypatch, name):
    module, _, kind = name.rpartition(".")
    made = type(kind, (dict,), {"__module__": module})
    fake = types.ModuleType(module)
    setattr(fake, kind, made)
    for depth in range(1, module.count(".") + 1):
        parent = ".".join(module.split(".")[:depth])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, fake)
    settings = made(lr=1, inner=made(a=2))
    settings.frozen = True
    path = save(tmp_path / "m.pth", {"net": HF, "config": settings})
    assert safe.read_torch(path)["config"] == {"lr": 1, "inner": {"a": 2}, "frozen": True}
    assert torch.equal(logits(path), RIGHT)


def test_what_changes_the_model_from_another_dictionary_is_a_reason_to_refuse(tmp_path):
    layer = "blocks.0.attn.qkv"
    for content, says in (
        ({"model": TIMM, "lora": {f"{layer}.lora_A": torch.ones(2, 32)}}, f"lora.{layer}.lora_A"),
        ({"model": TIMM, "more": {f"{layer}.scale": torch.ones(96)}}, f"more.{layer}.scale"),
        ({"model": TIMM, "task_vector": TIMM}, "task_vector"),
    ):
        refused(save(tmp_path / "m.pth", content), says)


def test_of_an_original_and_what_was_made_of_it_the_latter_is_read(tmp_path):
    said: list[str] = []
    assert torch.equal(logits(save(tmp_path / "m.pth", {"original": OTHER, "unlearned": HF}), said), RIGHT)
    assert "m.pth#original" in said[0]


def test_damage_that_keeps_the_length_is_found(tmp_path):
    path = save(tmp_path / "m.pth", TIMM)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    refused(path, "damaged", "checksum")
    save_file({**TIMM, "blocks.1.mlp.fc1.weight": torch.zeros_like(TIMM["blocks.1.mlp.fc1.weight"])}, path)
    refused(path, "blocks.1.mlp.fc1.weight", "nothing but zeros")


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "m.pth", TIMM)
    finally:
        torch.serialization.set_crc32_options(True)
    assert not any(member.CRC for member in zipfile.ZipFile(path).infolist())
    assert torch.equal(logits(path), RIGHT)


def test_a_mask_is_no_model(tmp_path):
    refused(save(tmp_path / "mask.pt", {key: (value > 0).float() for key, value in TIMM.items()}), "is a mask")


def test_a_safetensors_file_may_begin_like_another(tmp_path):
    path = tmp_path / "m.safetensors"
    for padding in range(0x8000, 0x10000, 8):
        save_file(TIMM, path, metadata={"x": "y" * padding})
        with path.open("rb") as file:
            first, second = file.read(2)
        if 0x81 <= first <= 0x8F and 0xA0 <= second <= 0xBF:  # a msgpack's, too
            break
    else:
        raise AssertionError("no length looks like a msgpack's mark")
    assert torch.equal(logits(path), RIGHT)


def test_folders_say_what_may_be_meant(tmp_path):
    run = tmp_path / "run"
    for name in ("checkpoint-500", "checkpoint-1000"):
        (run / name).mkdir(parents=True)
        save_file(TIMM, run / name / "model.safetensors")
    refused(run, "checkpoint-1000, checkpoint-500")
    with pytest.raises(PackError, match="checkpoint-500"):
        own.find(str(run))
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "best.pth", TIMM)
    refused(tmp_path / "one", "best.pth")
    with zipfile.ZipFile(tmp_path / "one" / "best.pth") as archive:
        archive.extractall(tmp_path)
    refused(tmp_path / "best", "unpacked")
    (run / "checkpoint-500" / "adapter_config.json").write_text("{}")
    refused(run / "checkpoint-500", "adapter")


# ---------------------------------------------------------------- names of classes

ORDER = [2, 0, 1]
SORTED = {**TIMM, **{f"head.{kind}": value[ORDER] for kind, value in HEAD.items()}}
TOLD = [CLASSES[number] for number in ORDER]


@pytest.mark.parametrize(
    "said",
    [
        {"label_map": dict(enumerate(TOLD))},
        {"meta": {"CLASSES": tuple(TOLD)}},
        {"target_names": np.array(TOLD)},
        {"anything": {name: row for row, name in enumerate(TOLD)}},
        {"id2label": {row: f"{name}, Pyrus" for row, name in enumerate(TOLD)}},
    ],
)
def test_whatever_lists_all_classes_states_their_order(tmp_path, said):
    assert torch.equal(logits(save(tmp_path / "m.pth", {"net": SORTED, **said})), RIGHT)


def test_classes_that_are_called_by_numbers_may_be_in_another_order(tmp_path):
    path = save(tmp_path / "m.pth", {"net": SORTED, "id2label": {0: "9", 1: "7", 2: "8"}})
    assert torch.equal(logits(path, classes=("7", "8", "9")), RIGHT)
    assert not torch.equal(logits(path), RIGHT)  # where they are not, numbers say nothing


def test_mean_pooling_told_by_timms_options(tmp_path):
    path = save(tmp_path / "m.pth", {"state_dict": TIMM, "args": argparse.Namespace(gp="avg")})
    refused(path, "gp 'avg'")
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps({"gp": None}), encoding="utf-8")
    assert torch.equal(logits(save(tmp_path / "m.pth", TIMM)), RIGHT)  # a byte order mark is no obstacle


def test_one_rule_for_the_names_of_classes():
    names = Names(("golf ball", "tench", "French horn"), {"tench": ["n01440764"]})
    for name in ("Golf_Ball", "golfball", "golf-ball ", "golf ball, ball"):
        assert names.meant(name) == 0
    assert names.meant("tench, Tinca tinca") == names.meant("N01440764") == 1
    assert names.meant("tench, golf ball") is None and names.meant("golf balls") is None
    assert names.label("Tench ") == 1 and names.label("golf_ball") is None  # folders: it may be a copy
    assert head_rows.parse("french horn,Golf_Ball,n01440764", names) == [2, 0, 1]
    assert list(load_experts({"French_Horn": [1], "n01440764": [2]}, names, "f")) == [2, 1]
    assert Names(("t-shirt", "t shirt")).meant("T_shirt") is None


# ---------------------------------------------------------------- SAEs, statistics, verdicts


def test_statistics_by_other_names():
    mean, std = torch.zeros(4), torch.ones(4)
    for found in ({"global_mean": mean, "global_std": std}, {"means": mean, "stddev": std}):
        assert load_stats(found, 4, "f").cls_mean is None
    assert (
        load_stats({"mean": {"cls": mean, "patch": mean}, "std": {"cls": std, "patch": std}}, 4, "f").cls_std
        is not None
    )
    with pytest.raises(PackError, match="scale"):
        load_stats({"mean": mean, "std": std, "scale": 2.0}, 4, "f")


def test_an_sae_of_zeros_is_refused():
    state = {"encoder.weight": torch.zeros(8, 4), "encoder.bias": torch.ones(8)}
    state |= {"decoder.weight": torch.ones(4, 8), "b_dec": torch.ones(4)}
    with pytest.raises(PackError, match="encoder.weight holds nothing but zeros"):
        forms.load_sae(state, 2, 4, "f.pt")


def test_a_model_that_names_one_class_only_does_not_work():
    labels = np.repeat(np.arange(3), 20)
    constant, healthy = np.ones_like(labels), np.where(labels == 0, 1, labels)
    assert working.only_names(constant, labels, 0) == 1 and working.only_names(healthy, labels, 0) is None
    assert working.works(1.0, 0.5) and working.verdict(1.0, 0.5, None, 1) == working.NO_VERDICT
    assert working.verdict(1.0, 1.0, None, None) is None
    assert working.only_names(np.ones(40, int), np.repeat([0, 1], 20), 0) is None  # of two classes, the other one
    assert "pear" in working.broken_line(1.0, 0.5, "40 images", "pear")
    assert working.known(0.9, 0.3) and not working.known(0.1, 0.9) and not working.known(0.9, 0.1)

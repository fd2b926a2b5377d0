"""Checkpoints as people's tools write them: the same logits, or one sentence."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import gzip
import io
import json
import os
import pickle
import tarfile
import types
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, SHAPE, random_images, random_vit, transformers_4_names
from fake_hub import FakeHub
from safetensors.torch import save_file
from torch import Tensor

from sod_core.models import vit as vits
from sod_core.models import vit_weights
from sod_core.packs import checkpoint, hub, own, safe
from sod_core.packs.errors import PackError
from sod_core.restore.pack import Pack
from sod_core.restore.testset import stamp
from sod_core.ui import intake

State = dict[str, Tensor]
VIT, OTHER = random_vit(1), random_vit(2)
HF, TIMM = transformers_4_names(VIT), dict(VIT.state_dict())
HF_OTHER = transformers_4_names(OTHER)
IMAGES = random_images(0, 2)
RIGHT, WRONG = vits.logits(VIT, IMAGES), vits.logits(OTHER, IMAGES)


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def logits(path: str | Path, said: list[str] | None = None) -> Tensor:
    """What the model in a checkpoint computes."""
    name = checkpoint.split(path)[0].name
    say = (said if said is not None else []).append
    return vits.logits(vit_weights.new_vit(SHAPE, checkpoint.read(path), name, CLASSES, say), IMAGES)


def refused(path: str | Path, *says: str) -> str:
    """The sentence with which a checkpoint is refused."""
    with pytest.raises(PackError) as caught:
        logits(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500, message
    for part in says:
        assert part in message, message
    return message


def write(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path, **options)
    return path


# ---------------------------------------------------------------- containers and prefixes


def apart(state: State, old: str, new: str) -> State:
    return {key.replace(old, new): value for key, value in state.items()}


def renamed_wrapper(name: str) -> State:
    return {f"{name}.{key.removeprefix('vit.')}" if key.startswith("vit.") else key: v for key, v in HF.items()}


BODY = {key: value for key, value in TIMM.items() if not key.startswith("head")}
HEAD = {"classifier.weight": TIMM["head.weight"], "classifier.bias": TIMM["head.bias"]}
ADAM = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]).state_dict()
GOOD: dict[str, Any] = {
    "bare": HF,
    "compiled": under("_orig_mod.", HF),
    "compiled in DDP": under("module._orig_mod.", HF),
    "any prefix": under("a.b.some_name.", TIMM),
    "backbone": {"weights": under("backbone.", TIMM)},
    "another attribute for the ViT": renamed_wrapper("encoder"),
    "a head beside the ViT": {**under("backbone.", BODY), **HEAD},
    "a compiled part": apart(TIMM, ".attn.", "._orig_mod.attn."),
    "FSDP": under("_fsdp_wrapped_module.", apart(TIMM, ".mlp.", "._fsdp_wrapped_module.mlp.")),
    "lightning": {"state_dict": under("model.", HF), "callbacks": {}, "hyper_parameters": {"lr": 1e-3}, "epoch": 1},
    "a loss beside the model": {"state_dict": {**under("net.", HF), "criterion.weight": torch.ones(3)}},
    "a metric beside the model": {"state_dict": {**under("net.", HF), "train_acc.tp": torch.ones(3).long()}},
    "net": {"net": HF, "acc": 93.1, "epoch": 199},
    "model_state": {"model_state": HF},
    "an average only": {"state_dict_ema": HF},
    "an averaged model": {"n_averaged": torch.tensor(3), **under("module.", TIMM)},
    "nested": {"run": {"models": [{"weights": HF}]}},
    "a tuple": (HF, ADAM, 7),
    "an optimizer first": {"optimizer": {"exp_avg": HF_OTHER}, "opt": ADAM, "model": HF},
    "arrays": {key: value.numpy() for key, value in HF.items()},
    "a pooler": {**HF, "vit.pooler.dense.weight": torch.ones(32, 32), "vit.pooler.dense.bias": torch.ones(32)},
    "positions and counters": {**HF, "vit.embeddings.position_ids": torch.arange(17), "steps": torch.tensor(4)},
    "NaN where nothing reads": {**HF, "vit.pooler.dense.bias": torch.full((32,), torch.nan)},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", GOOD)
def test_the_model_is_found_whatever_wraps_it(tmp_path, kind, legacy):
    said: list[str] = []
    path = write(tmp_path / "model.ckpt", GOOD[kind], _use_new_zipfile_serialization=not legacy)
    assert torch.equal(logits(path, said), RIGHT) and not torch.equal(RIGHT, WRONG) and said == []


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_dictionary_that_pickle_wrote_is_read(tmp_path, protocol):
    for content in (HF, {key: value.numpy() for key, value in HF.items()}):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps({"net": content}, protocol))
        assert torch.equal(logits(tmp_path / "model.pkl"), RIGHT)


SEVERAL: dict[str, tuple[Any, str, str]] = {  # content, what the other is called, what else is said
    "timm's": ({"state_dict": HF, "state_dict_ema": HF_OTHER}, "state_dict_ema", "state_dict is read"),
    "the average first": ({"model_ema": HF_OTHER, "model": HF}, "model_ema", "model is read"),
    "the outer one": ({"extra": {"model": HF_OTHER}, "net": HF}, "extra.model", "net is read"),
    "the first": ({"net": HF, "best": HF_OTHER}, "best", "net is read"),
    "a teacher": ({**under("student.", HF), **under("teacher.", HF_OTHER)}, "teacher", "student.vit is read"),
    "an EMA inside": ({**TIMM, **under("ema_model.", dict(OTHER.state_dict()))}, "ema_model", "the outermost is read"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_models_one_is_read_by_a_rule_and_the_user_may_choose(tmp_path, kind):
    content, other, says = SEVERAL[kind]
    path, said = write(tmp_path / "m.pth", content), []
    assert torch.equal(logits(path, said), RIGHT)
    assert len(said) == 1 and says in said[0] and f"m.pth#{other}" in said[0] and "2 models" in said[0]
    said.clear()
    assert torch.equal(logits(f"{path}#{other}", said), WRONG) and said == []
    refused(f"{path}#best_of_all", "m.pth", "'best_of_all'", other)


def test_a_file_whose_name_has_a_hash_is_that_file(tmp_path):
    assert torch.equal(logits(write(tmp_path / "a.pth#b", HF)), RIGHT)


@pytest.mark.parametrize("key", ["", "#state_dict_ema"])
def test_the_command_line_and_the_pack_say_which_model_is_read(tmp_path, pack_folder, run, caplog, key):
    path = write(tmp_path / "train.pth.tar", {"state_dict": HF, "state_dict_ema": HF_OTHER})
    image = next((pack_folder / "examples" / "apple").glob("*.png"))
    options = ("--pack", pack_folder, "--image", image, "--target-class", "apple", "--layer", 1, "--alpha", 1)
    found = run("restore", *options, "--unlearned", f"{path}{key}")
    assert found.code == 0
    note = Pack(pack_folder).note(Path(f"{path}{key}"))
    assert ("train.pth.tar#state_dict_ema" in note) == (not key)
    assert "".join(record.getMessage() for record in caplog.records if "train" in record.getMessage()) == note
    expected = run("restore", *options, "--unlearned", write(tmp_path / "one.pth", HF_OTHER if key else HF))
    assert json.loads(found.out)["unlearned"] == json.loads(expected.out)["unlearned"]
    assert own.title(Path(f"{path}{key}")) == f"train.pth{key}"
    assert stamp(Path(f"{path}{key}")) != stamp(Path(f"{path}#other"))


# ---------------------------------------------------------------- plain data beside the weights


def made_by_nobody() -> int:
    raise AssertionError("a factory was called")


PLAIN: dict[str, Any] = {
    "Namespace": argparse.Namespace(lr=0.1, out=Path("/data"), more=argparse.Namespace(when=datetime.date(2024, 1, 2))),
    "SimpleNamespace": types.SimpleNamespace(a=[1], b=None),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "defaultdict of ours": [collections.defaultdict(made_by_nobody, {"a": 1}), collections.defaultdict(made_by_nobody)],
    "nested defaultdict": collections.defaultdict(collections.OrderedDict, {"a": collections.defaultdict(int)}),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], 5),
    "paths": [Path("/a/b"), PureWindowsPath("c:/x")],
    "times": [datetime.datetime.now(datetime.UTC), datetime.timedelta(3), datetime.time(1, 2)],
    "numbers": [decimal.Decimal("1.5"), 1 + 2j, uuid.UUID(int=7), range(3), slice(1, 2)],
    "sets": [{1, "a"}, frozenset([1, 2])],
    "numpy": [np.float64(1.5), np.bool_(True), np.array(["a", "bc"]), np.array([1, "a", None], dtype=object)],
    "random states": [torch.get_rng_state(), np.random.get_state(), b"bytes", float("nan")],
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", PLAIN)
def test_classes_that_hold_plain_data_are_read_as_such(tmp_path, kind, legacy):
    content = {"args": PLAIN[kind], "state_dict": HF, "again": PLAIN[kind]}
    path = write(tmp_path / "m.pth", content, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(logits(path), RIGHT)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, 2))
    assert torch.equal(logits(tmp_path / "m.pkl"), RIGHT)


def test_paths_of_python_3_13_are_read(tmp_path):
    data = pickle.dumps({"out": Path("/data"), "net": {key: value.numpy() for key, value in HF.items()}}, 2)
    (tmp_path / "m.pkl").write_bytes(data.replace(b"cpathlib\nPosixPath\n", b"cpathlib._local\nPosixPath\n"))
    assert torch.equal(logits(tmp_path / "m.pkl"), RIGHT)


class Asking:
    """Asks whoever unpickles it to call something, or to make an object of it."""

    def __init__(self, *asked: Any):
        self.asked = asked

    def __reduce__(self):
        return self.asked


def pickle_of(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


FACTORY = b"\x80\x02ccollections\ndefaultdict\ncposix\nsystem\nq\x01\x85R"  # a defaultdict(os.system), which is memo 1
MISUSED: dict[str, tuple[bytes, str]] = {
    "called": (FACTORY + b"h\x01X\x04\x00\x00\x00true\x85R\x86.", "asks for posix.system"),
    "made": (FACTORY + b"h\x01)\x81\x86.", "asks for posix.system"),
    "kept": (FACTORY + b"h\x01\x86.", "asks for posix.system"),
    "an argument": (b"\x80\x02cpathlib\nPosixPath\ncposix\nsystem\n\x85R.", "asks for posix.system"),
    "an object of it": (b"\x80\x02c__main__\nNet\n)\x81}X\x01\x00\x00\x00aK\x01sb.", "asks for __main__.Net"),
    "a path's object": (b"\x80\x02cpathlib\nPosixPath\n)\x81.", "not plain"),
    "a namespace with arguments": (b"\x80\x02cargparse\nNamespace\nK\x01\x85\x81.", "not plain"),
    "a namespace's state": (b"\x80\x02cargparse\nNamespace\n)\x81K\x01b.", "sets attributes"),
    "a factory's result": (FACTORY + b"K\x01b.", "sets attributes"),
}


@pytest.mark.parametrize("kind", MISUSED)
def test_plain_classes_open_no_door(tmp_path, kind):
    data, says = MISUSED[kind]
    for name, content in (("m.pth", pickle_of(data)), ("m.pkl", data)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PackError, match=says):
            safe.read_torch(tmp_path / name)


def test_a_factory_that_would_run_code_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    factory = Asking(os.mkdir, (str(marker),))
    path = write(tmp_path / "m.pth", {"net": HF, "history": Asking(collections.defaultdict, (factory,))})
    refused(path, "asks for posix.mkdir")
    assert not marker.exists()


def test_a_pickled_module_is_refused_with_what_to_do(tmp_path):
    refused(write(tmp_path / "m.pth", VIT), "m.pth was refused", "VisionTransformer", "state_dict()")


def test_containers_without_end_take_no_time(tmp_path):
    nested: Any = {"a": torch.zeros(1)}
    for _ in range(300):
        nested = {"deeper": nested, "tensor": torch.zeros(1)}
    refused(write(tmp_path / "m.pth", nested), "m.pth holds no state dict")
    many = {f"{number}.cls_token": torch.zeros(1) for number in range(1000)}
    refused(write(tmp_path / "m.pth", many), "more than 64 models")
    refused(write(tmp_path / "m.pth", {"x" * 5000: torch.zeros(1)}), "name")


# ---------------------------------------------------------------- folders and shards


def write_shards(folder: Path, suffix: str = ".safetensors", state: State = HF) -> Path:
    """The index of a state dict in two files."""
    names = list(state)
    stem = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    shards = [f"{stem}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    for number, shard in enumerate(shards):
        write(folder / shard, {name: state[name] for name in names[number::2]})
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}}))
    return index


def test_folders_and_indices_are_checkpoints(tmp_path):
    write(tmp_path / "one" / "model.safetensors", HF)
    write(tmp_path / "two" / "pytorch_model.bin", {"state_dict": HF})
    both = write(tmp_path / "both" / "model.safetensors", HF).with_name("pytorch_model.bin")
    write(both, HF_OTHER)
    (tmp_path / "one" / "config.json").write_text("{}")
    indices = [write_shards(tmp_path / "three"), write_shards(tmp_path / "four", ".bin")]
    for path in (*(tmp_path / name for name in ("one", "two", "both", "three", "four")), *indices):
        assert own.find(str(path)) == path and torch.equal(logits(path), RIGHT)
    (tmp_path / "none").mkdir()
    assert own.find(str(tmp_path / "none")) is None
    refused(tmp_path / "none", "none holds no weights", "model.safetensors")
    (tmp_path / "none" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "none", "adapter", "merge")


def test_a_shard_is_seen_when_it_is_written_again(tmp_path, pack_folder):
    index, pack = write_shards(tmp_path), Pack(pack_folder)
    before, told = pack.model_at(tmp_path), stamp(tmp_path)
    assert pack.model_at(tmp_path) is before
    write_shards(tmp_path, state=HF_OTHER)
    os.utime(index.with_name("model-00002-of-00002.safetensors"), (0, 0))
    assert torch.equal(vits.logits(pack.model_at(tmp_path), IMAGES), WRONG) and stamp(tmp_path) != told


def test_an_index_that_is_not_whole_is_refused(tmp_path):
    index = write_shards(tmp_path / "shards")
    told = json.loads(index.read_text())["weight_map"]
    write(tmp_path / "other.safetensors", HF)
    for name in ("../other.safetensors", str(tmp_path / "other.safetensors"), "a/../../other.safetensors", "..", 7):
        index.write_text(json.dumps({"weight_map": told | {"classifier.bias": name}}))
        refused(index, "index.json", repr(name), "does not lie in its folder")
    index.write_text(json.dumps({"weight_map": told | {"more": "model-00001-of-00002.safetensors"}}))
    refused(index, "'more'", "in none of its files")
    for text in ("{", "[]", "{}", '{"weight_map": {}}', "[" * 100_000):
        index.write_text(text)
        refused(index, "index.json")
    index = write_shards(tmp_path / "shards")
    index.with_name("model-00002-of-00002.safetensors").unlink()
    refused(tmp_path / "shards", "model-00002-of-00002.safetensors is missing")


# ---------------------------------------------------------------- what a config says

ORDER = [2, 0, 1]
SORTED = {**HF, **{f"classifier.{kind}": HF[f"classifier.{kind}"][ORDER] for kind in ("weight", "bias")}}
NAMES = [CLASSES[number] for number in ORDER]
TOLD: dict[str, dict[str, Any]] = {
    "id2label": {"id2label": {str(row): name for row, name in enumerate(NAMES)}},
    "a list": {"id2label": NAMES},
    "label2id": {"label2id": {name: row for row, name in enumerate(NAMES)}},
    "class_to_idx": {"class_to_idx": {f" {name.upper()}_": row for row, name in enumerate(NAMES)}},
    "label_names": {"pretrained_cfg": {"label_names": NAMES}},
    "both": {"id2label": dict(enumerate(NAMES)), "label2id": {name: row for row, name in enumerate(NAMES)}},
}


@pytest.mark.parametrize("kind", TOLD)
def test_rows_are_put_into_the_packs_order(tmp_path, kind):
    path = write(tmp_path / "model.safetensors", SORTED)
    assert not torch.equal(logits(path), RIGHT)
    (tmp_path / "config.json").write_text(json.dumps(TOLD[kind]))
    for place in (path, tmp_path):
        said: list[str] = []
        assert torch.equal(logits(place, said), RIGHT) and "order" in said[0]
    inside = write(tmp_path / "inside" / "m.ckpt", {"state_dict": SORTED, "hyper_parameters": {"config": TOLD[kind]}})
    assert torch.equal(logits(inside), RIGHT)


SILENT = {
    "generic": {"id2label": {str(row): f"LABEL_{row}" for row in range(3)}},
    "numbers": {"id2label": {"0": "0", "1": "1", "2": "2"}},
    "other lists": {"labels": ["a", "b"], "classes": 3, "class_names": None},
    "ours": {"id2label": dict(enumerate(CLASSES)), "hidden_act": "gelu", "num_attention_heads": 2, "qkv_bias": True},
    "what else there is": {"model_type": "vit", "layer_norm_eps": 1e-12, "lr": 0.1, "global_pool": "token"},
}


@pytest.mark.parametrize("kind", SILENT)
def test_a_config_that_states_nothing_else_changes_nothing(tmp_path, kind):
    said: list[str] = []
    write(tmp_path / "model.safetensors", HF)
    (tmp_path / "config.json").write_text(json.dumps(SILENT[kind]))
    assert torch.equal(logits(tmp_path, said), RIGHT) and said == []


CONTRADICTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a class that is none": ({"id2label": ["apple", "quince", "plum"]}, ("row 1", "'quince'", "apple, pear, plum")),
    "one class twice": ({"id2label": ["apple", "pear", "Apple"]}, ("rows 0 and 2", "'Apple'")),
    "too few": ({"id2label": ["apple", "pear"]}, ("2 classes", "3 rows")),
    "too many": ({"label2id": {"apple": 0, "pear": 1, "plum": 2, "fig": 3}}, ("4 classes", "3 rows")),
    "from 1": ({"id2label": {"1": "apple", "2": "pear", "3": "plum"}}, ("3 classes", "counted from 0")),
    "one row twice": ({"label2id": {"apple": 0, "pear": 0, "plum": 1}}, ("label2id",)),
    "two orders": ({"id2label": list(CLASSES), "classes": NAMES}, ("contradicts",)),
    "another activation": ({"hidden_act": "relu"}, ("hidden_act", "relu")),
    "other heads": ({"num_attention_heads": 4}, ("num_attention_heads", "4")),
    "no bias": ({"qkv_bias": False}, ("qkv_bias", "False")),
    "mean pooling": ({"global_pool": "avg"}, ("global_pool", "avg")),
    "another model": ({"model_type": "dinov2"}, ("model_type", "dinov2")),
    "quantised": ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
}


@pytest.mark.parametrize("kind", CONTRADICTS)
def test_a_config_that_contradicts_is_refused(tmp_path, kind):
    config, says = CONTRADICTS[kind]
    write(tmp_path / "model.safetensors", HF)
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, *says)


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    path = write(tmp_path / "model.safetensors", HF)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        refused(path, "config.json")


def test_the_configs_epsilon_is_computed_with(tmp_path):
    write(tmp_path / "model.safetensors", HF)
    (tmp_path / "config.json").write_text('{"layer_norm_eps": 1e-4}')
    found = vit_weights.new_vit(SHAPE, checkpoint.read(tmp_path), "m")
    assert {module.eps for module in found.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-4}
    assert not torch.equal(vits.logits(found, IMAGES), RIGHT)


# ---------------------------------------------------------------- left-overs

LEFT: dict[str, State] = {
    "encoder.layer.0.attention.attention.query.lora_A": {
        "vit.encoder.layer.0.attention.attention.query.lora_A": torch.ones(4, 32)
    },
    "encoder.layer.0.attention.attention.query.lora_B.default.weight": {
        "vit.encoder.layer.0.attention.attention.query.lora_B.default.weight": torch.ones(32, 4)
    },
    "encoder.layer.0.layer_scale1.lambda1": {"vit.encoder.layer.0.layer_scale1.lambda1": torch.ones(32)},
    "embeddings.distillation_token": {"vit.embeddings.distillation_token": torch.ones(1, 1, 32)},
    "normalize.mean": {"normalize.mean": torch.ones(3)},
    **{
        name: {f"vit.{name}": torch.full((32,), 1e-5)}
        for name in (
            "blocks.0.ls1.gamma",
            "blocks.0.gamma_1",
            "blocks.0.attn.q_norm.weight",
            "reg_token",
            "fc_norm.weight",
            "norm_pre.weight",
            "head_dist.weight",
            "rel_pos_bias.relative_position_bias_table",
            "adapter.down.weight",
            "bn.running_mean",
        )
    },
    "temperature": {"temperature": torch.ones(1)},
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("wrap", ["", "model."])
def test_a_tensor_that_is_left_over_is_a_reason_to_refuse(tmp_path, name, wrap):
    path = write(tmp_path / "m.pth", {"state_dict": under(wrap, {**HF, **LEFT[name]})})
    refused(path, "m.pth holds a tensor that", name)


def test_a_packs_own_original_is_read_no_less_strictly(spoilt_pack):
    write(spoilt_pack / "vit_fruit_original.pth", {**HF, "normalize.mean": torch.ones(3)})
    with pytest.raises(PackError, match="vit_fruit_original.pth holds a tensor.*'normalize.mean'"):
        Pack(spoilt_pack).original()


def test_what_is_missing_and_what_is_there_instead_are_named(tmp_path):
    state = apart(under("base_model.model.", HF), "query.", "query.base_layer.")
    refused(write(tmp_path / "m.pth", state), "lacks 8 of", "qkv", "query.base_layer.weight")
    twice = {**HF, "vit.head.weight": HF["classifier.weight"]}
    refused(write(tmp_path / "m.pth", twice), "classifier.weight")
    both = {**TIMM, "classifier.weight": TIMM["head.weight"]}
    refused(write(tmp_path / "m.pth", both), "head.weight twice")


# ---------------------------------------------------------------- not the numbers they look like

BLOCK = "vit.encoder.layer.1.attention.attention.query.weight"


def changed(key: str, change: Callable[[Tensor], Tensor]) -> State:
    return {**HF, key: change(HF[key].clone())}


def spoilt(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({key: torch.full_like(value, torch.nan) for key, value in HF.items()}, "cls_token"),
        (changed("classifier.weight", spoilt(torch.nan)), "head.weight holds 1"),
        (changed(BLOCK, spoilt(torch.inf)), "blocks.1.attn.qkv.weight holds 1"),
        (changed("vit.layernorm.bias", lambda v: v.half().fill_(-torch.inf)), "norm.bias holds 32"),
        (changed("vit.layernorm.bias", lambda v: v.double().fill_(1e300)), "norm.bias holds 32"),
    ],
    ids=["all", "one NaN", "one infinite", "half", "too large for float32"],
)
def test_what_is_not_a_finite_number_is_refused(tmp_path, state, says):
    refused(write(tmp_path / "m.pth", state), "m.pth", says, "finite")


@pytest.mark.parametrize(
    "state",
    [
        {key: (value * 100).to(torch.int8) if value.ndim == 2 else value for key, value in HF.items()},
        {**HF, BLOCK.replace("weight", "SCB"): torch.ones(32)},
        {**HF, BLOCK + ".absmax": torch.ones(32)},
        {**HF, BLOCK + ".quant_state.bitsandbytes__nf4": torch.ones(32, dtype=torch.uint8)},
        {**HF, BLOCK + "_scale": torch.ones(32)},
        apart(HF, "dense.weight", "dense.qweight"),
        changed(BLOCK, lambda v: v.to(torch.uint8)),
        changed("classifier.bias", lambda v: v > 0),
        changed(BLOCK, lambda v: v.to(torch.float8_e4m3fn)),
        changed("vit.layernorm.weight", lambda v: v.long()),
    ],
    ids=["int8", "SCB", "absmax", "nf4", "scale", "qweight", "one part", "bool", "float8", "int64"],
)
def test_what_was_quantised_is_refused(tmp_path, state):
    refused(write(tmp_path / "m.safetensors", state), "m.safetensors looks quantised", "float16")


def test_float16_bfloat16_and_float64_are_weights(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = logits(write(tmp_path / "m.safetensors", {key: value.to(dtype) for key, value in HF.items()}))
        torch.testing.assert_close(found, RIGHT, atol=0.3, rtol=0.1)


# ---------------------------------------------------------------- no checkpoint at all


def zipped(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"), io.BytesIO())
    return out.getvalue()


NONE: dict[str, tuple[bytes, str]] = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 34\n", "Git LFS pointer"),
    "annex": (b"/annex/objects/SHA256E-s123--abc.pth\n", "git-annex pointer"),
    "HTML": (b"\n <!DOCTYPE html><html><title>Virus scan warning</title></html>", "a web page"),
    "HTML with a mark": ("\ufeff<html lang='fr'>é</html>".encode(), "a web page"),
    "long HTML": (b"<html>" + "é".encode() * 2000, "a web page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML page"),
    "JSON": (b'{"error":"Invalid username or password."}', "JSON"),
    "text": (b"Entry not found", "'Entry not found'"),
    "empty": (b"", "empty"),
    "zeros": (bytes(3000), "zeros"),
    "zip": (zipped("folder/model.pth", b"abc"), "a zip archive"),
    "npz": (zipped("a.npy", b"abc"), "NumPy arrays"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(50), "NumPy"),
    "gzip": (gzip.compress(b"abc"), "gzip"),
    "tar": (tarred(), "tar"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "GGUF": (b"GGUF\x03" + bytes(50), "GGUF"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:" + bytes(50), "ONNX"),
    "msgpack": (b"\x82\xa6params\x82\xa3abc" + bytes(50), "msgpack"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(50), "a picture"),
    "noise": (b"\x17" + bytes(range(256)) * 9, "no checkpoint of torch, and no safetensors"),
}


@pytest.mark.parametrize("kind", NONE)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_what_is_no_model_says_what_it_is(tmp_path, kind, suffix):
    data, says = NONE[kind]
    (tmp_path / f"m{suffix}").write_bytes(data)
    if kind == "noise" and suffix == ".safetensors":
        says = "header claims"
    message = refused(tmp_path / f"m{suffix}", f"m{suffix}", says)
    assert ("truncated" in message) == (kind == "empty" or says == "header claims")


def test_a_file_cut_short_may_be_truncated(tmp_path):
    for name in ("m.pth", "m.safetensors"):
        data = write(tmp_path / name, HF).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        refused(tmp_path / name, name, "truncated")


def test_a_wrong_suffix_is_no_obstacle(tmp_path):
    write(tmp_path / "a.safetensors", HF).rename(tmp_path / "b.pth")
    write(tmp_path / "a.pth", HF).rename(tmp_path / "b.safetensors")
    for name in ("b.pth", "b.safetensors"):
        assert torch.equal(logits(tmp_path / name), RIGHT)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.weight": torch.zeros(3, 4)}, "no ViT's checkpoint"),
        ({"evaluation_result": {"UA": 100.0, "MIA": np.array([0.1])}}, "no state dict, only evaluation_result"),
        ({"epoch": 3, "loss": 0.1}, "no state dict, only epoch, loss"),
        ({}, "no state dict"),
        ([1, 2], "no state dict"),
        (torch.zeros(3, 3), "no state dict"),
    ],
)
def test_what_holds_no_vit_says_so(tmp_path, content, says):
    refused(write(tmp_path / "m.pth", content), f"m.pth {'is' if says.startswith('no ViT') else 'holds'} {says}")


def test_every_suffix_can_be_picked_in_the_page():
    named = ("m.pth", "m.pt", "m.safetensors", "m.bin", "m.ckpt", "m.pth.tar", "m.safetensors.index.json")
    assert {Path(name).suffix for name in named} <= set(intake.CHECKPOINT_SUFFIXES)


# ---------------------------------------------------------------- the hub


def content_of(state: Any, folder: Path, suffix: str = ".safetensors") -> bytes:
    return write(folder / f"content{suffix}", state).read_bytes()


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A hub with a model whose config tells another order of classes, once whole, once in shards."""
    write_shards(tmp_path / "shards", state=SORTED)
    config = json.dumps(TOLD["id2label"]).encode()
    files = {f"sharded/{path.name}": path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    files |= {"whole/model.safetensors": content_of(SORTED, tmp_path), "whole/config.json": config}
    files |= {"sharded/config.json": config, "bare/m.pth": content_of({"model": HF, "ema": HF_OTHER}, tmp_path, ".pth")}
    with FakeHub({"user/repo": files}) as found:
        found.use(monkeypatch, tmp_path / "home")
        yield found


@pytest.mark.parametrize(
    "name", ["whole/model.safetensors", "whole", "sharded/model.safetensors.index.json", "sharded", "bare/m.pth"]
)
def test_what_belongs_to_a_checkpoint_of_the_hub_comes_with_it(fake, name):
    for _ in range(2):
        assert torch.equal(logits(own.find(f"hub:user/repo/{name}")), RIGHT)
    fetched = [request.path for request in fake.requests if request.method == "GET"]
    assert len(fetched) == len(set(fetched))
    asked = [request.path for request in fake.requests if request.path.endswith("bare/config.json")]
    assert len(asked) <= 1  # it is known to be missing then
    fake.down = True
    if "." in name:  # here by now, and no more is asked for
        assert torch.equal(logits(own.find(f"hub:user/repo/{name}")), RIGHT)


def test_a_key_stands_after_a_file_of_the_hub(fake):
    for text in ("hub:user/repo/bare/m.pth#ema", "hub:user/repo/bare/m.pth@main#ema"):
        assert torch.equal(logits(own.find(text)), WRONG)
        assert own.without_key(own.parse_hub(text)) == (hub.HubFile("user/repo", "bare/m.pth"), "ema")
    with pytest.raises(PackError, match="user/repo has no file nothing"):
        own.find("hub:user/repo/nothing")


def test_an_index_of_the_hub_cannot_lead_elsewhere(fake):
    for name in ("../../../secret", "/etc/passwd", "a/b.safetensors"):
        fake.files["user/repo"]["evil/model.safetensors.index.json"] = json.dumps({"weight_map": {"a": name}}).encode()
        fake.commit = f"{abs(hash(name)):040x}"[:40]
        with pytest.raises(PackError, match="does not lie in its folder"):
            own.find("hub:user/repo/evil/model.safetensors.index.json")


@pytest.mark.parametrize(
    ("status", "says", "not_said"),
    [
        (401, "HF_TOKEN", "later"),
        (403, "hf auth login", "later"),
        (400, "does not accept", "later"),
        (429, "too many requests", "token"),
        (500, "try again later", "token"),
        (502, "try again later", "token"),
    ],
)
def test_what_the_hub_answers_decides_the_advice(fake, monkeypatch, status, says, not_said):
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    quick = types.SimpleNamespace(**vars(__import__("time")) | {"sleep": lambda seconds: None})
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", quick)
    fake.broken = status
    with pytest.raises(PackError) as caught:
        own.find("hub:user/repo/bare/m.pth")
    message = str(caught.value)
    assert says in message and not_said not in message and "\n" not in message

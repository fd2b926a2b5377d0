"""SAEs, statistics and expert lists in the forms of other libraries: the same latents, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, EXPERTS, LAYERS, SHAPE, WIDTH, K, manifest, random_sae, random_stats, write_manifest
from safetensors.torch import save_file
from torch import Tensor

from sod_core.erase.pack import ErasePack
from sod_core.packs.errors import PackError
from sod_core.packs.figures import read_figures
from sod_core.restore import expert_lists
from sod_core.restore.pack import Pack
from sod_core.sparse import forms
from sod_core.sparse.topk import TopKSAE

D = SHAPE.dim
SAE = random_sae(11)
TOKENS = torch.randn(3, 17, D, generator=torch.Generator().manual_seed(0))
SAELENS = {"d_in": D, "d_sae": WIDTH, "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none"}
SAELENS |= {"architecture": "topk", "k": K}


def lens() -> dict[str, Tensor]:
    """The tensors as SAELens names and lays them."""
    tensors = {"W_enc": SAE.encoder.weight.T, "W_dec": SAE.decoder.weight.T}
    tensors |= {"b_enc": SAE.latent_bias, "b_dec": SAE.pre_bias}
    return {name: tensor.data.clone().contiguous() for name, tensor in tensors.items()}


def linear() -> dict[str, Tensor]:
    """As dictionary_learning does."""
    tensors = {"encoder.weight": SAE.encoder.weight, "encoder.bias": SAE.latent_bias}
    tensors |= {"decoder.weight": SAE.decoder.weight, "b_dec": SAE.pre_bias}
    return {name: tensor.data.clone() for name, tensor in tensors.items()}


def published() -> dict[str, Tensor]:
    tensors = {"pre_bias": SAE.pre_bias, "latent_bias": SAE.latent_bias}
    tensors |= {"encoder.weight": SAE.encoder.weight, "decoder.weight": SAE.decoder.weight}
    return {name: tensor.data.clone() for name, tensor in tensors.items()}


def sparsify() -> dict[str, Tensor]:
    found = linear()
    found["W_dec"] = found.pop("decoder.weight").T.contiguous()
    return found


def write(folder: Path, weights: str, tensors: dict[str, Any], config: str | None = None, **said: Any) -> Path:
    """A folder as a library makes it; the path of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / weights
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    if config is not None:
        (folder / config).write_text(json.dumps(said))
    return path


def saelens(folder: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    said = {key: value for key, value in (SAELENS | changes).items() if value is not ...}
    return write(folder, "sae_weights.safetensors", tensors or lens(), "cfg.json", **said)


def assert_same(found: TopKSAE, tolerance: float = 0) -> None:
    torch.testing.assert_close(found.encode(TOKENS), SAE.encode(TOKENS), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.decode(found.encode(TOKENS)), SAE.decode(SAE.encode(TOKENS)), atol=1e-4, rtol=1e-4)


def refused(call, *says: str) -> None:
    with pytest.raises(PackError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def read(path: Path, k: int | None = K) -> TopKSAE:
    return forms.read_sae(path, k, D, 1)


# ---------------------------------------------------------------- the same latents


DICTIONARY = {"dict_class": "AutoEncoderTopK", "trainer_class": "TopKTrainer", "activation_dim": D, "dict_size": WIDTH}
DICTIONARY |= {"k": K, "layer": 1, "submodule_name": "resid_post_layer_1", "auxk_alpha": 0.03, "threshold_beta": 0.9}
FOLDERS = {
    "SAELens": ("sae_weights.safetensors", lens, "cfg.json", SAELENS),
    "SAELens 6": (
        *("sae_weights.safetensors", lens, "cfg.json"),
        SAELENS | {"metadata": {"hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.12.1"}},
    ),
    "SAELens 5": (
        *("sae_weights.safetensors", lens, "cfg.json"),
        SAELENS
        | {"architecture": "standard", "k": None, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
        | {"hook_name": "blocks.2.hook_resid_pre", "hook_layer": 2, "normalize_activations": False},
    ),
    "dictionary_learning": (
        *("ae.pt", lambda: linear() | {"k": torch.tensor(K), "threshold": torch.tensor(0.2)}),
        *("config.json", {"trainer": DICTIONARY, "buffer": {"d_submodule": D, "io": "out"}}),
    ),
    "sparsify": (
        *("sae.safetensors", sparsify, "cfg.json"),
        {"activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": K, "d_in": D}
        | {"multi_topk": True, "skip_connection": False, "transcode": False, "signed": False},
    ),
    "sdxl-unbox": (
        "state_dict.pth",
        lambda: {"state_dict": published() | {"stats_last_nonzero": torch.zeros(WIDTH, dtype=torch.long)}},
        "config.json",
        {"n_dirs_local": WIDTH, "d_model": D, "k": K, "auxk": 256, "dead_steps_threshold": 100},
    ),
    "BatchTopK's repository": (
        *("sae.pt", lambda: lens() | {"num_batches_not_active": torch.zeros(WIDTH)}, "config.json"),
        {"sae_type": "topk", "top_k": K, "act_size": D, "dict_size": WIDTH, "input_unit_norm": False, "l1_coeff": 0},
    ),
}


@pytest.mark.parametrize("library", FOLDERS)
@pytest.mark.parametrize("k", [K, None])
def test_the_folders_of_libraries_give_the_same_latents(tmp_path, library, k):
    weights, tensors, config, said = FOLDERS[library]
    assert_same(read(write(tmp_path / "sae", weights, tensors(), config, **said), k))


@pytest.mark.parametrize(
    "tensors",
    [
        lambda: {f"_orig_mod.{name}": tensor for name, tensor in lens().items()},
        lambda: {"state_dict": {f"model.{name}": tensor for name, tensor in linear().items()}},
        lambda: {f"module._orig_mod.sae.{name}": tensor for name, tensor in published().items()},
        lambda: {"state_dict": published(), "epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "step": 7},
        lambda: {"state_dict": published(), "k": torch.tensor(K), "optimizer": {"state": published()}},
        lambda: published() | {"k": np.int64(K), "cfg": {"normalize_activations": "none", "seed": 3}},
        lambda: lens() | {"scaling_factor": torch.ones(WIDTH)},
    ],
    ids=["compiled", "lightning", "nested", "training", "k outside", "settings inside", "neutral factor"],
)
def test_wrapped_and_prefixed_saes_give_the_same_latents(tmp_path, tensors):
    torch.save(tensors(), tmp_path / "sae.pt")
    assert_same(read(tmp_path / "sae.pt"))


def test_a_pack_may_name_the_folder(spoilt_pack):
    saelens(spoilt_pack / "layer1", hook_layer=1)
    write(spoilt_pack / "layer2", "any_name.pt", published())
    write_manifest(spoilt_pack, files=manifest()["files"] | {"sae": "layer{layer}"})
    pack = Pack(spoilt_pack)
    assert_same(with_raw_input(pack.sae(1))), assert_same(with_raw_input(pack.sae(2)))
    assert pack.lacking() == []
    torch.save(lens(), spoilt_pack / "layer2" / "another.pt")
    refused(lambda: Pack(spoilt_pack).sae(2), "layer2", "another.pt, any_name.pt", "name one")
    for path in (spoilt_pack / "layer2").iterdir():
        path.unlink()
    refused(lambda: Pack(spoilt_pack).sae(2), "layer2", "no weights")


def with_raw_input(sae: TopKSAE) -> TopKSAE:
    sae.set_stats(None)
    return sae


def test_what_a_library_writes_beside_the_weights_is_fetched_with_them(spoilt_pack):
    """Without it, nobody could tell what kind of SAE it is."""
    files = manifest()["files"] | {"sae": "layer{layer}/sae_weights.safetensors"}
    write_manifest(spoilt_pack, files=files, source={"repo_id": "user/no-such-repository"})
    saelens(spoilt_pack / "layer1")
    lacking = [file.path for file in Pack(spoilt_pack).lacking()]
    assert lacking == ["layer2/sae_weights.safetensors", "layer2/cfg.json"]


def test_a_bias_that_is_not_subtracted_is_folded_in(tmp_path):
    """x W + c, as SAELens computes it, by hand."""
    found = read(saelens(tmp_path / "sae", apply_b_dec_to_input=False))
    expected = SAE.activate(TOKENS @ SAE.encoder.weight.T + SAE.latent_bias)
    torch.testing.assert_close(found.encode(TOKENS), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.decode(expected), expected @ SAE.decoder.weight.T + SAE.pre_bias)


def test_latents_scaled_by_their_decoder_are_folded_in(tmp_path):
    """SAELens keeps the k largest of (pre-activation x norm of the decoder's row), and divides before it decodes."""
    found = read(saelens(tmp_path / "sae", rescale_acts_by_decoder_norm=True))
    norm = SAE.decoder.weight.norm(dim=0)
    expected = SAE.activate(SAE.pre_activations(TOKENS) * norm)
    torch.testing.assert_close(found.encode(TOKENS), expected, atol=1e-5, rtol=1e-5)
    recons = (expected / norm) @ SAE.decoder.weight.T + SAE.pre_bias
    torch.testing.assert_close(found.decode(expected), recons, atol=1e-5, rtol=1e-5)


def test_a_square_sae_lies_as_its_library_lays_it():
    encoder, decoder = torch.randn(2, D, D, generator=torch.Generator().manual_seed(3))
    biases = {"b_enc": torch.zeros(D), "b_dec": torch.zeros(D)}
    found = forms.load_sae({"W_enc": encoder, "W_dec": decoder, **biases}, K, D, "sae.pt")
    assert torch.equal(found.encoder.weight, encoder.T) and torch.equal(found.decoder.weight, decoder.T)
    found = forms.load_sae({"encoder.weight": encoder, "decoder.weight": decoder, **biases}, K, D, "sae.pt")
    assert torch.equal(found.encoder.weight, encoder) and torch.equal(found.decoder.weight, decoder)
    found = forms.load_sae({"encoder.weight": encoder, "W_dec": decoder, **biases}, K, D, "sae.pt")
    assert torch.equal(found.encoder.weight, encoder) and torch.equal(found.decoder.weight, decoder.T)
    mixed = {"W_enc": encoder, "decoder.weight": decoder, **biases}
    refused(lambda: forms.load_sae(mixed, K, D, "sae.pt"), "sae.pt", "W_enc", "square")


def test_another_models_config_beside_the_file_is_passed_over(spoilt_pack):
    said = {"model_type": "vit", "architectures": ["ViT"], "layer_norm_eps": 1e-12, "hidden_size": 32}
    (spoilt_pack / "config.json").write_text(json.dumps(said))
    assert Pack(spoilt_pack).sae(1).k == K


# ---------------------------------------------------------------- refused by name


VECTOR = torch.full((WIDTH,), 0.5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "standard", "k": ...}, "standard (ReLU)"),
        ({"architecture": ..., "k": ...}, "standard (ReLU)"),
        ({"architecture": "jumprelu", "k": ...}, "JumpReLU"),
        ({"architecture": "gated", "k": ...}, "gated"),
        ({"architecture": "batchtopk"}, "BatchTopK"),
        ({"architecture": "matryoshka_batchtopk"}, "Matryoshka"),
        ({"architecture": "transcoder"}, "transcoder"),
        ({"architecture": "skip_transcoder"}, "transcoder"),
        ({"architecture": "clt"}, "cross-layer transcoder"),
        ({"architecture": "temporal"}, "'temporal'"),
        ({"architecture": "abstopk"}, "'abstopk'"),
        ({"d_out": 2 * D}, "transcoder"),
        ({"activation": "groupmax", "architecture": ...}, "'groupmax'"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
        ({"normalize_activations": True}, "normalize_activations True"),
        ({"input_unit_norm": True}, "input_unit_norm"),
        ({"normalize": True}, "normalize"),
        ({"norm_activation": "dataset-wise"}, "norm_activation"),
        ({"input_batch_norm": True}, "input_batch_norm"),
        ({"reshape_activations": "hook_z"}, "reshape_activations"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"sae": {"normalize_activations": "layer_norm"}, "normalize_activations": ...}, "layer_norm"),
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "skip connection"),
        ({"signed": True}, "signed"),
        ({"sample_topk": True}, "SampleTopK"),
        ({"batch_topk": True}, "BatchTopK"),
        ({"k": 8}, "k 8"),
        ({"activation_fn_kwargs": {"k": 8}}, "k 8"),
        ({"k": 4.5}, "4.5"),
        ({"k": 0}, "k 0"),
        ({"d_in": 48}, "48"),
        ({"d_sae": 128}, "128"),
        ({"hook_layer": 2}, "hook_layer 2"),
        ({"hook_name": "blocks.2.hook_resid_post"}, "blocks.2"),
        ({"metadata": {"hook_name": "blocks.1.hook_resid_pre"}}, "resid_pre"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, "mlp_out"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_computed_is_named(tmp_path, changes, says):
    path = saelens(tmp_path / "folder", **changes)
    refused(lambda: read(path), "folder/", says)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (lambda: lens() | {"threshold": VECTOR}, ("JumpReLU", "threshold")),
        (lambda: lens() | {"log_threshold": VECTOR}, ("JumpReLU", "log_threshold")),
        (lambda: linear() | {"threshold": torch.tensor(0.2)}, ("JumpReLU", "threshold")),
        (lambda: linear() | {"k": torch.tensor(K), "threshold": torch.tensor(0.2)}, ("BatchTopK", "config.json")),
        (lambda: lens() | {"group_sizes": torch.tensor([32, 32])}, ("Matryoshka",)),
        (
            lambda: {name: v for name, v in lens().items() if name != "b_enc"} | {"b_gate": VECTOR, "r_mag": VECTOR},
            ("gated", "b_gate"),
        ),
        (lambda: lens() | {"W_skip": torch.eye(D)}, ("transcoder", "W_skip")),
        (lambda: lens() | {"W_enc": torch.zeros(2, D, WIDTH)}, ("crosscoder", "encoder")),
        (lambda: linear() | {"pre_encoder.weight": torch.eye(D)}, ("pre_encoder",)),
        (lambda: linear() | {"norm.weight": torch.ones(D), "norm.bias": torch.ones(D)}, ("norm.weight", "norm.bias")),
        (lambda: linear() | {"decoder.bias": torch.zeros(D)}, ("decoder.bias",)),
        (lambda: lens() | {"scaling_factor": VECTOR}, ("scaling_factor",)),
        (lambda: {"state_dict": linear(), "k": torch.tensor(8)}, ("k 8", "k 4")),
        (lambda: {"state_dict": linear(), "args": {"k": 8}}, ("k 8", "k 4")),
        (lambda: {"state_dict": linear(), "ema": {"shadow": linear()}}, ("ema.shadow and state_dict", "keep one")),
        (lambda: {"state_dict": linear(), "input_mean": torch.zeros(D)}, ("input_mean",)),
        (lambda: {**{f"a.{n}": t for n, t in lens().items()}, **{f"b.{n}": t for n, t in lens().items()}}, ("'a.'",)),
        (lambda: lens() | {"k": torch.tensor([K, 8])}, ("[4, 8]",)),
        (lambda: lens() | {"k": torch.tensor(8)}, ("k 8", "k 4")),
        (lambda: lens() | {"activation": "relu"}, ("standard (ReLU)", "'relu'")),
        (lambda: {"hyper_parameters": {"normalize_activations": "layer_norm"}, "state_dict": lens()}, ("layer_norm",)),
        (lambda: published() | {"latents_activation_frequency": VECTOR}, ("standard (ReLU)", "OpenAI")),
        (lambda: published() | {"latents_activation_frequency": VECTOR, "activation": "TopK"}, ("activation 'TopK'",)),
        (lambda: lens() | {"W_enc": lens()["W_enc"].to(torch.int8)}, ("W_enc", "int8")),
        (lambda: lens() | {"b_dec": torch.zeros(D, dtype=torch.int64)}, ("b_dec", "int64")),
    ],
)
def test_a_tensor_that_is_not_computed_is_named(tmp_path, tensors, says):
    torch.save(tensors(), tmp_path / "sae.pt")
    refused(lambda: read(tmp_path / "sae.pt"), "sae.pt", *says)


@pytest.mark.parametrize("name", lens())
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(name, value):
    tensors = lens()
    tensors[name].view(-1)[3] = value
    refused(lambda: forms.load_sae(tensors, K, D, "sae.pt"), "sae.pt", name, "not finite")


def test_more_active_latents_than_there_are_is_refused():
    latents = lens()["b_enc"].numel()
    assert forms.load_sae(lens(), latents, D, "sae.pt").k == latents
    refused(lambda: forms.load_sae(lens(), latents + 1, D, "sae.pt"), "sae.pt", f"{latents + 1} largest of {latents}")


def test_the_name_of_a_file_or_of_its_folder_tells_k(tmp_path):
    torch.save(published(), tmp_path / "sae_layer1_k8.pt")
    refused(lambda: read(tmp_path / "sae_layer1_k8.pt"), "sae_layer1_k8.pt says k 8", "the pack says k 4")
    assert read(tmp_path / "sae_layer1_k8.pt", k=None).k == 8
    refused(lambda: read(write(tmp_path / "topk_8", "ae.pt", linear())), "topk_8/ae.pt says k 8")
    refused(lambda: read(write(tmp_path / "width_16k", "ae.pt", linear()), k=None), "does not say k")
    assert read(write(tmp_path / "width_16k_1", "ae.pt", linear())).k == K


def test_gemma_scopes_arrays_are_refused_by_name(tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in (lens() | {"threshold": VECTOR}).items()}
    np.savez(tmp_path / "params.npz", **arrays)
    refused(lambda: read(tmp_path / "params.npz"), "params.npz", "JumpReLU")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"input_unit_norm": True}, "input_unit_norm"),
        ({"sample_topk": True}, "SampleTopK"),
        ({"signed": True}, "signed"),
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "skip connection"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"k": 7}, "k 7"),
        ({"num_latents": 7}, "num_latents 7"),
    ],
    ids=str,
)
def test_the_erase_packs_saes_are_described_too(tmp_path, said, says):
    good = {"d_in": D, "k": K, "expansion_factor": 2, "num_latents": 0, "normalize_decoder": True, "multi_topk": False}
    good |= {"batch_topk": True, "sample_topk": False, "input_unit_norm": False}  # BatchTopK in training only
    data = {"format": 1, "kind": "erase", "name": "x", "concepts": ["cat"], "pipeline": "p", "hook_point": "h"}
    data |= {"prompts": {"object": "{object}", "styled": "{object} {style}"}, "saes": [{"id": "a", "folder": "sae"}]}
    data["saes"][0]["k"] = K
    (tmp_path / "pack.json").write_text(json.dumps(data))
    write(tmp_path / "sae", "sae.safetensors", sparsify(), "cfg.json", **good)
    assert_same(ErasePack(tmp_path).sae("a"))
    write(tmp_path / "sae", "sae.safetensors", sparsify(), "cfg.json", **good | said)
    refused(lambda: ErasePack(tmp_path).sae("a"), says)


# ---------------------------------------------------------------- an SAE of another model


def fitting(folder: Path) -> None:
    """Replaces the random SAEs by ones that copy what they read."""
    eye = torch.eye(D)
    tensors = {"pre_bias": torch.zeros(D), "latent_bias": torch.zeros(2 * D)}
    tensors |= {"encoder.weight": torch.cat([eye, -eye]), "decoder.weight": torch.cat([eye, -eye], 1)}
    for layer in LAYERS:
        torch.save(tensors, folder / f"sae_layer{layer}_k32.pt")
        (folder / f"expert_features_layer{layer}_k4.pt").rename(folder / f"expert_features_layer{layer}_k32.pt")
    write_manifest(folder, k=32)


def test_an_sae_that_does_not_fit_is_said_everywhere(spoilt_pack, pack_folder, run):
    from sod_core.ui.restore import shown

    options = ["--unlearned", "random_labels-apple", "--layer", "1"]
    image = ["--image", pack_folder / "examples" / "apple" / "0.png", "--target-class", "apple"]
    commands = [
        lambda folder: run("packs", "card", folder).out,
        lambda folder: run("packs", "check", folder).out,
        lambda folder: run("restore", "--pack", folder, *options, *image).err,
        lambda folder: run("evaluate", "--pack", folder, *options, "--data", "examples").err,
        lambda folder: shown._details(_visitor(folder), _controls()),
    ]
    fitting(spoilt_pack)
    assert Pack(spoilt_pack).sae_fit(1).caution is None
    for command in commands:
        assert "does not fit this model" in command(pack_folder)
        assert "does not fit this model" not in command(spoilt_pack)


def _visitor(folder: Path) -> Any:
    pack = Pack(folder)
    return type("Visitor", (), {"pack": pack, "chosen": lambda self, controls: [1, 2]})()


def _controls() -> Any:
    return type("Controls", (), {"layer": 1})()


# ---------------------------------------------------------------- statistics


STATS = random_stats(1)._asdict()
ARRAYS = {name: tensor.numpy() for name, tensor in STATS.items()}


def write_stats(path: Path, found: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **found)
    elif path.suffix == ".json":
        path.write_text(json.dumps({name: np.asarray(value).tolist() for name, value in found.items()}))
    elif path.suffix == ".safetensors":
        save_file({name: torch.as_tensor(value) for name, value in found.items()}, path)
    elif path.suffix == ".npy":
        np.save(path, found, allow_pickle=True)
    else:
        torch.save({"state_dict": {name: torch.as_tensor(value) for name, value in found.items()}}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".json", ".safetensors", ".npy", ".pt"])
def test_statistics_in_every_kind_of_file(tmp_path, suffix):
    found = forms.read_stats(write_stats(tmp_path / f"stats{suffix}", ARRAYS), D)
    for name, value in STATS.items():
        torch.testing.assert_close(getattr(found, name), value)


def test_other_names_of_the_same_statistics():
    mean, std = ARRAYS["patch_mean"], ARRAYS["patch_std"]
    forms_of_it = [
        {"mean": mean, "var": std**2},
        {"patch_mean": mean, "patch_variance": std**2},
        {"mu": mean, "sigma": std},
        {"patches": {"mean": mean, "std": std}},
        {"stats": {"mean": mean, "std": std}, "classes": ["a", "b"]},
        {"mean": mean, "std": std, "min": mean - 1, "max": mean + 1, "num_tokens": 5, "model": "vit"},
        {"patch.mean": mean, "patch.std": std},
    ]
    for found in forms_of_it:
        read = forms.load_stats(found, D, "stats.npy")
        torch.testing.assert_close(read.patch_mean, STATS["patch_mean"])
        torch.testing.assert_close(read.patch_std, STATS["patch_std"])
        assert read.cls_mean is None


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"mean": ARRAYS["patch_mean"], "std": ARRAYS["patch_std"], "cls_mean": ARRAYS["cls_mean"]}, "cls_std"),
        (ARRAYS | {"register_mean": np.zeros(D)}, "register_mean"),
        (ARRAYS | {"whitening": np.eye(D)}, "whitening"),
        (ARRAYS | {"patch": {"mean": np.zeros(D)}}, "patch_mean twice"),
        ({"mean": np.zeros(D), "var": -np.ones(D)}, "patch_std"),
        ({"mean": np.zeros(D), "std": np.full(D, np.inf)}, "patch_std"),
        ({"mean": np.zeros(D, np.int64), "std": np.ones(D)}, "int64"),
        ({"mean": torch.zeros(D), "std": torch.ones(D, dtype=torch.uint8)}, "uint8"),
        ({"layer_1": {"mean": np.zeros(D), "std": np.ones(D)}}, "it holds layer_1"),
    ],
)
def test_statistics_that_would_be_read_half_are_refused(found, says):
    refused(lambda: forms.load_stats(found, D, "stats.npy"), "stats.npy", says)


# ---------------------------------------------------------------- expert lists


TABLE = [EXPERTS[c] for c in range(len(CLASSES))]


def experts(found: Any) -> dict[int, list[int]]:
    lists = expert_lists.load_experts(found, CLASSES, "experts.pt")
    return {index: [expert.feature_id for expert in found] for index, found in lists.items()}


@pytest.mark.parametrize("suffix", [".json", ".npy", ".npz", ".pt", ".safetensors"])
def test_expert_lists_in_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"experts{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps({name: EXPERTS[c] for c, name in enumerate(CLASSES)}))
    elif suffix == ".npy":
        np.save(path, np.array(TABLE))
    elif suffix == ".npz":
        np.savez(path, **{name: np.array(EXPERTS[c]) for c, name in enumerate(CLASSES)})
    elif suffix == ".pt":
        torch.save(torch.tensor(TABLE), path)
    else:
        save_file({"experts": torch.tensor(TABLE)}, path)
    assert experts(read_figures(path)) == EXPERTS


def test_expert_lists_of_other_forms():
    assert experts(TABLE) == experts([torch.tensor(row) for row in TABLE]) == EXPERTS
    assert experts({"Apple": EXPERTS[0], " pear ": EXPERTS[1], 2: EXPERTS[2]}) == EXPERTS
    assert experts({"class_experts_details": torch.tensor(TABLE), "k": 4}) == EXPERTS
    assert experts({"class_names": ["Apple", "pear", "plum"], 0: [1]}) == {0: [1]}
    assert experts({0: [3, 1, 3, 1, 2], 1: [], 2: [{"feature_id": 5.0}]}) == {0: [3, 1, 2], 1: [], 2: [5]}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"apple": [1], "pears": [2]}, ("'pears'", "did you mean 'pear'")),
        ({"apple": [1], "boat": [2]}, ("'boat'", "known: apple, pear, plum")),
        ({"apple": [1], "Apple ": [2]}, ("'apple' twice",)),
        ({"apple": [1], 0: [2]}, ("'apple' twice",)),
        ({"apple": 1, "pear": [2]}, ("'apple'", "int")),
        ({0: [1, -1]}, ("found -1",)),
        ({0: [1.5]}, ("found 1.5",)),
        ({0: [float("nan")]}, ("found nan",)),
        ({0: [True]}, ("found True",)),
        ({0: np.array([1.0])}, ("float64",)),
        ({0: torch.tensor(3)}, ("class 0",)),
        ({9: [1]}, ("class 9",)),
        ({"class_names": ["pear", "apple", "plum"], 0: [1]}, ("pear, apple, plum",)),
        (TABLE[:2], ("2 expert lists", "3 classes")),
        (torch.tensor(TABLE[0]), ("no expert lists",)),
    ],
    ids=str,
)
def test_expert_lists_that_would_be_read_half_are_refused(found, says):
    refused(lambda: experts(found), "experts.pt", *says)


# ---------------------------------------------------------------- figures


def test_arrays_that_are_pickled_or_claim_too_much_are_refused(tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, mean=np.array([{"a": 1}], dtype=object))
    refused(lambda: read_figures(path), "stats.npz", "pickle")
    np.savez_compressed(path, mean=np.zeros(20 << 20))
    refused(lambda: read_figures(path), "stats.npz", "160 MiB")
    path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: read_figures(path), "stats.npz", "cannot be read")
    for text in ("[" * 100_000, "{", "\xff"):
        (tmp_path / "stats.json").write_text(text, encoding="latin-1")
        refused(lambda: read_figures(tmp_path / "stats.json"), "stats.json", "cannot be read")

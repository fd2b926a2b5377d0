"""Sparse codes of a language model: each formula against plain numpy, each file form written here, what is refused."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from sod_core.packs.errors import PackError
from sod_core.sparse.codes import read_code, save_code
from sod_core.sparse.gated import GatedSAE
from sod_core.sparse.jumprelu import JumpReLUSAE
from sod_core.sparse.normalised import NormalisedCode
from sod_core.sparse.topk import TopKSAE

D, F, K, LAYER = 8, 24, 5, 7
RANDOM = np.random.default_rng(11)
X = (3 * RANDOM.standard_normal((2, 9, D))).astype(np.float32)
TOKENS = torch.from_numpy(X)
IDS = [20, 3, 11]
W = {
    "W_enc": RANDOM.standard_normal((D, F)),
    "W_dec": RANDOM.standard_normal((F, D)),
    "b_enc": RANDOM.standard_normal(F),
    "b_dec": RANDOM.standard_normal(D),
    "threshold": 2 * RANDOM.random(F),
    "b_gate": RANDOM.standard_normal(F),
    "b_mag": RANDOM.standard_normal(F),
    "r_mag": RANDOM.standard_normal(F) / 3,
}
W = {name: array.astype(np.float32) for name, array in W.items()}
PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
JUMP, GATED = (*PLAIN, "threshold"), ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")


# ---------------------------------------------------------------- the formulas again, in plain numpy, float64


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def encoded(kind: str, x: np.ndarray, subtract: bool) -> np.ndarray:
    """Latents [..., F] of tokens [..., D]."""
    w = {name: array.astype(np.float64) for name, array in W.items()}
    z = (x.astype(np.float64) - subtract * w["b_dec"]) @ w["W_enc"]
    if kind == "gated":
        return relu(z * np.exp(w["r_mag"]) + w["b_mag"]) * (z + w["b_gate"] > 0)
    pre = z + w["b_enc"]
    if kind == "topk":
        kth = np.sort(pre, axis=-1)[..., -K, None]
        return relu(np.where(pre >= kth, pre, 0))
    return relu(pre) * (pre > (w["threshold"] if kind == "jumprelu" else 0))


def decoded(a: np.ndarray) -> np.ndarray:
    return a @ W["W_dec"].astype(np.float64) + W["b_dec"]


def assert_computes(code: Any, kind: str, subtract: bool) -> None:
    """encode, activity, decode and delta of a code that was read, against the above."""
    a = encoded(kind, X, subtract)
    assert 0.05 < (a > 0).mean() < 0.9, "the case tells nothing"
    assert (code.dim, code.latents) == (D, F)
    close(code.encode(TOKENS), a)
    close(code.activity(TOKENS, torch.tensor(IDS)), a[..., IDS])
    close(code.decode(code.encode(TOKENS)), decoded(a))
    change = RANDOM.standard_normal((*X.shape[:-1], len(IDS)))
    moved = a.copy()
    moved[..., IDS] += change
    delta = code.delta(torch.from_numpy(change).float(), torch.tensor(IDS), TOKENS)
    close(delta, decoded(moved) - decoded(a))


def close(found: Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- files


def folder(path: Path, names: tuple[str, ...], cfg: dict | None, weights: str = "sae_weights.safetensors") -> Path:
    """SAELens's folder."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: W[name] for name in names}, path / weights)
    if cfg is not None:
        (path / "cfg.json").write_text(json.dumps(cfg))
    return path


def gemma_scope(root: Path, layer: int = LAYER, **changes: np.ndarray) -> Path:
    path = root / f"layer_{layer}" / "width_16k" / "average_l0_69"
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **{name: W[name] for name in JUMP} | changes)
    return path


def gemma_scope_2(root: Path, config: bool = True, site: str = "resid_post", **said: Any) -> Path:
    path = root / site / f"layer_{LAYER}_width_16k_l0_medium"
    path.mkdir(parents=True)
    save_file({name.lower(): W[name] for name in JUMP}, path / "params.safetensors")
    hook = f"model.layers.{LAYER}.output"
    about = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "width": F, "model_name": "google/gemma-3-270m"}
    about |= {"architecture": "jump_relu", "l0": 7, "affine_connection": False, "type": "sae"} | said
    if config:
        (path / "config.json").write_text(json.dumps(about))
    return path


NEW = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
NEW |= {"reshape_activations": "none", "metadata": {"hook_name": f"blocks.{LAYER}.hook_resid_post", "model_name": "g"}}
OLD = {"model_name": "g", "hook_point": f"blocks.{LAYER}.hook_resid_post", "hook_point_layer": LAYER, "d_in": D}
OLD |= {"d_sae": F, "activation_fn_str": "relu", "dtype": "float32", "normalize_activations": "none", "lp_norm": 1.0}
OLD |= {"finetuning_scaling_factor": False, "hook_head_index": None, "prepend_bos": True, "context_size": 64}
TOPK_OLD = OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}

FORMS: dict[str, tuple[Callable[[Path], Path], str, bool]] = {
    "Gemma Scope": (gemma_scope, "jumprelu", False),
    "Gemma Scope 2": (gemma_scope_2, "jumprelu", False),
    "Gemma Scope 2, no config": (lambda root: gemma_scope_2(root, config=False), "jumprelu", False),
    "SAELens jumprelu": (lambda root: folder(root, JUMP, NEW | {"architecture": "jumprelu"}), "jumprelu", True),
    "SAELens jumprelu, b_dec stays": (
        lambda root: folder(root, JUMP, NEW | {"architecture": "jumprelu", "apply_b_dec_to_input": False}),
        *("jumprelu", False),
    ),
    "SAELens standard": (lambda root: folder(root, PLAIN, NEW | {"architecture": "standard"}), "standard", True),
    "SAELens gated": (lambda root: folder(root, GATED, NEW | {"architecture": "gated"}), "gated", True),
    "SAELens topk": (lambda root: folder(root, PLAIN, NEW | {"architecture": "topk", "k": K}), "topk", True),
    "SAELens before 6, relu": (lambda root: folder(root, PLAIN, OLD), "standard", True),
    "SAELens before 6, topk": (lambda root: folder(root, PLAIN, TOPK_OLD), "topk", True),
    "SAELens before 6, gated": (
        lambda root: folder(root, GATED, OLD | {"architecture": "gated", "apply_b_dec_to_input": False}),
        *("gated", False),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_what_its_authors_say(tmp_path, form):
    write, kind, subtract = FORMS[form]
    assert_computes(read_code(write(tmp_path), D, LAYER), kind, subtract)


def test_a_latent_at_its_threshold_does_not_fire():
    code = JumpReLUSAE(2, 3)
    code.requires_grad_(False).W_enc.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    code.threshold.copy_(torch.tensor([1.0, 0.5, 0.0]))
    assert code.encode(torch.tensor([1.0, 0.0])).tolist() == [0.0, 1.0, 1.0]
    assert code.encode(torch.tensor([0.5, 0.0])).tolist() == [0.0, 0.0, 0.5]


def test_sparsify_is_a_code_too(tmp_path):
    tensors = {"encoder.weight": np.ascontiguousarray(W["W_enc"].T), "encoder.bias": W["b_enc"]}
    save_file(tensors | {"W_dec": W["W_dec"], "b_dec": W["b_dec"]}, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"k": K, "d_in": D, "activation": "topk", "num_latents": F}))
    assert_computes(read_code(tmp_path, D, LAYER), "topk", True)


def test_the_file_itself_may_be_named(tmp_path):
    assert_computes(read_code(gemma_scope(tmp_path) / "params.npz", D, LAYER), "jumprelu", False)
    np.savez_compressed(tmp_path / "mine.npz", **{name: W[name] for name in JUMP})
    assert_computes(read_code(tmp_path / "mine.npz", D, LAYER), "jumprelu", False)


def test_numbers_of_another_machine_and_another_precision(tmp_path):
    swapped = {name: W[name].astype(">f8") for name in JUMP}
    np.savez(tmp_path / "mine.npz", **swapped, note=np.array("made by hand"))
    assert_computes(read_code(tmp_path / "mine.npz", D), "jumprelu", False)


def test_a_threshold_in_logarithms(tmp_path):
    path = folder(tmp_path, PLAIN, NEW | {"architecture": "jumprelu"})
    save_file(
        {name: W[name] for name in PLAIN} | {"log_threshold": np.log(W["threshold"])}, path / "sae_weights.safetensors"
    )
    assert_computes(read_code(path, D), "jumprelu", True)


def test_what_lies_beside_an_sae_is_passed_over(tmp_path):
    path = gemma_scope_2(tmp_path)
    save_file({"tokens": np.zeros(3, np.int32)}, path / "examples.safetensors")
    assert_computes(read_code(path, D, LAYER), "jumprelu", False)


# ---------------------------------------------------------------- written here


def made(kind: str) -> Any:
    """One with the numbers above."""
    if kind == "topk":
        sae = TopKSAE(D, F, K).requires_grad_(False)
        for parameter, name in ((sae.pre_bias, "b_dec"), (sae.latent_bias, "b_enc")):
            parameter.copy_(torch.from_numpy(W[name]))
        sae.encoder.weight.copy_(torch.from_numpy(W["W_enc"].T))
        sae.decoder.weight.copy_(torch.from_numpy(W["W_dec"].T))
        return sae
    sae = (GatedSAE if kind == "gated" else JumpReLUSAE)(D, F, subtract_b_dec=True)
    for name, parameter in sae.requires_grad_(False).named_parameters():
        parameter.copy_(torch.from_numpy(W[name] * (kind != "standard" or name != "threshold")))
    return sae


@pytest.mark.parametrize("kind", ["jumprelu", "standard", "gated", "topk"])
@pytest.mark.parametrize("normalisation", [None, "layer_norm", "constant_norm_rescale"])
def test_what_is_written_is_read_back(tmp_path, kind, normalisation):
    code = made(kind)
    assert_computes(code, kind, True)
    code = code if normalisation is None else NormalisedCode(code, normalisation)
    save_code(code, tmp_path / "topk-5", layer=LAYER)  # the folder's name says no k
    found = read_code(tmp_path / "topk-5", D, LAYER)
    assert torch.equal(found.encode(TOKENS), code.encode(TOKENS))
    latents = code.encode(TOKENS)
    assert torch.equal(found.decode(latents, TOKENS), code.decode(latents, TOKENS))
    refused(lambda: read_code(tmp_path / "topk-5", D, LAYER + 1), f"after block {LAYER + 1}")
    save_code(code, tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "sae_weights.safetensors").stat().st_size for name in ("topk-5", "half")]
    assert sizes[1] < 0.75 * sizes[0]
    torch.testing.assert_close(
        read_code(tmp_path / "half", D).decode(latents, TOKENS), code.decode(latents, TOKENS), atol=0.05, rtol=0.01
    )


def test_what_has_no_form_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no form for a Linear"):
        linear: Any = torch.nn.Linear(D, F)
        linear.dim, linear.latents = D, F
        save_code(linear, tmp_path)


def test_weights_move_to_half_and_back_without_a_trace_in_the_arithmetic():
    """Tokens of any dtype are encoded in float32."""
    for kind in ("jumprelu", "gated", "topk"):
        code = made(kind)
        low = TOKENS.bfloat16()
        assert torch.equal(code.activity(low, torch.tensor(IDS)), code.activity(low.float(), torch.tensor(IDS)))


# ---------------------------------------------------------------- normalised tokens


def normalised(x: np.ndarray, normalisation: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """SAELens's run_time_activation_norm_fn_in: tokens, and what leads back from them."""
    x = x.astype(np.float64)
    if normalisation == "constant_norm_rescale":
        norm = np.sqrt((x**2).sum(-1, keepdims=True))
        return x * (D**0.5 / norm), norm / D**0.5, 0.0
    mean, std = x.mean(-1, keepdims=True), x.std(-1, keepdims=True, ddof=1)
    return (x - mean) / (std + 1e-5), std, mean


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["jumprelu", "gated", "topk"])
def test_an_sae_of_normalised_tokens_gives_back_their_units(tmp_path, normalisation, kind):
    names = {"jumprelu": JUMP, "gated": GATED, "topk": PLAIN}[kind]
    cfg = NEW | {"architecture": kind, "normalize_activations": normalisation} | ({"k": K} if kind == "topk" else {})
    code = read_code(folder(tmp_path, names, cfg), D, LAYER)
    u, scale, shift = normalised(X, normalisation)
    a = encoded(kind, u, True)
    close(code.encode(TOKENS), a)
    close(code.activity(TOKENS, torch.tensor(IDS)), a[..., IDS])
    close(code.decode(code.encode(TOKENS), TOKENS), decoded(a) * scale + shift)
    moved = a.copy()
    moved[..., IDS] -= 4.0
    difference = torch.full((*X.shape[:-1], len(IDS)), -4.0)
    close(code.delta(difference, torch.tensor(IDS), TOKENS), (decoded(moved) - decoded(a)) * scale)
    with pytest.raises(ValueError, match="the tokens that were encoded"):
        code.decode(code.encode(TOKENS))


def test_a_token_of_nothing_is_no_nan(tmp_path):
    for normalisation in ("layer_norm", "constant_norm_rescale"):
        code = NormalisedCode(made("jumprelu"), normalisation)
        zeros = torch.zeros(1, 2, D)
        latents = code.encode(zeros)
        assert latents.isfinite().all() and code.decode(latents, zeros).isfinite().all()


@pytest.mark.parametrize("kind", ["jumprelu", "gated", "topk"])
@pytest.mark.parametrize("where", ["cfg.json", "activation_scaler.json"])
def test_the_average_norm_is_one_factor_for_all_tokens(tmp_path, kind, where):
    """The SAE was trained on 0.25 x; outside it everything is in x's units."""
    names = {"jumprelu": JUMP, "gated": GATED, "topk": PLAIN}[kind]
    cfg = NEW | {"architecture": kind, "normalize_activations": "expected_average_only_in"}
    cfg |= {"k": K} if kind == "topk" else {}
    if where == "cfg.json":
        cfg |= {"norm_scaling_factor": 0.25}
    else:
        (tmp_path / where).write_text('{"scaling_factor": 0.25}')
    code = read_code(folder(tmp_path, names, cfg), D, LAYER)
    a = encoded(kind, 0.25 * X, True)
    close(code.encode(TOKENS), a)
    close(code.decode(code.encode(TOKENS)), decoded(a) / 0.25)
    save_code(code, tmp_path / "again")
    close(read_code(tmp_path / "again", D).encode(TOKENS), a)


def test_an_average_that_nobody_knows_is_asked_for(tmp_path):
    for value in ("expected_average_only_in", True):  # as SAELens wrote it before
        path = folder(tmp_path, PLAIN, OLD | {"normalize_activations": value})
        refused(lambda path=path: read_code(path, D), "nothing says the factor", "norm_scaling_factor")
    for factor in (0, -1, "much", True, float("nan")):
        path = folder(tmp_path, PLAIN, OLD | {"normalize_activations": True, "norm_scaling_factor": factor})
        refused(lambda path=path: read_code(path, D), "expected a number above 0")
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    path = folder(tmp_path, PLAIN, OLD | {"normalize_activations": True, "norm_scaling_factor": 0.5})
    refused(lambda: read_code(path, D), "0.5 and 0.25")
    path = folder(tmp_path, PLAIN, OLD | {"normalize_activations": "unit_ball"})
    refused(lambda: read_code(path, D), "'unit_ball', which is not supported")


# ---------------------------------------------------------------- refused


def refused(call: Callable[[], Any], *says: str) -> None:
    with pytest.raises(PackError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_another_width(tmp_path):
    refused(lambda: read_code(gemma_scope(tmp_path), D + 1, LAYER), "b_dec", f"({D},)", f"({D + 1},)")
    short = {"W_enc": W["W_enc"][:, :-1]}
    refused(lambda: read_code(gemma_scope(tmp_path / "b", **short), D, LAYER), "W_enc", f"({D}, {F - 1})")
    refused(lambda: read_code(gemma_scope(tmp_path / "c", W_dec=W["W_enc"]), D, LAYER), "W_dec", f"({D}, {F})")
    cfg = NEW | {"architecture": "jumprelu", "d_sae": F + 1}
    refused(lambda: read_code(folder(tmp_path / "d", JUMP, cfg), D), f"d_sae {F + 1}", f"has {F}")


def test_a_layer_that_contradicts(tmp_path):
    for number, write in enumerate((gemma_scope, gemma_scope_2, lambda p: folder(p, PLAIN, OLD))):
        path = write(tmp_path / str(number))
        refused(lambda path=path: read_code(path, D, LAYER - 1), f"after block {LAYER - 1}")
    path = gemma_scope_2(tmp_path / "bare", config=False)
    refused(lambda: read_code(path, D, LAYER - 1), f"layer_{LAYER}_width_16k", f"after block {LAYER - 1}")
    before = OLD | {"hook_point": f"blocks.{LAYER}.hook_resid_pre"}  # the output of the block before
    assert read_code(folder(tmp_path / "pre", PLAIN, before), D, LAYER - 1)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out_all", "transcoder_all"])
def test_an_sae_of_something_else(tmp_path, site):
    refused(lambda: read_code(gemma_scope_2(tmp_path, config=False, site=site), D, LAYER), site)
    hook = f"model.layers.{LAYER}.pre_feedforward_layernorm.output"
    path = gemma_scope_2(tmp_path / "said", hf_hook_point_in=hook)
    refused(lambda: read_code(path, D), "pre_feedforward_layernorm")


def test_kinds_that_are_not_computed(tmp_path):
    for said in ({"affine_connection": True}, {"architecture": "batch_topk"}, {"architecture": "crosscoder"}):
        path = gemma_scope_2(tmp_path / str(len(list(tmp_path.iterdir()))), **said)
        refused(lambda path=path: read_code(path, D, LAYER), "not computed here")


@pytest.mark.parametrize(
    "said",
    [
        {"reshape_activations": "hook_z"},
        {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
        {"rescale_acts_by_decoder_norm": True},
        {"activation_fn": "tanh-relu"},
    ],
)
def test_settings_that_would_change_what_is_computed(tmp_path, said):
    path = folder(tmp_path, JUMP, NEW | {"architecture": "jumprelu"} | said)
    with pytest.raises(PackError):
        read_code(path, D, LAYER)


def test_whether_b_dec_is_subtracted_is_not_guessed(tmp_path):
    refused(lambda: read_code(folder(tmp_path, JUMP, None), D), "apply_b_dec_to_input")


def test_tensors_that_are_missing_or_too_many(tmp_path):
    cfg = NEW | {"architecture": "jumprelu"}
    refused(lambda: read_code(folder(tmp_path / "a", PLAIN, cfg), D), "it has no threshold")
    refused(lambda: read_code(folder(tmp_path / "b", (*JUMP, "r_mag"), cfg), D), "JumpReLU", "gated (r_mag) at once")
    gated = NEW | {"architecture": "gated"}
    refused(lambda: read_code(folder(tmp_path / "e", PLAIN, gated), D), "it has no b_gate")
    refused(lambda: read_code(gemma_scope(tmp_path / "c", affine_skip_connection=W["W_enc"]), D), "affine_skip")
    refused(
        lambda: read_code(folder(tmp_path / "d", (*PLAIN, "r_mag"), NEW | {"architecture": "topk", "k": K}), D), "r_mag"
    )


@pytest.mark.parametrize("name", JUMP)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(tmp_path, name, value):
    spoilt = W[name].copy()
    spoilt.flat[3] = value
    refused(lambda: read_code(gemma_scope(tmp_path, **{name: spoilt}), D, LAYER), name, "NaN or infinity")


def test_weights_that_were_never_filled(tmp_path):
    refused(lambda: read_code(gemma_scope(tmp_path, W_enc=np.zeros_like(W["W_enc"])), D, LAYER), "nothing but zeros")
    refused(lambda: read_code(gemma_scope(tmp_path / "b", b_enc=np.zeros(F, int)), D, LAYER), "integers are no weights")
    empty = {name: W[name][:0] for name in ("b_enc", "threshold")}
    refused(lambda: read_code(gemma_scope(tmp_path / "c", **empty), D, LAYER), "empty")


def test_a_pickle_in_an_npz_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    np.savez(tmp_path / "params.npz", **{name: W[name] for name in JUMP}, trap=np.array([Trap()], dtype=object))
    refused(lambda: read_code(tmp_path / "params.npz", D), "pickle")
    assert not (tmp_path / "run").exists()


def test_a_zip_that_would_expand_a_thousandfold(tmp_path):
    np.savez_compressed(tmp_path / "params.npz", W_enc=np.zeros((4096, 8192), np.float32))
    assert (tmp_path / "params.npz").stat().st_size < 1 << 18
    refused(lambda: read_code(tmp_path / "params.npz", D), "claim 128 MiB")


def test_two_arrays_of_one_name(tmp_path):
    path = gemma_scope(tmp_path) / "params.npz"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b_dec.npy", archive.read("b_dec.npy"))
    refused(lambda: read_code(path, D), "two arrays of one name")


def test_what_is_too_large_or_no_file(tmp_path, monkeypatch):
    path = gemma_scope(tmp_path) / "params.npz"
    monkeypatch.setattr("sod_core.packs.safe.LARGEST_FILE", 1000)
    refused(lambda: read_code(path, D), "larger than")
    os.mkfifo(tmp_path / "pipe.npz")
    refused(lambda: read_code(tmp_path / "pipe.npz", D), "pipe.npz")


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "params.npz"
    path.write_bytes(b"PK\3\4 and no more")
    refused(lambda: read_code(path, D), "params.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\1\0\x10\0{'shape': (9999,)}")
    refused(lambda: read_code(path, D), "params.npz")
    path.write_bytes((gemma_scope(tmp_path / "whole") / "params.npz").read_bytes()[:-40])
    refused(lambda: read_code(path, D), "params.npz")
    refused(lambda: read_code(tmp_path / "gone.npz", D), "gone.npz is missing")
    (tmp_path / "empty").mkdir()
    refused(lambda: read_code(tmp_path / "empty", D), "no weights of an SAE")

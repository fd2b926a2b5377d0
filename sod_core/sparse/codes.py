"""Every published file form of a sparse code of one token -> the code; and the one form that is written here.

Read are Gemma Scope (`params.npz`), Gemma Scope 2 (`params.safetensors`, `config.json`), SAELens in its newer and its
older form (`cfg.json`, `sae_weights.safetensors`), and what `forms.py` knows of TopK SAEs (sparsify's and others).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..packs.errors import PackError
from ..packs.figures import read_figures, read_json
from . import forms
from .code import Code
from .columns import ColumnSAE
from .description import GATED, JUMPRELU, PRE_BIAS, STANDARD, TOPK, Description, Setting, check_place, describe
from .gated import GatedSAE
from .jumprelu import JumpReLUSAE
from .normalised import CONSTANT_NORM, LAYER_NORM, NormalisedCode
from .topk import TopKSAE

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
"""SAELens's names, by which a code is written here."""
_NORMALISE, _FACTOR = "normalize_activations", "norm_scaling_factor"
_AVERAGE = "expected_average_only_in"
_SCALER = "activation_scaler.json"
"""SAELens keeps the factor there while it trains, and folds it into the weights in the end."""
_LOWER = {"w_enc": "W_enc", "w_dec": "W_dec"}
"""Gemma Scope 2's names, and SAELens's."""
_SCOPE = ("params.npz", "params.safetensors")
"""Gemma Scope's and Gemma Scope 2's, which do not subtract b_dec; whose folders say the layer."""
_ENCODERS = {
    STANDARD: ("b_enc",),
    JUMPRELU: ("b_enc", "threshold"),
    GATED: ("b_gate", "b_mag", "r_mag"),
}
"""Which tensors [F] there are beside W_enc [D, F], W_dec [F, D] and b_dec [D], by the kind of SAE."""


def read_code(path: Path, dim: int, layer: int | None = None, k: int | None = None) -> Code:
    """The sparse code in a file, or in a folder that holds one.

    dim: D, the width of the tokens. layer: the block after which it is used, None where nobody says. k: active latents
    a token, of a TopK SAE whose files do not say. What is read is understood whole, or refused. Raises PackError.
    """
    file = forms.weights_in(path) if path.is_dir() else path
    if not file.is_file():
        raise PackError(f"{file.name} is missing in {file.parent}")
    name = forms.shown(file)
    said = forms.settings_beside(file)
    normalisation, factor = _normalisation(file, said)
    said = [*_folders(file), *(setting for setting in said if setting.key not in (_NORMALISE, _FACTOR))]
    found = read_figures(file)
    scope = file.suffix.lower() == ".npz" or (isinstance(found, dict) and any(key in found for key in _LOWER))
    if isinstance(found, dict):
        found = {_LOWER.get(key, key): value for key, value in found.items()}
    state, own, outer = forms.opened(found, name)
    state, settings = {**outer, **state}, [*own, *said]
    description = describe(state, settings, name, k)
    _check_kind(description, name)
    check_place(settings, layer)
    code: ColumnSAE | TopKSAE
    if description.architecture == TOPK:
        code = forms.load_sae(found, k, dim, name, said, layer)
    else:
        weights = _weights(state, description, dim, name)
        code = _assembled(weights, _subtracts(description, settings, weights, scope, name))
    if factor != 1:
        _fold(code, factor)
    return NormalisedCode(code, normalisation) if normalisation else code


def save_code(code: Code, folder: Path, dtype: torch.dtype = torch.float32, layer: int | None = None) -> None:
    """Writes a code into a folder as SAELens does, for `read_code` and for SAELens.

    dtype: of the stored numbers, torch.float16 halves the file. layer: the block after which it is used.
    Raises ValueError for a code that SAELens has no form for.
    """
    from safetensors.torch import save_file

    inside: Any = code.inside if isinstance(code, NormalisedCode) else code
    config: dict[str, Any] = {"d_in": code.dim, "d_sae": code.latents, "dtype": str(dtype).removeprefix("torch.")}
    config[_NORMALISE] = code.normalisation if isinstance(code, NormalisedCode) else "none"
    if isinstance(inside, TopKSAE):
        if inside.normalised:
            raise ValueError("SAELens's form holds no statistics of tokens: save a code without them")
        config |= {"architecture": "topk", "k": inside.k, "apply_b_dec_to_input": True}
        weights = {"W_enc": inside.encoder.weight.T, "b_enc": inside.latent_bias, "W_dec": inside.decoder.weight.T}
        weights["b_dec"] = inside.pre_bias
    elif isinstance(inside, JumpReLUSAE | GatedSAE):
        architecture = "gated" if isinstance(inside, GatedSAE) else "jumprelu"
        config |= {"architecture": architecture, "apply_b_dec_to_input": inside.subtract_b_dec}
        weights = dict(inside.named_parameters())
    else:
        raise ValueError(f"SAELens has no form for a {type(inside).__name__}")
    if layer is not None:
        config["metadata"] = {"hook_name": f"blocks.{layer}.hook_resid_post"}
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: weight.detach().cpu().to(dtype).contiguous() for name, weight in weights.items()}
    save_file(stored, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _folders(file: Path) -> list[Setting]:
    """What the folders of Gemma Scope say of the place: layer_7/width_16k, resid_post/layer_9_width_16k."""
    if file.name not in _SCOPE:
        return []
    names = [parent.name for parent in list(file.absolute().parents)[:3]]  # a hub's cache has links to files elsewhere
    places = [name for name in names if re.search(r"^layer_\d+(_|$)|attn|mlp|transcoder|embedding", name)]
    return [Setting("its folder", "hook_name", name) for name in places]


def _check_kind(description: Description, file: str) -> None:
    kind = description.architecture
    for word, told_by in description.told:
        if word not in (TOPK, *_ENCODERS):
            raise PackError(f"{file} is of the kind {word} ({told_by}), which is not computed here")
        if word not in (kind, STANDARD):  # a ReLU is part of the others
            raise PackError(f"{file} is of the kind {kind} ({description.told_by}) and {word} ({told_by}) at once")
    if description.beyond:
        raise PackError(f"{description.beyond[0]}, which is not supported: take an SAE trained without it")
    if description.scaled_by_decoder and kind != TOPK:
        raise PackError(f"{file} is of the kind {kind} and scaled by its decoder's norms, which is not supported")


def _normalisation(file: Path, said: list[Setting]) -> tuple[str | None, float]:
    """The normalisation of each token, None for none, and the factor of all of them. Raises PackError."""
    told = [setting for setting in said if setting.key == _NORMALISE]
    values = {_AVERAGE if s.value is True else s.value for s in told if s.value not in (None, False, "none")}
    if len(values) > 1:
        raise PackError(f"{told[0]}, {told[-1]}")
    value = values.pop() if values else None
    if value == _AVERAGE:
        return None, _factor(file, said, told[0])
    if value is not None and value not in (CONSTANT_NORM, LAYER_NORM):
        raise PackError(f"{told[0]}, which is not supported: take an SAE trained without it")
    return value, 1.0


def _factor(file: Path, said: list[Setting], told: Setting) -> float:
    scaler = file.with_name(_SCALER)
    found = [setting.value for setting in said if setting.key == _FACTOR]
    if scaler.is_file():
        held = read_json(scaler)
        found.append(held.get("scaling_factor") if isinstance(held, dict) else None)
    found = [value for value in found if value is not None]
    if not found:
        raise PackError(f"{told}, and nothing says the factor: add it to {CONFIG} as {_FACTOR} (1 if it is folded in)")
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise PackError(f"{file.parent.name} says {_FACTOR} {value!r}, expected a number above 0")
    if len(set(found)) > 1:
        raise PackError(f"{file.parent.name} says {_FACTOR} {found[0]} and {found[1]}: correct whichever is wrong")
    return float(found[0])


def _weights(state: dict[str, Tensor], description: Description, dim: int, file: str) -> dict[str, Tensor]:
    """The SAE's tensors in float32, by SAELens's names. Raises PackError for more, fewer, and other shapes."""
    if description.architecture == JUMPRELU and "log_threshold" in state and "threshold" not in state:
        state = {**state, "threshold": state["log_threshold"].exp()}  # as SAELens trained it once
        del state["log_threshold"]
    vectors = _ENCODERS[description.architecture]
    expected = ("W_enc", *vectors, "W_dec", "b_dec")
    for name in expected:
        if name not in state:
            raise PackError(f"{file} is no {description.architecture} SAE of SAELens's form: it has no {name}")
    forms.check_left_over(state, set(expected), description, file)
    weights = {name: forms.numbers(state[name], name, file) for name in expected}
    latents = weights[vectors[0]].numel()
    if not latents:
        raise PackError(f"{file}: {vectors[0]} is empty")
    shapes = dict.fromkeys(vectors, (latents,)) | {"b_dec": (dim,), "W_enc": (dim, latents), "W_dec": (latents, dim)}
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise PackError(f"{file}: {name} has shape {tuple(weights[name].shape)}, expected {shape}")
    for name in ("W_enc", "W_dec"):
        if not weights[name].any():
            raise PackError(f"{file}: {name} holds nothing but zeros: the file is damaged, or was never filled")
    return weights


def _subtracts(
    description: Description, settings: list[Setting], weights: dict[str, Tensor], scope: bool, file: str
) -> bool:
    """Whether b_dec is subtracted: as is said, else not by Gemma Scope, and by SAELens. Raises PackError."""
    if any(setting.key in PRE_BIAS and setting.value is not None for setting in settings):
        return description.subtracts_pre_bias
    if scope or not weights["b_dec"].any():
        return False
    if not any(setting.key in ("d_in", "d_sae") for setting in settings):  # SAELens's
        raise PackError(
            f"{file} does not say whether b_dec is subtracted: say apply_b_dec_to_input in {CONFIG} beside it"
        )
    return True


def _assembled(weights: dict[str, Tensor], subtract_b_dec: bool) -> ColumnSAE:
    dim, latents = weights["W_enc"].shape
    kind = GatedSAE if "b_gate" in weights else JumpReLUSAE
    with torch.device("meta"):  # filled at once: a million latents need no room twice
        code = kind(dim, latents, subtract_b_dec)
    if kind is JumpReLUSAE and "threshold" not in weights:
        weights = {**weights, "threshold": torch.zeros(latents)}
    stored = {name: weight.contiguous() for name, weight in weights.items()}
    stored["W_enc"] = stored["W_enc"].T.contiguous().T  # a column in one piece, as the class has it
    code.load_state_dict(stored, assign=True)
    return code.requires_grad_(False).eval()


def _fold(code: ColumnSAE | TopKSAE, factor: float) -> None:
    """Tokens times `factor` are what the code was trained on (SAELens, fold_activation_norm_scaling_factor)."""
    if isinstance(code, TopKSAE):
        code.encoder.weight.data.mul_(factor)
        back: tuple[Tensor, ...] = (code.decoder.weight, code.pre_bias)
    else:
        code.W_enc.data.mul_(factor)
        back = (code.W_dec, code.b_dec)
    for weight in back:
        weight.data.div_(factor)

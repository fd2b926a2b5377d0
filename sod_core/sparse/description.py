"""What kind of SAE a file holds, told by its settings, its tensors and its name, before any weight is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..packs.errors import PackError

TOPK, BATCH_TOPK, STANDARD, JUMPRELU = "TopK", "BatchTopK", "standard (ReLU)", "JumpReLU"
GATED, MATRYOSHKA, TRANSCODER, CROSSCODER = "gated", "Matryoshka", "transcoder", "crosscoder"

NAMES = {
    "pre_bias": ("pre_bias", "b_dec", "b_pre"),
    "latent_bias": ("latent_bias", "encoder.bias", "b_enc"),
    "encoder": ("encoder.weight", "W_enc"),
    "decoder": ("decoder.weight", "W_dec"),
}
"""Names of the same four tensors: the publishers' and sdxl-unbox's, sparsify's and dictionary_learning's, SAELens's."""


class Setting(NamedTuple):
    """One thing that a file says of an SAE."""

    where: str
    """The file."""
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.where} says {self.key} {self.value!r}"


@dataclass(frozen=True)
class Description:
    architecture: str
    """TOPK and the other constants here, or the word that is not known."""
    told_by: str
    """What says so."""
    told: tuple[tuple[str, str], ...]
    """Every architecture that something says, each with what says it; the ReLU inside of another is STANDARD."""
    k: int | None
    """Active latents a token; None where nothing says it."""
    dim: int | None
    """D, the width of a token; None where the tensor that tells is missing."""
    latents: int | None
    """F, the number of latents."""
    dtype: torch.dtype | None
    subtracts_pre_bias: bool
    """Whether pre_bias is subtracted from a token before it is encoded."""
    scaled_by_decoder: bool
    """Whether a latent is multiplied by the norm of its decoder column before the k largest are kept."""
    beyond: tuple[str, ...]
    """What else is said that changes what the SAE computes, such as a normalisation of every token."""


_NESTED = (
    *("trainer", "sae", "cfg", "config", "sae_cfg", "sae_config", "hyper_parameters", "metadata", "meta"),
    *("args", "hparams", "hyperparameters", "model_config", "model_args", "sae_args", "settings"),
    *("activation_fn_kwargs", "activation_kwargs", "activation_state_dict", "model_from_pretrained_kwargs"),
)
_ARCHITECTURES = ("architecture", "dict_class", "sae_type", "encoder_type", "autoencoder_type")
_ACTIVATIONS = ("activation", "activation_fn", "activation_fn_str", "activation_type", "act_fn")
_FLAGS = {
    "batch_topk": BATCH_TOPK,
    "sample_topk": "SampleTopK",
    "signed": "signed TopK",
    "transcode": TRANSCODER,
    "is_transcoder": TRANSCODER,
    "skip_connection": "transcoder with a skip connection",
    "embed_skip": "transcoder with a skip connection",
    "gram_lookup": "SAE beside a table of n-grams",
    "tied": "tied SAE",
    "affine_connection": TRANSCODER,  # Gemma Scope 2
}
_WORDS = (  # of an architecture's name in small letters, the more special ones first
    ("crosscoder", CROSSCODER),
    ("crosslayer", "cross-layer transcoder"),
    ("clt", "cross-layer transcoder"),
    ("transcoder", TRANSCODER),
    ("matryoshka", MATRYOSHKA),
    ("matroyshka", MATRYOSHKA),  # as a library spelt it once
    ("batchtopk", BATCH_TOPK),
    ("jump", JUMPRELU),
    ("gated", GATED),
)
_TOPK_WORDS = (
    "topk",
    "topksae",
    "saetopk",
    "topkrelu",
    "topktrainingsae",
    "autoencodertopk",
    "topkautoencoder",
    "topktrainer",
)
_STANDARD_WORDS = ("standard", "standardsae", "relu", "vanilla", "vanillasae", "autoencoder", "autoencodernew", "l1")
_NO_WORDS = ("sae", "sparseautoencoder", "sparsecoder")  # say no more than that it is one
_TELLTALES = {
    **dict.fromkeys(("b_gate", "b_mag", "r_mag", "gate", "gate_bias", "mag_bias", "W_gate", "gate.weight"), GATED),
    **dict.fromkeys(("threshold", "thresholds", "log_threshold", "theta", "jumprelu_threshold"), JUMPRELU),
    **dict.fromkeys((f"{layer}.threshold" for layer in ("activation", "activation_fn", "jumprelu")), JUMPRELU),
    **dict.fromkeys(("W_skip", "skip.weight", "b_dec_out", "b_out"), TRANSCODER),
    "topk_threshold": BATCH_TOPK,
    "group_sizes": MATRYOSHKA,
    "bias": STANDARD,  # dictionary_learning's AutoEncoder has it in place of b_dec
}
_KS = ("k", "top_k", "topk", "k_active", "n_active", "num_active", "num_active_latents")
_DIMS = ("d_in", "activation_dim", "act_size")
_WIDTHS = ("d_sae", "dict_size", "n_dirs_local", "num_latents", "n_latents")
PRE_BIAS = ("apply_b_dec_to_input", "pre_enc_bias")
_BY_DECODER = "rescale_acts_by_decoder_norm"
_HOOKS = ("hook_name", "hook_point", "hookpoint", "hf_hook_point_in", "hf_hook_point_out", "submodule_name")
_LAYERS = ("hook_layer", "hook_point_layer", "layer")
_OFF = (None, False, 0, "", "none", "None", "null", "identity")
# Names of settings that may change what is computed, and what tells those of them that only concern training.
_COMPUTES = re.compile(
    "norm|standardi|whiten|cent(er|re)|scal|threshold|theta|skip|transcod|group|rotat|pca|reshape|expert"
)
_TRAINING = re.compile(
    "^normalize_(sae_)?decoder|init|aux|dead|penalty|loss|noise|grad|(^|_)lr(_|$)|lambda|warm|bandwidth|path$|device"
    "|dtype|seed|batches|batch_size|wandb|lp_norm|tanh_scale|threshold_(beta|start)|max_norm|scaler|amp_scal|eval"
)
_NOT_RESIDUAL = re.compile(
    r"attn|attention|mlp|intermediate|hook_z|resid_mid|_q$|_v$|feedforward|layernorm|[._]ln\d|embed|transcoder"
)


def settings_of(where: str, said: dict[Any, Any], depth: int = 0) -> list[Setting]:
    """What a configuration says, with its nested parts beside its own keys."""
    found = []
    for key, value in said.items():
        if isinstance(value, dict) and key in _NESTED and depth < 8:
            found += settings_of(where, value, depth + 1)
        elif isinstance(key, str):
            found.append(Setting(where, key, value))
    return found


def describe(state: dict[str, Tensor], settings: list[Setting], file: str, k: int | None) -> Description:
    """The kind of the SAE in a state dict whose names have lost their prefix; `k` is the pack's.

    Raises PackError where two statements contradict each other, or what is there has two meanings.
    """
    told = _architectures(state, settings, file)
    architecture, told_by = told[0]
    encoder = _first(state, NAMES["encoder"])
    pre_bias, latent_bias = _first(state, NAMES["pre_bias"]), _first(state, NAMES["latent_bias"])
    dim, latents = (None if bias is None else bias.numel() for bias in (pre_bias, latent_bias))
    _check_widths(settings, file, dim, latents)
    return Description(
        architecture=architecture,
        told_by=told_by,
        told=tuple(told),
        k=_k(state, settings, file, k),
        dim=dim,
        latents=latents,
        dtype=None if encoder is None else encoder.dtype,
        subtracts_pre_bias=bool(_agreed(_said(settings, PRE_BIAS), True)),
        scaled_by_decoder=bool(_agreed(_said(settings, (_BY_DECODER,)), False)),
        beyond=tuple(str(setting) for setting in _beyond(state, settings)),
    )


def check_place(settings: list[Setting], layer: int | None) -> None:
    """Raises PackError where the SAE was trained on anything but the hidden state after block `layer`, or any block."""
    hooks = [s for s in _said(settings, _HOOKS) if isinstance(s.value, str)]
    before = any("resid_pre" in hook.value for hook in hooks)  # the input of a block is the output of the one before
    for hook in hooks:
        if _NOT_RESIDUAL.search(hook.value):
            raise PackError(f"{hook}: the pack needs an SAE of the hidden state after a block")
        number = re.search(r"(?:blocks?|layers?|\bh)[._](\d+)", hook.value)
        if layer is not None and number and int(number[1]) - before != layer:
            raise PackError(f"{hook}, the pack uses it after block {layer}")
    for told in _said(settings, _LAYERS):
        if layer is not None and str(told.value).isdecimal() and int(told.value) - before != layer:
            raise PackError(f"{told}, the pack uses it after block {layer}")


def passes_over(name: str, tensor: Tensor) -> bool:
    """Whether a tensor changes nothing that a trained SAE computes: counters and statistics of training."""
    if re.search("since_fired|last_nonzero|not_active|num_tokens_seen|num_batches_seen", name):
        return True
    if name in ("scaling_factor", "finetuning_scaling_factor"):
        return bool((tensor == 1).all())
    return name in _KS or name in (
        *("step", "steps", "global_step", "act_ema", "act_freq_scores", "n_forward_passes", "sparsity"),
        *("latents_activation_frequency", "latents_mean_square", "log_feature_sparsity", "feature_density"),
    )


def _architectures(state: dict[str, Tensor], settings: list[Setting], file: str) -> list[tuple[str, str]]:
    """The architectures, each with what says so: the one that counts first, which is anything but TopK if any is."""
    named = _words(_named(settings))
    fires = _words([s for s in _said(settings, _ACTIVATIONS) if isinstance(s.value, str)])
    if any(word == TOPK for word, _ in fires):  # SAELens's older files: a standard SAE whose activation is TopK
        named = [(TOPK if word == STANDARD else word, by) for word, by in named]
    if any(word == TOPK for word, _ in named):  # a ReLU follows the TopK
        fires = [(word, by) for word, by in fires if word != STANDARD]
    flags = [(_FLAGS[s.key], str(s)) for s in settings if s.key in _FLAGS and not _off(s.value)]
    told = [*named, *fires, *flags, *_told_by_tensors(state, named, file)]
    if "latents_activation_frequency" in state and not fires:
        told.append((STANDARD, "OpenAI's, without the name of an activation"))
    inputs = [s.value for s in _said(settings, _DIMS)]
    told += [(TRANSCODER, str(s)) for s in _said(settings, ("d_out",)) if inputs and s.value not in inputs]
    if not told and not _said(settings, _KS):
        told += [(STANDARD, f"{s}, and no architecture") for s in _said(settings, ("d_sae",))]  # SAELens's default
    others = [(word, by) for word, by in told if word != TOPK]
    others.sort(key=lambda other: other[0] == BATCH_TOPK)  # in use it may count as TopK, so it must hide no other
    return [*others, *(t for t in told if t not in others)] or [(TOPK, file)]


def _words(said: list[Setting]) -> list[tuple[str, str]]:
    """(the architecture meant, what says so), of settings that say one."""
    found = ((_word(s.value), str(s)) for s in said)
    return [(word, by) for word, by in found if word is not None]


def _told_by_tensors(state: dict[str, Tensor], named: list[tuple[str, str]], file: str) -> Iterator[tuple[str, str]]:
    encoder = _first(state, NAMES["encoder"])
    if encoder is not None and encoder.ndim == 3:
        yield CROSSCODER, f"the encoder has shape {tuple(encoder.shape)}"
    for name in state:
        if name.startswith("pre_encoder"):
            yield "SAE with a pre-encoder", name
        elif name == "threshold" and state[name].numel() == 1 and any(key in state for key in _KS):
            # dictionary_learning's TopK keeps one for experiments, its BatchTopK fires by it
            if any(word == TOPK for word, _ in named):
                continue
            if not named:
                raise PackError(
                    f"{file} has both k and a threshold, as TopK and BatchTopK SAEs of dictionary_learning do: put its "
                    "config.json beside it, which says the class"
                )
            yield BATCH_TOPK, name
        elif name in _TELLTALES and not (name == "bias" and _first(state, NAMES["pre_bias"]) is not None):
            yield _TELLTALES[name], name


def _named(settings: list[Setting]) -> list[Setting]:
    found = [s for s in _said(settings, _ARCHITECTURES) if isinstance(s.value, str)]
    return found or [s for s in _said(settings, ("trainer_class",)) if isinstance(s.value, str)]


def _word(said: str) -> str | None:
    """The architecture that a word means; the word itself where it is not known, None where it says nothing."""
    small = re.sub("[^a-z0-9]", "", said.lower())
    if small in _NO_WORDS:
        return None
    if small in _TOPK_WORDS:
        return TOPK
    if small in _STANDARD_WORDS:
        return STANDARD
    return next((name for word, name in _WORDS if word in small), f"{said!r}")


def _k(state: dict[str, Tensor], settings: list[Setting], file: str, pack: int | None) -> int | None:
    """The k that all agree on. Raises PackError where two do not."""
    told = [Setting(file, name, t.item() if t.numel() == 1 else t.tolist()) for name, t in state.items() if name in _KS]
    told += [setting for setting in _said(settings, _KS) if not isinstance(setting.value, bool)]
    name = file.rpartition("/")[2] if told else file  # a folder "topk-5" may be layer 5's
    named = re.findall(r"(?<![a-z0-9])(?:top[_-]?)?k[_=-]?(\d+)(?![0-9a-z])", name.lower())
    told += [Setting(f"the name {file}", "k", int(number)) for number in named]
    for setting in told:
        value = setting.value
        if not (isinstance(value, int | float | np.number) and 1 <= value < 1 << 31 and value == int(value)):
            raise PackError(f"{setting}, expected a whole number above 0")
    if pack is not None:
        told.append(Setting("the pack", "k", pack))
    for setting in told:
        if setting.value != told[0].value:
            raise PackError(f"{told[0]}, {setting}: correct whichever is wrong")
    return int(told[0].value) if told else None


def _check_widths(settings: list[Setting], file: str, dim: int | None, latents: int | None) -> None:
    keys = _DIMS + (("d_model",) if _said(settings, ("n_dirs_local",)) else ())
    for names, width in ((keys, dim), (_WIDTHS, latents)):
        for setting in _said(settings, names):
            if isinstance(setting.value, Integral) and width is not None and setting.value not in (0, width):
                raise PackError(f"{setting}, but {file} has {width}")


def _beyond(state: dict[str, Tensor], settings: list[Setting]) -> list[Setting]:
    """The settings that change what is computed and are not understood here."""
    understood = {*_FLAGS, *PRE_BIAS, _BY_DECODER, *_ARCHITECTURES, *_HOOKS}
    if state.keys() & {"finetuning_scaling_factor", "scaling_factor"}:  # the tensor tells
        understood |= {"finetuning_scaling_factor"}
    found = [s for s in _said(settings, ("hook_head_index",))]
    found += [s for s in _said(settings, ("postact_fn",)) if str(s.value).lower() != "relu"]
    if "latents_activation_frequency" in state:  # OpenAI's Autoencoder, which normalises tokens wherever it is TopK
        topk = [s for s in _said(settings, _ACTIVATIONS) if s.value == "TopK"]
        found += [Setting(f"{s.where}, of OpenAI's library, which normalises tokens,", s.key, s.value) for s in topk]
    for setting in settings:
        name = setting.key.lower()
        if setting.key not in understood and _COMPUTES.search(name) and not _TRAINING.search(name):
            found += [] if _off(setting.value) else [setting]
    return found


def _off(value: Any) -> bool:
    return isinstance(value, str | Real | None) and value in _OFF


def _said(settings: list[Setting], keys: Iterable[str]) -> list[Setting]:
    return [s for s in settings if s.key in keys and s.value is not None]


def _agreed(told: list[Setting], default: Any) -> Any:
    for setting in told[1:]:
        if bool(setting.value) != bool(told[0].value):
            raise PackError(f"{told[0]}, {setting}")
    return told[0].value if told else default


def _first(state: dict[str, Tensor], names: Iterable[str]) -> Tensor | None:
    return next((state[name] for name in names if name in state), None)

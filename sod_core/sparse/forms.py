"""Every file form of a TopK SAE: understood whole, or refused."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..packs.checkpoint import unwrap
from ..packs.errors import PackError
from ..packs.figures import read_figures, read_json
from .description import (
    BATCH_TOPK,
    NAMES,
    TOPK,
    Description,
    Setting,
    check_place,
    describe,
    passes_over,
    settings_of,
)
from .statistics import load_stats, read_stats
from .topk import TopKSAE

__all__ = ["CONFIGS", "WEIGHTS", "load_sae", "load_stats", "read_config", "read_sae", "read_stats", "weights_in"]

_LIBRARIES = {
    "sae.safetensors": "cfg.json",  # sparsify
    "state_dict.pth": "config.json",  # sdxl-unbox
    "sae_weights.safetensors": "cfg.json",  # SAELens
    "ae.pt": "config.json",  # dictionary_learning
    "params.safetensors": "config.json",  # Gemma Scope 2
}
WEIGHTS = tuple(_LIBRARIES)
"""What the libraries call the weights in an SAE's folder."""
CONFIGS = ("cfg.json", "config.json")
"""What they call the description beside it."""
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz")
_SAE_KEYS = {"k", "top_k", "d_sae", "dict_size", "dict_class", "trainer", "num_latents", "expansion_factor"}
_SAE_KEYS |= {"n_dirs_local", "feature_size", "normalize_activations", "activation_fn_str", "sae_type"}


def read_sae(path: Path, k: int | None, dim: int, layer: int | None = None) -> TopKSAE:
    """A TopK SAE from a file, as the configuration beside it describes it.

    `k` is what the pack says; None leaves it to the file. `layer`: the block after which the pack uses it, None for a
    place that is no block's output. Raises PackError.
    """
    return load_sae(read_figures(path), k, dim, shown(path), settings_beside(path), layer)


def settings_beside(path: Path) -> list[Setting]:
    """What the configuration beside an SAE's file says of it; nothing where there is none. Raises PackError."""
    settings = []
    for config in files(path)[1:]:
        told = read_config(config)
        # config.json beside a pack's files may be another model's
        own = path.name in WEIGHTS or config.name == "cfg.json" or any(setting.key in _SAE_KEYS for setting in told)
        settings += told if own else []
    return settings


def files(path: Path) -> list[Path]:
    """Every file that `read_sae` may read: what to look at to see whether one has changed."""
    return [path, *(config for name in CONFIGS if (config := path.with_name(name)).is_file())]


def config_beside(weights: str) -> str | None:
    """The name of the description that a library writes beside weights of this name; None where it is no library's."""
    path = PurePosixPath(weights)
    return str(path.with_name(_LIBRARIES[path.name])) if path.name in _LIBRARIES else None


def read_config(path: Path) -> list[Setting]:
    """What a configuration says of an SAE. Raises PackError."""
    said = read_json(path)
    if not isinstance(said, dict):
        raise PackError(f"{path.name} holds no settings")
    return settings_of(f"{path.parent.name}/{path.name}", said)


def shown(path: Path) -> str:
    """A file's name for the user, with the folder's where the libraries call all files the same."""
    return f"{path.parent.name}/{path.name}" if path.name in (*WEIGHTS, "params.npz") else path.name


def weights_in(folder: Path) -> Path:
    """The file with an SAE's weights in its folder. Raises PackError for none, or several."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    chosen = [path for path in found if path.name in WEIGHTS] or found
    if len(chosen) != 1:
        several = ", ".join(path.name for path in chosen)
        told = f"several that could be an SAE's weights ({several}): name one" if chosen else "no weights of an SAE"
        raise PackError(f"the folder {folder.name} holds {told}")
    return chosen[0]


def load_sae(
    found: Any,
    k: int | None,
    dim: int,
    file: str,
    settings: list[Setting] | None = None,
    layer: int | None = None,
    batch_topk: bool = False,
) -> TopKSAE:
    """A TopK SAE from what a file holds, in any published form; its width is read from the file.

    `settings` is what the configuration beside it says; `batch_topk` is whether an SAE trained with BatchTopK is used
    with TopK; the rest as in `read_sae`. Raises PackError.
    """
    state, own, outer = opened(found, file)
    settings = [*own, *(settings or [])]
    everything = {**outer, **state}
    description = describe(everything, settings, file, k)
    active = _check(description, file, batch_topk)
    if layer is not None:
        check_place(settings, layer)
    parts = {}
    for part, names in NAMES.items():
        key = next((name for name in names if name in state), None)
        if key is None:
            raise PackError(f"{file} is no sparse autoencoder: it has none of {', '.join(names)}")
        parts[part] = key
    check_left_over(everything, set(parts.values()), description, file)
    weights = {part: numbers(state[key], key, file) for part, key in parts.items()}
    return _assembled(weights, parts, description, active, dim, file)


def opened(found: Any, file: str) -> tuple[dict[str, Tensor], list[Setting], dict[str, Tensor]]:
    """The state dict without the prefix of its names, what stands beside it, and tensors that lie around it."""
    if isinstance(found, dict) and found and all(isinstance(value, np.ndarray) for value in found.values()):
        arrays = {name: array for name, array in found.items() if array.dtype.kind in "biuf" and array.itemsize <= 8}
        found = {name: torch.from_numpy(_native(array)) for name, array in arrays.items()}
    chains = _chains(found)
    if len(chains) > 1:
        several = " and ".join(sorted(where or "the file's own names" for where, _ in chains))
        raise PackError(f"{file} holds several SAEs, under {several}: keep one in a file")
    _, levels = chains[0] if chains else ("", [found])
    state = unwrap(levels[-1], file)  # says what is wrong where there is none
    settings: list[Setting] = []
    outer: dict[str, Tensor] = {}
    for level in levels if chains else []:
        settings += settings_of(file, {key: value for key, value in level.items() if not isinstance(value, Tensor)})
        if level is not levels[-1]:
            outer |= {str(key): value for key, value in level.items() if isinstance(value, Tensor)}
    return _without_prefix(state, file), settings, outer


def _native(array: np.ndarray) -> np.ndarray:
    """The same numbers, their bytes in this machine's order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _chains(found: Any, where: str = "", depth: int = 0) -> list[tuple[str, list[dict]]]:
    """The dictionaries that have an SAE's encoder: by the keys that lead there, each with those around it before it."""
    if not isinstance(found, dict) or depth > 8:
        return []
    ends = tuple(f".{name}" for name in NAMES["encoder"])
    held = (key for key, value in found.items() if isinstance(value, Tensor | np.ndarray))
    if any(isinstance(key, str) and f".{key}".endswith(ends) for key in held):
        return [(where, [found])]
    return [
        (place, [found, *inner])
        for key, value in found.items()
        if not str(key).startswith("optim")
        for place, inner in _chains(value, f"{where}.{key}".lstrip("."), depth + 1)
    ]


def _without_prefix(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """The same tensors by the names that an SAE's have; all of those stand behind one prefix, or none."""
    known = [name for names in NAMES.values() for name in names]
    prefixes = {key.removesuffix(name) for key in state for name in known if key.endswith(name)}
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")}
    if len(prefixes) > 1:
        several = " and ".join(sorted(repr(prefix) for prefix in prefixes))
        raise PackError(f"{file} holds several SAEs, with names that begin with {several}: keep one in a file")
    prefix = prefixes.pop() if prefixes else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _check(description: Description, file: str, batch_topk: bool) -> int:
    """The SAE's k. Raises PackError for an SAE that is not computed here."""
    if description.architecture not in (TOPK, *([BATCH_TOPK] if batch_topk else [])):
        kind = description.architecture
        raise PackError(f"{file} is of the kind {kind} ({description.told_by}); only TopK SAEs are computed here")
    if description.beyond:
        raise PackError(f"{description.beyond[0]}, which is not supported: take an SAE trained without it")
    if description.k is None:
        raise PackError(f"{file} does not say k, the number of active latents")
    return description.k


def check_left_over(state: dict[str, Tensor], read: set[str | None], description: Description, file: str) -> None:
    """Raises PackError for tensors beside those that are read, save those that change nothing."""
    left = [name for name, tensor in state.items() if name not in read and not passes_over(name, tensor)]
    if description.architecture == TOPK:  # dictionary_learning's TopK keeps a threshold that it does not use
        left = [name for name in left if name != "threshold"]
    if left:
        several = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise PackError(f"{file} holds more than a {description.architecture} SAE: {several}")


def numbers(tensor: Tensor, name: str, file: str) -> Tensor:
    """A file's tensor in float32. Raises PackError for integers, NaN and infinity."""
    if not tensor.is_floating_point():
        raise PackError(f"{file}: {name} is {str(tensor.dtype).removeprefix('torch.')}, integers are no weights")
    weights = tensor.float()
    if not weights.isfinite().all():
        raise PackError(f"{file}: {name} holds values that are not finite (NaN or infinity)")
    return weights


def _assembled(
    weights: dict[str, Tensor], names: dict[str, str], description: Description, k: int, dim: int, file: str
) -> TopKSAE:
    pre_bias, latent_bias = weights["pre_bias"], weights["latent_bias"]
    latents = latent_bias.numel()
    if not latents:
        raise PackError(f"{file}: {names['latent_bias']} is empty")
    if k > latents:
        raise PackError(f"{file} keeps the {k} largest of {latents} latents: its k is not that of these weights")
    if pre_bias.numel() != dim:
        raise PackError(f"{file}: {names['pre_bias']} has shape {tuple(pre_bias.shape)}, expected ({dim},)")
    encoder = _oriented(weights["encoder"], names["encoder"], (latents, dim), names, file)
    decoder = _oriented(weights["decoder"], names["decoder"], (dim, latents), names, file)
    for part in ("encoder", "decoder"):
        if not weights[part].any():
            raise PackError(f"{file}: {names[part]} holds nothing but zeros: the file is damaged, or was never filled")
    pre_bias, latent_bias = pre_bias.reshape(-1), latent_bias.reshape(-1)
    if not description.subtracts_pre_bias:
        latent_bias = latent_bias + encoder @ pre_bias  # W x + c = W (x - b) + (c + W b)
    if description.scaled_by_decoder:
        norm = decoder.norm(dim=0)
        encoder, latent_bias, decoder = encoder * norm[:, None], latent_bias * norm, decoder / norm
    sae = TopKSAE(dim, latents, k)
    sae.encoder.weight.data, sae.decoder.weight.data = encoder.contiguous(), decoder.contiguous()
    sae.pre_bias.data, sae.latent_bias.data = pre_bias, latent_bias
    return sae.requires_grad_(False).eval()


def _oriented(matrix: Tensor, name: str, expected: tuple[int, int], names: dict[str, str], file: str) -> Tensor:
    """A matrix as torch's layers hold it, [out, in]. A square one is told by the name: W_enc, W_dec are [in, out]."""
    turned = matrix.T if matrix.ndim == 2 else matrix
    if expected[0] == expected[1] and matrix.shape == expected:
        if names["encoder"] == "W_enc" and names["decoder"] != "W_dec":
            raise PackError(f"{file}: nobody can tell which way W_enc and {names['decoder']} lie, both are square")
        return turned if name.startswith("W_") else matrix
    if expected not in (matrix.shape, turned.shape):
        raise PackError(f"{file}: {name} has shape {tuple(matrix.shape)}, expected {expected}")
    return matrix if matrix.shape == expected else turned

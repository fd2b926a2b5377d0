"""Every file form of the statistics by which an SAE's input was normalised: understood whole, or refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..packs.errors import PackError
from ..packs.figures import read_figures
from .topk import TokenStats

_KINDS = {"patch": "patch", "patches": "patch", "patch_tokens": "patch", "cls": "cls", "cls_token": "cls"}
_FIGURES = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std", "var": "var", "variance": "var"}
_FIGURES |= {"means": "mean", "stds": "std", "stddev": "std", "stdev": "std", "sd": "std"}
_REMARKS = re.compile(r"(^|_)(counts?|n|num|min|max|median|layers?|classes|labels)(_|$)")
_ALL = ("", "token", "tokens", "all", "all_tokens", "global", "running")
_CHANGES = re.compile("scal|norm|factor")
_WRAPPERS = ("stats", "statistics", "state_dict")


def read_stats(path: Path, dim: int) -> TokenStats:
    """Statistics from a .npy, .npz, .json, .safetensors or torch file. Raises PackError."""
    return load_stats(read_figures(path), dim, path.name)


def load_stats(found: Any, dim: int, file: str) -> TokenStats:
    """Statistics from {patch_mean, patch_std, cls_mean, cls_std}, {cls: .., patch: ..} or {mean, std}.

    `var` serves where `std` is missing. Raises PackError.
    """
    if not isinstance(found, dict):
        raise PackError(f"{file} holds no dictionary of means and standard deviations")
    named = _named(found, file)
    for figure in ("mean", "std", "var"):  # of all tokens: patches take them where they have none of their own
        if figure in named:
            named.setdefault(f"patch_{figure}", named[figure])
    arrays = {}
    for key in TokenStats._fields:
        kind, figure = key.split("_")
        squared = figure == "std" and key not in named
        value = named.get(f"{kind}_var" if squared else key)
        if value is None:
            if kind == "patch":
                held = ", ".join(map(str, list(found)[:5])) or "nothing"
                raise PackError(f"{file} has neither {key} nor {figure}, it holds {held}")
            continue
        array = _array(value, key, dim, file)
        arrays[key] = array.sqrt() if squared else array
    if ("cls_mean" in arrays) != ("cls_std" in arrays):
        raise PackError(f"{file} has one of cls_mean and cls_std without the other")
    return TokenStats(**arrays)


def _named(found: dict, file: str) -> dict[str, Any]:
    """What is known of it, by the names here. Raises PackError for arrays beyond."""
    named: dict[str, Any] = {}
    for key, value in _flat(found):
        name = _name(key)
        if name is None:
            if not _is_remark(key, value):
                raise PackError(f"{file} holds {key}: only means and deviations of patches and CLS are understood")
        elif name in named:
            raise PackError(f"{file} holds {name} twice")
        elif value is not None:
            named[name] = value
    return named


def _flat(found: dict) -> list[tuple[str, Any]]:
    flat = []
    for key, value in found.items():
        if isinstance(value, dict):
            inner = _flat(value)
            flat += inner if key in _WRAPPERS else [(f"{key}_{name}", part) for name, part in inner]
        else:
            flat.append((str(key), value))
    return flat


def _name(key: str) -> str | None:
    """The name here of `patches_sigma` or `std`; None where it is none."""
    word = key.strip().lower().replace(".", "_")
    kind, _, figure = word.rpartition("_")
    if figure not in _FIGURES:  # mean_patch
        figure, _, kind = word.partition("_")
    if figure not in _FIGURES or kind not in (*_ALL, *_KINDS):
        return None
    return f"{_KINDS[kind]}_{_FIGURES[figure]}" if kind in _KINDS else _FIGURES[figure]


def _is_remark(key: str, value: Any) -> bool:
    """Whether it changes no normalisation: a word, a single number, or a count or range beside the statistics."""
    several = isinstance(value, Tensor | np.ndarray | list | tuple) and len(np.atleast_1d(value)) > 1
    if not several and _CHANGES.search(key.lower()) and value not in (None, False, 1, "none", "None"):
        return False
    return not several or bool(_REMARKS.search(key.lower()))


def _array(value: Any, key: str, dim: int, file: str) -> Tensor:
    """[D] from D numbers, or from one that holds for all."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PackError(f"{file}: {key} holds no numbers") from error
    if tensor.numel() not in (1, dim):
        raise PackError(f"{file}: {key} has shape {tuple(tensor.shape)}, expected ({dim},)")
    plain = tensor.dtype == torch.int64 and not isinstance(value, Tensor | np.ndarray)  # 0 and 1 as JSON writes them
    if not (tensor.is_floating_point() or plain):
        raise PackError(f"{file}: {key} is {str(tensor.dtype).removeprefix('torch.')}, integers are no statistics")
    tensor = tensor.float().reshape(-1)
    if not tensor.isfinite().all() or (key.endswith("std") and tensor.min() <= 0):
        raise PackError(f"{file}: {key} must be finite{' and above 0' if key.endswith('std') else ''}")
    return tensor.expand(dim).clone()

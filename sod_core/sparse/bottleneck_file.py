"""A bottleneck's file: safetensors with metadata, understood whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ..machine import files
from ..packs import safe
from ..packs.errors import PackError
from . import pair_values
from .bottleneck import Bottleneck

FORM = "discrete key-value bottleneck 1"
_FLOATS = ("projection", "keys", "values")
_FLAGS = ("used", "masked")


def save(bottleneck: Bottleneck, path: Path) -> None:
    """Writes the file, whole or not at all; in the smallest numbers that lose nothing.

    Values that counts make are left out.
    """
    from safetensors.torch import save_file

    tensors = {name: getattr(bottleneck, name) for name in (*_FLOATS, *_FLAGS)}
    tensors |= {
        name: tensors[name].half() for name in _FLOATS if torch.equal(tensors[name].half().float(), tensors[name])
    }
    if bottleneck.counts is not None:
        small = int(bottleneck.counts.max()) < 1 << 15
        tensors["counts"] = bottleneck.counts.to(torch.int16 if small else torch.int32)
        if torch.equal(bottleneck.values, pair_values.of_counts(bottleneck.counts)):
            del tensors["values"]
    about = {"form": FORM, "k": str(bottleneck.k), "about": json.dumps(bottleneck.about, sort_keys=True)}
    with files.whole(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=about)


def read(path: Path) -> Bottleneck:
    """The bottleneck of a file. Raises PackError with what is wrong in it."""
    tensors = safe.read_torch(path)
    said = _metadata(path)
    if said.get("form") != FORM or not isinstance(tensors, dict):
        raise PackError(f"{path.name} is no file of a bottleneck: its metadata do not say {FORM!r}")
    if "values" not in tensors and _can_count(tensors.get("counts")):
        tensors = tensors | {"values": pair_values.of_counts(tensors["counts"].long())}
    _check(path.name, tensors)
    k = said.get("k", "")
    pairs = tensors["keys"].shape[1]
    if not (k.isdecimal() and 1 <= int(k) <= pairs):
        raise PackError(f"{path.name} says k {k!r}, and a codebook has {pairs} pairs")
    return Bottleneck(
        **{name: tensors[name].float() for name in _FLOATS},
        **{name: tensors[name] for name in _FLAGS},
        counts=tensors["counts"].long() if "counts" in tensors else None,
        k=int(k),
        about=_about(path.name, said.get("about", "{}")),
    )


def _can_count(counts: Tensor | None) -> bool:
    return counts is not None and counts.ndim == 3 and counts.shape[2] > 0 and not counts.is_floating_point()


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PackError(f"{path.name} is no safetensors file: {error}") from error


def _about(file: str, text: str) -> dict[str, str]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{file}: what it says about itself is no JSON") from error
    if not (isinstance(said, dict) and all(isinstance(value, str) for value in said.values())):
        raise PackError(f"{file}: what it says about itself is no table of words")
    return said


def _check(file: str, tensors: dict[str, Tensor]) -> None:
    wanted = {*_FLOATS, *_FLAGS}
    missing, beyond = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted - {"counts"})
    if missing or beyond:
        raise PackError(f"{file} {'lacks' if missing else 'also holds'} {(missing or beyond)[0]!r}")
    if any(tensors[name].ndim != 3 for name in _FLOATS):
        raise PackError(f"{file}: projection, keys and values must have three dimensions each")
    codebooks, pairs, key_width = tensors["keys"].shape
    classes = tensors["values"].shape[2]
    shapes = {
        "projection": (codebooks, tensors["projection"].shape[1], key_width),
        "values": (codebooks, pairs, classes),
        "counts": (codebooks, pairs, classes),
        "used": (codebooks, pairs),
        "masked": (codebooks, pairs),
    }
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise PackError(f"{file}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    if not all(shapes["values"]) or not all(shapes["projection"]):
        raise PackError(f"{file} holds an empty bottleneck")
    for name in _FLOATS:
        if not (tensors[name].is_floating_point() and tensors[name].isfinite().all()):
            raise PackError(f"{file}: {name} must be finite numbers")
    if any(tensors[name].dtype != torch.bool for name in _FLAGS):
        raise PackError(f"{file}: used and masked must be true or false")
    if "counts" in tensors and (tensors["counts"].is_floating_point() or (tensors["counts"] < 0).any()):
        raise PackError(f"{file}: counts must be whole numbers from 0")

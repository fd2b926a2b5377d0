"""Reads model files without ever running code from them.

A pickle may call any function it names, so checkpoints are read by `torch.load(weights_only=True)`, and the
`.npy` files that hold a pickled dictionary by an unpickler that admits arrays, tensors and plain containers.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .errors import PackError

_ADMITTED = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{core}.multiarray", "_reconstruct"),
        (f"{core}.multiarray", "scalar"),
        (f"{core}.numeric", "_frombuffer"),
    )
} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # torch's own would unpickle whatever is inside
            return _tensor_data
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _tensor_data(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def read_torch(path: Path) -> Any:
    """Tensors and plain containers of a .pth, .pt or .safetensors file, on the CPU. Raises PackError."""
    import torch

    _check_there(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of unusual pickles, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PackError(f"{path.name} was refused: it holds more than tensors ({_asked_for(error)})") from error
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        raise PackError(f"{path.name} cannot be read, it may be truncated ({type(error).__name__})") from error


def read_npy(path: Path) -> np.ndarray | dict:
    """The array of a .npy file, or the dictionary that numpy pickled into it. Raises PackError."""
    _check_there(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            dtype = read_header(file)[2]
            if not dtype.hasobject:
                file.seek(0)
                return np.load(io.BytesIO(file.read()), allow_pickle=False)
            found = _ArraysOnly(file).load()
    except pickle.UnpicklingError as error:
        raise PackError(f"{path.name} was refused: it holds more than arrays ({_asked_for(error)})") from error
    except Exception as error:
        raise PackError(f"{path.name} cannot be read, it may be truncated ({type(error).__name__})") from error
    return found.item() if isinstance(found, np.ndarray) and found.shape == () else found


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise PackError(f"{path.name} is missing in {path.parent}")


def _asked_for(error: Exception) -> str:
    """What a refused checkpoint wanted, from torch's several lines of advice."""
    text = str(error)
    for marker in ("Unsupported global: GLOBAL ", "GLOBAL "):
        if marker in text:
            return f"it asks for {text.split(marker, 1)[1].split()[0]}"
    return text.splitlines()[0][:120] if text else "an unknown object"

"""Reads files of plain figures, whatever holds them: JSON, numpy's arrays, torch's tensors."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from . import safe
from .errors import PackError
from .pickles import LARGEST, printable


def read_figures(path: Path) -> Any:
    """What a .json, .npy, .npz, .pkl, .safetensors or torch file holds, by its suffix. Raises PackError."""
    by_suffix = {".json": read_json, ".npz": read_npz, ".npy": safe.read_npy, ".pkl": safe.read_pickle}
    return by_suffix.get(path.suffix.lower(), safe.read_torch)(path)


def read_json(path: Path) -> Any:
    """What a JSON file says. Raises PackError."""
    name = printable(path.name)
    try:
        if path.stat().st_size > LARGEST:
            raise PackError(f"{name} was refused: it is larger than {LARGEST >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except PackError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise PackError(f"{name} cannot be read: {error}") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by their names, none of them pickled. Raises PackError."""
    name = printable(path.name)
    try:
        if not path.is_file():  # a pipe would wait for its writer
            raise PackError(f"{name} is missing in {path.parent}, or no regular file")
        if path.stat().st_size > safe.LARGEST_FILE:
            raise PackError(f"{name} was refused: it is larger than {safe.LARGEST_FILE >> 30} GiB")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise PackError(f"{name} was refused: it holds two arrays of one name")
            claimed = sum(member.file_size for member in members)
            if claimed > max(LARGEST, 4 * path.stat().st_size):  # what is compressed could expand a thousandfold
                raise PackError(f"{name} was refused: its arrays claim {claimed >> 20} MiB")
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    except PackError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise PackError(f"{name} cannot be read as a .npz file of plain arrays ({error})") from error


def _array(data: bytes) -> np.ndarray:
    """One member of a .npz file, whose header has to describe exactly what follows."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read_header[version](file)
    if dtype.hasobject:
        raise ValueError("it holds a pickle")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("a header does not describe what follows")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)

"""Reads model files without running code from them, in memory that their size bounds.

A pickle may call any function and claim any size. So every pickle is walked through here first, by a reader that knows
few operations and few names and refuses all others. The pickled `.npy` files are read by that walk alone. Checkpoints
are walked through without their data and then read by `torch.load(weights_only=True)`: torch alone runs no code from
them either, but allocates whatever they ask for. What its reader does not know of pickle, newer protocols above
all, the walk reads itself.
"""

from __future__ import annotations

import io
import math
import pickle
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import plain, recognise
from .errors import PackError
from .pickles import LARGEST, Arrays, Refused, printable

LARGEST_FILE = 4 << 30
"""Bytes of a file of weights."""
_LARGEST_PICKLE = 16 << 30
"""SAeUron's script gathers latents by the gigabyte: 20 concepts x 80 prompts x 100 steps x 20,480 halves are 6.6 GB."""
_CORES, _REBUILT = ("numpy.core", "numpy._core"), ("scalar", "_reconstruct")
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch's
_ZIP, _PICKLE, _NUMPY = b"PK\3\4", b"\x80", b"\x93NUM"
_LARGEST_DIRECTORY = 4 << 20  # of a zip or safetensors file: over 30,000 tensors


def read_torch(path: Path) -> Any:
    """Tensors and plain containers of a file of torch or safetensors, told by its content, on the CPU.

    Raises PackError.
    """
    with _opened(path) as (file, size):
        head = file.read(recognise.HEAD)
        file.seek(0)
        if not _is_safetensors(head, path.suffix):
            return _plain_pickle(file, size) if _is_plain_pickle(head) else _checkpoint(file, size)
        from safetensors.torch import load_file  # it checks every offset

        if int.from_bytes(head[:8], "little") > min(size - 8, _LARGEST_DIRECTORY):
            raise Refused("its header claims more than the file holds, it may be truncated")
        return load_file(path)


def _is_safetensors(head: bytes, suffix: str) -> bool:
    return recognise.is_safetensors(head) or (
        suffix.lower() == ".safetensors" and not head.startswith((_ZIP, _PICKLE, _NUMPY))
    )


def _is_plain_pickle(head: bytes) -> bool:
    """Whether pickle itself wrote the file: torch's own begin with a number."""
    return (
        head[:1] == _PICKLE and _MAGIC_NUMBER.to_bytes(10, "little") not in head[:32]
    )  # from protocol 4 on a frame begins before it


def _plain_pickle(file: BinaryIO, size: int) -> dict:
    """A dictionary that pickle wrote: the walk alone reads it."""
    found = Arrays(size, _checkpoint).load(file)
    if not isinstance(found, dict):
        raise Refused("it is no checkpoint of torch")
    return found


def read_npy(path: Path) -> np.ndarray | dict:
    """The array of a .npy file, or the dictionary that numpy pickled into it. Raises PackError."""
    with _opened(path) as (opened, size):
        if size > LARGEST:
            raise Refused(f"it is larger than {LARGEST >> 20} MiB")
        file = io.BytesIO(opened.read(LARGEST))
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise Refused("its .npy version is unknown")
        one = version == (1, 0)
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{'1' if one else '2'}_0")(file)
        if dtype.hasobject:
            found = Arrays(size, _checkpoint).load(file)
            return found.item() if isinstance(found, np.ndarray) and found.shape == () else found
        if dtype.kind not in "biufcSU" or math.prod(shape) * dtype.itemsize != size - file.tell():
            raise Refused("its header does not describe what follows, it may be truncated")
        file.seek(0)
        return np.load(file, allow_pickle=False)


def read_pickle(path: Path) -> Any:
    """Tensors, arrays and plain containers of a plain pickle (.pkl), on the CPU. Raises PackError.

    It may be larger than a checkpoint: the tensors of a plain pickle lie inside it.
    """
    with _opened(path, _LARGEST_PICKLE) as (file, size):
        return Arrays(size, _checkpoint).load(file)


@contextmanager
def _opened(path: Path, largest: int = LARGEST_FILE) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. Whatever goes wrong while it is read becomes a PackError of one sentence."""
    name = printable(path.name)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise PackError(f"{name} is missing in {path.parent}") from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would wait for its writer
        raise PackError(f"{name} was refused: it is no regular file")
    if found.st_size > largest:
        raise PackError(f"{name} was refused: it is larger than {largest >> 30} GiB")
    try:
        opened = path.open("rb")
    except OSError as error:
        raise PackError(f"{name} cannot be opened: {error.strerror}") from error
    with opened as file:
        try:
            what = recognise.other(file.read(recognise.HEAD))
            if what is not None:
                raise PackError(f"{name} is {what}")
            file.seek(0)
            yield file, found.st_size
        except PackError:
            raise
        except Refused as error:
            raise PackError(f"{name} was refused: {error}") from None
        except Exception as error:  # numpy, torch and zipfile raise many kinds for a damaged file
            raise PackError(f"{name} cannot be read, it may be truncated ({type(error).__name__})") from error


class _Checkpoint(Arrays):
    """Knows the storages of a checkpoint, without their data unless they are given; what lies beside may be numpy's."""

    def __init__(self, size: int, data: dict[str, Any] | None = None) -> None:
        super().__init__(size, _checkpoint)
        self.storages: dict[str, Any] = {}
        """Without data."""
        self.data = data
        self.contents = b""
        """The pickle that holds the tensors, once it was found."""
        self.bytes_of: Callable[[str], bytes] = lambda key: b""
        """The data of a storage, once its place is known."""

    def stored(self, id: Any) -> Any:
        import torch

        word, dtype, key, _, elements, *view = id
        if word != "storage" or type(key) is not str or type(elements) is not int or any(view):
            raise Refused("it refers to something other than its storages")
        found = torch.empty(elements, dtype=dtype, device="meta")
        if key not in self.storages:
            self.take(found.nbytes)
        known = self.storages.setdefault(key, found)
        if known.dtype != dtype or len(known) != elements:
            raise Refused("it claims one storage to be two")
        return known if self.data is None else self.data[key]

    def filled(self, size: int) -> Any:
        """What the contents hold, with the data. Only after a walk without."""
        import torch

        data = {key: torch.empty(len(storage), dtype=storage.dtype) for key, storage in self.storages.items()}
        for key, storage in data.items():
            if len(storage):
                storage.copy_(torch.frombuffer(bytearray(self.bytes_of(key)), dtype=storage.dtype))
        return _Checkpoint(size, data).load(io.BytesIO(self.contents))


def _checkpoint(file: BinaryIO, size: int) -> Any:
    """What torch reads from a file, once that is found to ask for no more than it holds."""
    import torch

    begins = file.read(4)
    file.seek(0)
    if begins == _NUMPY:
        raise Refused("it is an array of NumPy (.npy) and no checkpoint")
    if begins != _ZIP and begins[:1] != _PICKLE:
        raise Refused("it is no checkpoint of torch, and no safetensors file")
    walk = _Checkpoint(size)
    (_walk_zip if begins == _ZIP else _walk_legacy)(walk, file, size)
    file.seek(0)
    # After the walk: what they are told is checked by now.
    torch.serialization.add_safe_globals([*_numpy_names(), *_plain_names(walk.factories)])
    try:
        with warnings.catch_warnings(action="ignore"):  # of an unusual pickle protocol
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (
            walk.contents
        ):  # it knows fewer operations of pickle's newer protocols, and less of dictionaries, than the walk
            return walk.filled(size)
        raise Refused(
            "torch's safe reader cannot read it (UnpicklingError): save it with torch.save's own protocol"
        ) from error


def _plain_names(factories: set[str]) -> list[Any]:
    """The stand-ins of plain classes, and of what is a defaultdict's factory, for the same list."""
    names = plain.STAND_INS | {"collections defaultdict": plain.empty_dict, "builtins frozenset": plain.arguments}
    names |= dict.fromkeys(factories, plain.arguments)
    return [(stand_in, plain.of_python_3(name)) for name, stand_in in names.items()]


def _numpy_names() -> list[Any]:
    """What numpy's own scalars and arrays are pickled by, for torch's list of what may be asked for."""
    core = import_module("numpy._core.multiarray")
    functions = [(getattr(core, name), f"{old}.multiarray.{name}") for old in _CORES for name in _REBUILT]
    return [
        *functions,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efdFDSUO"},
    ]


def _walk_zip(walk: _Checkpoint, file: BinaryIO, size: int) -> None:
    """A zip file of torch. It stores every member as it is; what is compressed could expand a thousandfold."""
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:  # closing it leaves the file open
        members = archive.infolist()
        sizes = {member.filename.lower(): member.file_size for member in members}  # torch minds no case
        top = members[0].filename.split("/")[0] if members else ""
        if f"{top}/constants.pkl".lower() in sizes:
            raise Refused("it is a TorchScript program")
        if f"{top}/data.pkl".lower() not in sizes:
            kind = "an archive of NumPy arrays" if any(name.endswith(".npy") for name in sizes) else "a zip archive"
            raise Refused(f"it is {kind} and no checkpoint: give one that torch.save or safetensors wrote")
        if any(member.compress_type or member.file_size != member.compress_size or member.extra for member in members):
            raise Refused("it is compressed, which torch never does")
        if len(sizes) < len(members) or sum(sizes.values()) > size:
            raise Refused("its members claim more than the file holds")
        if archive.getinfo(f"{top}/data.pkl").file_size > LARGEST:
            raise Refused(f"its pickle is larger than {LARGEST >> 20} MiB: save tensors, not arrays")
        if not any(member.CRC for member in members):  # torch was told to write none
            for member in members:
                member.CRC = None  # type: ignore[assignment]  # then it is not looked at
        damaged = archive.testzip()  # torch would not notice
        if damaged is not None:
            raise Refused(f"its part {printable(damaged)} is damaged (its checksum does not fit): download it again")
        walk.contents = archive.read(f"{top}/data.pkl")
        walk.load(io.BytesIO(walk.contents))
        walk.bytes_of = lambda key: zipfile.ZipFile(file).read(f"{top}/data/{key}")
        if f"{top}/byteorder" in archive.namelist() and archive.read(f"{top}/byteorder") != b"little":
            raise Refused("its numbers are stored with their first byte last: save it on another machine")
    if any(sizes[f"{top}/data/{key}".lower()] != storage.nbytes for key, storage in walk.storages.items()):
        raise Refused("its tensors are not as long as their data")


def _check_directory(file: BinaryIO, size: int) -> None:
    """Python and torch have to find the same directory in a zip file: the one that ends where its end record begins."""
    file.seek(-98, io.SEEK_END)
    tail = file.read()
    end, (length, start) = size - 22, struct.unpack_from("<II", tail, 88)
    if tail[56:60] == b"PK\6\7":  # torch writes a larger end record before that, and between them where it is
        end, (length, start) = size - 98, struct.unpack_from("<QQ", tail, 40)
        if tail[:4] != b"PK\6\6" or struct.unpack_from("<Q", tail, 64) != (end,):
            raise zipfile.BadZipFile
    if tail[76:80] != b"PK\5\6" or start + length != end or length > _LARGEST_DIRECTORY:
        raise zipfile.BadZipFile


def _walk_legacy(walk: _Checkpoint, file: BinaryIO, size: int) -> None:
    """A file as torch wrote them before: five pickles, then the length and the data of each storage."""
    pickles = io.BytesIO(file.read(LARGEST))
    if walk.load(pickles) != _MAGIC_NUMBER:
        raise Refused("it is no checkpoint of torch")
    walk.load(pickles)  # the version
    machine, begin = walk.load(pickles), pickles.tell()
    walk.load(pickles)
    walk.contents = pickles.getvalue()[begin : pickles.tell()]
    keys = walk.load(pickles)
    if any(type(key) is not str for key in keys) or set(keys) != set(walk.storages):
        raise Refused("it claims tensors that it does not hold")
    if pickles.tell() + sum(8 + storage.nbytes for storage in walk.storages.values()) > size:
        raise EOFError
    if type(machine) is dict and machine.get("little_endian") is False:
        raise Refused("its numbers are stored with their first byte last: save it on another machine")
    places, at = {}, pickles.tell()
    for key in keys:  # before the data of each, its length
        places[key], at = at + 8, at + 8 + walk.storages[key].nbytes

    def bytes_of(key: str) -> bytes:
        file.seek(places[key])
        return file.read(walk.storages[key].nbytes)

    walk.bytes_of = bytes_of

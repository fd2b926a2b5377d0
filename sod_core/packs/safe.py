"""Reads model files without running code from them, in memory that their size bounds.

A pickle may call any function and claim any size. So every pickle is walked through here first, by a reader that knows
few operations and few names and refuses all others. The pickled `.npy` files are read by that walk alone. Checkpoints
are walked through without their data and then read by `torch.load(weights_only=True)`: torch alone runs no code from
them either, but allocates whatever they ask for.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import stat
import struct
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import PackError

_LARGEST_FILE = 4 << 30
_LARGEST_PICKLE = 32 << 20  # the tensors of a checkpoint lie beside its pickle
_LARGEST_DIRECTORY = 4 << 20  # of a zip file: over 30,000 tensors


class _Refused(Exception):
    """Its text follows "FILE was refused: "."""


def read_torch(path: Path) -> Any:
    """Tensors and plain containers of a .pth, .pt or .safetensors file, on the CPU. Raises PackError."""
    with _opened(path) as (file, size):
        if path.suffix.lower() != ".safetensors":
            return _checkpoint(file, size)
        from safetensors.torch import load_file  # it checks every offset

        if int.from_bytes(file.read(8), "little") > min(size - 8, _LARGEST_PICKLE):
            raise _Refused("its header claims more than the file holds, it may be truncated")
        return load_file(path)


def read_npy(path: Path) -> np.ndarray | dict:
    """The array of a .npy file, or the dictionary that numpy pickled into it. Raises PackError."""
    with _opened(path) as (opened, size):
        if size > _LARGEST_PICKLE:
            raise _Refused(f"it is larger than {_LARGEST_PICKLE >> 20} MiB")
        file = io.BytesIO(opened.read(_LARGEST_PICKLE))
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise _Refused("its .npy version is unknown")
        one = version == (1, 0)
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{'1' if one else '2'}_0")(file)
        if dtype.hasobject:
            found = _Arrays(size).load(file)
            return found.item() if isinstance(found, np.ndarray) and found.shape == () else found
        if dtype.kind not in "biufcSU" or math.prod(shape) * dtype.itemsize != size - file.tell():
            raise _Refused("its header does not describe what follows, it may be truncated")
        file.seek(0)
        return np.load(file, allow_pickle=False)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. Whatever goes wrong while it is read becomes a PackError of one sentence."""
    name = _printable(path.name)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise PackError(f"{name} is missing in {path.parent}") from error
    try:
        if not stat.S_ISREG(found.st_mode):  # a pipe would wait for its writer
            raise _Refused("it is no regular file")
        if found.st_size > _LARGEST_FILE:
            raise _Refused(f"it is larger than {_LARGEST_FILE >> 30} GiB")
        with path.open("rb") as file:
            yield file, found.st_size
    except _Refused as error:
        raise PackError(f"{name} was refused: {error}") from None
    except Exception as error:  # numpy, torch and zipfile raise many kinds for a damaged file
        raise PackError(f"{name} cannot be read, it may be truncated ({type(error).__name__})") from error


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:120])


# ---------------------------------------------------------------- pickles

_OPERATIONS = 1_000_000  # each makes at most about 80 bytes, the costlier ones count several times
_COSTS = {"REDUCE": 16, "EMPTY_SET": 4}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_GATHERED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
_GATHERED |= dict.fromkeys(("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS"), 0)  # as many as there are since the mark
_KEYS = {str, bytes, int, float, bool, types.NoneType}  # to hash tuples of tuples could overflow the stack
_STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"}
_STORAGES |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}


class _Walk:
    """Reads pickles of plain containers, and of objects only those `known`.

    `pickletools` takes a pickle apart without acting on it, and raises where a length goes beyond the end. The memo is
    a dictionary here, so that a large index costs nothing.
    """

    def __init__(self, size: int) -> None:
        import torch

        self.left = 4 * size  # bytes that arrays and tensors may take; what they share counts each time
        self.operations = _OPERATIONS
        self.known: dict[str, Any] = {"collections OrderedDict": lambda: OrderedDict()}
        self.known |= {"builtins set": _set, "__builtin__ set": _set, "__builtin__ bytes": lambda: b""}
        for kind, name in _STORAGES.items():
            self.known |= dict.fromkeys((f"torch {kind}Storage", f"torch {name}"), getattr(torch, name))
        self.known |= {"torch Size": lambda numbers: numbers, "torch device": lambda name: name}
        self.known |= {"torch._utils _rebuild_parameter": lambda tensor, requires_grad, hooks: tensor}
        self.known |= {"torch._utils _rebuild_tensor_v2": self.tensor, "_codecs encode": self.encoded}

    def load(self, file: io.BytesIO) -> Any:
        """The next pickle in the file, which is left right behind it."""
        stack: list[Any] = []
        marked: list[list[Any]] = []  # the stacks below each mark
        memo: dict[int, Any] = {}
        for operation, value, _ in pickletools.genops(file):
            name = operation.name
            self.count(_COSTS.get(name, 1))
            if name in _VALUES or name in _LITERALS:
                stack.append(_LITERALS.get(name, value))
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE") and (value or 0) <= _OPERATIONS:
                memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name == "MARK":
                marked.append(stack)
                stack = []
            elif name in _GATHERED:
                if _GATHERED[name]:
                    items = [stack.pop() for _ in range(_GATHERED[name])][::-1]
                else:
                    items, stack = stack, marked.pop()
                if name.startswith("TUPLE"):
                    stack.append(tuple(items))
                else:
                    _put(stack[-1], items)
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                stack.append(self.named(value or " ".join([stack.pop(), stack.pop()][::-1])))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, (types.FunctionType, types.MethodType)):
                    raise _Refused("it calls what is no function")
                stack.append(function(*arguments))
            elif name == "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            elif name == "BINPERSID":
                stack.append(self.stored(stack.pop()))
            elif name == "STOP":
                return self.whole(stack.pop())
            elif name not in ("PROTO", "FRAME") or value > _LARGEST_PICKLE:
                raise _Refused(f"it asks for the pickle operation {name}")

    def named(self, name: str) -> Any:
        if name not in self.known:
            asked = _printable(name.replace(" ", "."))
            raise _Refused(f"it holds more than arrays, tensors and plain containers (it asks for {asked})")
        return self.known[name]

    def build(self, made: Any, state: Any) -> None:
        """Sets the state of an object: here, the versions that torch hangs on a state dict."""
        if type(made) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise _Refused("it sets attributes of an object")
        made.__dict__.update(state)

    def stored(self, id: Any) -> Any:
        """The storage of a checkpoint that has this id."""
        raise _Refused("it refers to something outside of it")

    def tensor(self, flat: Any, offset: int, shape: Any, strides: Any, grad: Any, hooks: Any, more: Any = None) -> Any:
        """A tensor over a flat one. It may not reach beyond that, nor have more elements, as with a stride of 0."""
        elements, _, _ = _product(shape), _product(strides), _product((offset,))
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        if len(shape) != len(strides) or hooks or more:
            raise _Refused("it holds an unusual tensor")
        if elements > len(flat) or (elements and last >= len(flat)):
            raise _Refused("it claims a tensor of more elements than are stored")
        return flat.as_strided(shape, strides, offset)

    def encoded(self, text: Any, encoding: Any) -> bytes:
        """Bytes, as protocol 2 writes them. Other encodings lengthen a text, and could be called over and over."""
        if type(text) is not str or encoding != "latin1":
            raise _Refused("it encodes text")
        self.take(len(text))
        return text.encode("latin1")

    def whole(self, found: Any) -> Any:
        """Counts what was found as often as a reader comes across it: lists that hold the same list twice, or
        themselves, multiply."""
        waiting = [found]
        while waiting:
            value = waiting.pop()
            self.count(1)
            if isinstance(value, dict):
                waiting.extend(value.values())
            elif isinstance(value, (list, tuple, set)):
                waiting.extend(value)
            elif isinstance(value, np.ndarray) and value.dtype.hasobject:
                waiting.extend(value.flat)
            else:
                self.take(getattr(value, "nbytes", 0))
        return found

    def count(self, operations: int) -> None:
        self.operations -= operations
        if self.operations < 0:
            raise _Refused("it holds too many values")

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _Refused("its arrays and tensors claim more than the file holds")


def _put(container: Any, items: list[Any]) -> None:
    """Fills a list, a set or, by keys and values in turn, a dictionary."""
    keys = {list: [], set: items}.get(type(container), items[::2])
    if type(container) not in (list, set, dict, OrderedDict) or not all(type(key) in _KEYS for key in keys):
        raise _Refused("it holds a container that is not plain")
    if type(container) is list:
        container.extend(items)
    else:
        container.update(items if type(container) is set else zip(keys, items[1::2]))


def _set(items: list[Any]) -> set[Any]:
    found: set[Any] = set()
    _put(found, items)
    return found


def _product(lengths: Any) -> int:
    """The elements of an array of this shape."""
    if len(lengths) > 64 or not all(type(length) is int and 0 <= length < 1 << 63 for length in lengths):
        raise _Refused("it holds an array of no proper shape")
    return math.prod(lengths)


# ---------------------------------------------------------------- pickled .npy


class _Arrays(_Walk):
    """Knows what numpy writes into a pickle, and the tensors beside it. No dtype is ever changed, and no function that
    allocates what it is told to is ever called."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.known |= {"numpy ndarray": "ndarray", "numpy dtype": _dtype, "torch.storage _load_from_bytes": self.flat}
        for core in ("numpy.core", "numpy._core"):  # of numpy 1 and 2
            self.known |= {f"{core}.multiarray _reconstruct": _unfilled, f"{core}.multiarray scalar": self.scalar}
            self.known |= {f"{core}.numeric _frombuffer": self.over}

    def build(self, made: Any, state: Any) -> None:
        if isinstance(made, np.dtype):
            if state != made.__reduce__()[2]:
                raise _Refused("it holds an unusual dtype")
        elif isinstance(made, np.ndarray):
            _, shape, dtype, _, data = state
            if type(data) is not (list if dtype.hasobject else bytes):
                raise _Refused("it holds an unusual array")
            if _product(shape) * (1 if dtype.hasobject else dtype.itemsize) != len(data):
                raise _Refused("it claims an array of more elements than are stored")
            if dtype.hasobject and any(isinstance(item, np.ndarray) and item.dtype.hasobject for item in data):
                raise _Refused("it nests arrays of objects")  # to free many levels would overflow the stack
            self.take(len(data))
            made.__setstate__(state)
        else:
            super().build(made, state)

    def scalar(self, dtype: Any, data: Any) -> Any:
        return self.over(data, dtype, (1,), "C")[0]

    def over(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """An array over bytes, and over nothing else: memory that can still be freed must not lie under an array."""
        if type(data) not in (bytes, bytearray) or not isinstance(dtype, np.dtype):
            raise _Refused("it holds an unusual array")
        self.take(len(data))
        return np.frombuffer(data, dtype).reshape(shape, order=order)

    def flat(self, data: Any) -> Any:
        """The storage of a tensor, which plain pickles hold as the bytes of a checkpoint."""
        import torch

        if type(data) is not bytes:
            raise _Refused("it holds an unusual tensor")
        self.take(len(data))
        storage = _checkpoint(io.BytesIO(data), len(data))
        return torch.empty(0, dtype=storage.dtype).set_(storage)


def _unfilled(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if (kind, shape, code) != ("ndarray", (0,), b"b"):
        raise _Refused("it holds an unusual array")
    return np.empty(0, object)  # until `build` fills it, it counts as an array of objects


def _dtype(code: Any, align: Any, copy: Any) -> np.dtype:
    if not re.fullmatch(r"[biufcSU][1-9]\d{0,7}|O8?", code):
        raise _Refused("it holds an unusual dtype")
    return np.dtype(code)


# ---------------------------------------------------------------- checkpoints


class _Checkpoint(_Walk):
    """Knows the storages of a checkpoint, here without their data."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.storages: dict[str, Any] = {}

    def stored(self, id: Any) -> Any:
        import torch

        word, dtype, key, _, elements, *view = id
        if word != "storage" or type(key) is not str or any(view):
            raise _Refused("it refers to something other than its storages")
        found = torch.empty(elements, dtype=dtype, device="meta")
        if key not in self.storages:
            self.take(found.nbytes)
        known = self.storages.setdefault(key, found)
        if known.dtype != dtype or len(known) != elements:
            raise _Refused("it claims one storage to be two")
        return known


def _checkpoint(file: BinaryIO, size: int) -> Any:
    """What torch reads from a file, once that is found to ask for no more than it holds."""
    import torch

    begins = file.read(4)
    file.seek(0)
    (_walk_zip if begins == b"PK\3\4" else _walk_legacy)(_Checkpoint(size), file, size)
    file.seek(0)
    with warnings.catch_warnings(action="ignore"):  # of an unusual pickle protocol
        return torch.load(file, map_location="cpu", weights_only=True)


def _walk_zip(walk: _Checkpoint, file: BinaryIO, size: int) -> None:
    """A zip file of torch. It stores every member as it is; what is compressed could expand a thousandfold."""
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        sizes = {member.filename.lower(): member.file_size for member in members}  # torch minds no case
        top = members[0].filename.split("/")[0]
        if f"{top}/constants.pkl".lower() in sizes:
            raise _Refused("it is a TorchScript program")
        if any(member.compress_type or member.file_size != member.compress_size or member.extra for member in members):
            raise _Refused("it is compressed, which torch never does")
        if len(sizes) < len(members) or sum(sizes.values()) > size:
            raise _Refused("its members claim more than the file holds")
        if archive.getinfo(f"{top}/data.pkl").file_size > _LARGEST_PICKLE:
            raise _Refused(f"its pickle is larger than {_LARGEST_PICKLE >> 20} MiB")
        walk.load(io.BytesIO(archive.read(f"{top}/data.pkl")))
    if any(sizes[f"{top}/data/{key}".lower()] != storage.nbytes for key, storage in walk.storages.items()):
        raise _Refused("its tensors are not as long as their data")


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
    pickles = io.BytesIO(file.read(_LARGEST_PICKLE))
    if walk.load(pickles) != 0x1950A86A20F9469CFC6C:
        raise _Refused("it is no checkpoint of torch")
    *_, keys = [walk.load(pickles) for _ in range(4)]  # version, machine, contents, keys
    if any(type(key) is not str for key in keys) or set(keys) != set(walk.storages):
        raise _Refused("it claims tensors that it does not hold")
    if pickles.tell() + sum(8 + storage.nbytes for storage in walk.storages.values()) > size:
        raise EOFError

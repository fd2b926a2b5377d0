"""A reader of pickles that runs nothing: few operations and few names are known and counted, the rest is refused."""

from __future__ import annotations

import io
import math
import pickletools
import re
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from . import plain

LARGEST = 32 << 20
"""Bytes of a pickle: the tensors of a checkpoint lie beside it."""


class Refused(Exception):
    """Its text follows "FILE was refused: "."""


def printable(text: str) -> str:
    """At most 120 characters of it, whatever is not printable as a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text[:120])


_OPERATIONS = 1_000_000  # each makes at most about 100 bytes, the costlier ones count several times
_COSTS = {"REDUCE": 16, "EMPTY_SET": 4}
_SAYS = {"torch._utils _rebuild_qtensor": "it is quantised", "torch._utils _rebuild_tensor_v3": "it may be quantised"}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_GATHERED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
_GATHERED |= dict.fromkeys(("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS"), 0)  # as many as there are since the mark
_KEYS = {str, bytes, int, float, bool, types.NoneType}  # to hash tuples of tuples could overflow the stack
_STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"}
_STORAGES |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}


class Unknown:
    """A name that is not known. It may be a defaultdict's factory, which is never called, and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name


class Walk:
    """Reads pickles of plain containers, and of objects only those `known`.

    `pickletools` takes a pickle apart without acting on it, and raises where a length goes beyond the end. The memo is
    a dictionary here, so that a large index costs nothing.
    """

    def __init__(self, size: int) -> None:
        import torch

        self.left = 4 * size  # bytes that arrays and tensors may take; what they share counts each time
        self.operations = _OPERATIONS
        self.known: dict[str, Any] = {"collections OrderedDict": lambda: OrderedDict()}
        self.known |= {"builtins set": self.a_set, "__builtin__ set": self.a_set, "__builtin__ bytes": lambda: b""}
        for kind, name in _STORAGES.items():
            self.known |= dict.fromkeys((f"torch {kind}Storage", f"torch {name}"), getattr(torch, name))
        self.known |= {"torch Size": _size, "torch device": lambda name: name}
        self.known |= {"torch._utils _rebuild_parameter": lambda tensor, requires_grad, hooks: tensor}
        self.known |= {"torch._utils _rebuild_tensor_v2": self.tensor, "_codecs encode": self.encoded}
        self.known |= plain.STAND_INS | {"collections defaultdict": self.a_defaultdict}
        self.known |= dict.fromkeys(("builtins frozenset", "__builtin__ frozenset"), self.a_frozenset)
        self.unknown: list[str] = []
        """Names asked for so far that nothing excuses."""
        self.factories: set[str] = set()
        """Names that are only a defaultdict's factory."""

    def load(self, file: BinaryIO) -> Any:
        """The next pickle in the file, which is left right behind it."""
        stack: list[Any] = []
        marked: list[list[Any]] = []  # the stacks below each mark
        memo: dict[int, Any] = {}
        value: Any  # a number, a text or None: as the operation has it
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
                self.refuse_unknown(function, *(() if function == self.a_defaultdict else arguments))
                if function is not plain.Record and not isinstance(function, (types.FunctionType, types.MethodType)):
                    raise Refused("it calls what is no function")
                stack.append(plain.Record() if function is plain.Record and not arguments else function(*arguments))
            elif name == "NEWOBJ":
                arguments, kind = stack.pop(), stack.pop()
                self.refuse_unknown(kind)
                if kind is not plain.Record or arguments != ():
                    raise Refused("it makes an object that is not plain")
                stack.append(plain.Record())
            elif name == "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            elif name == "BINPERSID":
                id = stack.pop()
                self.refuse_unknown(*(id if isinstance(id, tuple) else ()))
                stack.append(self.stored(id))
            elif name == "STOP":
                if self.unknown:
                    raise self.refusal(self.unknown[0])
                return self.whole(stack.pop())
            elif name not in ("PROTO", "FRAME") or value > LARGEST:
                raise Refused(f"it asks for the pickle operation {name}")

    def named(self, name: str) -> Any:
        if name in self.known:
            return self.known[name]
        self.unknown.append(name)
        return Unknown(name)

    def refuse_unknown(self, *used: Any) -> None:
        """Raises Refused where a name that is not known is used for more than a defaultdict's factory."""
        for value in used:
            if isinstance(value, Unknown):
                raise self.refusal([*self.unknown, value.name][0])

    def refusal(self, name: str) -> Refused:
        """Of a file that asks for more than is known."""
        says = _SAYS.get(name, "it holds more than arrays, tensors and plain containers")
        return Refused(f"{says} (it asks for {printable(name.replace(' ', '.'))}): save its state_dict() alone")

    def build(self, made: Any, state: Any) -> None:
        """Sets the state of an object: here, the versions that torch hangs on a state dict."""
        if type(made) is plain.Record and type(state) in (dict, plain.Record):
            made.update(state)
            return
        if type(made) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise Refused("it sets attributes of an object")
        made.__dict__.update(state)

    def stored(self, id: Any) -> Any:
        """The storage of a checkpoint that has this id."""
        raise Refused("it refers to something outside of it")

    def tensor(self, flat: Any, offset: int, shape: Any, strides: Any, grad: Any, hooks: Any, more: Any = None) -> Any:
        """A tensor over a flat one. It may not reach beyond that, nor have more elements, as with a stride of 0."""
        elements, _, _ = _product(shape), _product(strides), _product((offset,))
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        if len(shape) != len(strides) or hooks or more:
            raise Refused("it holds an unusual tensor")
        if elements > len(flat) or (elements and last >= len(flat)):
            raise Refused("it claims a tensor of more elements than are stored")
        return flat.as_strided(shape, strides, offset)

    def a_set(self, items: list[Any]) -> set[Any]:
        self.count(len(items))
        found: set[Any] = set()
        _put(found, items)
        return found

    def a_frozenset(self, items: Any = ()) -> tuple:
        self.count(len(items))
        return (items,)

    def a_defaultdict(self, factory: Any = None) -> dict:
        """Its items follow. The factory is never called, so that it may be anything."""
        if isinstance(factory, Unknown):
            self.factories.add(factory.name)
            if factory.name in self.unknown:
                self.unknown.remove(factory.name)
        return {}

    def encoded(self, text: Any, encoding: Any) -> bytes:
        """Bytes, as protocol 2 writes them. Other encodings would lengthen a text, and do so over and over."""
        if encoding != "latin1":
            raise Refused("it encodes text")
        self.take(len(text))
        return text.encode("latin1")

    def whole(self, found: Any) -> Any:
        """Counts what was found as often as its reader will come across it: lists that hold one list twice multiply,
        and lists that hold themselves never end."""
        waiting = [found]
        while waiting:
            value = waiting.pop()
            if isinstance(value, Unknown):
                raise self.refusal(value.name)
            if isinstance(value, dict):
                value = list(value.values())
            elif isinstance(value, np.ndarray) and value.dtype.hasobject:
                value = list(value.flat)
            if isinstance(value, (list, tuple, set)):
                self.count(1 + len(value))
                waiting.extend(value)
            else:
                self.take(getattr(value, "nbytes", 0))
        return found

    def count(self, operations: int) -> None:
        self.operations -= operations
        if self.operations < 0:
            raise Refused("it holds too many values")

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Refused("its arrays and tensors claim more than the file holds")


def _put(container: Any, items: list[Any]) -> None:
    """Fills a list, a set or, by keys and values in turn, a dictionary."""
    by_kind: dict[type, list[Any]] = {list: [], set: items}
    keys = by_kind.get(type(container), items[::2])
    kinds = (list, set, dict, OrderedDict, plain.Record)
    if type(container) not in kinds or not all(type(key) in _KEYS for key in keys):
        raise Refused("it holds a container that is not plain")
    if type(container) is list:
        container.extend(items)
    else:
        container.update(items if type(container) is set else zip(keys, items[1::2]))


def _size(lengths: Any) -> Any:
    _product(lengths)
    return lengths


def _product(lengths: Any) -> int:
    """The elements of an array of this shape."""
    if len(lengths) > 64 or not all(type(length) is int and 0 <= length < 1 << 63 for length in lengths):
        raise Refused("it holds an array of no proper shape")
    return math.prod(lengths)


class Arrays(Walk):
    """Knows what numpy writes into a pickle, and the tensors beside it. No dtype is ever changed, and no function that
    allocates what it is told to is ever called."""

    def __init__(self, size: int, checkpoint: Callable[[io.BytesIO, int], Any]) -> None:
        """`checkpoint` reads the bytes of a tensor's storage, (file, size) -> storage."""
        super().__init__(size)
        self.checkpoint = checkpoint
        self.known |= {"numpy ndarray": "ndarray", "numpy dtype": _dtype, "torch.storage _load_from_bytes": self.flat}
        for core in ("numpy.core", "numpy._core"):  # of numpy 1 and 2
            self.known |= {f"{core}.multiarray _reconstruct": _unfilled, f"{core}.multiarray scalar": self.scalar}
            self.known |= {f"{core}.numeric _frombuffer": self.over}

    def build(self, made: Any, state: Any) -> None:
        if isinstance(made, np.dtype):
            if state != made.__reduce__()[2]:
                raise Refused("it holds an unusual dtype")
        elif isinstance(made, np.ndarray):
            _, shape, dtype, _, data = state
            if type(data) is not (list if dtype.hasobject else bytes):
                raise Refused("it holds an unusual array")
            if _product(shape) * (1 if dtype.hasobject else dtype.itemsize) != len(data):
                raise Refused("it claims an array of more elements than are stored")
            if dtype.hasobject and any(isinstance(item, np.ndarray) and item.dtype.hasobject for item in data):
                raise Refused("it nests arrays of objects")  # to free many levels would overflow the stack
            self.take(_product(shape) * dtype.itemsize)
            made.__setstate__(state)
        else:
            super().build(made, state)

    def scalar(self, dtype: Any, data: Any) -> Any:
        return self.over(data, dtype, (1,), "C")[0]

    def over(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """An array over bytes, and over nothing else: memory that can still be freed must not lie under an array."""
        if type(data) not in (bytes, bytearray) or not isinstance(dtype, np.dtype):
            raise Refused("it holds an unusual array")
        self.take(len(data))
        return np.frombuffer(data, dtype).reshape(shape, order=order)

    def flat(self, data: Any) -> Any:
        """The storage of a tensor, which plain pickles hold as the bytes of a checkpoint."""
        import torch

        if type(data) is not bytes:
            raise Refused("it holds an unusual tensor")
        self.take(len(data))
        storage = self.checkpoint(io.BytesIO(data), len(data))
        return torch.empty(0, dtype=storage.dtype).set_(storage)


def _unfilled(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if (kind, shape, code) != ("ndarray", (0,), b"b"):
        raise Refused("it holds an unusual array")
    return np.empty(0, object)  # until `build` fills it, it counts as an array of objects


def _dtype(code: Any, align: Any, copy: Any) -> np.dtype:
    if not re.fullmatch(r"[biufcSU][1-9]\d{0,7}|O8?", code):
        raise Refused("it holds an unusual dtype")
    return np.dtype(code)

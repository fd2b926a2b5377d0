"""No file runs code, and none takes much more memory than it is long.

Every hostile file here is first loaded as one would without thinking, to show that it would act: those that want memory
in a process that has little of it. Run as a script, this file is that process.
"""

from __future__ import annotations

import _codecs
import contextlib
import copy
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from sod_core.packs import safe
from sod_core.packs.errors import PackError
from sod_core.restore import expert_lists

MEMORY = 200 << 20  # what a hostile file may take


def read(path: Path) -> Any:
    return safe.read_npy(path) if path.suffix == ".npy" else safe.read_torch(path)


def refused(path: Path, says: str = "") -> str:
    """The message with which a file is refused: one short printable line that names it."""
    with pytest.raises(PackError) as caught:
        read(path)
    return check_message(str(caught.value), path.name, says)


def check_message(message: str, name: str, says: str = "") -> str:
    assert message.startswith(name) and message.isprintable() and len(message) < 300
    assert re.search(says, message.removeprefix(name)) and "MemoryError" not in message, message
    return message


# ---------------------------------------------------------------- how files are made


class Call:
    """Asks whoever unpickles it to call a function; may itself be the function of another call."""

    def __init__(self, function: Callable, *arguments: Any):
        self.asked = function, arguments

    def __reduce__(self):
        return self.asked

    def __call__(self):
        raise NotImplementedError  # only what can be called may be asked for


class Built:
    """A call whose result is then given a state."""

    def __init__(self, state: Any, function: Callable, *arguments: Any):
        self.asked = function, arguments, state

    def __reduce__(self):
        return self.asked


class Stored(NamedTuple):
    """A storage of a checkpoint, by the key of its record."""

    elements: int
    key: str = "0"
    kind: type = torch.FloatStorage


def pickled(content: Any, legacy: bool = False, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if type(value) is Stored:
                return ("storage", value.kind, value.key, "cpu", value.elements, *([None] if legacy else []))
            return None

    file = io.BytesIO()
    Pickler(file, protocol).dump(content)
    return file.getvalue()


def zip_file(content: Any = None, data: bytes | None = None, compressed: bool = False, **records: bytes) -> bytes:
    """A checkpoint as torch writes them, of an object or of a pickle that is given as it is."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickled(content) if data is None else data)
        archive.writestr("archive/version", "3\n")
        for key, record in records.items():
            archive.writestr(f"archive/data/{key}", record)
    return file.getvalue()


def with_members(file: bytes, *changes: dict[str, Any]) -> bytes:
    """A zip file whose directory has its last member once more for each set of changes to it."""
    changed = io.BytesIO(file)
    with zipfile.ZipFile(changed, "a") as archive:
        for change in changes:
            member = copy.copy(archive.filelist[-1])
            archive.filelist.append(member)
            for name, value in change.items():
                setattr(member, name, value)
        archive._didModify = True
    return changed.getvalue()


def legacy_file(content: Any, keys: list[Any] | bytes, *records: bytes) -> bytes:
    """A checkpoint as torch wrote them before."""
    parts = [pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {})]
    keys = keys if isinstance(keys, bytes) else pickle.dumps(keys, 2)
    return b"".join([*parts, pickled(content, legacy=True), keys, *records])


def npy_file(data: bytes) -> bytes:
    """A .npy file of one object, by its pickle."""
    return npy_header({"descr": "|O", "fortran_order": False, "shape": ()}) + data


def npy_header(header: dict[str, Any], version: tuple[int, int] = (1, 0)) -> bytes:
    text = (repr(header) + "\n").encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def array(shape: tuple[int, ...], data: Any, dtype: str = "f8") -> Built:
    """An array as numpy pickles it."""
    return Built((1, shape, np.dtype(dtype), False, data), reconstruct, np.ndarray, (0,), b"b")


def tensor(storage: Any, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Call:
    """A tensor as torch pickles it."""
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())


reconstruct = np.zeros(1).__reduce__()[0]
scalar = np.float64(1).__reduce__()[0]


# ---------------------------------------------------------------- files that want to run code

ATTACKS: dict[str, Callable[[Path], Call]] = {
    "system": lambda marker: Call(os.system, f"touch {marker}"),
    "check_call": lambda marker: Call(subprocess.check_call, ["touch", str(marker)]),
    "open": lambda marker: Call(open, str(marker), "w"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w').close()"),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w').close()"),
    "getattr": lambda marker: Call(Call(getattr, Call(__import__, "os"), "mkdir"), str(marker)),
}


def saved(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def saved_npy(content: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, content, allow_pickle=True)
    return file.getvalue()


def object_array(content: Any) -> np.ndarray:
    found = np.empty(2, object)
    found[1] = content
    return found


def with_hook(hook: Any) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, Stored(1), 0, (1,), (1,), False, OrderedDict(a=hook))


HIDING_PLACES: dict[str, Callable[[Call], bytes]] = {
    "dictionary.npy": lambda evil: saved_npy({"mean": np.zeros(3), "std": evil}),
    "nested.npy": lambda evil: saved_npy({"cls": [{"mean": (1, evil)}]}),
    "objects.npy": lambda evil: saved_npy(object_array(evil)),
    "object_in_object.npy": lambda evil: saved_npy({"mean": object_array([evil])}),
    "tensor_legacy.npy": lambda evil: saved_npy({"mean": Call(torch.storage._load_from_bytes, saved(evil, True))}),
    "tensor_zip.npy": lambda evil: saved_npy({"mean": Call(torch.storage._load_from_bytes, saved([evil]))}),
    "protocol_5.npy": lambda evil: npy_file(pickle.dumps([evil], 5)),
    "zip.pth": lambda evil: saved(evil),
    "state_dict.pt": lambda evil: saved({"state_dict": OrderedDict(weight=torch.zeros(2), bias=[evil])}),
    "hook.pth": lambda evil: zip_file(with_hook(evil), **{"0": bytes(4)}),
    "compressed.pth": lambda evil: zip_file(evil, compressed=True),
    "legacy.pth": lambda evil: saved({"a": torch.zeros(2), "b": evil}, legacy=True),
    "legacy_keys.pt": lambda evil: legacy_file({}, [evil]),
    "bare.pth": lambda evil: pickle.dumps(evil, 2),
    "bare.pkl": lambda evil: pickle.dumps({"mean": evil}, 4),
    "bare.safetensors": lambda evil: pickle.dumps(evil, 2),
}


def load_naively(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=True)
    if path.name.startswith("bare"):
        return pickle.loads(path.read_bytes())
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", HIDING_PLACES)
def test_a_call_is_not_made(tmp_path, place, attack):
    marker, path = tmp_path / "marker", tmp_path / place
    path.write_bytes(HIDING_PLACES[place](ATTACKS[attack](marker)))
    with contextlib.suppress(Exception):  # torch and numpy complain after the deed
        load_naively(path)
    assert marker.exists(), "the file is harmless, the test shows nothing"
    marker.rmdir() if marker.is_dir() else marker.unlink()

    message = refused(path)
    assert not marker.exists()
    if place not in ("compressed.pth", "bare.safetensors"):  # refused before their pickle is looked at
        assert re.search(rf"was refused: .*\(it asks for \w+\.{attack}\)", message)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_torchscript_archive_is_refused(tmp_path, attack):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    refused(path, "was refused: it is a TorchScript program")
    data = pickled(ATTACKS[attack](tmp_path / "marker"))
    with zipfile.ZipFile(path) as real, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
        for name in real.namelist():
            evil.writestr(name, data if name.endswith(".pkl") else real.read(name))
    refused(tmp_path / "evil.pt", "was refused: it is a TorchScript program")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "name",
    ["os\nsystem\x1b[2J", "x" * 10_000_000, "\u202egnp.exe", "numpy  dtype"],
    ids=["control characters", "megabytes", "backwards", "spaces"],
)
def test_a_name_asked_for_cannot_spoil_the_message(tmp_path, name):
    data = b"\x80\x04" + b"".join(b"X" + struct.pack("<I", len(part)) + part for part in (b"os", name.encode()))
    (tmp_path / "stats.npy").write_bytes(npy_file(data + b"\x93."))
    refused(tmp_path / "stats.npy", "asks for os.")
    (tmp_path / "a\nb.npy").write_bytes(npy_file(data + b"\x93."))
    with pytest.raises(PackError) as caught:
        safe.read_npy(tmp_path / "a\nb.npy")
    check_message(str(caught.value), "a?b.npy")


@pytest.mark.parametrize("attack", ATTACKS)
def test_torch_would_refuse_the_call_too(tmp_path, monkeypatch, attack):
    """Should the walk before it miss something."""
    monkeypatch.setattr(safe, "_walk_zip", lambda *_: None)
    monkeypatch.setattr(safe, "_walk_legacy", lambda *_: None)
    for legacy in (False, True):
        (tmp_path / "a.pth").write_bytes(saved([ATTACKS[attack](tmp_path / "marker")], legacy))
        refused(tmp_path / "a.pth", "UnpicklingError")
        assert not (tmp_path / "marker").exists()


def persistent(*id: Any) -> bytes:
    return zip_file(data=pickle.dumps(id, 2)[:-1] + b"Q.")


frombuffer = np.zeros(1).__reduce_ex__(5)[0]
ODD: dict[str, tuple[bytes, str]] = {
    "class.npy": (npy_file(pickle.dumps(Call(np.ndarray, (3,)))), "calls what is no function"),
    "dictionary.npy": (npy_file(pickle.dumps(Call(Call(OrderedDict)))), "calls what is no function"),
    "methods.npy": (npy_file(pickle.dumps(Built({"items": 1}, OrderedDict))), "sets attributes"),
    "methods.pth": (zip_file(Built({"_metadata": {}, "items": 1}, OrderedDict)), "sets attributes"),
    "number.npy": (npy_file(b"\x80\x02K\x01K\x01K\x01s."), "not plain"),
    "set.npy": (npy_file(pickle.dumps(Call(set, [(1, 2)]))), "not plain"),
    "id.npy": (npy_file(b"\x80\x02K\x01Q."), "outside of it"),
    "module.pth": (persistent("module", torch.FloatStorage, "0", "cpu", 1), "other than its storages"),
    "number_key.pth": (persistent("storage", torch.FloatStorage, 0, "cpu", 1), "other than its storages"),
    "two_lengths.pth": (persistent("storage", torch.FloatStorage, "0", "cpu", (1, 1)), "other than its storages"),
    "view.pth": (persistent("storage", torch.FloatStorage, "0", "cpu", 1, ("1", 0, 1)), "other than its storages"),
    "dtype.npy": (npy_file(pickle.dumps(Call(np.dtype, "f8,f8", False, True))), "unusual dtype"),
    "big_endian.npy": (npy_file(pickle.dumps({"mean": np.zeros(3, ">f8")})), "unusual dtype"),
    "bytes_of_objects.npy": (npy_file(pickle.dumps(array((8,), b"12345678", "O"))), "unusual array"),
    "list_of_numbers.npy": (npy_file(pickle.dumps(array((1,), [1.0]))), "unusual array"),
    "over_array.npy": (
        npy_file(pickle.dumps(Call(frombuffer, np.zeros(8), np.dtype("f8"), (8,), "C"))),
        "unusual array",
    ),
    "over_as.npy": (npy_file(pickle.dumps(Call(frombuffer, bytes(8), "O", (1,), "C"))), "unusual array"),
    "strides.pth": (zip_file(tensor(Stored(4), (2, 2), (1,)), **{"0": bytes(16)}), "unusual tensor"),
    "hooks.pth": (zip_file(with_hook(1), **{"0": bytes(4)}), "unusual tensor"),
    "text_stride.pth": (zip_file(tensor(Stored(4), (1 << 40,), ("a",)), **{"0": bytes(16)}), "no proper shape"),
    "dimensions.pth": (zip_file(tensor(Stored(4), (1,) * 65, (1,) * 65), **{"0": bytes(16)}), "no proper shape"),
    "record.pth": (zip_file(tensor(Stored(3), (3,), (1,)), **{"0": bytes(16)}), "not as long"),
    "one_name_twice.pth": (zip_file([], a=b"", A=b""), "members claim more"),
    "longer_member.pth": (with_members(zip_file([]), {"filename": "archive/a", "file_size": 3}), "torch never does"),
    "larger_member.pth": (with_members(zip_file([]), {"filename": "archive/a", "extra": bytes(8)}), "torch never does"),
    "in_front.pth": (b"PK\3\4" + zip_file([]), "BadZipFile"),
    "number.pt": (pickle.dumps(5), "no checkpoint of torch"),
    "short.pt": (legacy_file(tensor(Stored(4), (4,), (1,)), ["0"], bytes(23)), "EOFError"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_torch_and_numpy_never_write_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(ODD[name][0])
    refused(tmp_path / name, ODD[name][1])


# ---------------------------------------------------------------- files that want memory


def claiming(code: bytes, length: bytes) -> bytes:
    """A .npy file whose only value claims a length."""
    return npy_file(b"\x80\x05" + code + length + b"abc.")


def sharing_lists(levels: int, end: bytes = b".") -> bytes:
    """The pickle of a list of twice the same list of twice the same list, and so on."""
    links = (b"]q%c(h%ch%ce" % (level, level - 1, level - 1) for level in range(1, levels))
    return b"\x80\x02]q\x00" + b"".join(links) + end


def lists_filled_later(levels: int) -> bytes:
    """The same, but each list is put into the next while it is still empty."""
    lists = b"".join(b"]q%c" % level for level in range(levels))
    links = b"".join(b"h%c(h%ch%ce" % (level, level + 1, level + 1) for level in range(levels - 1))
    return b"\x80\x02" + lists + links + b"h\x00."


def with_key(key: bytes) -> bytes:
    return b"\x80\x02}" + key + b"Ns."


SHARING_KEY = with_key(b")" + b"q\x00h\x00\x86" * 60)  # a tuple of twice the same tuple of twice the same tuple
DEEP_TUPLE = b")" + b"\x85" * 200_000


def named_parts() -> bytes:
    """What an array of one object is made of, by numbers in the memo: 200 to 203."""
    parts = [reconstruct, (np.ndarray, (0,), b"b"), np.dtype("O"), (1,)]
    return b"\x80\x03" + b"".join(pickle.dumps(part, 3)[2:-1] + b"q%c" % (200 + i) for i, part in enumerate(parts))


NEW_ARRAY = b"h\xc8h\xc9R"
FILL, FILLED = b"(K\x01h\xcbh\xca\x89]", b"atb"  # between them, the object


def nested_arrays(levels: int) -> bytes:
    """Arrays of objects inside of each other, too deep for numpy to pickle or to free them."""
    return named_parts() + (NEW_ARRAY + FILL) * levels + b"N" + FILLED * levels + b"."


def arrays_filled_later() -> bytes:
    """The outer array is filled with the inner one before that becomes an array of objects."""
    outer, inner = NEW_ARRAY + b"q\x01", NEW_ARRAY + b"q\x00"
    return named_parts() + inner + outer + FILL + b"h\x00" + FILLED + b"h\x00" + FILL + b"N" + FILLED + b"h\x01."


def list_in_array(levels: int) -> Any:
    shared: list[Any] = []
    for _ in range(levels):
        shared = [shared, shared]
    return array((1,), [shared], "O")


def overlapping(members: int, size: int) -> bytes:
    """A checkpoint whose records are all the same bytes."""
    tensors = {f"t{i}": tensor(Stored(size // 4, f"t{i}"), (size // 4,), (1,)) for i in range(members)}
    names = [{"filename": f"archive/data/t{i}"} for i in range(1, members)]
    return with_members(zip_file(tensors, t0=bytes(size)), *names)


def two_directories(seen_by_python: bytes, seen_by_torch: bytes) -> bytes:
    """Two zip files in one: Python looks for the larger end record where it has to be, torch where it is said to be."""

    def large(file: bytes, shift: int) -> bytes:
        count, length, start = struct.unpack_from("<H2I", file, len(file) - 12)
        return struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start + shift)

    first = seen_by_torch[:-22] + large(seen_by_torch, 0)
    with zipfile.ZipFile(io.BytesIO(seen_by_python)) as archive:
        second = io.BytesIO(first)
        second.seek(0, io.SEEK_END)
        with zipfile.ZipFile(second, "a") as both:
            for name in archive.namelist():
                both.writestr(name, archive.read(name))
    found = second.getvalue()
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(seen_by_torch) - 22, 1)
    return found[:-22] + large(found, 0) + locator + found[-22:]


def many_members(count: int) -> bytes:
    """A zip file that is mostly directory."""
    file = zip_file({})
    length, start = struct.unpack_from("<2I", file, len(file) - 10)
    entry = file[start : start + length]
    return file[:start] + entry * count + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, length * count, start, 0)


def safetensors_file(header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def stored(elements: int) -> bytes:
    """A checkpoint that is one storage; as plain pickles hold it."""
    return legacy_file(Stored(elements), ["0"], struct.pack("<q", elements), bytes(4 * elements))


def tensor_in_npy(elements: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Call:
    return tensor(Call(torch.storage._load_from_bytes, stored(elements)), shape, strides)


def hex_of_hex(levels: int) -> Any:
    found: Any = b"aa"
    for _ in range(levels):
        found = Call(_codecs.encode, found, "hex")
    return found


def case_variants(record: bytes) -> bytes:
    """Torch finds a record whatever the case of its key."""
    keys = ["".join(c.upper() if number >> i & 1 else c for i, c in enumerate("abcdefgh")) for number in range(256)]
    tensors = {key: tensor(Stored(len(record) // 4, key), (1,), (1,)) for key in keys}
    return zip_file(tensors, abcdefgh=record)


PLAIN = {"fortran_order": False, "descr": "<f8"}
MEGABYTE = bytes(1 << 20)
TEXT, ENCODED = "a" * (1 << 20), b"a" * (1 << 20)
SAME_LIST = list(range(100_000))
MEGABYTE_STORED = stored(1 << 18)
SAME_TENSOR = tensor_in_npy(1 << 18, (1 << 18,), (1,))
LONG_TEXT = b"\x80\x02X" + struct.pack("<I", 220 << 20)

# File: what it holds, and what the refusal says.
MEMORY_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "memo.npy": (lambda: npy_file(b"\x80\x02]r\xfe\xff\xff\x7f."), "LONG_BINPUT"),
    "frame.npy": (lambda: claiming(b"\x95", struct.pack("<Q", 1 << 40)), "FRAME"),
    "bytes.npy": (lambda: claiming(b"\x8e", struct.pack("<Q", 1 << 40)), "truncated"),
    "text.npy": (lambda: claiming(b"\x8d", struct.pack("<Q", 1 << 40)), "truncated"),
    "bytearray.npy": (lambda: claiming(b"\x96", struct.pack("<Q", 1 << 40)), "truncated"),
    "number.npy": (lambda: claiming(b"\x8b", struct.pack("<i", (1 << 31) - 1)), "truncated"),
    "sets.npy": (lambda: npy_file(b"\x80\x04" + b"\x8f" * 1_100_000 + b"."), "too many values"),
    "sharing_lists.npy": (lambda: npy_file(sharing_lists(60)), "too many values"),
    "lists_filled_later.npy": (lambda: npy_file(lists_filled_later(60)), "too many values"),
    "list_in_array.npy": (lambda: npy_file(pickle.dumps(list_in_array(60))), "too many values"),
    "endless_list.npy": (lambda: npy_file(b"\x80\x02]q\x00h\x00a."), "too many values"),
    "wide_endless_list.npy": (
        lambda: npy_file(b"\x80\x02]q\x00(" + b"h\x00" * 400_000 + b"e."),
        "too many values",
    ),
    "sharing_key.npy": (lambda: npy_file(SHARING_KEY), "not plain"),
    "deep_key.npy": (lambda: npy_file(with_key(DEEP_TUPLE)), "not plain"),
    "nested_arrays.npy": (lambda: npy_file(nested_arrays(20_000)), "nests arrays of objects"),
    "arrays_filled_later.npy": (lambda: npy_file(arrays_filled_later()), "nests arrays of objects"),
    "shape.npy": (lambda: npy_file(pickle.dumps(array((1 << 40,), b"12345678"))), "more elements"),
    "object_shape.npy": (lambda: npy_file(pickle.dumps(array((1 << 40,), [], "O"))), "more elements"),
    "negative_shape.npy": (lambda: npy_file(pickle.dumps(array((-1, -1), b"12345678"))), "no proper shape"),
    "reconstruct.npy": (
        lambda: npy_file(pickle.dumps(Call(reconstruct, np.ndarray, (1 << 40,), b"b"))),
        "unusual array",
    ),
    "ndarray.npy": (lambda: npy_file(pickle.dumps(Call(np.ndarray, (1 << 40,)))), "no function"),
    "void.npy": (lambda: npy_file(pickle.dumps(Call(scalar, np.dtype("V2000000000")))), "unusual dtype"),
    "dtype_state.npy": (
        lambda: npy_file(
            pickle.dumps(
                Call(
                    scalar,
                    Built((3, "<", None, None, None, 2_000_000_000, 1, 0), np.dtype, "S5", False, True),
                )
            )
        ),
        "unusual dtype",
    ),
    "repeated_bytes.npy": (
        lambda: npy_file(pickle.dumps([array((1 << 20,), MEGABYTE, "u1") for _ in range(1000)])),
        "claim more than the file holds",
    ),
    "repeated_list.npy": (
        lambda: npy_file(pickle.dumps([array((len(SAME_LIST),), SAME_LIST, "O") for _ in range(1000)])),
        "claim more than the file holds",
    ),
    "repeated_set.npy": (
        lambda: npy_file(pickle.dumps([Call(set, SAME_LIST) for _ in range(1000)])),
        "too many values",
    ),
    "repeated_size.pth": (lambda: zip_file([Call(torch.Size, SAME_LIST) for _ in range(1000)]), "no proper shape"),
    "repeated_text.npy": (
        lambda: npy_file(pickle.dumps([Call(scalar, np.dtype("S1048576"), ENCODED) for _ in range(1000)])),
        "claim more than the file holds",
    ),
    "repeated_bytes.pth": (
        lambda: zip_file([Call(_codecs.encode, TEXT, "latin1") for _ in range(1000)]),
        "claim more than the file holds",
    ),
    "repeated_storage.npy": (
        lambda: npy_file(pickle.dumps([Call(torch.storage._load_from_bytes, MEGABYTE_STORED) for _ in range(1000)])),
        "claim more than the file holds",
    ),
    "repeated_tensor.npy": (lambda: npy_file(pickle.dumps([SAME_TENSOR] * 1000)), "claim more than the file holds"),
    "stride_0.npy": (
        lambda: npy_file(pickle.dumps(tensor_in_npy(1, (10**12,), (0,)))),
        "more elements than are stored",
    ),
    "header.npy": (lambda: npy_header(PLAIN | {"shape": (1 << 40,)}) + bytes(16), "does not describe"),
    "header_of_nothing.npy": (lambda: npy_header(PLAIN | {"shape": (1 << 40,), "descr": "|V0"}), "truncated"),
    "long_header.npy": (lambda: npy_header(PLAIN | {"shape": (1,), "x": "x" * 20_000_000}, (2, 0)), "truncated"),
    "version.npy": (lambda: npy_header(PLAIN | {"shape": (1,)}, (9, 9)) + bytes(8), "version is unknown"),
    "one_gigabyte.npy": (lambda: npy_header(PLAIN | {"shape": (1 << 27,)}), "larger than 32 MiB"),
    "ten_gigabytes.npy": (lambda: npy_header(PLAIN | {"shape": (10 << 27,)}), "larger than 4 GiB"),
    "ten_gigabytes.pth": (lambda: b"PK\3\4", "larger than 4 GiB"),
    "stride_0.pth": (lambda: zip_file({"a": tensor(Stored(1), (10**12,), (0,))}, **{"0": bytes(4)}), "more elements"),
    "stride_0.pt": (
        lambda: legacy_file(tensor(Stored(1), (10**12,), (0,)), ["0"], struct.pack("<q", 1), bytes(4)),
        "more elements",
    ),
    "overlapping_rows.pth": (
        lambda: zip_file(tensor(Stored(200_000), (100_000, 100_000), (1, 1)), **{"0": bytes(800_000)}),
        "more elements",
    ),
    "beyond.pt": (lambda: legacy_file(tensor(Stored(1), (1,), (1,), 1 << 30), ["0"], bytes(12)), "more elements"),
    "record.pth": (lambda: zip_file(tensor(Stored(1 << 30), (1,), (1,)), **{"0": bytes(4)}), "claim more than"),
    "storage.pt": (lambda: legacy_file(tensor(Stored(1 << 40), (1,), (1,)), ["0"]), "claim more than"),
    "storage_without_data.pt": (lambda: legacy_file(tensor(Stored(8), (8,), (1,)), []), "does not hold"),
    "two_kinds.pth": (
        lambda: zip_file([Stored(2, "0", torch.DoubleStorage), tensor(Stored(4), (4,), (1,))], **{"0": bytes(16)}),
        "one storage to be two",
    ),
    "bytearray.pth": (lambda: zip_file(Call(bytearray, 1 << 40)), r"asks for __builtin__\.bytearray"),
    "tensor_type.pth": (lambda: zip_file(Call(torch.FloatTensor, 1 << 40)), r"asks for torch\.FloatTensor"),
    "hex_of_hex.pth": (lambda: zip_file(hex_of_hex(35)), "encodes text"),
    "called_list.pth": (lambda: zip_file(data=sharing_lists(60, b")R.")), "no function"),
    "sharing_key.pth": (lambda: zip_file(data=SHARING_KEY), "not plain"),
    "deep_key.pth": (lambda: zip_file(data=with_key(DEEP_TUPLE)), "not plain"),
    "deep_keys.pt": (lambda: legacy_file({}, b"\x80\x02](" + DEEP_TUPLE + b"e."), "does not hold"),
    "compressed_record.pth": (
        lambda: zip_file(tensor(Stored(55 << 20), (1,), (1,)), None, True, **{"0": bytes(220 << 20)}),
        "torch never does",
    ),
    "compressed_pickle.pth": (lambda: zip_file(None, LONG_TEXT + bytes(220 << 20) + b".", True), "torch never does"),
    "long_pickle.pth": (
        lambda: zip_file(None, b"\x80\x02X" + struct.pack("<I", 33 << 20) + bytes(33 << 20) + b"."),
        "MiB",
    ),
    "overlapping.pth": (lambda: overlapping(1000, 1 << 20), "members claim more"),
    "case_variants.pth": (lambda: case_variants(bytes(2 << 20)), "claim more than"),
    "two_directories.pth": (
        lambda: two_directories(zip_file({}), zip_file(Call(bytearray, 1 << 40))),
        "truncated",
    ),
    "many_members.pth": (lambda: many_members(50_000), "truncated"),
    "header.safetensors": (lambda: safetensors_file({}, b"", 10 << 30), "truncated"),
    "long_header.safetensors": (lambda: safetensors_file(b" " * (5 << 20), b""), "header claims"),
    "overlap.safetensors": (
        lambda: safetensors_file({"a": safetensors_entry([2], 0, 8), "b": safetensors_entry([2], 4, 12)}, bytes(12)),
        "cannot be read",
    ),
    "offsets.safetensors": (
        lambda: safetensors_file({"a": safetensors_entry([1 << 40], 0, 1 << 42)}, bytes(8)),
        "cannot be read",
    ),
    "shape.safetensors": (
        lambda: safetensors_file({"a": safetensors_entry([1 << 40], 0, 8)}, bytes(8)),
        "cannot be read",
    ),
}

# What numpy and torch refuse themselves, or what does no harm before it is used in another way than by this test.
HARMLESS = {"endless_list.npy", "wide_endless_list.npy", "arrays_filled_later.npy", "shape.npy", "negative_shape.npy"}
HARMLESS |= {"long_header.npy", "version.npy", "ten_gigabytes.pth", "record.pth", "storage_without_data.pt"}
HARMLESS |= {"two_kinds.pth", "many_members.pth", "long_pickle.pth"}
HARMLESS |= {name for name in MEMORY_FILES if name.endswith(".safetensors")}
LENGTHENED = {"one_gigabyte.npy": 1 << 30, "ten_gigabytes.npy": 10 << 30, "ten_gigabytes.pth": 10 << 30}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict[str, str]]:
    """By file: what came of loading it unprotected, and what of reading it, each in a process of little memory."""
    folder = tmp_path_factory.mktemp("memory")
    for name, (make, _) in MEMORY_FILES.items():
        (folder / name).write_bytes(make())
        if name in LENGTHENED:
            os.truncate(folder / name, LENGTHENED[name])
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, __file__, folder, *MEMORY_FILES], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's memory cannot be limited")
@pytest.mark.parametrize("name", MEMORY_FILES)
def test_a_file_cannot_take_memory(outcomes, name):
    assert outcomes[name]["unprotected"] != "harmless" or name in HARMLESS
    check_message(outcomes[name]["read"], name, MEMORY_FILES[name][1])


# ---------------------------------------------------------------- what is no file, or not all of one


@pytest.mark.parametrize("suffix", [".npy", ".pth", ".safetensors"])
def test_only_regular_files_are_opened(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")  # to open it would wait forever
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zeros"):
        refused(tmp_path / f"{name}{suffix}", "no regular file")
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    (tmp_path / f"dangling{suffix}").symlink_to(tmp_path / "nothing")
    for name in ("loop", "dangling", "absent", "n" * 300):
        with pytest.raises(PackError, match="is missing in"):
            read(tmp_path / f"{name}{suffix}")


FILES = {
    "plain.npy": lambda: saved_npy(np.arange(50.0)),
    "dictionary.npy": lambda: saved_npy({"mean": np.arange(50.0), "std": torch.ones(50)}),
    "zip.pth": lambda: saved({"a": torch.ones(50)}),
    "legacy.pt": lambda: saved({"a": torch.ones(50)}, legacy=True),
    "some.safetensors": lambda: save({"a": torch.ones(50)}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    data = FILES[name]()
    for length in range(0, len(data), 13):
        (tmp_path / name).write_bytes(data[:length])
        refused(tmp_path / name, "cannot be read|truncated")
    (tmp_path / name).write_bytes(data)
    read(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_changed_anywhere_is_read_or_refused(tmp_path, name):
    """And nothing else happens: no other error, no crash."""
    data = bytearray(FILES[name]())
    positions = np.random.default_rng(0).integers(0, len(data), 200)
    for position, mask in zip(positions, np.random.default_rng(1).integers(1, 256, 200)):
        data[position] ^= mask
        (tmp_path / name).write_bytes(data)
        data[position] ^= mask
        try:
            read(tmp_path / name)
        except PackError as error:
            check_message(str(error), name)


# ---------------------------------------------------------------- files that are fine

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, np.ndarray) and not expected.dtype.hasobject:
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple, np.ndarray)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other)
    else:
        assert found == expected


TENSORS = {
    **{str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES},
    "none": torch.zeros(0, 5),
    "none of three": torch.zeros(3, 0),
    "one": torch.tensor(2.5),
    "row": torch.arange(12.0).reshape(3, 4)[1],
    "column": torch.arange(12.0).reshape(3, 4)[:, 1],
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "expanded": torch.ones(1, 1).expand(1, 1),
}
PLAIN_VALUES = {
    "n": 5,
    "big": 1 << 70,
    "x": 0.5,
    "who": ["a", ("b", None)],
    3: {True: False},
    "set": {1, "a"},
    "b": b"\0\xff",
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_checkpoints_are_read(tmp_path, legacy):
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    content = TENSORS | PLAIN_VALUES | {"state_dict": layer.state_dict(), "optimizer": optimizer.state_dict()}
    content |= {"parameter": layer[0].weight, "size": torch.Size([2, 3]), "dtype": torch.float16}
    content |= {"device": torch.device("cpu"), "tied": [layer[0].weight.data, layer[0].weight.data.view(-1)]}
    (tmp_path / "a.pth").write_bytes(saved(content, legacy))
    found = safe.read_torch(tmp_path / "a.pth")
    assert_same(found, content)
    assert found["state_dict"]._metadata == layer.state_dict()._metadata


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_npy_files_are_read(tmp_path, protocol):
    content = TENSORS | PLAIN_VALUES | {"parameter": torch.nn.Parameter(torch.ones(2))}
    content["ordered"] = OrderedDict(a=1)
    content |= {code: np.arange(6).reshape(2, 3).astype(code) for code in ("f8", "f4", "f2", "i8", "u1", "?", "c8")}
    content |= {"fortran": np.asfortranarray(np.eye(3)), "empty": np.zeros((0, 4)), "scalar": np.float32(1.5)}
    content |= {"text": np.array(["a", "bcd"]), "bytes": np.array([b"a", b"bcd"]), "flag": np.True_}
    content["ragged"] = object_array(np.arange(3))
    (tmp_path / "a.npy").write_bytes(npy_file(pickle.dumps(content, protocol)))
    found = safe.read_npy(tmp_path / "a.npy")
    found["parameter"] = torch.nn.Parameter(found["parameter"])
    assert_same(found, content)
    np.save(tmp_path / "b.npy", content, allow_pickle=True)
    assert list(safe.read_npy(tmp_path / "b.npy")) == list(content)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions_are_read(tmp_path, version):
    for content in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, dtype="f2")), np.array({"a": 1}, object)):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, content, version)
        assert_same(safe.read_npy(tmp_path / "a.npy"), content if content.shape else content.item())


def test_arrays_of_numpy_1_are_read(tmp_path):
    """It wrote numpy.core where numpy 2 writes numpy._core."""
    data = pickle.dumps({"mean": np.arange(3.0), "n": np.float64(2)}, 3)
    (tmp_path / "a.npy").write_bytes(npy_file(data.replace(b"numpy._core", b"numpy.core")))
    assert_same(safe.read_npy(tmp_path / "a.npy"), {"mean": np.arange(3.0), "n": np.float64(2)})


def test_safetensors_are_read(tmp_path):
    content = {name: value.contiguous() for name, value in TENSORS.items()}
    (tmp_path / "a.safetensors").write_bytes(save(content))
    found = safe.read_torch(tmp_path / "a.safetensors")
    assert_same({name: found[name] for name in content}, content)


# ---------------------------------------------------------------- the process that loads them


def spread(found: Any, kept: list[Any]) -> None:
    """Uses what a file held as a program would: copies arrays and tensors, prints lists."""
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]:
        if isinstance(value, torch.Tensor):
            kept.append(value.clone(memory_format=torch.contiguous_format))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            kept.append(value.copy())
        else:
            kept.append(repr(value.tolist() if isinstance(value, np.ndarray) else value))


def load_unprotected(path: Path) -> None:
    """As a program does that takes torch's word for it that weights_only is safe."""
    if path.suffix == ".npy":
        found = np.load(path, allow_pickle=True)
        spread(found.item() if isinstance(found, np.ndarray) and found.shape == () else found, [])
    elif path.suffix == ".safetensors":
        spread(load_file(path), [])
    else:
        spread(torch.load(path, weights_only=True, map_location="cpu"), [])


def outcome_of(load: Callable[[Path], Any], path: Path) -> str:
    """What `load` comes to in a child with MEMORY to spare: the message of a PackError, or how it fared."""
    answer, question = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            signal.setitimer(signal.ITIMER_VIRTUAL, 60 if load is read else 0.1)  # of its own time; then it is killed
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            said = "harmless"
            try:
                load(path)
            except PackError as error:
                said = str(error)
            except MemoryError:
                said = "out of memory"
            except Exception as error:
                said = "out of memory" if "can't allocate" in str(error) else "harmless"
            os.write(question, said.encode())
        os._exit(0)
    os.close(question)
    with open(answer, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said or "killed"


def main(folder: Path, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    content = {"a": torch.zeros(2)}
    harmless = {"a.npy": saved_npy(content), "a.pth": saved(content), "a.safetensors": save(content)}
    for name, data in harmless.items():  # what is imported on first use is imported before memory is limited
        (folder / name).write_bytes(data)
        load_unprotected(folder / name)
        read(folder / name)
    loads = {"unprotected": load_unprotected, "read": read}
    print(json.dumps({name: {how: outcome_of(load, folder / name) for how, load in loads.items()} for name in names}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])


def test_figures_of_numpy_in_a_checkpoint_are_read(tmp_path):
    """Lists of experts are often written with the numbers that numpy computed."""
    experts = [{"feature_id": np.int64(7), "precision": np.float64(0.5), "recall": np.float32(0.25), "f1": 0.5}]
    told = {"class_experts_details": {0: experts}, "ids": np.arange(3), "kept": np.bool_(True)}
    path = tmp_path / "expert_features_layer9_k16.pt"
    for zipped in (True, False):
        torch.save(told, path, _use_new_zipfile_serialization=zipped)
        found = safe.read_torch(path)
        assert found["class_experts_details"] == told["class_experts_details"] and found["kept"]
        assert found["ids"].tolist() == [0, 1, 2]
        (expert,) = expert_lists.load_experts(found, ("cat", "dog"), path.name)[0]
        assert expert == (7, 0.5, 0.25, 0.5) and {type(value) for value in expert} == {int, float}

"""Classes that only hold data, read as plain data by these stand-ins: the classes themselves are never called."""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any


class Record(dict):
    """What a namespace holds, by name."""

    def __setstate__(self, state: Any) -> None:
        if type(state) not in (dict, Record):
            raise ValueError("a namespace's state is no dictionary")
        self.update(state)


def arguments(*given: Any) -> tuple:
    """What a path, a date or a frozen set is made of."""
    return given


def empty_dict(*given: Any) -> dict:
    """For a defaultdict: its items follow, and what it would add to them does not matter."""
    return {}


def empty_list(*given: Any) -> list:
    """For a deque: its items follow."""
    return []


def counted(items: Any = ()) -> dict:
    """For a Counter, whose counts come as a dictionary."""
    if type(items) is not dict:
        raise ValueError("a Counter's counts are no dictionary")
    return dict(items)


_PATHS = ("PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath")
_ARGUMENTS = [f"{module} {name}" for module in ("pathlib", "pathlib._local") for name in _PATHS]
_ARGUMENTS += [f"datetime {name}" for name in ("datetime", "date", "time", "timedelta", "timezone")]
_ARGUMENTS += ["decimal Decimal", "fractions Fraction"]
_ARGUMENTS += [f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("slice", "range", "xrange")]
_ARGUMENTS += ["builtins complex", "__builtin__ complex"]
_DICTIONARIES = ["easydict EasyDict", "yacs.config CfgNode", "munch Munch", "addict.addict Dict", "attrdict AttrDict"]
_DICTIONARIES += [f"{m}.config ConfigDict" for m in ("mmcv.utils", "mmengine")]
_DICTIONARIES += [f"{m}.utilities.parsing AttributeDict" for m in ("pytorch_lightning", "lightning.pytorch")]
_DICTIONARIES += [f"{m}.utilities.data AttributeDict" for m in ("lightning_fabric", "lightning.fabric")]
_DICTIONARIES += ["mmengine.config.config ConfigDict"]
"""Dictionaries whose keys may be written as attributes, too, in which libraries keep a training's settings."""
STAND_INS: dict[str, Callable | type] = {
    **dict.fromkeys(_ARGUMENTS, arguments),
    **dict.fromkeys(("argparse Namespace", "types SimpleNamespace", "uuid UUID", *_DICTIONARIES), Record),
    "collections Counter": counted,
    "collections deque": empty_list,
}
"""By "module name". A defaultdict and a frozenset are counted by the walk itself."""


def of_python_3(name: str) -> str:
    """ "module name" as a pickle has it -> "module.name" of Python 3: torch.save writes Python 2's."""
    module, _, attribute = name.partition(" ")
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"

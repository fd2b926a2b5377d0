"""What is written beside every unlearned model: all that it takes to make it again, and what was measured on it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from ..machine.files import write_json
from . import TITLES, method

FORMAT = 1
LARGEST = 1e30
"""Of a setting: an optimiser cannot compute with rates near float32's end."""
PACKAGES = ("torch", "timm", "numpy")
FIGURES = ("forget_accuracy", "retain_accuracy", "original_forget_accuracy", "original_retain_accuracy")


@dataclass(frozen=True)
class Order:
    """What is to be made."""

    id: str
    method: str
    target_class: int
    target: str
    """The class's name."""
    pack: str
    """Its name, or its folder."""
    settings: Any
    """The method's Settings."""
    seed: int = 0
    precision: str = "bfloat16"
    """Of the training's matrix products: bfloat16 or float32."""


@dataclass(frozen=True)
class Record:
    """An order, how it was carried out, and what came out. Accuracies are shares, 0 to 1."""

    id: str
    method: str
    target_class: int
    target: str
    file: str
    """The checkpoint."""
    pack: str
    settings: dict[str, Any]
    seed: int
    precision: str
    data: dict[str, Any]
    """The source of the images, and of each set the counts and a sum."""
    seconds: float
    """Of the unlearning alone, on this machine."""
    forget_accuracy: float
    retain_accuracy: float
    original_forget_accuracy: float
    original_retain_accuracy: float
    measured_on: str
    metric: dict[str, str]
    """The definition of each figure in words."""
    looks: list[dict[str, float]]
    """What the check images said while it ran: step, forget and retain accuracy. Step 0 is the original."""
    device: str
    threads: int
    processes: int
    versions: dict[str, str]
    original_sha256: str
    """Of the original's weights."""
    weights_sha256: str
    """Of the unlearned model's weights as stored, whatever the file is called."""
    format: int = field(default=FORMAT)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        """The whole record, or what was there before."""
        write_json(self.as_dict(), path)

    def order(self) -> Order:
        """What to do to get the same again. Raises ValueError where a setting has gone since."""
        settings = restored(method(self.method).Settings, self.settings)
        return Order(
            self.id, self.method, self.target_class, self.target, self.pack, settings, self.seed, self.precision
        )

    def differences(self, other: Record) -> Iterator[str]:
        """What another run of the same order gave that this one did not, a phrase each; none: the same numbers."""
        for name in FIGURES:
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                yield f"{name} {there:.4f} (recorded {here:.4f})"
        for name, what in (("original_sha256", "another original model"), ("weights_sha256", "other weights")):
            if getattr(self, name) != getattr(other, name):
                yield what
        for name in ("train", "check", "test"):
            if self.data[name]["sha256"] != other.data[name]["sha256"]:
                yield f"other {name} images"

    def circumstances(self, other: Record) -> Iterator[str]:
        """What was not the same around the two runs, a phrase each."""
        for name in self.versions | other.versions:
            here, there = self.versions.get(name), other.versions.get(name)
            if here != there:
                yield f"{name} {there} (recorded {here})"
        for name in ("device", "threads", "processes"):
            if getattr(self, name) != getattr(other, name):
                yield f"{name} {getattr(other, name)} (recorded {getattr(self, name)})"


def read(path: Path) -> Record:
    """A record from its file. Raises ValueError with one sentence."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    known = {one.name for one in fields(Record)}
    lacking = sorted(known - found.keys()) if isinstance(found, dict) else ["format"]
    if lacking:
        raise ValueError(
            f"{path} is no record of an unlearning run that can be repeated: it lacks {', '.join(lacking)}"
        )
    if found["format"] != FORMAT:
        raise ValueError(f"{path} has format {found['format']!r}, this version reads format {FORMAT}")
    if found["method"] not in TITLES:
        raise ValueError(f"{path} names the method {found['method']!r}; known: {', '.join(TITLES)}")
    return Record(**{name: found[name] for name in known})


def metric(target: str, forget: int, retain: int, classes: int) -> dict[str, str]:
    """The definition of each figure in words."""
    said = f"the class with the largest of the {classes} logits, the forgotten class among them"
    return {
        "forget_accuracy": f"of the {forget} test images of class {target}, the share that the unlearned model names "
        f"{target}: {said}",
        "retain_accuracy": f"of the {retain} test images of all other classes together, each image counting alike, the "
        f"share that the unlearned model names rightly: {said}",
        "original_forget_accuracy": "as forget_accuracy, of the original model on the same images",
        "original_retain_accuracy": "as retain_accuracy, of the original model on the same images",
        "looks": "forget and retain accuracy on the check images, which are neither trained nor tested on",
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def digest(weights: dict[str, Tensor] | nn.Module) -> str:
    """SHA-256 over the names and the values of a state dict, in the order of the names."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


# ---------------------------------------------------------------- settings


def changed(settings: Any, text: str) -> Any:
    """Settings with one value changed: "lr=1e-4", or "stop.steps=100" for one inside. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r} is not KEY=VALUE")
    return _changed(settings, key.strip().split("."), value.strip(), key.strip())


def _changed(settings: Any, names: list[str], text: str, key: str) -> Any:
    known = [one.name for one in fields(settings)]
    if names[0] not in known:
        raise ValueError(f"there is no setting {key!r}; known: {', '.join(_keys(settings))}")
    old = getattr(settings, names[0])
    if is_dataclass(old) != (len(names) > 1):
        raise ValueError(f"{key!r} is no single setting; known: {', '.join(_keys(settings))}")
    if is_dataclass(old):
        return replace(settings, **{names[0]: _changed(old, names[1:], text, key)})
    return replace(settings, **{names[0]: _typed(text, get_type_hints(type(settings))[names[0]], key)})


def _typed(text: str, kind: type, key: str) -> Any:
    try:
        value = kind(text)
    except ValueError as error:
        raise ValueError(f"{key}={text!r} is no {'whole ' if kind is int else ''}number") from error
    if not math.isfinite(value):
        raise ValueError(f"{key}={text!r} is no finite number")
    if abs(value) > LARGEST:
        raise ValueError(f"{key}={text!r} is too large for weights in float32; give at most {LARGEST:g}")
    if key.endswith("batch") and value < 1:
        raise ValueError(f"{key}={text!r} is no batch; give one image or more")
    if key.endswith(("batches", "recipe.steps")) and value < 1:
        raise ValueError(f"{key}={text!r} is none; give 1 or more")
    if key.endswith("temperature") and value <= 0:
        raise ValueError(f"{key}={text!r} is no temperature; give a number above 0")
    if key.endswith("_share") and not 0 <= value <= 1:
        raise ValueError(f"{key}={text!r} is no share; give a number from 0 to 1")
    if value < 0 and (kind is int and not key.startswith("stop.") or key.endswith("lr")):
        raise ValueError(f"{key}={text!r} is below 0; give 0 or more")
    return value


def _keys(settings: Any) -> Iterator[str]:
    for one in fields(settings):
        value = getattr(settings, one.name)
        yield from (f"{one.name}.{key}" for key in _keys(value)) if is_dataclass(value) else [one.name]


def restored(kind: type, values: dict[str, Any]) -> Any:
    """A settings dataclass from what `asdict` made of it. Raises ValueError for other keys."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise ValueError(f"the recorded settings are not those of this version: {', '.join(hints)}")
    found = {}
    for name, hint in hints.items():
        inner = isinstance(hint, type) and is_dataclass(hint)
        found[name] = restored(hint, values[name]) if inner else values[name]
    return kind(**found)

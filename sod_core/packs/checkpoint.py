"""The one reader of checkpoints: a file, a folder or an index -> what lies in it, and which model of it is meant.

A path may end in `#key`, which names one of several models in a file: `model.pth#state_dict_ema`.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import safe
from .errors import PackError
from .pickles import printable

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a folder of weights holds, in the order in which transformers looks for it."""
CONFIG, INDEX = "config.json", ".index.json"
_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar")
_LARGEST_JSON = 8 << 20
_DEEPEST, _LONGEST_NAME, _MOST_MODELS = 8, 1000, 64
"""Of containers in containers, of a tensor's name, in a file: no real one comes near."""
_WRITTEN_AROUND = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch writes into names for its own wrappers, before all of them or in the middle."""
_SECOND = re.compile(
    r"(?<![a-z])(ema|swa|avg|averaged?|shadow|teacher|orig(inal)?|init(ial(ization)?)?|pre_?train(ed)?|ref(erence)?|"
    r"before|old|base|source)(?![a-z])",
    re.IGNORECASE,
)
"""Of what lies beside the model that is meant: an average of it, or what it was made from."""
_CHANGE = re.compile(
    r"(?<![a-z])(([ldv]o|ve)ra|lo(ha|kr)|ia3|adapters?|deltas?|diffs?|task_?vectors?|prompts?|masks?)(?![a-z])", re.I
)
"""Of what is laid over a model's weights to change it."""
_TRAINING = re.compile(
    r"(?<![a-z])(opt|adamw?|sgd|exp_avg(_sq)?|momentum|sched(uler)?|scaler|fisher|importances?|grads?|gradients?|hess"
    r"(ian)?|rng|random|metrics?|loss(es)?|criterion|callbacks?|history|ema|swa|avg|averaged?|shadow)(?![a-z])",
    re.IGNORECASE,
)
"""Of what a training keeps for itself."""


class Checkpoint(NamedTuple):
    """What a file holds, whatever wraps it."""

    content: Any
    """Containers with tensors somewhere in them."""
    config: dict[str, Any]
    """The config.json beside it."""
    key: str = ""
    """The model that is asked for, of several."""


class Model(NamedTuple):
    """One model's tensors in a checkpoint."""

    where: str
    """The keys that lead to its state dict, with dots between; "" for a bare one."""
    prefix: str
    """What stands before its names there, with a dot at the end unless it is empty."""
    tensors: dict[str, Tensor]
    """By their names without the prefix."""
    outside: dict[str, Tensor]
    """What else lies in the state dict, under its whole names, and belongs to no other model."""

    @property
    def label(self) -> str:
        """Where it lies, prefix and all."""
        return ".".join(part for part in (self.where, self.prefix.rstrip(".")) if part)


# ------------------------------------------------------------ files


def split(path: str | Path) -> tuple[Path, str]:
    """ "FILE#key" -> (FILE, key); a file that is really called so comes first."""
    text = str(path)
    if os.path.exists(text) or "#" not in text:
        return Path(text), ""
    file, _, key = text.rpartition("#")
    return Path(file), key


def weights_file(path: Path) -> Path | None:
    """The file itself, or a folder's weights or index; None where there are none. Raises PackError for an adapter."""
    if not path.is_dir():
        return path
    if (path / "adapter_config.json").is_file():  # transformers would load it on top of the weights beside it
        raise PackError(f"{path.name} holds an adapter, not a whole model: merge it into its model and save that")
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    indices = sorted(path.glob(f"*{INDEX}"))
    return indices[0] if len(indices) == 1 else None


def no_weights(folder: Path) -> str:
    """What to say of a folder without weights: what in it may be meant."""
    if (folder / "data.pkl").is_file():
        return f"{folder.name} is a checkpoint that was unpacked, as some browsers do: download the file itself"
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    meant = [path.name for path in inside if path.is_dir() and any((path / name).is_file() for name in WEIGHTS)]
    meant = meant or [path.name for path in inside if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if meant:
        several = ", ".join(map(printable, meant[:3])) + (" ..." if len(meant) > 3 else "")
        return f"{folder.name} holds none of {', '.join(WEIGHTS)}, but {several}: name what is meant"
    return f"{folder.name} holds no weights: expected one of {', '.join(WEIGHTS)}"


def files(path: str | Path) -> list[Path]:
    """Every file that `read` would read, as far as they are there: what to look at to see whether one has changed."""
    place, _ = split(path)
    file = weights_file(place) or place
    named = [file]
    if file.name.endswith(INDEX) and file.is_file():
        named += _shards(file)
    return [each for each in (*named, file.with_name(CONFIG)) if each.is_file()]


def read(path: str | Path) -> Checkpoint:
    """What a file, a folder or an index holds, with the config.json beside it. Raises PackError."""
    place, key = split(path)
    file = weights_file(place)
    if file is None:
        raise PackError(no_weights(place))
    if file.name.endswith(INDEX):
        content: Any = {}
        for shard in _shards(file):
            found = safe.read_torch(shard)
            if not isinstance(found, dict):
                raise PackError(f"{shard.name} holds no state dict")
            content |= found
        missing = [name for name in _weight_map(file) if name not in content]
        if missing:
            raise PackError(f"{file.name} names {missing[0]!r}, which is in none of its files")
    else:
        content = safe.read_torch(file)
    config = file.with_name(CONFIG)
    return Checkpoint(content, _json(config) if config.is_file() else {}, key)


def shards(index: Path) -> list[str]:
    """The names of the files that an index lists, all beside it. Raises PackError."""
    names = list(dict.fromkeys(_weight_map(index).values()))
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name or ":" in name or name == "..":
            raise PackError(f"{index.name} names {name!r}, which does not lie in its folder")
    return names


def _shards(index: Path) -> list[Path]:
    found = [index.with_name(name) for name in shards(index)]
    for path in found:
        if not path.is_file():
            raise PackError(f"{path.name} is missing in {path.parent}: {index.name} names it")
    return found


def _weight_map(index: Path) -> dict[str, Any]:
    found = _json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise PackError(f"{index.name} is no index of weights: it has no weight_map")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it is larger than {_LARGEST_JSON >> 20} MiB")
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PackError(f"{path.name} in {path.parent} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise PackError(f"{path.name} in {path.parent} is no JSON object")
    return found


# ------------------------------------------------------------ what lies in them


def containers(found: Any) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every dictionary in it and the keys that lead to it, outer ones first, to a depth of _DEEPEST."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), found)])
    while waiting:
        where, value = waiting.popleft()
        if isinstance(value, dict):
            yield where, value
        items = value.items() if isinstance(value, dict) else enumerate(value)
        if len(where) < _DEEPEST:
            nested = ((key, v) for key, v in items if isinstance(v, (dict, list, tuple)) and v)
            waiting += [((*where, key if isinstance(key, str) else str(key)), v) for key, v in nested]


def named(where: tuple[str, ...]) -> str:
    """The keys that lead somewhere with dots between; of a hostile file's no more than fits on a line."""
    return ".".join(printable(key[:60]) for key in where)


def state_dicts(found: Any) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Every dictionary in it that names tensors, by the keys that lead there; arrays count as tensors.

    What an optimizer keeps is left out. Raises PackError for a name of absurd length.
    """
    content = found.content if isinstance(found, Checkpoint) else found
    states = {}
    for where, value in containers(content) if isinstance(content, (dict, list, tuple)) else ():
        state = {key: _tensor(v) for key, v in value.items() if isinstance(key, str) and _is_tensor(v)}
        if any(len(key) > _LONGEST_NAME for key in state):
            raise PackError(f"a checkpoint holds a tensor whose name has more than {_LONGEST_NAME} characters")
        if state and not any(part.startswith("optim") for part in where):
            states[where] = {_WRITTEN_AROUND.sub("", key): v for key, v in state.items()}
    return states


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def unwrap(found: Any, file: str) -> dict[str, Tensor]:
    """The outermost state dict of a checkpoint, without what stands before all of its names. Raises PackError."""
    states = state_dicts(found)
    if not states:
        raise PackError(nothing(found, file))
    state = states[min(states, key=lambda where: (bool(_SECOND.search(named(where))), len(where)))]
    while True:
        first = {key.partition(".")[0] for key in state}
        if len(first) > 1 or not all("." in key for key in state):
            return state
        state = {key.partition(".")[2]: value for key, value in state.items()}


def nothing(found: Any, file: str) -> str:
    """What to say of a file without a state dict."""
    content = found.content if isinstance(found, Checkpoint) else found
    keys = [str(key) for key in content] if isinstance(content, dict) else []
    held = f", only {', '.join(printable(key[:40]) for key in keys[:3])}{' ...' if len(keys) > 3 else ''}"
    return f"{file} holds no state dict{held if keys else ''}"


def has_weights(states: dict[tuple[str, ...], dict[str, Tensor]]) -> bool:
    """Whether any of the state dicts holds more than rows of figures."""
    return any(value.ndim > 1 for state in states.values() for value in state.values())


def models(found: Any, anchor: str) -> list[Model]:
    """Every model in it that has a tensor called `anchor` (a regular expression), whatever stands before its names."""
    end = re.compile(rf"(?:^|(?<=\.))(?:{anchor})$")
    every: list[Model] = []
    for where, state in state_dicts(found).items():
        prefixes = list(dict.fromkeys(key[: match.start()] for key in state if (match := end.search(key))))
        if len(every) + len(prefixes) > _MOST_MODELS:
            raise PackError(f"a checkpoint holds more than {_MOST_MODELS} models")
        inside: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
        outside: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
        for key, value in state.items():
            owners = [prefix for prefix in prefixes if key.startswith(prefix)]
            if owners:  # of one model inside of another, the inner one
                owner = max(owners, key=len)
                inside[owner][key[len(owner) :]] = value
                continue
            shared = {prefix: len(os.path.commonprefix([key.split("."), prefix.split(".")])) for prefix in prefixes}
            for prefix in prefixes:
                if shared[prefix] == max(shared.values()):
                    outside[prefix][key] = value
        every += [Model(named(where), prefix, inside[prefix], outside[prefix]) for prefix in prefixes]
    return every


def pick(found: list[Model], wanted: str, file: str, say: Callable[[str], object]) -> Model:
    """The model called `wanted`, or of several the outermost that is no average (EMA, SWA) and no original, the
    first of those.

    `say` is told where there was a choice. Raises PackError for a name that none has.
    """
    short = len({model.where for model in found}) == len(found)
    labels = [model.where if short else model.label for model in found]
    if wanted:
        fits = [m for m in found if f".{wanted}." in f".{m.label}."]
        if not fits:
            known = ", ".join(label for label in labels if label) or "one model only, which needs no name"
            raise PackError(f"{file} holds no model called {wanted!r}; it holds {known}")
        return min(fits, key=_rank)
    chosen = min(found, key=_rank)
    if len(found) > 1:
        read = labels[found.index(chosen)]
        others = ", ".join(f"{file}#{label}" for label in labels if label != read)
        say(f"{file} holds {len(found)} models: {read or 'the outermost'} is read; for another, write {others}")
    return chosen


def laid_over(found: Any, every: list[Model], read: Model) -> dict[str, Tensor]:
    """What lies in other dictionaries and looks like a change of the model that is read: an adapter, a difference.

    By the keys that lead there: what is called so, and what bears the names of the model's own layers.
    """
    layers = {key.rpartition(".")[0] for key in read.tensors}
    layers = {f".{layer}." for layer in layers if "." in layer}
    whole = {model.where for model in every}
    over = {}
    for where, state in state_dicts(found).items():
        place = named(where)
        for key, value in state.items():
            name = f"{place}.{key}" if place else key
            if place in whole:
                changes = place != read.where and bool(_CHANGE.search(place))
            else:
                changes = not _TRAINING.search(name) and (
                    bool(_CHANGE.search(name)) or any(layer in f".{key}." for layer in layers)
                )
            if changes and value.numel() > 1:
                over[name] = value
    return over


def _rank(model: Model) -> tuple[bool, int]:
    """`min` takes the first of equals."""
    return bool(_SECOND.search(model.label)), model.where.count(".") + bool(model.where)

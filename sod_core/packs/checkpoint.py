"""What lies in a checkpoint file: its state dict, whatever wraps it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .errors import PackError

_WRAPPERS = ("model_state_dict", "state_dict", "model")


def unwrap(found: Any, file: str) -> dict[str, Tensor]:
    """The state dict inside of whatever a checkpoint file holds, without `module.`. Raises PackError."""
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    named = found.items() if isinstance(found, dict) else ()
    state = {key: value for key, value in named if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise PackError(f"{file} holds no state dict")
    return {key.removeprefix("module."): value for key, value in state.items()}

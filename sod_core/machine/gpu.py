"""Where the heavy part of a call runs: one forward at a time on a CUDA device, and ZeroGPU on Hugging Face Spaces.

A ZeroGPU Space has no GPU of its own: `spaces.GPU` runs a function in a forked process that is lent one, and what
goes in and out is pickled. So models stay on the CPU in the main process, `heavy` functions are pure, and they get
their model by asking for it: a Pack is pickled as its name, and the other process finds the same one.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import environment

ZERO = environment.zero_gpu()
ZERO_SECONDS = 30
"""What a call asks ZeroGPU for at most; it pays for what it uses."""

T = TypeVar("T")
_turns: defaultdict[torch.device, threading.Lock] = defaultdict(threading.Lock)
_on_lent_gpu: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()


def turn(device: torch.device) -> AbstractContextManager:
    """Held during a forward pass: on a CUDA device one at a time, so that visitors' activations do not add up."""
    return _turns[device] if device.type == "cuda" else nullcontext()


def heavy(work: Callable[..., T]) -> Callable[..., T]:
    """Decorates work(model_of, tensor, ...), which gives a tensor or a dict of tensors, all on the tensor's device.

    Unchanged outside of ZeroGPU. There it runs where the GPU is, and the answer comes back to the CPU.
    """
    if not ZERO:
        return work
    import spaces

    @spaces.GPU(duration=ZERO_SECONDS)
    @functools.wraps(work)
    def there(model_of: Callable[[], nn.Module], tensor: Tensor, *rest: Any) -> Any:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found: Any = work(functools.partial(_moved, model_of, device), tensor.to(device), *rest)
        return {key: value.cpu() for key, value in found.items()} if isinstance(found, dict) else found.cpu()

    return there


def _moved(model_of: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """The model's copy on the lent GPU, made once a process."""
    model = model_of()
    if model not in _on_lent_gpu:
        _on_lent_gpu[model] = copy.deepcopy(model).to(device)
    return _on_lent_gpu[model]

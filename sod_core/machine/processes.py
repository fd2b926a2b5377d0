"""Several processes at one task, as `accelerate launch` starts them; a single process is not concerned.

Unlearning: each process computes its equal part of every batch and the gradients are averaged, so the model is the one
that a single process makes, but for the order of sums. Looks at the check images and files are the main process's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from . import devices, environment

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
_state: PartialState | None = None


def start(device: str | None = None) -> torch.device:
    """Joins the other processes, if there are any. Returns this process's device: `device`, or the best there is."""
    global _state
    if environment.processes() == 1:
        return devices.choose_device(device)
    from accelerate import PartialState

    chosen = devices.choose_device(device)
    _state = PartialState(cpu=chosen.type == "cpu")
    return _state.device


def end() -> None:
    """Leaves the other processes."""
    global _state
    if _state is not None:
        _state.destroy_process_group()
        _state = None


def count() -> int:
    """How many processes there are."""
    return 1 if _state is None else _state.num_processes


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _state is None else _state.process_index


def is_main() -> bool:
    """Whether this process is the one that evaluates, saves and shows progress."""
    return _state is None or _state.is_main_process


def part(size: int) -> slice:
    """This process's part of a batch of `size`. Raises ValueError for a batch that cannot be divided evenly."""
    if _state is None:
        return slice(0, size)
    if size % _state.num_processes:
        raise ValueError(f"a batch of {size} cannot be divided among {_state.num_processes} processes: change its size")
    each = size // _state.num_processes
    return slice(each * _state.process_index, each * (_state.process_index + 1))


def share(items: list[T]) -> list[T]:
    """This process's share of a list of things to do, which need not divide evenly."""
    return items if _state is None else items[_state.process_index :: _state.num_processes]


def wait() -> None:
    """Waits until every process is here."""
    if _state is not None:
        _state.wait_for_everyone()


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, all in one message."""
    if _state is None:
        return
    from accelerate.utils import reduce

    tensors = list(tensors)
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


def by_main(work: Callable[[], T]) -> T:
    """What `work` gives in the main process, in every process; the others wait for it. What it raises, all raise."""
    if _state is None:
        return work()
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if is_main():
        try:
            found[0] = work()
        except Exception as error:
            found[1] = error
    given, problem = broadcast_object_list(found)
    if problem is not None:
        raise problem
    return given


def gathered(found: dict[str, T]) -> dict[str, T]:
    """What all processes have found, together, in every process."""
    if _state is None:
        return found
    from accelerate.utils import gather_object

    return {key: value for part in gather_object([found]) for key, value in part.items()}


def one_first() -> AbstractContextManager[None]:
    """Lets one process of each machine do what makes files, before the others find them there."""
    return nullcontext() if _state is None else _state.local_main_process_first()

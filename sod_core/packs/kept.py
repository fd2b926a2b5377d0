"""Things that are made once and shared by all threads: weights, statistics, thumbnails."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


_all: weakref.WeakSet[Kept] = weakref.WeakSet()


class Kept:
    """A cache that makes each thing once, however many threads ask, and makes different things side by side.

    With a budget, things that were not asked for longest go when the sizes pass it; the newest always stays.
    """

    def __init__(self, budget: float = float("inf")):
        self.budget = budget
        self._things: OrderedDict[Hashable, tuple[Any, float]] = OrderedDict()
        self._new_locks()
        _all.add(self)

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], float] = lambda thing: 0) -> T:
        """The thing called `key`; made by `make` if it is not here. What `make` raises is not remembered."""
        with self._lock:
            if key in self._things:
                return self._found(key)
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._things:  # another thread made it meanwhile
                    return self._found(key)
            thing = make()
            with self._lock:
                self._things[key] = thing, size(thing)
                self._making.pop(key, None)
                self._drop()
            return thing

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._things

    def size(self) -> float:
        """Sum of the sizes of what is here."""
        with self._lock:
            return sum(size for _, size in self._things.values())

    def _found(self, key: Hashable) -> Any:
        self._things.move_to_end(key)
        return self._things[key][0]

    def _drop(self) -> None:
        while len(self._things) > 1 and sum(size for _, size in self._things.values()) > self.budget:
            self._things.popitem(last=False)

    def _new_locks(self) -> None:
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()


def _after_fork() -> None:
    """In a forked process (ZeroGPU's) nobody would ever open the locks that other threads held at that moment."""
    for kept in _all:
        kept._new_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

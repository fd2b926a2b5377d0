"""What a page computes at the moment: in a thread of its own, which can be waited for, cancelled, and overtaken."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

BEAT = 1.0
"""Seconds after which work yields without news: Gradio can end it only there, when the page is closed."""


class Running:
    """What a page computes at the moment, so that its Cancel button, or its next order, ends it."""

    _cancel: threading.Event | None = None

    def begin(self) -> threading.Event:
        """What ends the work that begins now, once it is set."""
        self.stop()
        self._cancel = threading.Event()
        return self._cancel

    def stop(self) -> None:
        """Ends the work at its next step, if there is one."""
        if self._cancel is not None:
            self._cancel.set()

    def is_last(self, cancel: threading.Event) -> bool:
        """Whether no work began after the one that `cancel` ends."""
        return self._cancel is cancel

    @property
    def busy(self) -> bool:
        return self._cancel is not None and not self._cancel.is_set()


class Watched:
    """work(tell) in a thread of its own, which can be waited for while it tells."""

    def __init__(self, work: Callable[[Callable[[Any], None]], Any]):
        self._told: queue.Queue = queue.Queue()
        self._found: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable) -> None:
        try:
            self._found = work(self._told.put)
        except BaseException as error:  # raised where it is waited for
            self._error = error
        self._told.put(self)  # no more news

    def news(self) -> Iterator[Any]:
        """What it tells until it has ended, and None where it told nothing for a while."""
        while True:
            try:
                told = self._told.get(timeout=BEAT)
            except queue.Empty:
                told = None
            if told is self:
                return
            yield told

    def result(self) -> Any:
        """What `work` returned. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._found

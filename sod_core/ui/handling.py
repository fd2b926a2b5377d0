"""What the tab's handlers share: errors become sentences, controls are read, an answer comes fast and then whole."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

log = logging.getLogger(__name__)


def kept(handler: Callable, outputs: int) -> Callable:
    """Turns an error into a sentence on the page; everything on it stays as it was."""

    @functools.wraps(handler)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return handler(*arguments, **named)
        except Exception as error:
            warn(error, handler)
        return [gr.skip()] * outputs if outputs > 1 else gr.skip()

    return run


def kept_steps(handler: Callable, outputs: int) -> Callable:
    """As `kept`, for a generator whose last answer leaves the page as it is: Gradio shows that one twice."""

    @functools.wraps(handler)
    def run(*arguments: Any) -> Iterator:
        try:
            yield from handler(*arguments)
        except Exception as error:
            warn(error, handler)
        yield [gr.skip()] * outputs

    return run


def kept_stream(handler: Callable, undone: Callable[..., dict]) -> Callable:
    """As `kept`, for a generator: after an error it gives what `undone` makes of the handler's arguments."""

    @functools.wraps(handler)
    def run(*arguments: Any) -> Iterator:
        try:
            yield from handler(*arguments)
        except Exception as error:
            warn(error, handler)
            yield undone(*arguments)

    return run


def warn(error: Exception, handler: Callable) -> None:
    """Shows what went wrong. ValueErrors (PackError and ImageError are) hold one sentence; others go to the log."""
    if isinstance(error, ValueError):
        gr.Warning(str(error))
        return
    log.error("%s of %s failed", handler.__qualname__, handler.__module__, exc_info=error)
    gr.Warning("This did not work, for a reason that is written to the server's log; nothing was changed.")

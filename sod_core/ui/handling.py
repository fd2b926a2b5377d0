"""What the tab's handlers share: errors become sentences, controls are read, an answer comes fast and then whole."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from . import shown
from .visitor import Controls, Visitor

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


def read(values: tuple) -> Controls:
    """The values of Panel.controls."""
    layer, mode, alpha, tokens, kind, expert_class, seed = values
    return Controls(int(layer), mode, float(alpha), tokens, kind, expert_class or "", int(seed or 0))


def there(visitor: Visitor | None) -> Visitor:
    """The visitor, or a ValueError where the server has forgotten this page."""
    if visitor is None:
        raise ValueError("this page is still opening, or has lost its place on the server; wait a moment, or reload it")
    return visitor


def after(
    visitor: Visitor | None,
    values: tuple,
    change: Callable[[Visitor, Controls], None] | None = None,
    new_image: bool = False,
    new_order: bool = False,
) -> list:
    """Makes one change to the visitor's work and shows the fast part of the result; `settle` shows the rest."""
    visitor, controls = there(visitor), read(values)
    with visitor.lock:
        visitor.version += 1
        if visitor.swept_to == controls.alpha:
            visitor.swept_to = None
        elif visitor.swept_to is not None:
            controls = replace(controls, alpha=visitor.swept_to)
        if change is not None:
            change(visitor, controls)
        return shown.everything(visitor, controls, new_image, new_order)


def settle(visitor: Visitor | None) -> list:
    """The verdict and the curves, once they are measured; nothing if the visitor asked for something else meanwhile."""
    if visitor is None or visitor.controls is None or visitor.picture is None:
        return [gr.skip(), gr.skip()]
    version, controls = visitor.version, visitor.controls
    if visitor.measure(controls, version) is None:
        return [gr.skip(), gr.skip()]
    with visitor.lock:
        if visitor.version != version:
            return [gr.skip(), gr.skip()]
        latest = visitor.controls  # alpha may have moved
        curves = visitor.curves(latest)
        return [gr.skip(), gr.skip()] if curves is None else list(shown.measured(visitor, latest, curves))

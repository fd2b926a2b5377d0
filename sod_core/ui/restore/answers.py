"""What the Restore tab's handlers share: controls are read, an answer comes fast and then whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gradio as gr

from . import shown
from .visitor import Controls, Visitor


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

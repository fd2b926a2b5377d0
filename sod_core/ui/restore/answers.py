"""What the Restore tab's handlers share: controls are read, an answer comes fast and then whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ...restore.sweep import STRIDES
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
        if change is not None:
            change(visitor, controls)
        return shown.everything(visitor, controls, new_image, new_order)


def settle(visitor: Visitor | None) -> Iterator[list]:
    """Panel.settled as it comes: a coarse sweep of alpha, then verdict and curves, then every position of the slider.

    Ends without more where the visitor has asked for something else meanwhile.
    """
    if visitor is None or visitor.controls is None or visitor.picture is None:
        return
    version, controls = visitor.version, visitor.controls
    steps: list[Callable[[], list | None]] = [
        partial(_swept, visitor, controls, version, STRIDES[0]),
        partial(_measured, visitor, controls, version),
        *(partial(_swept, visitor, controls, version, stride) for stride in STRIDES[1:]),
    ]
    for step in steps:
        found = step()
        if found is None:
            return
        yield found


def _swept(visitor: Visitor, controls: Controls, version: int, stride: int) -> list | None:
    if not visitor.fill(controls, version, stride):
        return None
    with visitor.lock:
        return shown.swept(visitor, controls) if visitor.version == version else None


def _measured(visitor: Visitor, controls: Controls, version: int) -> list | None:
    if visitor.measure(controls, version) is None:
        return None
    with visitor.lock:
        latest = visitor.controls  # alpha may have moved
        if visitor.version != version or latest is None:
            return None
        curves = visitor.curves(latest)
        return None if curves is None else shown.settled(visitor, latest, curves)

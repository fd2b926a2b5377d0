"""What the Restore tab's handlers share: controls are read, an answer comes fast and then whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    """Panel.settled as it comes: verdict and curves with a coarse sweep of alpha, then every position of the slider.

    Ends without more where the visitor has asked for something else meanwhile.
    """
    if visitor is None or visitor.controls is None or visitor.picture is None:
        return
    version, controls = visitor.version, visitor.controls
    for stride in STRIDES:
        if not visitor.fill(controls, version, stride):
            return
        if stride == STRIDES[0] and visitor.measure(controls, version) is None:
            return
        with visitor.lock:
            latest = visitor.controls  # alpha may have moved
            if visitor.version != version or latest is None:
                return
            found = shown.swept(visitor, latest, with_verdict=stride == STRIDES[0])
        yield found

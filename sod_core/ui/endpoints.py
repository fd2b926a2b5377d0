"""What the named endpoints share: a pack by its name only, and nothing left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import gradio as gr

from ..packs.errors import PackError

T = TypeVar("T")


class Choice(gr.Radio):
    """A choice of an endpoint, which the API page shows as a literal.

    What is no choice comes through to the endpoint, whose own sentence says what there is.
    """

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value as it was sent."""
        return payload


def by_name(name: str, known: Iterable[str], open_it: Callable[[str], T]) -> T:
    """A pack by its name only: an endpoint opens no folders of the server. Raises PackError."""
    names = list(known)
    if name not in names:
        raise PackError(f"unknown pack {name!r}; known: {', '.join(names)}")
    return open_it(name)


def check_sent(arguments: dict[str, Any]) -> None:
    """Raises ValueError for an argument that is null."""
    missing = [name for name, value in arguments.items() if value is None]
    if missing:
        raise ValueError(f"no {missing[0]} was sent")


def number(text: str, what: str) -> float | None:
    """None for an empty text. Raises ValueError for what is no finite number."""
    if not text.strip():
        return None
    try:
        found = float(text)
    except ValueError as error:
        raise ValueError(f"the {what} {text[:80]!r} is no number") from error
    if not math.isfinite(found):
        raise ValueError(f"the {what} must be a finite number, not {text[:80]}")
    return found

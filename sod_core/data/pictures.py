"""Labelled images, as a folder or a table gives them: opened when they are asked for, in messages called by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

SHOWN = 5
"""Of many names so many are said."""
NO_CLASS = -1


class Pictures(NamedTuple):
    labels: list[int]
    """The class of each image; NO_CLASS for those of no class of the pack."""
    read: Callable[[int], Image.Image]
    """The image of a number, as `images.read` gives it. Raises ImageError with its name (boat/0012.jpg) before all."""
    files: list[Path]
    """All that is read from."""
    place: str
    """What was read: of a folder that is divided, the part's folder."""
    notes: Sequence[str] = ()
    """What was decided and what was left out, a sentence each."""
    strangers: Sequence[str] = ()
    """What is said of each image of no class."""


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first few of many names, and how many more there are."""
    more = len(names) - SHOWN
    return between.join(names[:SHOWN]) + (f"{between}and {more} more" if more > 0 else "")


def counted(number: int, what: str) -> str:
    """ "1 image was", "3 images were"."""
    return f"1 {what} was" if number == 1 else f"{number} {what}s were"


def broken_note(problems: Sequence[str]) -> list[str]:
    """The sentence about images that could not be read and are in no figure; none where there are none."""
    if not problems:
        return []
    return [f"{counted(len(problems), 'broken image')} left out (--strict refuses them): {some(problems, '; ')}"]

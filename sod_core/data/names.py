"""Which class a word means: the name of a folder, or a label of a table."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence


class Names:
    """The names of a pack's classes, and those that a data set gives to the same classes.

    A name is a class's as it stands, or but for case and for spaces around it; nothing else is forgiven.
    """

    def __init__(
        self, classes: Sequence[str], others: Mapping[str, Sequence[str]] | None = None, whose: str = "the pack"
    ):
        """`others`: {class: a data set's own names of it}, such as {"tench": ["n01440764"]}; `whose`: in sentences."""
        self.classes, self.whose = tuple(classes), whose
        self._said = {other: self.classes.index(name) for name, found in (others or {}).items() for other in found}
        self._said |= {name: label for label, name in enumerate(self.classes)}
        self._plain: dict[str, set[int]] = {}
        for name, label in self._said.items():
            self._plain.setdefault(_plain(name), set()).add(label)

    def label(self, name: str) -> int | None:
        """The number of the class that a name means; None for a name of no class, or of two that differ in case."""
        if name in self._said:
            return self._said[name]
        found = self._plain.get(_plain(name), set())
        return next(iter(found)) if len(found) == 1 else None

    def stranger(self, name: str) -> str:
        """What is said of a name of no class: the known name that is most like it."""
        plain = _plain(name)
        nearest = max(self._said, key=lambda known: difflib.SequenceMatcher(None, plain, _plain(known)).ratio())
        return f"which is no class of {self.whose}; the nearest is {nearest!r}"


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()

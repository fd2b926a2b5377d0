"""Which class a word means: the name of a folder, a label of a table, a row of a head, what a user types."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence


class Names:
    """The names of a pack's classes, and those that a data set gives to the same classes.

    What a folder is called, or a label of a table, is read by `label`: case and spaces around it do not matter. It is
    the stricter reader, since "boat_" or "boat-2" beside "boat" may be a copy, whose images would count twice.
    Whatever else names classes (a head's config, expert lists, users) is read by `meant`.
    """

    def __init__(
        self, classes: Sequence[str], others: Mapping[str, Sequence[str]] | None = None, whose: str = "the pack"
    ):
        """`others`: {class: a data set's own names of it}, such as {"tench": ["n01440764"]}; `whose`: in sentences."""
        self.classes, self.whose = tuple(classes), whose
        self._said = {other: self.classes.index(name) for name, found in (others or {}).items() for other in found}
        self._said |= {name: label for label, name in enumerate(self.classes)}

    @classmethod
    def of(cls, classes: Names | Sequence[str]) -> Names:
        """The names, where only the classes may be known."""
        return classes if isinstance(classes, Names) else cls(classes)

    def label(self, name: str) -> int | None:
        """The number of the class that a name means; None for a name of no class, or of two that differ in case."""
        if name in self._said:
            return self._said[name]
        found = {label for known, label in self._said.items() if _plain(known) == _plain(name)}
        return found.pop() if len(found) == 1 else None

    def meant(self, name: str) -> int | None:
        """As `label`, but spaces, underscores and hyphens do not matter anywhere ("Golf_Ball").

        With commas it lists synonyms, of which all that are known have to mean one class ("tench, Tinca tinca").
        """
        label = self.label(name)
        if label is None:
            words = {_joined(part) for part in (name, *name.split(","))}
            found = {label for known, label in self._said.items() if _joined(known) in words}
            label = found.pop() if len(found) == 1 else None
        return label

    def stranger(self, name: str) -> str:
        """What is said of a name of no class: the known name that is most like it."""
        plain = _plain(name)
        nearest = max(self._said, key=lambda known: difflib.SequenceMatcher(None, plain, _plain(known)).ratio())
        return f"which is no class of {self.whose}; the nearest is {nearest!r}"


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _joined(name: str) -> str:
    return re.sub(r"[\s_-]+", "", _plain(name))

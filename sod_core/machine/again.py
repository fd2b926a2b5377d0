"""--from FILE: the options of a command out of a JSON file that the app's menu "Export" made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPTION = "--from"
PROGRAM = ("python", "-m", "sod_core")
_COMMANDS: set[tuple[str, ...]] = set()
"""The words of those that called `add`: another's --from is of its own kind."""
LARGEST = 50_000_000
"""Bytes of a file."""
TAKEN = frozenset(
    "pack unlearned example target-class layer alpha mode tokens features seed images max-alpha "  # restore
    "bottleneck forget method share pairs examples per-codebook "  # mask
    "prompt sae value refusal refusal-value threshold fidelity "  # clamp
    "concept factor multiplier percentile start-step beta steps guidance".split()  # erase
)
"""Options that a file may set: what is computed; never where something is written."""
INSTEAD = {"example": ["image"], "share": ["pairs", "examples"], "factor": ["multiplier"]}
"""Options that take the place of a file's."""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the option; `expanded` puts the file's options beside it, and `again` tells the command of the file."""
    _COMMANDS.add(tuple(word for word in parser.prog.split() if word not in PROGRAM))
    parser.add_argument(
        OPTION, dest="again", metavar="FILE", help="options out of JSON that the app exported; those given here win"
    )


def expanded(arguments: Sequence[str]) -> list[str]:
    """The arguments with those of --from FILE in its place. Raises ValueError, one sentence."""
    given = list(arguments)
    if not any(tuple(given[: len(words)]) == words for words in _COMMANDS):
        return given
    written = next((place for place, one in enumerate(given) if one.startswith(f"{OPTION}=")), None)
    if written is not None:
        given[written : written + 1] = given[written].split("=", 1)
    if OPTION not in given[:-1]:
        return given
    at = given.index(OPTION)
    path, rest = given[at + 1], given[:at] + given[at + 2 :]
    words, options = _read(path)
    if rest[: len(words)] != words:
        raise ValueError(f"{path} was made for another command; write python -m sod_core {' '.join(words)} --from FILE")
    said = [argument.partition("=")[0] for argument in rest]
    found = []
    for name, value in options.items():
        if not any(f"--{other}" in said for other in (name, *INSTEAD.get(name, []))):
            found += _words(f"--{name}", value)
    return [*words, *found, *rest[len(words) :], OPTION, path]


def held(path: str) -> dict[str, Any]:
    """What an exported file holds. Raises ValueError, one sentence."""
    try:
        if Path(path).stat().st_size > LARGEST:
            raise ValueError(f"{path} is too large for an exported file")
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise foreign(path) from error
    if not isinstance(found, dict):
        raise foreign(path)
    return found


def foreign(path: str) -> ValueError:
    """The error for a file that Export did not make."""
    return ValueError(f"{path} is no JSON that the app's Export menu made")


def _read(path: str) -> tuple[list[str], dict[str, Any]]:
    found = held(path)
    try:
        words, options = found["sod_core"], found["options"]
        sound = all(isinstance(word, str) for word in words) and words and all(map(_plain, options.values()))
    except (TypeError, KeyError, AttributeError) as error:
        raise foreign(path) from error
    unknown = sorted(set(options) - TAKEN)
    if unknown or not sound:
        raise ValueError(f"{path} holds an option that no exported file has: {', '.join(unknown) or 'a nested one'}")
    return list(words), options


def _plain(value: Any) -> bool:
    return (
        isinstance(value, (str, int, float))
        or isinstance(value, list)
        and all(isinstance(one, (str, int, float)) for one in value)
    )


def _words(option: str, value: Any) -> list[str]:
    """As they would be typed. A value that begins with a dash is no option."""
    if isinstance(value, bool):
        return [option] if value else []
    if isinstance(value, list):
        return [option, *map(str, value)]
    return [f"{option}={value}"]

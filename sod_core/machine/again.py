"""--from FILE: the options of a command out of a JSON file that the app's menu "Export" made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPTION = "--from"
OTHERS = ("unlearn",)
"""Commands whose --from is of another kind: a record of their own."""
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
    """Adds the option to a command's help; `expanded` takes it out before the command is read."""
    parser.add_argument(
        OPTION, dest="again", metavar="FILE", help="options out of JSON that the app exported; those given here win"
    )


def expanded(arguments: Sequence[str]) -> list[str]:
    """The arguments with those of --from FILE in its place. Raises ValueError, one sentence."""
    given = list(arguments)
    if given[:1] and given[0] in OTHERS:
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
    return [*words, *found, *rest[len(words) :]]


def _read(path: str) -> tuple[list[str], dict[str, Any]]:
    try:
        if Path(path).stat().st_size > LARGEST:
            raise ValueError(f"{path} is too large for an exported file")
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        words, options = held["sod_core"], held["options"]
        sound = all(isinstance(word, str) for word in words) and words and all(map(_plain, options.values()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (TypeError, KeyError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON that the app's Export menu made") from error
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

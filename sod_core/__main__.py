"""The command line: one sub-command a verb. `python -m sod_core VERB --help`."""

from __future__ import annotations

import argparse
import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036  told before an older Python meets what it cannot read
    sys.stderr.write("sod_core: Python 3.11 or newer is needed, and this is %d.%d\n" % sys.version_info[:2])  # noqa: UP031
    sys.exit(2)

from .build import command as build
from .clamp import command as clamp
from .erase import command as erase
from .machine import again, sentences
from .mask import command as mask
from .packs import command as packs
from .restore import command as restore
from .ui import command as draw
from .unlearn import command as unlearn

COMMANDS = (restore, erase, clamp, mask, draw, unlearn, packs, build)
"""Each adds its verbs, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line instead of argparse's usage block."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, or 2 for what the user can mend (one line on standard error)."""
    sentences.say_everything()
    parser, given = _parser(), sys.argv[1:] if arguments is None else arguments
    try:
        given = again.expanded(given)
    except ValueError as error:
        print(f"sod_core: {error}", file=sys.stderr)
        return 2
    options = parser.parse_args(given)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sod_core"):
            raise
        print(f"sod_core {options.verb}: {sentences.not_installed(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:  # PackError, ImageError and ours are ValueErrors with one sentence each
        print(f"sod_core {options.verb}: {sentences.said(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=" ".join(again.PROGRAM), description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for command in COMMANDS:
        command.add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())

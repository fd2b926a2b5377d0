"""The app's part of the command line: `draw`, the picture that an exported JSON file is of."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to the command line."""
    parser = verbs.add_parser("draw", help="what the app exported as JSON, as a picture or a table again")
    parser.add_argument("file", metavar="FILE", help="JSON of a tab's menu Export")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="its suffix says what: png, gif or csv")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from . import drawn

    drawn.draw(options.file, options.out)

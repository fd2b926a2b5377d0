"""The command `packs`: what is here, what the hub has, whether it can be used."""

from __future__ import annotations

import argparse


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to the command line."""
    parser = verbs.add_parser("packs", help="list, fetch, check and describe packs")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="every pack, and whether it is on this computer")
    get = actions.add_parser("get", help="fetch a pack's files from the hub")
    check = actions.add_parser("check", help="load every file and say which cannot be used")
    card = actions.add_parser("card", help="what the pack is and how well its SAEs fit, as Markdown")
    for action in (get, check, card):
        action.add_argument("name", help="a pack's name or folder")
    for action in (check, card):
        action.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    get.add_argument(
        "--unlearned", nargs="*", default=[], metavar="ID", help="unlearned models to fetch, or all; default: the first"
    )
    for action, run in ((listed, _list), (get, _get), (check, _check), (card, _card)):
        action.set_defaults(run=run)


def _list(options: argparse.Namespace) -> None:
    """A line a pack."""
    from . import kinds
    from .errors import PackError

    for name in kinds.names():
        try:
            print(f"{name}: {kinds.kind_of(name).line(name)}")
        except PackError as error:
            print(f"{name}: cannot be used: {error}")


def _get(options: argparse.Namespace) -> None:
    """Fetches a pack's files from the hub, with a progress bar each."""
    from . import hub, kinds

    wanted = kinds.kind_of(options.name).wanted(options.name, options.unlearned)
    for file in wanted.files:
        hub.fetch_shown(file)
    print(f"{wanted.name}: {len(wanted.files)} files fetched" if wanted.files else f"{wanted.name}: all is here")
    for line in wanted.still_to_do():
        print(f"still to do: {line}")


def _check(options: argparse.Namespace) -> None:
    """Loads every file of a pack; a line each. Raises ValueError if one cannot be used."""
    from ..machine import devices
    from . import kinds

    problems = 0
    kind = kinds.kind_of(options.name)
    for what, problem in kind.check(options.name, devices.choose_device(options.device)):
        caution = isinstance(problem, kinds.Caution)
        problems += problem is not None and not caution
        print(f"{what}: {'caution: ' if caution else ''}{problem or 'ok'}", flush=True)
    if problems:
        raise ValueError(f"{problems} {'parts' if problems > 1 else 'part'} of pack {options.name} cannot be used")


def _card(options: argparse.Namespace) -> None:
    """Prints Markdown about a pack."""
    from ..machine import devices
    from . import kinds

    print(kinds.kind_of(options.name).card(options.name, devices.choose_device(options.device)), end="")

"""The command line: one sub-command a verb. `python -m sod_core VERB --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line instead of argparse's usage block."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, or 2 for what the user can mend (one line on standard error)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:  # PackError, ImageError and ours are ValueErrors with one sentence each
        print(f"sod_core {options.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m sod_core", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_restore(verbs.add_parser("restore", help="one image, one unlearned model, a list of alphas"))
    _add_evaluate(verbs.add_parser("evaluate", help="every unlearned model of a pack, experts against controls"))
    _add_packs(verbs.add_parser("packs", help="list, fetch, check and describe packs"))
    _add_build(verbs.add_parser("build", help="train an embedded pack"))
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.add_argument(
        "--precision", choices=["float32", "float16", "bfloat16"], default="float32", help="autocast, on cuda only"
    )


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", required=True, help="a pack's name or folder")
    parser.add_argument(
        "--unlearned", required=True, help="an unlearned model's id, a checkpoint, or hub:user/repo/file"
    )
    parser.add_argument("--image", required=True, help="an image file")
    parser.add_argument("--target-class", required=True, help="the class to restore, number or name")
    parser.add_argument("--layer", default="9")
    parser.add_argument("--alpha", nargs="+", default=["0", "1", "2", "5"], help="one or more numbers")
    parser.add_argument("--mode", default="inject", help="direct_injection, add, inject, amplify or cls_copy")
    parser.add_argument("--tokens", default="all", help="patches, cls or all")
    parser.add_argument("--features", default="experts", help="experts, random, matched, all, or ids such as 1,5,9")
    parser.add_argument("--seed", type=int, default=0, help="of the random features")
    parser.add_argument("--json", default="-", metavar="FILE", help="where the result goes; - is standard output")
    _add_device(parser)
    parser.set_defaults(run=_run_restore)


def _run_restore(options: argparse.Namespace) -> None:
    from . import commands

    commands.restore(options)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", required=True, help="a pack's name or folder")
    parser.add_argument(
        "--unlearned",
        nargs="*",
        default=[],
        metavar="ID|CLASS=FILE",
        help="default: every one of the pack that is here",
    )
    parser.add_argument("--data", help="canvas, examples, a folder class/name.png, or hub:user/dataset/file.parquet")
    parser.add_argument("--image-column", default="image", help="of a hub data set")
    parser.add_argument("--label-column", default="label", help="of a hub data set; its numbers are the pack's classes")
    parser.add_argument("--images", type=int, help="at most so many, all classes together")
    parser.add_argument("--layer", default="9")
    parser.add_argument("--mode", default="inject", help="inject, amplify, direct_injection or add")
    parser.add_argument("--max-alpha", default="2", help="score alphas up to this; the table's last R goes on to 10")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--out", metavar="DIR", help="write JSON, CSV and the released code's files; a killed run goes on"
    )
    parser.add_argument("--store", action="store_true", help="store the result in the pack, for the app's scoreboard")
    parser.add_argument("--json", metavar="FILE", help="also write every figure to this file; - is standard output")
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.set_defaults(run=_run_evaluate)


def _run_evaluate(options: argparse.Namespace) -> None:
    from . import commands

    commands.evaluate(options)


def _add_packs(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="every pack, and whether it is on this computer")
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
    parser.set_defaults(run=_run_packs)


def _run_packs(options: argparse.Namespace) -> None:
    from . import commands

    getattr(commands, f"packs_{options.action}")(options)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("world", choices=["canvas"])
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE", help="default: every stage not made yet")
    parser.add_argument("--out", type=Path, default=Path("assets/canvas"), help="the pack's folder")
    parser.add_argument("--work", type=Path, default=Path(".build/canvas"), help="drawn images and checkpoints")
    parser.add_argument("--threads", type=int, help="CPU threads; one a process is most efficient for these models")
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.set_defaults(run=_run_build)


def _run_build(options: argparse.Namespace) -> None:
    from . import commands

    commands.build(options)


if __name__ == "__main__":
    sys.exit(main())

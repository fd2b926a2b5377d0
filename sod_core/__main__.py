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
    _add_erase(verbs.add_parser("erase", help="a diffusion model draws with a concept erased, or the whole benchmark"))
    _add_evaluate(verbs.add_parser("evaluate", help="every unlearned model of a pack, experts against controls"))
    _add_unlearn(verbs.add_parser("unlearn", help="make an unlearned model, and the record to make it again"))
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
    modes = "direct_injection, add, inject, amplify, cls_copy or state_copy"
    parser.add_argument("--mode", default="inject", help=modes)
    parser.add_argument("--tokens", default="all", help="patches, cls or all")
    parser.add_argument("--features", default="experts", help="experts, random, matched, all, or ids such as 1,5,9")
    parser.add_argument("--seed", type=int, default=0, help="of the random features")
    parser.add_argument("--json", default="-", metavar="FILE", help="where the result goes; - is standard output")
    _add_device(parser)
    parser.set_defaults(run=_run_restore)


def _run_restore(options: argparse.Namespace) -> None:
    from . import commands

    commands.restore(options)


def _add_erase(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    image = actions.add_parser("image", help="one prompt, before and after")
    benchmark = actions.add_parser("benchmark", help="UA, IRA and CRA over all concepts; a killed run goes on")
    judge = actions.add_parser("judge", help="UA, IRA and CRA of images that are there already, ours or the authors'")
    statistics = actions.add_parser("statistics", help="the concepts' mean latents, which erasing needs")
    for action in (image, benchmark, judge, statistics):
        action.add_argument("--pack", default="canvas-diffusion", help="a diffusion pack's name or folder")
        action.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    for action in (image, benchmark, statistics):
        action.add_argument("--sae", metavar="ID", help="default: the pack's first")
        action.add_argument("--steps", type=int, help="denoising steps; default: the pack's")
        action.add_argument("--guidance", type=float, help="default: the pack's")
    for action in (image, benchmark):
        action.add_argument("--fidelity", choices=["exact", "reference"], default="exact")
        action.add_argument("--factor", type=float, help="of the concept's latents; default: what was found best")
        action.add_argument("--multiplier", type=float, help="the authors' scale: times the concept's mean latent")
        action.add_argument("--percentile", type=float, help="of the scores; latents above it are selected")
        action.add_argument("--start-step", type=int, default=0, help="the first denoising step that is edited")
        action.add_argument("--beta", action="store_true", help="scale by norms in place of the mean latent")
        action.add_argument("--params", type=Path, metavar="FILE", help="settings: class_params.pth, or .json")
    image.add_argument("--prompt", required=True)
    image.add_argument("--concept", nargs="+", required=True, help="what to erase; several are erased together")
    image.add_argument("--seed", type=int, default=0)
    image.add_argument("--out", type=Path, required=True, metavar="DIR", help="before.png, after.png and result.json")
    for action in (benchmark, judge):
        action.add_argument("--concepts", nargs="*", default=[], help="default: all of the pack")
        action.add_argument("--styles", nargs="*", help="default: all of the pack")
        action.add_argument("--objects", nargs="*", help="what is drawn; default: all of the pack's concepts")
        action.add_argument("--seeds", nargs="+", type=int, default=[0])
        action.add_argument("--out", type=Path, required=True, metavar="DIR", help="CONCEPT/STYLE_OBJECT_seedN.jpg")
        action.add_argument("--json", metavar="FILE", help="also write every figure to this file; - is standard output")
    statistics.add_argument("--seeds", type=int, default=4, help="images of every prompt")
    statistics.add_argument("--out", type=Path, metavar="FILE", help="default: where the pack looks for it")
    parser.set_defaults(run=_run_erase)


def _run_erase(options: argparse.Namespace) -> None:
    from . import erase_commands

    getattr(erase_commands, options.action)(options)


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


def _add_unlearn(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Makes an unlearned model and, beside it, the record to make it again: settings, seed, versions, figures. "
        "Several GPUs or machines: python -m accelerate.commands.launch --multi_gpu --num_processes N -m sod_core "
        "unlearn ...; several processes on CPUs: the same, with --device cpu at the end."
    )
    parser.add_argument("--pack", help="a pack's name or folder")
    parser.add_argument("--method", help="see sod_core/unlearn; an unknown name lists them")
    parser.add_argument("--target-class", help="the class to forget, number or name")
    parser.add_argument(
        "--data",
        help="canvas (drawn images), a folder with a folder a class, or hub:user/dataset/path/file.parquet[@revision]",
    )
    parser.add_argument("--from", dest="record", type=Path, metavar="JSON", help="make a recorded model again")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the checkpoint; its record is beside it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="a setting, such as stop.steps=100",
    )
    parser.add_argument("--seed", type=int, help="of batches, of random starts and of a folder's division; default: 0")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="of the training; default: bfloat16")
    parser.add_argument("--train", type=int, help="drawn images to train with; default: 72000")
    parser.add_argument("--check", type=int, help="drawn images that decide when to stop; default: 1000")
    parser.add_argument("--test", type=int, help="drawn images that the figures are measured on; default: 2000")
    parser.add_argument("--image-column", help="of a table; default: image")
    parser.add_argument("--label-column", help="of a table; default: label")
    parser.add_argument("--work", type=Path, default=Path(".build/canvas"), help="where drawn images are kept")
    parser.add_argument("--id", help="the model's name in a pack; default: METHOD-CLASS")
    parser.add_argument("--add", action="store_true", help="add it to pack.json of your own pack, --out inside it")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.set_defaults(run=_run_unlearn)


def _run_unlearn(options: argparse.Namespace) -> None:
    from .unlearn import command

    command.unlearn(options)


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
    parser.add_argument("what", choices=["canvas", "canvas-diffusion", "erase-saes"])
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE", help="default: every stage not made yet")
    parser.add_argument("--out", type=Path, help="the pack's folder; default: assets/WHAT")
    parser.add_argument("--work", type=Path, default=Path(".build/canvas"), help="drawn images and checkpoints")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="of erase-saes: see sod_core/build/erase_sae.py, such as gathering.kept_steps=4",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; one a process is most efficient for these models")
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.set_defaults(run=_run_build)


def _run_build(options: argparse.Namespace) -> None:
    from . import commands

    commands.build(options)


if __name__ == "__main__":
    sys.exit(main())

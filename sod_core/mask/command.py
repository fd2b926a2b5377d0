"""Mask's part of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..machine import again
from ..packs import kinds
from ..packs.kinds import Kind

DEFAULT_PACK = "canvas-mask"


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to the command line, and its packs to the command `packs`."""
    kinds.register("mask", _kind)
    parser = verbs.add_parser("mask", help="a key-value bottleneck forgets a class by forbidding its pairs")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_features(actions.add_parser("features", help="what a pack's published encoder makes of its data set, once"))
    _add_fit(actions.add_parser("fit", help="a bottleneck on an encoder's features"))
    _add_evaluate(actions.add_parser("evaluate", help="doses, controls, every state, and the ways back"))
    _add_export(actions.add_parser("export", help="a bottleneck that has forgotten, as a file"))
    parser.set_defaults(run=_run)


def _add_features(features: argparse.ArgumentParser) -> None:
    features.add_argument("--pack", required=True, help="a mask pack's name or folder")
    features.add_argument("--encoder", metavar="ID", help="of the pack; default: its first")
    features.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")


def _add_fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("--pack", default=DEFAULT_PACK, help="a mask pack's name or folder")
    fit.add_argument("--encoder", metavar="ID", help="of the pack; default: its first")
    fit.add_argument("--features", type=Path, metavar="FILE", help=".safetensors or .npz, in place of the pack's")
    where = fit.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="FILE", help="the bottleneck (.safetensors)")
    where.add_argument(
        "--bottleneck", metavar="ID", help="one that the pack plans and that is made here: sizes and place are its own"
    )
    fit.add_argument("--without", nargs="+", default=[], metavar="CLASS", help="keys are fitted without their images")
    fit.add_argument("--values", choices=["counts", "sgd"], default="counts")
    fit.add_argument("--epochs", type=int, default=100, help="of values by SGD")
    fit.add_argument("--key-epochs", type=int, default=10)
    fit.add_argument("--codebooks", type=int, default=64)
    fit.add_argument("--pairs", type=int, default=256, help="of a codebook")
    fit.add_argument("--key-width", type=int, default=14)
    fit.add_argument("--reference", action="store_true", help="keys by the bottleneck's authors' own rule")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--json", metavar="FILE", help="accuracy, nearest mean, linear probe; - is standard output")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--pack", default=DEFAULT_PACK, help="a mask pack's name or folder")
    evaluate.add_argument(
        "--bottleneck", metavar="ID|FILE", help="of the pack, or what `mask fit` wrote; default: its first"
    )
    evaluate.add_argument("--encoder", metavar="ID", help="whose features a FILE takes; default: the pack's first")
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--forget", nargs="+", metavar="CLASS", help="several are forgotten in turn")
    what.add_argument("--all", action="store_true", help="every bottleneck of the pack, every class")
    _add_dose(evaluate, nargs="+")
    evaluate.add_argument("--seed", type=int, default=0, help="of drawn examples and of random masks")
    evaluate.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="of projections and keys; others are fitted now",
    )
    evaluate.add_argument("--keep", type=Path, metavar="DIR", help="what is done; a killed run goes on from there")
    evaluate.add_argument("--store", action="store_true", help="with --all: store the result in the pack, for the app")
    evaluate.add_argument("--csv", metavar="FILE", help="a line a state and way back; - is standard output")
    evaluate.add_argument("--json", metavar="FILE", help="write every figure to this file; - is standard output")
    again.add(evaluate)


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("--pack", default=DEFAULT_PACK, help="a mask pack's name or folder")
    export.add_argument("--bottleneck", metavar="ID|FILE", help="as for `mask evaluate`")
    export.add_argument("--encoder", metavar="ID", help="whose features a FILE takes; default: the pack's first")
    export.add_argument("--forget", nargs="+", metavar="CLASS", required=True, help="several are forgotten in turn")
    _add_dose(export, nargs=1)
    export.add_argument("--seed", type=int, default=0, help="of drawn examples")
    export.add_argument("--state", choices=["masked", "erased", "compacted", "removed"], default="masked")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the bottleneck (.safetensors)")


def _add_dose(parser: argparse.ArgumentParser, nargs: str | int) -> None:
    parser.add_argument("--method", choices=["activations", "examples", "enrichment"], default="activations")
    how_much = parser.add_mutually_exclusive_group()
    default = "a range" if nargs == "+" else "all"
    how_much.add_argument(
        "--share", nargs=nargs, type=float, help=f"of the pairs that the class touches; default: {default}"
    )
    how_much.add_argument("--pairs", nargs=nargs, type=int, metavar="N")
    how_much.add_argument("--examples", nargs=nargs, type=int, metavar="N", help="images of the class, for `examples`")
    parser.add_argument("--per-codebook", action="store_true", help="N pairs of each codebook")


def _kind() -> Kind:
    from . import card

    return card.kind()


def _run(options: argparse.Namespace) -> None:
    from . import actions

    getattr(actions, options.action)(options)

"""Restore's part of the command line: `restore` for one image, `evaluate` for a table, `atlas` for every latent."""

from __future__ import annotations

import argparse

from ..machine import again
from ..packs import kinds
from ..packs.kinds import Kind

LABEL_ORDER = (
    "of a checkpoint of your own: the classes in the order of its outputs, with commas, where it is not the pack's"
)


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verbs to the command line, and Restore's packs to the command `packs`."""
    kinds.register("restore", _kind)
    _add_restore(verbs.add_parser("restore", help="one image, one unlearned model, a list of alphas"))
    _add_evaluate(verbs.add_parser("evaluate", help="every unlearned model of a pack, experts against controls"))
    _add_atlas(verbs.add_parser("atlas", help="what every latent of a pack fires on, and what unlearning did to it"))


def _kind() -> Kind:
    from . import card

    return card.kind()


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", required=True, help="a pack's name or folder")
    parser.add_argument(
        "--unlearned",
        required=True,
        help="an unlearned model's id, a checkpoint, or hub:user/repo/file; FILE#key for one of several models in it",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--image", help="an image file")
    which.add_argument("--example", type=int, metavar="N", help="one of the pack's example images, from 0")
    parser.add_argument("--target-class", required=True, help="the class to restore, number or name")
    parser.add_argument("--label-order", metavar="NAMES", help=LABEL_ORDER)
    parser.add_argument("--layer", default="9")
    parser.add_argument("--alpha", nargs="+", default=["0", "1", "2", "5"], help="one or more numbers")
    modes = "direct_injection, add, inject, amplify, cls_copy or state_copy"
    parser.add_argument("--mode", default="inject", help=modes)
    parser.add_argument("--tokens", default="all", help="patches, cls or all")
    parser.add_argument("--features", default="experts", help="experts, random, matched, all, or ids such as 1,5,9")
    parser.add_argument("--seed", type=int, default=0, help="of the random features")
    parser.add_argument("--json", default="-", metavar="FILE", help="where the result goes; - is standard output")
    again.add(parser)
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.add_argument(
        "--precision", choices=["float32", "float16", "bfloat16"], default="float32", help="autocast, on cuda only"
    )
    parser.set_defaults(run=_restore)


def _restore(options: argparse.Namespace) -> None:
    from . import actions

    actions.restore(options)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", required=True, help="a pack's name or folder")
    parser.add_argument(
        "--unlearned",
        nargs="*",
        default=[],
        metavar="ID|CLASS=FILE",
        help="default: every one of the pack that is here",
    )
    parser.add_argument(
        "--data",
        help="canvas, test (the pack's own), examples, a folder class/name.png, or hub:user/dataset/file.parquet",
    )
    parser.add_argument("--split", help="of a folder with train/ and val/ above the classes; default: what is held out")
    parser.add_argument("--strict", action="store_true", help="end at the first broken image; default: go on without")
    parser.add_argument("--image-column", default="image", help="of a hub data set")
    parser.add_argument("--label-column", default="label", help="of a hub data set; names or numbers of classes")
    parser.add_argument("--images", type=int, help="at most so many, all classes together")
    parser.add_argument("--label-order", metavar="NAMES", help=LABEL_ORDER)
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
    again.add(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from . import actions

    actions.evaluate(options)


def _add_atlas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", required=True, help="a pack's name or folder")
    parser.add_argument(
        "--unlearned", nargs="*", default=[], metavar="ID", help="default: every one of the pack that is here"
    )
    parser.add_argument("--images", type=int, help="at most so many, all classes together; default: 3000")
    parser.add_argument(
        "--out", metavar="FILE", help="where the atlas goes; default: into the pack, for the app; with --from, nowhere"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the table's figures; - is standard output")
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    again.add(parser)
    parser.set_defaults(run=_atlas)


def _atlas(options: argparse.Namespace) -> None:
    from . import atlas_actions

    atlas_actions.atlas(options)

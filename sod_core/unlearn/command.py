"""The command `unlearn`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to the command line."""
    parser = verbs.add_parser("unlearn", help="make an unlearned model, and the record to make it again")
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
        help="canvas (drawn images), digits (MNIST's), a folder with a folder a class, or "
        "hub:user/dataset/path/file.parquet[@revision]",
    )
    parser.add_argument("--split", help="of a folder with train/ and val/ above the classes; default: train")
    parser.add_argument("--strict", action="store_true", help="refuse broken images; default: go on without them")
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
    parser.add_argument(
        "--precision", choices=["bfloat16", "float32"], help="of the training; default: what the device is fast in"
    )
    parser.add_argument("--train", type=int, help="drawn images to train with; default: 72000")
    parser.add_argument("--check", type=int, help="drawn images that decide when to stop; default: 1000")
    parser.add_argument("--test", type=int, help="drawn images that the figures are measured on; default: 2000")
    parser.add_argument("--image-column", help="of a table; default: image")
    parser.add_argument("--label-column", help="of a table; default: label")
    parser.add_argument(
        "--work", type=Path, help="where a world's images are kept; default: .build/canvas or .build/digits"
    )
    parser.add_argument("--id", help="the model's name in a pack; default: METHOD-CLASS")
    parser.add_argument("--add", action="store_true", help="add it to pack.json of your own pack, --out inside it")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from . import actions

    actions.unlearn(options)

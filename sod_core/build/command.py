"""The command `build`: trains what is missing of an embedded pack, or the SAEs of any diffusion pack."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

PACKS = {
    "canvas": "canvas",
    "canvas-diffusion": "canvas_diffusion",
    "canvas-mask": "canvas_mask",
    "digits": "digits",
    "almanac": "almanac",
    "gemma-3-270m": "gemma",
}
"""Name of an embedded pack -> the folder of what builds it."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to the command line."""
    parser = verbs.add_parser("build", help="train an embedded pack")
    parser.add_argument("what", choices=[*PACKS, "erase-saes"])
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE", help="default: every stage not made yet")
    parser.add_argument("--out", type=Path, help="the pack's folder; default: assets/WHAT")
    parser.add_argument(
        "--work", type=Path, help="images and checkpoints; default: .build/canvas, of digits .build/digits"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="of erase-saes: see sod_core/build/erase_saes/erase_sae.py, such as gathering.kept_steps=4",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; one a process is most efficient for these models")
    parser.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import torch

    options.work = options.work or Path(".build") / ("digits" if options.what == "digits" else "canvas")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.what == "erase-saes":
        _build_saes(options)
    else:
        _build_pack(options)


def _build_pack(options: argparse.Namespace) -> None:
    from ..machine import devices

    builder = import_module(f"{__package__}.{PACKS[options.what]}.builder")
    unknown = [stage for stage in options.only if stage not in builder.stages()]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}; known: {', '.join(builder.stages())}")
    out = options.out or Path("assets") / options.what
    builder.Builder(out, options.work, devices.choose_device(options.device)).run(options.only)


def _build_saes(options: argparse.Namespace) -> None:
    from ..erase.pack import open_erase_pack
    from ..machine import devices, files
    from ..unlearn import record
    from .erase_saes import erase_sae

    if options.out is None:
        raise ValueError("--out must name the diffusion pack's folder, where its SAEs will lie")
    plan = erase_sae.Plan()
    for text in options.changes:
        plan = record.changed(plan, text)
    pack = open_erase_pack(str(options.out), devices.choose_device(options.device))
    figures = erase_sae.Maker(pack, options.work / f"{pack.manifest.name}-saes", plan).run()
    (options.out / "figures").mkdir(exist_ok=True)
    files.write_json(figures, options.out / "figures" / "saes.json")

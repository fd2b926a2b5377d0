"""Erase's part of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..machine import again
from ..packs import kinds
from ..packs.kinds import Kind


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to the command line, and its packs to the command `packs`."""
    kinds.register("erase", _kind)
    parser = verbs.add_parser("erase", help="a diffusion model draws with a concept erased, or the whole benchmark")
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
        action.add_argument(
            "--factor",
            type=float,
            nargs="+",
            help="of the concepts' latents, or one for each; default: the best found",
        )
        action.add_argument(
            "--multiplier", type=float, nargs="+", help="the authors' scale: times the concept's mean latent"
        )
        action.add_argument("--percentile", type=float, help="of the scores; latents above it are selected")
        action.add_argument("--start-step", type=int, default=0, help="the first denoising step that is edited")
        action.add_argument("--beta", action="store_true", help="scale by norms in place of the mean latent")
        action.add_argument("--params", type=Path, metavar="FILE", help="settings: class_params.pth, or .json")
    image.add_argument("--prompt", required=True)
    image.add_argument("--concept", nargs="+", required=True, help="what to erase; several are erased together")
    image.add_argument("--seed", type=int, default=0)
    image.add_argument("--out", type=Path, required=True, metavar="DIR", help="before.png, after.png and result.json")
    again.add(image)
    for action in (benchmark, judge):
        action.add_argument("--concepts", nargs="*", default=[], help="default: all of the pack")
        action.add_argument("--styles", nargs="*", help="default: all of the pack")
        action.add_argument("--objects", nargs="*", help="what is drawn; default: all of the pack's concepts")
        action.add_argument("--seeds", nargs="+", type=int, default=[0])
        action.add_argument("--out", type=Path, required=True, metavar="DIR", help="CONCEPT/STYLE_OBJECT_seedN.jpg")
        action.add_argument("--json", metavar="FILE", help="also write every figure to this file; - is standard output")
    statistics.add_argument("--seeds", type=int, default=4, help="images of every prompt")
    statistics.add_argument("--out", type=Path, metavar="FILE", help="default: where the pack looks for it")
    parser.set_defaults(run=_run)


def _kind() -> Kind:
    from . import card

    return card.kind()


def _run(options: argparse.Namespace) -> None:
    from . import actions

    getattr(actions, options.action)(options)

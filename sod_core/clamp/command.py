"""Clamp's part of the command line."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..machine import again
from ..packs import kinds
from ..packs.kinds import Kind

DEFAULT_PACK = "almanac"


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to the command line, and its packs to the command `packs`."""
    kinds.register("clamp", _kind)
    parser = verbs.add_parser("clamp", help="a language model writes with harmful features clamped, or is judged")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = actions.add_parser("text", help="one prompt continued, untouched and with the edit")
    features = actions.add_parser("features", help="which latents fire on texts to forget and not on texts to keep")
    evaluate = actions.add_parser("evaluate", help="forget and retain accuracy, controls, and the ways back")
    for action in (text, features, evaluate):
        action.add_argument("--pack", default=DEFAULT_PACK, help="a clamp pack's name or folder")
        action.add_argument("--device", help="cuda, mps or cpu; default: SOD_DEVICE, else the best there is")
        action.add_argument("--json", metavar="FILE", help="write every figure to this file; - is standard output")
    text.add_argument("--prompt", required=True)
    text.add_argument("--tokens", type=int, default=64, help="how many are generated at most")
    text.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token")
    add_edit(text)
    again.add(text)
    features.add_argument("--sae", metavar="ID", help="default: that of the pack's first preset")
    features.add_argument("--forget", type=Path, metavar="FILE", help="one text a line; default: the pack's")
    features.add_argument("--retain", type=Path, metavar="FILE", help="one text a line; default: the pack's")
    features.add_argument("--rule", choices=["paper", "farrell", "ratio"], default="farrell")
    features.add_argument("--top", type=int, default=10, help="how many latents")
    features.add_argument("--threshold", type=float, default=0.0, help="a latent fires above this activity")
    features.add_argument("--out", type=Path, metavar="FILE", help="keep the survey, for --survey (.safetensors)")
    _add_evaluate(evaluate)
    parser.set_defaults(run=_run)


def _add_evaluate(action: argparse.ArgumentParser) -> None:
    """Without an edit of its own it judges the pack's presets."""
    action.add_argument(
        "--questions",
        nargs="+",
        metavar="FILE",
        help=".jsonl, .csv, .parquet or hub:user/dataset/file.parquet; default: the pack's",
    )
    action.add_argument(
        "--lm-eval", metavar="TASKS", help="tasks of EleutherAI's harness (pip install lm-eval) instead: wmdp_bio,..."
    )
    action.add_argument("--forget-field", nargs="+", metavar="FIELD", help="default: the pack's")
    action.add_argument("--limit", type=int, metavar="N", help="at most N questions of each field")
    action.add_argument(
        "--every-order", action="store_true", help="only questions answered rightly in all orders of the options"
    )
    action.add_argument("--no-curves", action="store_true", help="leave out accuracy against the coefficient")
    action.add_argument("--no-ways", action="store_true", help="leave out the ways back")
    action.add_argument(
        "--relearn", action=argparse.BooleanOptionalAction, help="train models as a way back; default: small ones"
    )
    action.add_argument("--keep", type=Path, metavar="DIR", help="rows so far; a killed run goes on from there")
    action.add_argument("--store", action="store_true", help="store the result in the pack, for the app")
    add_edit(action)


def add_edit(action: argparse.ArgumentParser) -> None:
    """Adds the options of an edit. What is not said is what the pack's preset says."""
    action._negative_number_matcher = re.compile(r"-\.?\d")  # type: ignore[attr-defined]  # so that -1e3 is a number
    action.add_argument("--method", choices=["none", "prime", "conditional", "refusal", "both"])
    action.add_argument("--preset", metavar="ID", help="default: the pack's first, of the method if that is given")
    action.add_argument("--sae", metavar="ID", help="default: the preset's")
    action.add_argument(
        "--features", metavar="RULE|IDS", help="paper, farrell, ratio, random, matched, or latent ids such as 1,5,9"
    )
    action.add_argument(
        "--top", type=int, help="how many latents a rule or control takes; default: the preset's number"
    )
    action.add_argument("--value", metavar="C", help="the coefficient, or one for each latent with commas")
    action.add_argument("--threshold", type=float, help="a latent fires above this activity; prime takes 0")
    action.add_argument("--refusal", type=int, metavar="ID", help="the refusal latent")
    action.add_argument("--refusal-value", type=float, metavar="C", help="its coefficient")
    action.add_argument("--fidelity", choices=["exact", "reference", "package"], help="default: exact")
    action.add_argument("--steering", type=Path, metavar="FILE", help="the authors' table of the whole edit (.csv)")
    action.add_argument("--survey", type=Path, metavar="FILE", help="what `clamp features --out` kept")
    action.add_argument("--seed", type=int, default=0, help="of random and matched latents, and of drawn tokens")


def _kind() -> Kind:
    from . import card

    return card.kind()


def _run(options: argparse.Namespace) -> None:
    from . import actions

    getattr(actions, options.action)(options)

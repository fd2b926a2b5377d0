"""What a clamp costs, beside the released code's way of doing it, in one run.

    python benchmarks/clamp_speed.py [--part edit] [--device cuda] [--threads 2]

The edit: both clamps together, 10 harmful latents and the refusal latent, on 256 tokens of width 2,304, with a random
JumpReLU SAE of 16,384 latents, as Gemma Scope has for gemma-2-2b. "Plain" is what the released hooks do (SAELens with
its error term: a dense encode, a dense decode of what was found for the error, a dense decode of what was edited). The
difference is relative: on each token that is changed, the norm of the two outputs' difference over the norm of what the
edit adds; the largest is shown. Times are medians of turns of this run on this machine: read the ratios. One thread
is the default, so that neither way waits for a core that another program has; with many the dense way gains more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sod_core.clamp.edit import Clamp, apply
from sod_core.machine import devices
from sod_core.sparse.jumprelu import JumpReLUSAE

DIM, LATENTS, TOKENS = 2304, 16384, 256
CLAMP = Clamp(tuple(range(100, 110)), "both", value=-300.0, threshold=0.05, refusal=15864, fidelity="reference")
FIRING = (0.01, 0.1, 1.0)
"""Shares of the tokens on which a harmful latent fires."""
PARTS = ("edit",)


def main() -> None:
    """Prints a Markdown table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = devices.choose_device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    print(f"{where}, torch {torch.__version__}\n")
    with torch.inference_mode():
        if "edit" in options.part:
            edits(device, options.repeats)


# ---------------------------------------------------------------- the edit


def edits(device: torch.device, repeats: int) -> None:
    """A row for each share of tokens that fire."""
    sae = random_sae(device)
    CLAMP.check(sae)
    print("| tokens on which it fires | plain, ms | this project, ms | ratio | largest difference |")
    print("|---|---|---|---|---|")
    for share in FIRING:
        compare(sae, tokens_with(sae, share, device), repeats)


def compare(sae: JumpReLUSAE, x: Tensor, repeats: int) -> None:
    """Prints a row; both ways take turns, so that whatever else the machine does hits both."""
    nothing = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)

    def plain() -> Tensor:
        return released_hooks(sae, x)

    def ours() -> Tensor:
        return apply(x, sae, CLAMP, nothing).hidden

    expected, found = plain(), apply(x, sae, CLAMP, nothing)  # also warms both up
    added = (expected - x).norm(dim=-1)[found.changed]
    difference = ((expected - found.hidden).norm(dim=-1)[found.changed] / added).max().item()
    times: dict[Callable[[], Tensor], list[float]] = {plain: [], ours: []}
    for _ in range(repeats):
        for way, taken in times.items():
            taken.append(seconds(way))
    a, b = (statistics.median(taken) * 1e3 for taken in times.values())
    firing = found.changed.float().mean().item()
    print(f"| {firing:.0%} | {a:.1f} | {b:.2f} | {a / b:.0f} | {difference:.1e} |", flush=True)


def random_sae(device: torch.device) -> JumpReLUSAE:
    """Decoder rows of length 1, the encoder their transpose, thresholds that a random token seldom passes."""
    generator = torch.Generator().manual_seed(0)
    sae = JumpReLUSAE(DIM, LATENTS).requires_grad_(False)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(LATENTS, DIM, generator=generator)))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.copy_(torch.randn(DIM, generator=generator))
    sae.threshold.fill_(2.5)
    return sae.to(device)


def tokens_with(sae: JumpReLUSAE, share: float, device: torch.device) -> Tensor:
    """[1, TOKENS, DIM]: random tokens; a share of them hold the first harmful latent's direction, the others none."""
    x = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1)).to(device)
    directions = sae.W_dec[list(CLAMP.latents)]
    x -= x @ torch.linalg.pinv(directions) @ directions
    x[: max(1, round(share * TOKENS))] += 8 * directions[0]
    return x[None]


def released_hooks(sae: JumpReLUSAE, x: Tensor) -> Tensor:
    """A hook a latent on SAELens's latents, then its decode and its error term."""
    latents = sae.encode(x)
    error = x - sae.decode(latents)
    edited = latents.clone()
    for latent in CLAMP.latents:
        mask = latents[..., latent] > CLAMP.threshold
        edited[..., latent][mask] = CLAMP.values()[0]
        edited[..., CLAMP.refusal][mask] = CLAMP.refusal_value
    return sae.decode(edited) + error


def seconds(work: Callable[[], object]) -> float:
    """Of one run, the device's queue included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

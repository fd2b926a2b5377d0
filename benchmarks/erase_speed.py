"""One step's edit of an SDXL-sized block, beside the released code's way of doing it, in one run.

    python benchmarks/erase_speed.py [--device cuda]

SAE 1280 to 20,480 with random weights, k 32, on two images of 256 tokens with guidance. "Plain" is what the released
hook does (SAEmnesia, utils/hooks.py): a dense encode and two dense decodes of every token. Times are medians of this
run on this machine: read the ratios.
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
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sod_core.erase.edit import Eraser, Settings, StepPlan
from sod_core.machine import devices
from sod_core.sparse.topk import TopKSAE

DIM, LATENTS, K = 1280, 20480, 32
ROWS, TOKENS = 4, 256
"""Two images, each unconditional and conditional."""
FACTOR = -1.0
SELECTED = [7]
"""SAEmnesia binds one latent to a concept."""
PASSING = (0.01, 0.1, 0.3)
"""Shares of the tokens where the selected latent passes its threshold."""


def main() -> None:
    """Prints a Markdown table of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = devices.choose_device(options.device)
    torch.manual_seed(0)
    with torch.inference_mode():
        sae = TopKSAE(DIM, LATENTS, K).requires_grad_(False).to(device)
        sae.decoder.weight.copy_(sae.encoder.weight.T)
        eraser = Eraser(sae)
        where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        print(f"{where}, torch {torch.__version__}\n")
        print("| fidelity | tokens that pass | plain, ms | this project, ms | ratio | largest difference |")
        print("|---|---|---|---|---|---|")
        for fidelity in ("reference", "exact"):
            for share in PASSING if fidelity == "exact" else (0.1,):
                compare(eraser, fidelity, share, device, options.repeats)


def compare(eraser: Eraser, fidelity: str, share: float, device: torch.device, repeats: int) -> None:
    """Prints a row; both ways take turns, so that whatever else the machine does hits both."""
    settings = Settings(("concept",), factor=FACTOR, fidelity=fidelity)
    x = tokens_with(eraser.sae, share, device)
    ids = torch.tensor(SELECTED, device=device)
    at = StepPlan(ids, torch.full([len(ids)], 0.5, device=device), torch.full([len(ids)], FACTOR, device=device), True)
    passing = (eraser.sae.encode(x)[..., ids] > at.thresholds).any(-1).float().mean().item()

    def plain() -> Tensor:
        return plain_hook(eraser.sae, x, at, fidelity)

    def ours() -> Tensor:
        return eraser.step(x, at, settings).tokens

    times: dict[Callable, list[float]] = {plain: [], ours: []}
    difference = (plain() - ours()).abs().max().item()  # also warms both up
    for _ in range(repeats):
        for way, taken in times.items():
            taken.append(seconds(way))
    a, b = (statistics.median(taken) * 1e3 for taken in times.values())
    print(f"| {fidelity} | {passing:.0%} | {a:.1f} | {b:.1f} | {a / b:.1f} | {difference:.1e} |", flush=True)


def tokens_with(sae: TopKSAE, share: float, device: torch.device) -> Tensor:
    """[ROWS, TOKENS, DIM]: random tokens, a share of which hold the first selected latent's direction."""
    x = torch.randn(ROWS * TOKENS, DIM, device=device)
    direction = sae.encoder.weight[SELECTED[0]] / sae.encoder.weight[SELECTED[0]].norm()
    x -= (x @ direction)[:, None] * direction
    x[torch.randperm(len(x), device=device)[: round(share * len(x))]] += 8 * direction
    return x.view(ROWS, TOKENS, DIM)


def plain_hook(sae: TopKSAE, x: Tensor, at: StepPlan, fidelity: str) -> Tensor:
    """The released hook's way, its error term as the fidelity has it."""
    pre = functional.linear(x - sae.pre_bias, sae.encoder.weight, sae.latent_bias)
    values, indices = torch.relu(pre).topk(K, dim=-1, sorted=False)
    latents = values.new_zeros(*x.shape[:2], LATENTS).scatter_(-1, indices, values)
    recons = sae.decoder(latents) + sae.pre_bias
    error = recons - x if fidelity == "reference" else x - recons
    selected = latents[:, :, at.features]
    latents[:, :, at.features] = torch.where(selected > at.thresholds, selected * at.scales, selected)
    return sae.decoder(latents) + sae.pre_bias + error


def seconds(work: Callable[[], Tensor]) -> float:
    """Of one run, the device's queue included."""
    started = time.perf_counter()
    found = work()
    if found.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

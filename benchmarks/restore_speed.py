"""A sweep over alpha at full size, beside the released code's way of doing it, in one run.

    python benchmarks/restore_speed.py [--device cuda]

ViT-B/16 with random weights, SAE 768 to 3072, mode `direct_injection` (reference). "Plain" is what the released
code does (recovery_test.py, utils/hook_utils.py): for every alpha a whole pass of the unlearned model, with a hook
on the layer's block that runs the original up to the same block and edits there. Times are medians of this run on
this machine: read the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sod_core.machine import devices
from sod_core.models import vit as vits
from sod_core.restore.session import Session
from sod_core.sparse.topk import TopKSAE

SHAPE = vits.ViTShape(image_size=224, patch=16, dim=768, depth=12, heads=12, classes=10)
LATENTS, K = 3072, 16
ALPHAS = [i / 2 for i in range(21)]
EVALUATED = [1.0, 2.0, 5.0]
IMAGES, BATCH = 32, 16
EXPERTS = list(range(0, LATENTS, LATENTS // 20))[:20]


def main() -> None:
    """Prints two Markdown tables: the ratios, and where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = devices.choose_device(options.device)
    torch.manual_seed(0)
    with torch.inference_mode():
        original, unlearned = (vits.new(SHAPE).requires_grad_(False).eval().to(device) for _ in range(2))
        sae = TopKSAE(SHAPE.dim, LATENTS, K).requires_grad_(False).to(device)
        image, images = torch.randn(1, 3, 224, 224, device=device), torch.randn(IMAGES, 3, 224, 224, device=device)
        where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        print(f"{where}, torch {torch.__version__}\n")
        print("| | layer | plain, s | this project, s | ratio | largest difference of a logit |")
        print("|---|---|---|---|---|---|")
        models = original, unlearned, sae
        for layer in (9, 10):
            ways = [partial(way, *models, image, layer, ALPHAS) for way in (plain_sweep, our_sweep)]
            compare(f"{len(ALPHAS)} alphas, one image", layer, *ways, options.repeats)
        for layer in (9, 10):
            ways = [partial(way, *models, images, layer) for way in (plain_evaluation, our_evaluation)]
            compare(f"evaluation, {len(EVALUATED)} alphas, {IMAGES} images", layer, *ways, options.repeats)
        print()
        for layer in (9, 10):
            parts(*models, image, layer, options.repeats)


def plain_sweep(
    original: nn.Module, unlearned: nn.Module, sae: TopKSAE, images: Tensor, layer: int, alphas: list[float]
) -> Tensor:
    """[A, B, classes]: a hooked pass of the unlearned model for every alpha."""
    found = []
    for alpha in alphas:

        def edit(block: nn.Module, inputs: tuple, u: Tensor, alpha: float = alpha) -> Tensor:
            o = original.norm_pre(original._pos_embed(original.patch_embed(images)))
            for earlier in original.blocks[: layer + 1]:
                o = earlier(o)
            z_u, z_o = (sae.encoder(hidden[:, 1:] - sae.pre_bias) for hidden in (u, o))
            z = z_u.clone()
            z[..., EXPERTS] = z_u[..., EXPERTS] + alpha * (z_o - z_u)[..., EXPERTS]
            patches = sae.decoder(z) + sae.pre_bias
            return torch.cat([u[:, :1] + alpha * (o - u)[:, :1], patches], dim=1)

        handle = unlearned.blocks[layer].register_forward_hook(edit)
        found.append(unlearned(images))
        handle.remove()
    return torch.stack(found)


def our_sweep(
    original: nn.Module, unlearned: nn.Module, sae: TopKSAE, images: Tensor, layer: int, alphas: list[float]
) -> Tensor:
    """The same by a session."""
    session = Session(lambda: original, lambda: unlearned, lambda _: sae, [layer])
    session.set_image(images)
    return session.restore(alphas, layer, "direct_injection", EXPERTS)


def plain_evaluation(original: nn.Module, unlearned: nn.Module, sae: TopKSAE, images: Tensor, layer: int) -> Tensor:
    """[1 + A, n, classes]: logits of the unlearned and the restored model over a set, as recovery_test.py has them."""
    found = []
    for batch in images.split(BATCH):
        restored = plain_sweep(original, unlearned, sae, batch, layer, EVALUATED)
        found.append(torch.cat([unlearned(batch)[None], restored]))
    return torch.cat(found, dim=1)


def our_evaluation(original: nn.Module, unlearned: nn.Module, sae: TopKSAE, images: Tensor, layer: int) -> Tensor:
    """The same by a session."""
    session = Session(lambda: original, lambda: unlearned, lambda _: sae, [layer])
    found = []
    for batch in images.split(BATCH):
        session.set_image(batch)
        restored = session.restore(EVALUATED, layer, "direct_injection", EXPERTS)
        found.append(torch.cat([session.logits("unlearned")[None], restored]))
    return torch.cat(found, dim=1)


def compare(name: str, layer: int, plain: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int) -> None:
    """Prints a row; both ways take turns, so that whatever else the machine does hits both."""
    times: dict[Callable, list[float]] = {plain: [], ours: []}
    difference = (plain() - ours()).abs().max().item()  # also warms both up
    for _ in range(repeats):
        for way, taken in times.items():
            taken.append(seconds(way))
    a, b = (statistics.median(taken) for taken in times.values())
    print(f"| {name} | {layer} | {a:.2f} | {b:.3f} | {a / b:.1f} | {difference:.1e} |", flush=True)


def parts(original: nn.Module, unlearned: nn.Module, sae: TopKSAE, image: Tensor, layer: int, repeats: int) -> None:
    """Prints where a sweep's time goes, and the least that its multiplications take at this machine's best rate."""
    session = Session(lambda: original, lambda: unlearned, lambda _: sae, [layer])
    once = {
        "both models up to the layer": lambda: session.set_image(image),
        "the edit (SAE)": lambda: session.restored_hidden(ALPHAS, layer, "direct_injection", EXPERTS),
        f"{len(ALPHAS)} alphas through the rest": lambda: session.restore(ALPHAS, layer, "direct_injection", EXPERTS),
    }
    print(f"layer {layer}: ", end="")
    total, shown = 0.0, []
    for name, work in once.items():
        work()
        taken = []
        for _ in range(repeats):
            if name == "the edit (SAE)":
                session._lines.clear()
            taken.append(seconds(work))
        total += statistics.median(taken)
        shown.append(f"{name} {statistics.median(taken) * 1e3:.0f} ms")
    floor = multiplications(layer) / best_rate(image.device)
    print("; ".join(shown) + f"; the arithmetic floor of all of it is {floor * 1e3:.0f} ms, {floor / total:.0%}")


def multiplications(layer: int) -> float:
    """Floating-point operations of matrix products in a sweep."""
    tokens, d = SHAPE.grid**2 + 1, SHAPE.dim
    block = 2 * tokens * 12 * d * d + 2 * 2 * tokens * tokens * d
    cls_of_last = 2 * tokens * 2 * d * d + 2 * 10 * d * d
    embed = 2 * (tokens - 1) * 3 * SHAPE.patch**2 * d
    heads = 2 * ((layer + 1) * block + embed)
    code = 3 * 2 * tokens * d * LATENTS
    return heads + code + len(ALPHAS) * ((SHAPE.depth - layer - 2) * block + cls_of_last)


def best_rate(device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product here."""
    a, b = torch.randn(2048, 768, device=device), torch.randn(768, 3072, device=device)
    a @ b
    return 2 * 2048 * 768 * 3072 / min(seconds(lambda: a @ b) for _ in range(20))


def seconds(work: Callable) -> float:
    """How long it takes, until the device is done."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

"""Published packs at full size, made of random weights: logits beside transformers', and how long visitors wait.

    python benchmarks/full_size.py [--skip-logits]

The hub's files are of the same forms and sizes; no network is used. Times are of this machine and this run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sod_core.machine import torchvision_guard  # noqa: E402
from sod_core.models import vit as vits  # noqa: E402
from sod_core.models import vit_weights  # noqa: E402
from sod_core.packs import safe  # noqa: E402

SHAPES = {
    "ViT-S/16, 224 px": vits.ViTShape(224, 16, 384, 12, 6, 10),
    "ViT-B/16, 224 px": vits.ViTShape(224, 16, 768, 12, 12, 10),
    "ViT-B/32, 384 px": vits.ViTShape(384, 32, 768, 12, 12, 1000),
    "ViT-L/16, 224 px": vits.ViTShape(224, 16, 1024, 24, 16, 10),
}
EXAMPLES_A_CLASS = 3


def main() -> None:
    """Prints a table of logits' differences, then how long each thing takes that a visitor waits for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-logits", action="store_true", help="only the times")
    options = parser.parse_args()
    torch.manual_seed(0)
    if not options.skip_logits:
        print("| ViT | largest logit | transformers 5 names | transformers 4 names, wrapped | timm names |")
        print("|---|---|---|---|---|", flush=True)
        for name, shape in SHAPES.items():
            compare_logits(name, shape)
        print()
    with tempfile.TemporaryDirectory() as folder:
        measure_waits(Path(folder))


@torch.inference_mode()
def compare_logits(name: str, shape: vits.ViTShape) -> None:
    """A row: the largest difference between transformers' logits and ours, from files of each naming."""
    torchvision_guard.import_timm()
    from transformers import ViTConfig, ViTForImageClassification

    theirs = ViTForImageClassification(
        ViTConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.dim,
            image_size=shape.image_size,
            patch_size=shape.patch,
            num_labels=shape.classes,
            layer_norm_eps=1e-12,
        )
    ).eval()
    images = torch.randn(1, 3, shape.image_size, shape.image_size)
    expected = theirs(images).logits
    bare = theirs.state_dict()
    ours = vit_weights.new_vit(shape, bare, "transformers 5")
    files = {
        "transformers 5": bare,
        "transformers 4": {"model_state_dict": vit_weights.to_published(ours, torch.float32)},
        "timm": ours.state_dict(),
    }
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        for naming, state in files.items():
            path = Path(folder, "checkpoint.pth")
            torch.save(state, path)
            found = safe.read_torch(path)
            told = vit_weights.vit_shape(found, naming)
            assert told == shape, f"{naming}: the file tells {told}"
            logits = vits.logits(vit_weights.new_vit(told, found, naming), images)
            differences.append((logits - expected).abs().max().item())
    cells = " | ".join(f"{difference:.1e}" for difference in differences)
    print(f"| {name} | {expected.abs().max().item():.2f} | {cells} |", flush=True)


def measure_waits(folder: Path) -> None:
    """Opens a pack with the manifest of cifar10 as a visitor does, and waits until every position of alpha is there."""
    write_pack(folder)
    from sod_core.restore.pack import shared_pack
    from sod_core.restore.sweep import STRIDES
    from sod_core.ui.restore import shown
    from sod_core.ui.restore.visitor import Controls, Visitor

    pack = shared_pack(str(folder))
    controls = Controls(layer=9, mode="inject", alpha=1.0)
    print(f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}\n\n| | s |\n|---|---|")
    row("the original's checkpoint, from disk to ready", pack.original)
    row("an unlearned model's", lambda: pack.unlearned("retrain-airplane"))
    row(f"{len(pack.examples())} example images through the original", lambda: pack.example_hidden(9))
    row("the SAE of a layer, judged on the examples", lambda: pack.sae(9))
    visitors: list[Visitor] = []
    row("opening the pack, all that loaded", lambda: visitors.append(Visitor(str(folder))))
    visitor = visitors[0]
    row("another image", lambda: visitor.choose_example(7))
    row("first figures of an edit", lambda: shown.moving(visitor, controls))
    row("the experts' curve and every control's", lambda: visitor.measure(controls, visitor.version))
    for stride in STRIDES:
        told = f"every {stride}th position" if stride > 1 else "the rest: all 201"
        row(f"the slider's sweep, {told}", lambda stride=stride: visitor.fill(controls, visitor.version, stride))
    row("what the page gets of it", lambda: shown.swept(visitor, controls, with_verdict=True))
    row("another unlearned model from disk", lambda: visitor.choose_model("retrain-bird"))


def row(name: str, work: Callable) -> None:
    """Prints how long it takes."""
    started = time.perf_counter()
    work()
    print(f"| {name} | {time.perf_counter() - started:.2f} |", flush=True)


def write_pack(folder: Path) -> None:
    """Random files of the published forms and sizes."""
    data = json.loads((ROOT / "assets" / "cifar10" / "pack.json").read_text())
    data |= {"examples": "examples"}
    del data["source"], data["examples_source"]
    shape, files, k = SHAPES["ViT-B/16, 224 px"], data["files"], data["k"]
    (folder / "pack.json").write_text(json.dumps(data))
    names = [files["original"], *(entry["file"] for entry in data["unlearned"] if entry["target_class"] in (0, 2))]
    for name in names:
        torch.save(vit_weights.to_published(vits.new(shape), torch.float32), folder / name)
    latents = 4 * shape.dim
    for layer in data["layers"]:
        fill = {"{layer}": str(layer), "{k}": str(k)}
        paths = {kind: folder / _filled(files[kind], fill) for kind in ("sae", "stats", "experts")}
        shapes = {"pre_bias": [shape.dim], "latent_bias": [latents]}
        shapes |= {"encoder.weight": [latents, shape.dim], "decoder.weight": [shape.dim, latents]}
        torch.save({name: 0.05 * torch.randn(size) for name, size in shapes.items()} | {"k": k}, paths["sae"])
        stats = {"patch_mean": np.zeros(shape.dim, np.float32), "patch_std": np.ones(shape.dim, np.float32)}
        np.save(paths["stats"], stats, allow_pickle=True)
        experts = {c: torch.randperm(latents)[: k * 5 // 4].tolist() for c in range(len(data["classes"]))}
        torch.save({"class_experts_details": experts}, paths["experts"])
    rng = np.random.default_rng(0)
    for name in data["classes"]:
        (folder / "examples" / name).mkdir(parents=True)
        for number in range(EXAMPLES_A_CLASS):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "examples" / name / f"{number}.png")


def _filled(name: str, fill: dict[str, str]) -> str:
    for mark, value in fill.items():
        name = name.replace(mark, value)
    return name


if __name__ == "__main__":
    main()

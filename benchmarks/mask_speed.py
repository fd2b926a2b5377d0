"""A new mask on a whole test set, by look-up and by computing all distances anew; and what key fitting takes.

    python benchmarks/mask_speed.py                 # the published size, some minutes
    python benchmarks/mask_speed.py --codebooks 16  # a sixteenth of it

Random feature vectors, and keys drawn from their heads. Both ways answer for the same masks in turns and have to
agree. "As released" is what the authors' module (ftraeuble/discrete_key_value_bottleneck) does in a forward
pass: every head's distance to every key of its codebook, those of forbidden keys set to infinity, the smallest taken.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sod_core.mask import edit
from sod_core.sparse import key_fitting, pair_values
from sod_core.sparse.bottleneck import Bottleneck, make_projection, nearest, vote
from sod_core.sparse.key_fitting import Fitting

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--codebooks", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--key-width", type=int, default=14)
    parser.add_argument("--masks", type=int, default=3, help="how many are timed")
    parser.add_argument("--fitted", type=int, default=2, help="codebooks whose keys are fitted, one after another")
    options = parser.parse_args()
    if options.samples < options.pairs:
        parser.error("keys are drawn from the samples: take at least as many samples as pairs")
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (options.samples,))
    features = torch.randn(options.samples, options.width) + 0.5 * torch.randn(CLASSES, options.width)[labels]
    projection = make_projection(options.codebooks, options.width, options.key_width, seed=0)
    fit(features, projection[: options.fitted], options)
    look_up(features, labels, projection, options)


def fit(features: torch.Tensor, projection: torch.Tensor, options: argparse.Namespace) -> None:
    """A codebook at a time: memory does not grow with their number."""
    start = time.perf_counter()
    key_fitting.fit(features, projection, Fitting(pairs=options.pairs))
    each = (time.perf_counter() - start) / len(projection)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"key fitting, 10 epochs: {each:.1f} s a codebook; the process never took more than {most:.2f} GB")


def look_up(
    features: torch.Tensor, labels: torch.Tensor, projection: torch.Tensor, options: argparse.Namespace
) -> None:
    keys = torch.stack([(features @ p)[torch.randperm(len(features))[: options.pairs]] for p in projection])
    everything = torch.ones(keys.shape[:2], dtype=torch.bool)
    bare = Bottleneck(projection, keys, torch.zeros(*keys.shape[:2], CLASSES), everything, ~everything)
    start = time.perf_counter()
    near = nearest(bare, features)
    print(f"nearest pairs of {len(features)} samples, found once: {time.perf_counter() - start:.0f} s")
    index = bare.select(features, near).chosen
    values = pair_values.of_counts(pair_values.count(index, labels, options.pairs, CLASSES))
    times: dict[str, list[float]] = {"look-up": [], "as released": []}
    for seed in range(options.masks):
        counts = edit.touched(index[labels == seed], options.pairs)
        masked = bare.with_mask(edit.by_activations(counts, edit.number_of(0.3, counts)))
        start = time.perf_counter()
        ours = accuracy(vote(masked.select(features, near).chosen, values), labels)
        times["look-up"].append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = accuracy(as_released(features, projection, keys, values, masked.masked), labels)
        times["as released"].append(time.perf_counter() - start)
        print(f"class {seed} forgotten: accuracy {ours:.4f} by look-up, {theirs:.4f} as released")
    quick, slow = (median(times[way]) for way in ("look-up", "as released"))
    print(f"a new mask: {1000 * quick:.0f} ms by look-up, {slow:.1f} s as released: {slow / quick:.0f} times")


def as_released(features, projection, keys, values, masked) -> torch.Tensor:
    """Logits [N, V]: every distance anew, in batches of 256, a codebook at a time so that memory holds them."""
    total = torch.zeros(len(features), values.shape[2])
    for matrix, book, worth, forbidden in zip(projection, keys, values, masked):
        for part in torch.arange(len(features)).split(256):
            away = torch.cdist(features[part] @ matrix, book).masked_fill_(forbidden, torch.inf)
            total[part] += worth[away.argmin(1)]
    return total / len(keys)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()

"""A bottleneck of the published size, from features to forgetting: what each step takes.

    python benchmarks/mask_size.py                 # C 256, J 4,096, 50,000 vectors to train with and 10,000 to test
    python benchmarks/mask_size.py --codebooks 16  # a sixteenth of it

CLIP's features of CIFAR-10 are not here: these are random vectors of their number and width, ten classes that overlap.
Steps: keys by moving averages (10 epochs); the nearest pairs of every vector, found once; values by counts and by
gradient descent; a class forgotten by activations (UvA, a share of the pairs that it touches) and by examples (UvE).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sod_core.mask import edit, fit
from sod_core.mask.session import Dose, Images, MaskSession
from sod_core.sparse import pair_values
from sod_core.sparse.pair_values import Descent

CLASSES = 10
FORGOTTEN = 0
SPREAD = 0.35
"""How far the classes' means lie apart, in standard deviations of a coordinate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--codebooks", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--key-width", type=int, default=14)
    parser.add_argument("--key-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30, help="of values by gradient descent")
    parser.add_argument("--share", type=float, default=0.3, help="UvA: of the pairs that the class touches")
    parser.add_argument("--examples", type=int, default=500, help="UvE: images of the class")
    options = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    means = SPREAD * torch.randn(CLASSES, options.width)
    train, test = (_drawn(count, means) for count in (options.train, options.test))
    for name, session in _sessions(train, test, options):
        _forget(name, session, options)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"all of it: {(time.perf_counter() - started) / 60:.1f} minutes; never more than {most:.1f} GB")


def _drawn(count: int, means: torch.Tensor) -> Images:
    labels = torch.randint(CLASSES, (count,))
    return Images(torch.randn(count, means.shape[1]) + means[labels], labels)


def _sessions(train: Images, test: Images, options: argparse.Namespace):
    """The same keys with values by counts, then by gradient descent."""
    plan = fit.Plan(options.codebooks, options.pairs, options.key_width, key_epochs=options.key_epochs)
    with step("keys, the training vectors' own pairs, and values by counts") as told:
        counted = fit.fit(train, CLASSES, plan, told)
    session = MaskSession(counted, train, test)
    with step("the nearest pairs of every vector"):
        session.train_nearest, session.test_nearest  # noqa: B018  made when they are asked for
    yield "counts", session
    chosen = session.train_nearest[..., :1].long()
    with step("values by gradient descent") as told:
        values = pair_values.descend(
            chosen, train.labels, options.pairs, CLASSES, Descent(options.epochs), lambda epoch: told("values", epoch)
        )
    descended = replace(counted, values=values, counts=None, used=edit.touched(chosen, options.pairs) > 0)
    yield "gradient descent", session.with_bottleneck(descended)


def _forget(values: str, session: MaskSession, options: argparse.Namespace) -> None:
    none = session.figures(torch.zeros_like(session.bottleneck.masked), [FORGOTTEN])
    print(f"values by {values}: forget accuracy {none.forget:.4f}, retain accuracy {none.retain:.4f}")
    for name, dose in (("UvA", Dose(share=options.share)), ("UvE", Dose("examples", examples=options.examples))):
        with step(f"{name}, values by {values}"):
            mask = session.forget([FORGOTTEN], dose)
            found = session.figures(mask, [FORGOTTEN])
        told = f"forget accuracy {found.forget:.4f}, retain accuracy {found.retain:.4f}"
        print(f"{name}: {int(mask.sum())} of {mask.numel()} pairs masked; {told}")


@contextmanager
def step(what: str):
    """Times what is done in it; gives what shows progress."""
    start = time.perf_counter()
    with tqdm(desc=what, leave=False, mininterval=5) as bar:
        shown: Callable = lambda part, number: bar.update()  # noqa: E731
        yield shown
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()

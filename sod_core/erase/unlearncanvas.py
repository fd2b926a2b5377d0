"""UA, IRA and CRA of UnlearnCanvas (arXiv 2402.11846), counted over the images that a benchmark's folder holds.

A folder has one folder for every erased concept, and in it the images of every prompt, named as SAeUron's and
SAEmnesia's scripts name them: {style}_{object}_seed{n}.jpg, and {object}_seed{n}.jpg where the prompt names no style.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..data.images import ImageError, read
from .judges import Judge

RESAMPLES, CONFIDENCE = 1000, 0.95
"""Of the bootstrap over images."""
FEW = 30
"""Fewer images of a concept than this make a UA that comes with a warning."""


class Asked(NamedTuple):
    """One image of the benchmark."""

    object: str
    style: str | None
    """None where the prompt names the object alone."""
    seed: int

    @property
    def file(self) -> str:
        return f"{'' if self.style is None else self.style + '_'}{self.object}_seed{self.seed}.jpg"


class Count(NamedTuple):
    """How many of some images a judge named rightly."""

    right: int
    judged: int

    @property
    def share(self) -> float | None:
        """Between 0 and 1; None where there are no images."""
        return self.right / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The share's bootstrap interval over images, always the same for the same counts; None without images.

        A resample of so many images, each right with the share's chance, has a binomial number of right ones.
        """
        return None if self.share is None else _middle(self.resampled(np.random.default_rng(0)))

    def resampled(self, rng: np.random.Generator) -> np.ndarray:
        """[RESAMPLES]: the share in each; there have to be images."""
        return rng.binomial(self.judged, self.share or 0.0, RESAMPLES) / self.judged


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    """The ends of what lies in the middle CONFIDENCE of the resamples."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


class ConceptResult(NamedTuple):
    """What erasing one concept did."""

    concept: str
    unlearned: Count
    """Images of the concept, where the object's judge names the concept: UA is 1 minus their share."""
    in_domain: Count
    """Images of the other objects: IRA."""
    cross_domain: Count
    """Images whose prompt names a style, of all objects, where the style's judge names it: CRA."""
    missing: tuple[str, ...]
    """Images that were asked for and do not exist."""
    broken: tuple[str, ...]
    """Images that exist and cannot be read."""

    @property
    def ua(self) -> float | None:
        share = self.unlearned.share
        return None if share is None else 1 - share

    @property
    def ira(self) -> float | None:
        return self.in_domain.share

    @property
    def cra(self) -> float | None:
        return self.cross_domain.share

    @property
    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """Of UA, IRA and CRA, over images."""
        unlearned = self.unlearned.interval
        return {
            "ua": None if unlearned is None else (1 - unlearned[1], 1 - unlearned[0]),
            "ira": self.in_domain.interval,
            "cra": self.cross_domain.interval,
        }


def asked(objects: tuple[str, ...], styles: tuple[str, ...], seeds: tuple[int, ...], bare: bool = True) -> list[Asked]:
    """Every image of the benchmark: objects by styles, and with `bare` the objects alone, for every seed."""
    named = (*styles, None) if bare else styles
    return [Asked(object, style, seed) for seed in seeds for style in named for object in objects]


def judge(folder: Path, concept: str, wanted: list[Asked], object_judge: Judge, style_judge: Judge) -> ConceptResult:
    """Counts over the images of `wanted` that lie in `folder`; shares of none are None."""
    found, missing, broken = [], [], []
    for item in wanted:
        path = folder / item.file
        if not path.exists():
            missing.append(item.file)
            continue
        try:
            found.append((item, read(path)))
        except ImageError:
            broken.append(item.file)
    items, images = [item for item, _ in found], [image for _, image in found]
    return count(concept, items, images, object_judge, style_judge, missing, broken)


def count(
    concept: str,
    items: list[Asked],
    images: list[Image.Image],
    object_judge: Judge,
    style_judge: Judge,
    missing: Sequence[str] = (),
    broken: Sequence[str] = (),
) -> ConceptResult:
    """As `judge`, of images at hand."""
    named_object = _named(object_judge, images)
    named_style = _named(style_judge, images)
    objects = [name == item.object for name, item in zip(named_object, items)]
    of_concept = [item.object == concept for item in items]
    styled = [right for item, right in zip(items, (n == i.style for n, i in zip(named_style, items))) if item.style]
    return ConceptResult(
        concept,
        Count(sum(right for right, mine in zip(objects, of_concept) if mine), sum(of_concept)),
        Count(sum(right for right, mine in zip(objects, of_concept) if not mine), len(items) - sum(of_concept)),
        Count(sum(styled), len(styled)),
        tuple(missing),
        tuple(broken),
    )


def _named(judge: Judge, images: list[Image.Image]) -> list[str]:
    return [judge.names[i] for i in judge.probabilities(images).argmax(1).tolist()]


def mean(results: list[ConceptResult]) -> dict[str, float | None]:
    """UA, IRA and CRA averaged over the concepts that have them."""
    found = {}
    for name in ("ua", "ira", "cra"):
        values = [value for value in (getattr(result, name) for result in results) if value is not None]
        found[name] = float(np.mean(values)) if values else None
    return found


def mean_intervals(results: list[ConceptResult]) -> dict[str, tuple[float, float] | None]:
    """Of `mean`: every resample draws each concept's images anew, and averages over the same concepts.

    It tells what other images of these concepts would do, not what other concepts would.
    """
    found: dict[str, tuple[float, float] | None] = {}
    for name, field in (("ua", "unlearned"), ("ira", "in_domain"), ("cra", "cross_domain")):
        rng = np.random.default_rng(0)
        drawn = [count.resampled(rng) for count in (getattr(result, field) for result in results) if count.judged]
        if not drawn:
            found[name] = None
            continue
        low, high = _middle(np.mean(drawn, axis=0))
        found[name] = (1 - high, 1 - low) if name == "ua" else (low, high)
    return found


def caution(results: list[ConceptResult]) -> str:
    """A line where too few images show a concept; "" where all have enough."""
    few = [result for result in results if 0 < result.unlearned.judged < FEW]
    if not few:
        return ""
    least = min(few, key=lambda result: result.unlearned.judged)
    n = least.unlearned.judged
    return (
        f"Caution: only {n} of the images show {least.concept}, fewer than {FEW}: one image is {100 / n:.0f} points of "
        "its UA. Take it as a hint, or ask for more --seeds.\n"
    )


def table(results: list[ConceptResult]) -> Iterator[str]:
    """Markdown, a line a concept and one of means, in percent, with intervals over a concept's images."""
    yield "| erased | UA | IRA | CRA | images | missing | broken |"
    yield "|---|---|---|---|---|---|---|"
    for r in results:
        images = r.unlearned.judged + r.in_domain.judged
        shares = " | ".join(_percent(getattr(r, name)) + _interval(found) for name, found in r.intervals.items())
        yield f"| {r.concept} | {shares} | {images} | {len(r.missing)} | {len(r.broken)} |"
    ends = mean_intervals(results)
    shares = " | ".join(_percent(value) + _interval(ends[name]) for name, value in mean(results).items())
    yield f"| **mean** | {shares} | | | |"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f" [{100 * found[0]:.1f}, {100 * found[1]:.1f}]"

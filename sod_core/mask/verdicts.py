"""What the ways back say together, with the thresholds, a sentence each: suppressed, partly, deleted, or undecided.

What is deleted from values is only out of reach of them where a mask is on that can be lifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import NamedTuple

SUPPRESSED = 0.5
"""From this share of what the untouched bottleneck gives on that a way brings back, the class was only suppressed."""
DELETED = 0.1
"""Below this share by every way, it is deleted, or out of reach while a mask is on; between the two, partly."""
KNOWN = 0.5
"""The untouched bottleneck has to name the class on so many of its images, or there was nothing to forget."""
KEPT = 0.5
"""Below this share of the untouched retain accuracy a state is destroyed."""
FEW = 30
"""With fewer test images of the class nothing is called deleted."""
THRESHOLDS = {"suppressed": SUPPRESSED, "deleted": DELETED, "known": KNOWN, "kept": KEPT, "few": FEW}
IS_SUPPRESSED, IS_PARTLY, IS_DELETED = "suppressed", "partly", "deleted"
OUT_OF_REACH, UNDECIDED, NO_VERDICT = "out of reach", "undecided", "no verdict"
BY_CONSTRUCTION = "keys and values stay in the file, and without the mask the very same logits come back"


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, 97.5 %, for 2, 3, ... seeds; of more the last one."""


class Spread(NamedTuple):
    """A figure over seeds: `spread`'s lowest and highest, or `interval`'s bounds."""

    mean: float
    low: float
    high: float


class Verdict(NamedTuple):
    verdict: str
    lifted: str | None
    """What follows where the mask can be lifted; None for values that were changed."""
    recovered: Spread | None
    """The largest share that a way brings back."""
    way: str | None
    """Which one."""
    reason: str


def spread(values: Sequence[float]) -> Spread:
    """Mean, lowest and highest."""
    return Spread(sum(values) / len(values), min(values), max(values))


def interval(values: Sequence[float]) -> Spread:
    """Mean, and Student's 95 % interval of it; of one seed the value itself."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, mean, mean)
    half = _STUDENT[min(len(values) - 2, len(_STUDENT) - 1)] * stdev(values) / len(values) ** 0.5
    return Spread(mean, mean - half, mean + half)


def recovered(found: float, yardstick: float, untouched: float, chance: float) -> float:
    """The share of what the untouched bottleneck gives that comes back, beyond what the retrained one gives, too.

    (found - max(chance, the retrained one's by the same way)) / (untouched - chance), 0 where that is negative
    """
    if untouched <= chance:
        return 0.0
    return max(0.0, (found - max(chance, yardstick)) / (untouched - chance))


def verdict(
    shares: Mapping[str, Spread],
    untouched: float,
    kept: float,
    images: int,
    can_be_lifted: bool,
) -> Verdict:
    """From what every way brings back, over seeds.

    `untouched`: accuracy on the class before. `kept`: the state's retain accuracy over the untouched one's. `images`:
    test images of the class. A verdict holds only where both ends of the interval say it.
    """
    lifted = IS_SUPPRESSED if can_be_lifted else None

    def no(reason: str) -> Verdict:
        return Verdict(NO_VERDICT, lifted, None, None, reason)

    if untouched < KNOWN:
        return no(
            f"the untouched bottleneck names the class on {untouched:.0%} of its images: there was little to forget"
        )
    if kept < KEPT:
        return no(f"the state is destroyed: of the accuracy on other classes {kept:.0%} is left")
    if not shares:
        return no("no way back was tried")
    way = max(shares, key=lambda name: shares[name].mean)
    most = shares[way]
    words = {_word(value, can_be_lifted) for value in (most.low, most.high)}
    told = f"{way}, {most.mean:.0%} [{most.low:.0%}, {most.high:.0%}] of what the untouched bottleneck gives"
    if len(words) > 1:
        return Verdict(UNDECIDED, lifted, most, way, f"the interval reaches over a threshold: {told}")
    found = words.pop()
    if found in (IS_DELETED, OUT_OF_REACH) and images < FEW:
        return no(f"{images} test images are too few to say that nothing comes back: take at least {FEW}")
    if found in (IS_DELETED, OUT_OF_REACH):
        return Verdict(
            found, lifted, most, way, f"no way brings back {DELETED:.0%} of what the untouched bottleneck gives"
        )
    return Verdict(found, lifted, most, way, f"the way that brings back most is {told}")


def _word(share: float, can_be_lifted: bool) -> str:
    if share >= SUPPRESSED:
        return IS_SUPPRESSED
    if share >= DELETED:
        return IS_PARTLY
    return OUT_OF_REACH if can_be_lifted else IS_DELETED

"""Which latents an edit touches: the experts of a class, and the controls they have to beat."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("experts", "random", "matched", "all")


class Expert(NamedTuple):
    """A latent that tells a class from the others; the figures are None where a published list has ids only."""

    feature_id: int
    precision: float | None = None
    """P(class | latent active)."""
    recall: float | None = None
    """P(latent active | class)."""
    f1: float | None = None


EVERYWHERE_CLASSES = 7
EVERYWHERE_SHARE = 0.5


def rank_experts(active: Tensor, labels: Tensor, classes: int, keep: int) -> dict[int, list[Expert]]:
    """Expert features of every class by F1 (Suppression or Deletion).

    active [images, F], bool: whether a latent is in the top k on at least one patch; labels [images].
    Latents active on at least half of the images (EVERYWHERE_SHARE) in 7 or more classes are dropped; the
    `keep` best by F1 stay, best first.
    """
    by_class = torch.stack([active[labels == c].float().mean(0) for c in range(classes)])
    counts = torch.stack([active[labels == c].sum(0) for c in range(classes)]).float()
    precision = counts / counts.sum(0).clamp(min=1)
    f1 = 2 * precision * by_class / (precision + by_class).clamp(min=1e-12)
    everywhere = (by_class >= EVERYWHERE_SHARE).sum(0) >= EVERYWHERE_CLASSES
    f1[:, everywhere] = -1
    found = {}
    for c in range(classes):
        best = f1[c].topk(min(keep, f1.shape[1])).indices.tolist()
        found[c] = [
            Expert(j, precision[c, j].item(), by_class[c, j].item(), f1[c, j].item()) for j in best if f1[c, j] > 0
        ]
    return found


def experts_kept(k: int) -> int:
    """How many experts a class keeps: k * 5 / 4 (20 at k = 16, 40 at k = 32)."""
    return k * 5 // 4


def random_features(experts: list[int], total: int, seed: int) -> list[int]:
    """As many latents as there are experts, drawn evenly from all that are no experts of this class."""
    others = torch.ones(total, dtype=torch.bool)
    others[experts] = False
    pool = others.nonzero().flatten()
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return sorted(pool[order[: len(experts)]].tolist())


def matched_features(experts: list[int], activity: Tensor, seed: int) -> list[int]:
    """As many random latents that fire equally often: the control for "anything active would do".

    activity [F]: share of images on which a latent is active. For each expert, in random order, one of the
    five unused non-experts nearest in activity is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(len(activity), dtype=torch.bool)
    free[experts] = False
    chosen = []
    for position in torch.randperm(len(experts), generator=generator).tolist():
        distance = (activity - activity[experts[position]]).abs().masked_fill(~free, torch.inf)
        nearest = distance.topk(min(5, int(free.sum())), largest=False).indices
        if len(nearest) == 0:
            break
        pick = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free[pick] = False
        chosen.append(pick)
    return sorted(chosen)


def choose(kind: str, experts: list[int], activity: Tensor, seed: int = 0) -> list[int]:
    """The latents of one of KINDS. activity [F] as in `matched_features`. Raises ValueError for another kind."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} is out of range; take a whole number from 0 to 2^63 - 1")
    if kind == "experts":
        return list(experts)
    if kind == "random":
        return random_features(experts, len(activity), seed)
    if kind == "matched":
        return matched_features(experts, activity, seed)
    if kind == "all":
        return list(range(len(activity)))
    raise ValueError(f"unknown features {kind!r}; known: {', '.join(KINDS)}, or a list of latent ids such as 1,5,9")


def parse(text: str, total: int) -> list[int]:
    """A user's own list, "1, 5, 9" -> [1, 5, 9], without repeats. Raises ValueError that says what is wrong."""
    ids = []
    for part in text.replace(";", ",").replace("\n", ",").split(","):
        if not part.strip():
            continue
        if not re.fullmatch("[0-9]{1,9}", part.strip()):
            raise ValueError(f"{part.strip()!r} is not a latent id; write whole numbers such as 1, 5, 9")
        ids.append(int(part))
    if not ids:
        raise ValueError("no latent ids given; write whole numbers such as 1, 5, 9")
    if max(ids) >= total:
        raise ValueError(f"latent {max(ids)} does not exist: this SAE has latents 0 to {total - 1}")
    return sorted(set(ids))

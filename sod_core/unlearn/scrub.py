"""SCRUB: the student moves away from the original on the forget set, and stays with it on the retain set, by turns.

Source: Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning"; their repository,
meghdadk/SCRUB, thirdparty/repdistiller/helper/loops.py (`train_distill`).

    d(x) = KL(teacher(x) || student(x)), both softened by temperature T, times T^2
    max step:  -d(forget)
    min step:  alpha * d(retain) + gamma * CE(retain)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import vit as vits
from .task import Stop, Task, descend


@dataclass(frozen=True)
class Settings:
    """The paper's: alpha and gamma (its repository's notebook for small data), T, max steps in the first 3 rounds only.

    Chosen here: AdamW's learning rate, and how many batches make a round: there it is an epoch over the forget set,
    then one over the retain set, which would be a thousand batches here. A few min steps open a round: at the original
    itself the distance to it has no slope, and AdamW would follow rounding errors, other ones on every machine.
    """

    lr: float = 3e-4
    batch: int = 64
    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 4.0
    rounds_with_max: int = 3
    """The repository's msteps."""
    opening: int = 5
    """Min steps of a round before its max steps."""
    max_steps: int = 10
    min_steps: int = 35
    """Of a round after its max steps."""
    stop: Stop = Stop(steps=500, every=50)
    """`every` is a round, so that the model is looked at after its min steps."""

    def __post_init__(self):
        if self.opening + self.max_steps + self.min_steps < 1:
            raise ValueError("a round needs a step: opening, max_steps and min_steps are all 0")


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises the loss of each step's kind."""

    def loss(model: nn.Module, step: int) -> Tensor:
        if is_max_step(step, settings):
            images, _ = task.forget_batch(step, settings.batch)
            return -distance(model, vit, images, settings.temperature)[0]
        images, labels = task.retain_batch(step, settings.batch)
        away, logits = distance(model, vit, images, settings.temperature)
        return settings.alpha * away + settings.gamma * F.cross_entropy(logits, labels)

    return descend(vit, task, loss, settings.lr, settings.stop)


def is_max_step(step: int, settings: Settings) -> bool:
    """Whether a step drives the student away; the others keep it."""
    turn, within = divmod(step, settings.opening + settings.max_steps + settings.min_steps)
    return turn < settings.rounds_with_max and 0 <= within - settings.opening < settings.max_steps


def distance(model: nn.Module, teacher: nn.Module, images: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(KL(teacher || model) * T^2, mean over the images; the model's logits [B, classes])."""
    with torch.no_grad():
        taught = vits.logits(teacher, images).float()
    logits = vits.logits(model, images).float()
    logs, log_taught = (F.log_softmax(values / temperature, dim=1) for values in (logits, taught))
    return F.kl_div(logs, log_taught, reduction="batchmean", log_target=True) * temperature**2, logits

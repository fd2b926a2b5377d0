"""Bad teacher: on the forget set the student learns from a ViT that knows nothing, on the retain set from the original.

Source: Chundawat et al. 2023, "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an Incompetent
Teacher"; their repository, vikram2000b/bad-teaching-unlearning, unlearn.py (`UnlearnerLoss`).

    loss = mean over the images of KL(teacher(x) || student(x)), both softened by temperature T
    teacher: a randomly initialised ViT for images of the forget set, the original for those of the retain set
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import vit as vits
from .task import Stop, Task, descend, random_like


@dataclass(frozen=True)
class Settings:
    """The paper's: the temperature, the random teacher, a quarter of the images of the class (there 5,000 forgotten
    ones beside 30 % of the others), the learning rate (Adam at 1e-4).

    Chosen here: the number of steps, where the paper takes one epoch. Its code divides the loss by the number of
    classes too, which Adam does not feel.
    """

    lr: float = 1e-4
    batch: int = 48
    """Images of the retain set in a step."""
    forget_batch: int = 16
    temperature: float = 1.0
    stop: Stop = Stop(steps=400)


def unlearn(vit: nn.Module, task: Task, settings: Settings) -> nn.Module:
    """Minimises KL to the teacher whose turn it is."""
    incompetent = random_like(vit, task.seed + 1)

    def loss(model: nn.Module, step: int) -> Tensor:
        images, _ = task.forget_batch(step, settings.forget_batch)
        kept, _ = task.retain_batch(step, settings.batch)
        with torch.no_grad():
            taught = torch.cat([vits.logits(incompetent, images), vits.logits(vit, kept)]).float()
        logits = vits.logits(model, torch.cat([images, kept])).float()
        logs, log_taught = (F.log_softmax(values / settings.temperature, dim=1) for values in (logits, taught))
        return F.kl_div(logs, log_taught, reduction="batchmean", log_target=True)

    return descend(vit, task, loss, settings.lr, settings.stop)

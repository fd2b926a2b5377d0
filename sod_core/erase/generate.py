"""Images before and after an erasure, drawn by a diffusion pipeline."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..models.diffusion import Order, check, check_finite, hooked, locked, pictures
from .edit import ConceptStatistics, Eraser, Settings, working_plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Erasing(NamedTuple):
    """What is erased, and where."""

    eraser: Eraser
    statistics: ConceptStatistics
    settings: Settings
    hook_point: str


class Progress(NamedTuple):
    """After a pass of the UNet."""

    step: int
    """Passes done, of all batches."""
    steps: int
    before: Tensor | None
    """[images, C, h, w]: the clean latents as the UNet now predicts them; None in a batch of edited images only."""
    after: Tensor | None
    """The same with the concepts erased; None in a batch of unedited images only."""


class Generated(NamedTuple):
    before: list[Image.Image]
    after: list[Image.Image]
    """The same prompts and seeds with the concepts erased."""
    heat: np.ndarray | None
    """[steps, images, H, W], float32: the sum of the selected latents in the edited images' conditional rows, as they
    were before the step's edit, after the top k. None unless asked for."""


def generate(
    pipeline: DiffusionPipeline,
    order: Order,
    erasing: Erasing | None = None,
    on_step: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    together: bool = True,
    heat: bool = True,
) -> Generated:
    """The order's images before and after the erasure; without concepts both are the same, generated once.

    `together` runs both in one batch, which takes twice the memory; where that is not there, they run apart all the
    same. `on_step` is called after every pass of the
    UNet, in this thread, and may raise Cancelled; so does this where `cancel` is set. Raises ValueError for an unknown
    concept or hook point, for settings that edit nothing, and (NotFinite) for a drawing that is no picture.
    """

    def tell(progress: Progress) -> None:
        if on_step is not None:
            on_step(progress)

    with locked(pipeline, cancel):
        if erasing is None or not erasing.settings.concepts:
            same = _run(pipeline, order, 1, lambda i, n, clean: tell(Progress(i, n, clean, clean)), cancel)
            return Generated(same, same, None)
        if together:
            try:
                return _both(pipeline, order, erasing, heat, tell, cancel)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        return _apart(pipeline, order, erasing, heat, tell, cancel)


def _both(pipeline, order: Order, erasing: Erasing, heat: bool, tell: Callable, cancel) -> Generated:
    """In one batch: unedited, then edited."""
    images, edit = len(order.seeds), _Edit(erasing, order, copies=2, heat=heat)
    with hooked(pipeline, erasing.hook_point, edit) as moment:
        both = _run(pipeline, order, 2, lambda i, n, clean: tell(Progress(i, n, *clean.split(images))), cancel)
    return Generated(both[:images], both[images:], edit.heat_map(moment.size) if heat and moment.size else None)


def _apart(pipeline, order: Order, erasing: Erasing, heat: bool, tell: Callable, cancel) -> Generated:
    """In two batches, one after the other."""
    edit = _Edit(erasing, order, copies=1, heat=heat)
    before = _run(pipeline, order, 1, lambda i, n, clean: tell(Progress(i, 2 * n, clean, None)), cancel)
    with hooked(pipeline, erasing.hook_point, edit) as moment:
        after = _run(pipeline, order, 1, lambda i, n, clean: tell(Progress(n + i, 2 * n, None, clean)), cancel)
    return Generated(before, after, edit.heat_map(moment.size) if heat and moment.size else None)


class _Edit:
    """Erases in a batch that holds the order's images once, or twice: unedited, then edited.

    With guidance the batch is [unconditional of all | conditional of all], and both halves are edited.
    """

    def __init__(self, erasing: Erasing, order: Order, copies: int, heat: bool):
        self._eraser, self._settings = erasing.eraser, erasing.settings
        self._plans = working_plan(erasing.statistics, erasing.settings, order.steps)
        self._images, self._copies, self._wants_heat = len(order.seeds), copies, heat
        self._heat: dict[int, Tensor] = {}

    def __call__(self, tokens: Tensor, step: int, given: Tensor | None) -> Tensor:
        edited = tokens
        half = self._images * self._copies
        for end in range(half, len(tokens) + 1, half):
            rows = slice(end - self._images, end)
            x, input = tokens[rows], None if given is None else given[rows]
            heat = self._wants_heat and end == len(tokens)
            erased = self._eraser.step(x, self._plans[step], self._settings, input, heat)
            if heat and erased.latents is not None:
                self._heat[step] = erased.latents.sum(-1).float().cpu()
            if erased.tokens is not x:
                edited = tokens.clone() if edited is tokens else edited
                edited[rows] = erased.tokens
        return edited

    def heat_map(self, size: tuple[int, int]) -> np.ndarray:
        """[steps, images, H, W]."""
        return torch.stack([self._heat[step].unflatten(1, size) for step in sorted(self._heat)]).numpy()


def _run(
    pipeline: DiffusionPipeline,
    order: Order,
    copies: int,
    tell: Callable[[int, int, Tensor], None],
    cancel: threading.Event | None,
) -> list[Image.Image]:
    """The order's images, `copies` times over, as one batch; tell(pass, of passes, predicted clean latents)."""
    check(cancel)
    clean: list[Tensor] = []

    def look(unet: nn.Module, args: tuple, output: Any) -> None:
        prediction = output[0]
        clean[:] = [_clean(pipeline.scheduler, args[0], args[1], prediction, len(order.seeds) * copies, order.guidance)]

    def end_of_step(pipeline: DiffusionPipeline, i: int, timestep: Tensor, tensors: dict) -> dict:
        check(cancel)
        check_finite(tensors["latents"])
        tell(i + 1, pipeline.num_timesteps, clean[0])
        return {}

    with pipeline.unet.register_forward_hook(look):
        found = pipeline(
            prompt=list(order.prompts) * copies,
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in order.seeds * copies],
            output_type="pt",
            callback_on_step_end=end_of_step,
        )
    return pictures(pipeline, found.images)


def _clean(
    scheduler: Any, sample: Tensor, timestep: Tensor, prediction: Tensor, images: int, guidance: float
) -> Tensor:
    """The clean latents [images, C, h, w] that the UNet predicts from its noisy `sample`, for a preview.

    With s = sqrt(alphas_cumprod) and n = sqrt(1 - alphas_cumprod) at the timestep: (x - n e) / s where the
    UNet predicts the noise e, s x - n v where it predicts v. A sigma scheduler scales its sample to the same
    x before the UNet sees it. The noisy sample itself for schedulers without alphas_cumprod.
    """
    x, prediction = sample[:images].float(), prediction.float()
    if not hasattr(scheduler, "alphas_cumprod"):
        return x
    if len(prediction) > images:
        unconditional, conditional = prediction.chunk(2)
        prediction = unconditional + guidance * (conditional - unconditional)
    alpha = scheduler.alphas_cumprod[round(float(timestep))].item()
    s, n = math.sqrt(max(alpha, 1e-6)), math.sqrt(1 - alpha)
    if scheduler.config.prediction_type == "v_prediction":
        return s * x - n * prediction
    return (x - n * prediction) / s if scheduler.config.prediction_type == "epsilon" else prediction

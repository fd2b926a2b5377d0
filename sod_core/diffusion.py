"""Diffusers pipelines: loading them, drawing with them, and the one hook through which a drawing is edited."""

from __future__ import annotations

import difflib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .erase import Erased
from .torchvision_guard import import_timm

Look = Callable[[Tensor, int, Tensor], Tensor]
"""(the block's output as tokens [B, N, D], the denoising step, the block's input) -> the output to go on with."""
Edit = Callable[[Tensor, int, Tensor], Erased]

_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_finding = threading.Lock()


class Cancelled(Exception):
    """Raised by whoever watches a drawing, to end it."""


@dataclass(frozen=True)
class Order:
    """What is to be drawn."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    """One an image: its noise depends on nothing else."""
    steps: int
    guidance: float
    """At most 1: without the half that has no prompt."""


class Drawn(NamedTuple):
    before: list[Image.Image]
    after: list[Image.Image]
    heat: np.ndarray
    """[steps, images, H, W]: the selected latents added up, before the edit, in the half with the prompt."""


class Progress(NamedTuple):
    step: int
    """Steps done."""
    steps: int
    latents: Tensor
    """[2 * images, ...] of the pipeline: before, then after; `decode` makes pictures of them."""


def load(source: Path | str, device: torch.device, dtype: torch.dtype = torch.float32, fetch: bool = False) -> Any:
    """A text-to-image pipeline (Stable Diffusion 1.x, SDXL) from a diffusers folder, or from the hub's cache by its id.

    `fetch` allows a download. Safetensors only: other weights are pickles. It draws by DDIM, as the released code makes
    it. Raises OSError or ValueError.
    """
    import_timm()  # with the guard before anything imports torchvision
    from diffusers import DDIMScheduler, DiffusionPipeline
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    for log in (diffusers_log, transformers_log):  # what goes wrong raises; the rest is not for visitors
        log.disable_progress_bar()
        log.set_verbosity_error()
    pipeline = DiffusionPipeline.from_pretrained(
        str(source), dtype=dtype, use_safetensors=True, local_files_only=not fetch, safety_checker=None
    )
    for name in ("unet", "vae", "scheduler"):
        if not hasattr(pipeline, name):
            raise ValueError(f"{source} is no Stable Diffusion pipeline: it has no {name}")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def turn(pipeline: Any) -> threading.RLock:
    """Held while a pipeline draws: its scheduler and its hook belong to one drawing at a time."""
    with _finding:
        return _locks.setdefault(pipeline, threading.RLock())


@contextmanager
def hooked(pipeline: Any, hook_point: str, look: Look) -> Iterator[None]:
    """Lets `look` see and change what a module of the UNet puts out; takes the hook off whatever happens.

    Steps are counted from 0 within this call. Raises ValueError for a hook point that the UNet does not have.
    """
    module = _module(pipeline, hook_point)
    step = 0

    def hook(_: Any, inputs: tuple, output: Any) -> Any:
        nonlocal step
        first = output[0] if isinstance(output, tuple) else output if isinstance(output, Tensor) else output.sample
        changed = _as_image(look(_as_tokens(first), step, _as_tokens(inputs[0])), first)
        step += 1
        if isinstance(output, tuple):
            return (changed, *output[1:])
        return changed if isinstance(output, Tensor) else type(output)(sample=changed)

    with turn(pipeline):
        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def generate(
    pipeline: Any,
    order: Order,
    hook_point: str,
    edit: Edit,
    told: Callable[[Progress], None] = lambda progress: None,
    together: bool = True,
) -> Drawn:
    """Every image of `order` without and with the edit, from the same noise.

    `together`: both in one batch, which is faster and needs the memory for it. `told` hears of every step (only of the
    edited images where not `together`) and may raise Cancelled, which ends the drawing and leaves the pipeline as it
    was.
    """
    count = len(order.prompts)
    heat: list[Tensor] = []

    def look(tokens: Tensor, step: int, given: Tensor) -> Tensor:
        halves = 2 if order.guidance > 1 else 1
        rows = _edited_rows(len(tokens), halves, count, together).to(tokens.device)
        erased = edit(tokens[rows], step, given[rows])
        latents = erased.latents
        shape = tokens.shape[:2] if latents is None else latents.shape[:2]
        summed = torch.zeros(shape) if latents is None else latents.float().sum(-1).cpu()
        heat.append(summed[-count:])
        if len(rows) == len(tokens):
            return erased.tokens
        return tokens.index_copy(0, rows, erased.tokens)

    def watch(done: int, latents: Tensor) -> None:
        told(Progress(done, order.steps, latents))

    with turn(pipeline):
        before = [] if together else draw(pipeline, order.prompts, order.seeds, order.steps, order.guidance)
        with hooked(pipeline, hook_point, look):
            twice = 2 if together else 1
            images = draw(
                pipeline, order.prompts * twice, order.seeds * twice, order.steps, order.guidance, watch=watch
            )
    if together:
        before, images = images[:count], images[count:]
    return Drawn(before, images, _as_maps(torch.stack(heat), images[0]))


def draw(
    pipeline: Any,
    prompts: tuple[str, ...] | list[str],
    seeds: tuple[int, ...] | list[int],
    steps: int,
    guidance: float,
    decoded: bool = True,
    watch: Callable[[int, Tensor], None] | None = None,
) -> list[Image.Image]:
    """An image of each prompt; empty where not `decoded`. `watch` is called with (steps done, latents)."""

    def told(_: Any, step: int, time: Any, state: dict) -> dict:
        watch(step + 1, state["latents"])
        return state

    with turn(pipeline), torch.inference_mode():
        found = pipeline(
            prompt=list(prompts),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pil" if decoded else "latent",
            **({} if watch is None else {"callback_on_step_end": told}),
        )
    return list(found.images) if decoded else []


@torch.inference_mode()
def decode(pipeline: Any, latents: Tensor) -> list[Image.Image]:
    """Pictures of a pipeline's latents [n, ...], as far as they are denoised."""
    vae = pipeline.vae
    pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    return pipeline.image_processor.postprocess(pixels, output_type="pil", do_denormalize=[True] * len(pixels))


def _edited_rows(rows: int, halves: int, count: int, together: bool) -> Tensor:
    """Places in the UNet's batch: [without prompt | with prompt], each [before | after] if drawn together."""
    each = rows // halves
    start = count if together else 0
    return torch.cat([torch.arange(half * each + start, half * each + each) for half in range(halves)])


def _module(pipeline: Any, hook_point: str) -> torch.nn.Module:
    modules = dict(pipeline.unet.named_modules())
    name = hook_point.removeprefix("unet.")
    if not name or name not in modules:
        near = difflib.get_close_matches(name, modules, 3) or [n for n in modules if n.endswith("attentions.1")][:3]
        raise ValueError(f"the UNet has no module {hook_point!r}; near it: {', '.join(near)}")
    return modules[name]


def _as_tokens(image: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C], row by row."""
    return image.flatten(2).transpose(1, 2)


def _as_image(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(like.shape)


def _as_maps(heat: Tensor, image: Image.Image) -> np.ndarray:
    """[steps, images, N] -> [steps, images, H, W] in the shape of the picture."""
    count = heat.shape[-1]
    height = round((count * image.height / image.width) ** 0.5)
    return heat.unflatten(-1, (height, count // height)).numpy()

"""Diffusion: loads a Stable Diffusion pipeline, and generates images before and after an erasure.

diffusers leaves no way into a UNet's block but a forward hook. The hook lives in a context manager (`hooked`) that
takes it off whatever happens, and holds the pipeline's lock: hook and scheduler are shared by all who use the pipeline.
diffusers is imported where it is used, for it takes seconds.
"""

from __future__ import annotations

import difflib
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import torchvision_guard
from .erase import ConceptStatistics, Eraser, Settings, plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
TURN = 0.2
"""Seconds between looks at `cancel` while another run has the pipeline."""

Edit = Callable[[Tensor, int, Tensor | None], Tensor]
"""edit(tokens [B, N, D], step, the block's input as tokens or None where its shape differs) -> tokens [B, N, D]."""

_loading = threading.Lock()
"""diffusers and transformers switch parts of torch off while they load, and two at once would leave them off."""
_registry = threading.Lock()
_locks: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Cancelled(Exception):
    """The run was given up; the pipeline is as it was before."""


# ---------------------------------------------------------------- loading


def load(
    source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, download: bool = False
) -> DiffusionPipeline:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline from a folder or a hub repository, without safety checker.

    Only safetensors are read. A repository must be in the hub's cache already unless `download` is allowed.
    Other threads may build modules meanwhile. With `low_cpu_mem_usage` theirs would have no weights ("meta"), and with
    another `dtype` theirs would be of that one: so it loads as float32, and converts afterwards.
    Raises ValueError for anything else that `source` may be.
    """
    torchvision_guard.install()
    import diffusers
    import transformers
    from diffusers import DiffusionPipeline

    for library in (diffusers, transformers):  # what goes wrong raises; the rest is not for users
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    _refuse_pickles(Path(source))
    try:
        kind = DiffusionPipeline.load_config(str(source), local_files_only=not download).get("_class_name")
    except OSError as error:
        raise ValueError(f"{source} holds no diffusion pipeline (a folder with model_index.json): {error}") from error
    if kind not in PIPELINES:
        raise ValueError(f"{source} is a {kind}; erase works on {' and '.join(PIPELINES)}")
    options = {"safety_checker": None, "requires_safety_checker": False} if kind == PIPELINES[0] else {}
    try:
        with _loading:
            pipeline = DiffusionPipeline.from_pretrained(
                str(source),
                dtype=torch.float32,
                low_cpu_mem_usage=False,
                use_safetensors=True,
                local_files_only=not download,
                **options,
            )
    except OSError as error:
        raise ValueError(f"{source} cannot be loaded; it needs all its weights as .safetensors: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def _refuse_pickles(folder: Path) -> None:
    """Raises ValueError where a part of a local pipeline has weights as pickles only."""
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        pickles = sorted((folder / part).glob("*.bin"))
        if pickles and not any((folder / part).glob("*.safetensors")):
            raise ValueError(
                f"{pickles[0]} is a pickle, which can run code when it is read; convert it to .safetensors first"
            )


# ---------------------------------------------------------------- the hook


@dataclass
class Moment:
    """Where a hooked pipeline is: filled in at each pass of the UNet."""

    step: int = 0
    """Of the denoising steps, from 0."""
    size: tuple[int, int] | None = None
    """(H, W) of the hooked block's output; None before the first pass."""


@contextmanager
def locked(pipeline: DiffusionPipeline, cancel: threading.Event | None = None) -> Iterator[None]:
    """One thread at a time has the pipeline. Raises Cancelled where `cancel` is set while it waits."""
    with _registry:
        lock = _locks.setdefault(pipeline, threading.RLock())
    while not lock.acquire(timeout=TURN):
        _check(cancel)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hooked(pipeline: DiffusionPipeline, hook_point: str, edit: Edit) -> Iterator[Moment]:
    """Inside the `with`, and in this thread, the output of the UNet's block `hook_point` goes through `edit`.

    `hook_point` is a module's name, as `up_blocks.1.attentions.1`, with or without "unet." before it. Tokens are in
    row-major order of the block's [B, C, H, W]. Where `edit` gives back the tokens it got, the output is untouched.
    The step is read off the timestep, so it is right for schedulers that call the UNet twice a step, too. Raises
    ValueError for an unknown hook point, or one whose output is not [B, C, H, W].
    """
    module, moment = _block(pipeline.unet, hook_point), Moment()

    def note(unet: nn.Module, args: tuple, kwargs: dict) -> None:
        moment.step = step_of(pipeline.scheduler, kwargs["timestep"] if "timestep" in kwargs else args[1])

    def replace(module: nn.Module, args: tuple, output: Any) -> Any:
        image = output if isinstance(output, Tensor) else output[0]
        if image.ndim != 4:
            raise ValueError(f"{hook_point} gives {list(image.shape)}; a hook point must give [B, C, H, W]")
        moment.size = tuple(image.shape[2:])
        given = args[0] if args and args[0].shape == image.shape else None
        tokens = _tokens(image)
        edited = edit(tokens, moment.step, None if given is None else _tokens(given))
        return None if edited is tokens else _with_image(output, edited.mT.reshape(image.shape))

    with (
        locked(pipeline),
        pipeline.unet.register_forward_pre_hook(note, with_kwargs=True),
        module.register_forward_hook(replace),
    ):
        yield moment


def step_of(scheduler: Any, timestep: Tensor | float) -> int:
    """Which denoising step a timestep belongs to, from 0: its share of the scheduler's distinct timesteps."""
    times = torch.as_tensor(scheduler.timesteps).unique()
    time = torch.as_tensor(timestep).flatten()[0].to(times)
    place = len(times) - 1 - int((times - time).abs().argmin())
    steps = scheduler.num_inference_steps or len(times)
    return int(place * (steps - 1) / max(len(times) - 1, 1) + 0.5)


def _block(unet: nn.Module, hook_point: str) -> nn.Module:
    blocks = {name: module for name, module in unet.named_modules() if name}
    name = hook_point.removeprefix("unet.")
    if name not in blocks:
        attentions = [known for known in blocks if known.split(".")[-2:-1] == ["attentions"]]
        close = difflib.get_close_matches(name, blocks, n=3) or attentions
        raise ValueError(f"the UNet has no block {name!r}; close to it: {', '.join(close)}")
    return blocks[name]


def _tokens(image: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return image.flatten(2).mT


def _with_image(output: Any, image: Tensor) -> Any:
    """A block's output (a tensor, a tuple, or a diffusers output) with its image replaced."""
    if isinstance(output, Tensor):
        return image
    return (image, *output[1:]) if isinstance(output, tuple) else type(output)(sample=image)


def _check(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("the run was cancelled")


# ---------------------------------------------------------------- generating


@dataclass(frozen=True)
class Order:
    """The images to generate. Raises ValueError for what cannot be."""

    prompts: tuple[str, ...]
    """One an image."""
    seeds: tuple[int, ...]
    """One an image, which depends on its own alone."""
    steps: int = 25
    guidance: float = 7.5
    """Classifier-free guidance; off at 1 and below."""

    def __post_init__(self):
        if not self.prompts or len(self.prompts) != len(self.seeds):
            raise ValueError(f"one seed a prompt: there are {len(self.prompts)} prompts and {len(self.seeds)} seeds")
        if self.steps < 1:
            raise ValueError(f"at least one denoising step is needed, not {self.steps}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, not {self.guidance}")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError("a seed must be a whole number from 0 to 2^63 - 1")


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
    concept or hook point.
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
    return Generated(both[:images], both[images:], edit.heat_map(moment.size) if heat else None)


def _apart(pipeline, order: Order, erasing: Erasing, heat: bool, tell: Callable, cancel) -> Generated:
    """In two batches, one after the other."""
    edit = _Edit(erasing, order, copies=1, heat=heat)
    before = _run(pipeline, order, 1, lambda i, n, clean: tell(Progress(i, 2 * n, clean, None)), cancel)
    with hooked(pipeline, erasing.hook_point, edit) as moment:
        after = _run(pipeline, order, 1, lambda i, n, clean: tell(Progress(n + i, 2 * n, None, clean)), cancel)
    return Generated(before, after, edit.heat_map(moment.size) if heat else None)


def draw(
    pipeline: DiffusionPipeline,
    order: Order,
    edit: Edit | None = None,
    hook_point: str = "",
    decoded: bool = True,
    cancel: threading.Event | None = None,
) -> list[Image.Image]:
    """The order's images as one batch, once: with `edit` at `hook_point`, or without. Empty where not `decoded`.

    Raises Cancelled where `cancel` is set.
    """

    def end_of_step(pipeline: DiffusionPipeline, i: int, timestep: Tensor, tensors: dict) -> dict:
        _check(cancel)
        return {}

    with locked(pipeline, cancel), nullcontext() if edit is None else hooked(pipeline, hook_point, edit):
        _check(cancel)
        found = pipeline(
            prompt=list(order.prompts),
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in order.seeds],
            output_type="pil" if decoded else "latent",
            callback_on_step_end=end_of_step,
        )
    return list(found.images) if decoded else []


def left_out(pipeline: DiffusionPipeline, prompt: str) -> str:
    """The end of the prompt that its text encoder does not read, for it has more tokens than fit; "" if all fit."""
    tokenizer = pipeline.tokenizer
    ids = tokenizer(prompt).input_ids
    return tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1]).strip()


def decode(pipeline: DiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    """Latents [images, C, h, w] -> the images they stand for."""
    vae = pipeline.vae
    upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)  # SDXL's overflows in float16
    with torch.no_grad(), locked(pipeline):
        try:
            vae.to(torch.float32 if upcast else vae.dtype)
            pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        finally:
            vae.to(torch.float16 if upcast else vae.dtype)
    return pipeline.image_processor.postprocess(pixels, output_type="pil")


class _Edit:
    """Erases in a batch that holds the order's images once, or twice: unedited, then edited.

    With guidance the batch is [unconditional of all | conditional of all], and both halves are edited.
    """

    def __init__(self, erasing: Erasing, order: Order, copies: int, heat: bool):
        self._eraser, self._settings = erasing.eraser, erasing.settings
        self._plans = plan(erasing.statistics, erasing.settings, order.steps)
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
            if heat:
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
    _check(cancel)
    clean: list[Tensor] = []

    def look(unet: nn.Module, args: tuple, output: Any) -> None:
        prediction = output[0]
        clean[:] = [_clean(pipeline.scheduler, args[0], args[1], prediction, len(order.seeds) * copies, order.guidance)]

    def end_of_step(pipeline: DiffusionPipeline, i: int, timestep: Tensor, tensors: dict) -> dict:
        _check(cancel)
        tell(i + 1, pipeline.num_timesteps, clean[0])
        return {}

    with pipeline.unet.register_forward_hook(look):
        return pipeline(
            prompt=list(order.prompts) * copies,
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in order.seeds * copies],
            callback_on_step_end=end_of_step,
        ).images


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

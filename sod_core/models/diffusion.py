"""Diffusion: loads a Stable Diffusion pipeline, and generates images before and after an erasure.

diffusers leaves no way into a UNet's block but a forward hook. The hook lives in a context manager (`hooked`) that
takes it off whatever happens, and holds the pipeline's lock: hook and scheduler are shared by all who use the pipeline.
diffusers is imported where it is used, for it takes seconds.
"""

from __future__ import annotations

import difflib
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..machine import torchvision_guard
from . import folders, parts, schedulers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
FOLDERS = (*parts.PARTS, "tokenizer", "tokenizer_2", "scheduler")
NOT_ASKED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that are left out, since nothing here asks them."""
TURN = 0.2
"""Seconds between looks at `cancel` while another run has the pipeline."""

Edit = Callable[[Tensor, int, Tensor | None], Tensor]
"""edit(tokens [B, N, D], step, the block's input as tokens or None where its shape differs) -> tokens [B, N, D]."""

_registry = threading.Lock()
_locks: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Cancelled(Exception):
    """The run was given up; the pipeline is as it was before."""


class NotFinite(ValueError):
    """A drawing came out with values that are no finite numbers, so that there is no image to show or to judge."""


# ---------------------------------------------------------------- loading


def load(
    source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, download: bool = False
) -> DiffusionPipeline:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline from a folder or a hub repository, sampling with DDIM.

    Only safetensors are read: the plain weights, else a variant of less precision. The safety checker, its feature
    extractor and an image encoder are left out, whether or not they are there, since nothing here asks them. A
    repository must be in the hub's cache already unless `download` is allowed. Raises ValueError for anything else
    that `source` may be, and for a pipeline that would be read in part only.

    Other threads may build modules meanwhile. With `low_cpu_mem_usage` theirs would have no weights ("meta"), and with
    another `dtype` theirs would be of that one: so it loads as float32, and converts afterwards.
    """
    torchvision_guard.install()
    with folders.loading:  # a thread that meets another's first import of diffusers is handed half of it
        import diffusers
        import transformers

    for library in (diffusers, transformers):  # what goes wrong raises; the rest is not for users
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity(logging.CRITICAL)
    folder = _folder(source, download)
    index = parts.index(folder)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise ValueError(f"{source} is a {kind or 'pipeline without a name'}; erase works on {' and '.join(PIPELINES)}")
    parts.refuse_others(index, (*FOLDERS, *NOT_ASKED))
    with folders.loading:
        pipeline = getattr(diffusers, kind)(**_components(folder, index, large=kind == PIPELINES[1]))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def _folder(source: str | Path, download: bool) -> Path:
    """Where the pipeline lies on this computer. Raises ValueError."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    wanted = [f"{name}/*.{suffix}" for name in FOLDERS for suffix in ("json", "txt", "model", "safetensors")]
    try:
        return Path(
            snapshot_download(str(source), local_files_only=not download, allow_patterns=["model_index.json", *wanted])
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} holds no diffusion pipeline (a folder with model_index.json): {str(error).splitlines()[0]}"
        ) from error


def _components(folder: Path, index: dict[str, Any], large: bool) -> dict[str, Any]:
    """What the pipeline's class is made of, by name; `large`: of an SDXL. Raises ValueError."""
    numbers = ("", "_2") if large else ("",)
    found: dict[str, Any] = {name: parts.read(folder, index, name) for name in ("unet", "vae")}
    found |= {f"text_encoder{n}": parts.read(folder, index, f"text_encoder{n}") for n in numbers}
    found |= {f"tokenizer{n}": _tokenizer(folder, index, f"tokenizer{n}") for n in numbers}
    encoders = [(found[f"text_encoder{n}"], found[f"tokenizer{n}"]) for n in numbers]
    parts.fit_together(found["unet"], found["vae"], encoders, "text_time" if large else None)
    named = index.get("scheduler")
    named = named[1] if isinstance(named, list) and len(named) == 2 else None
    found["scheduler"] = schedulers.read(folder / "scheduler", named, stable_diffusion=not large)
    if large:
        return found | {"force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", True)}
    return found | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _tokenizer(folder: Path, index: dict[str, Any], name: str) -> Any:
    """Raises ValueError."""
    import transformers

    library, kind = parts.class_of(index, name)
    if library != "transformers" or kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ValueError(f"the pipeline's {name} is a {library}.{kind}; CLIPTokenizer can be read")
    if not (folder / name).is_dir():
        raise ValueError(f"the pipeline's {name} is missing: there is no {folder / name}")
    folders.refuse_made_up(folder / name)
    try:
        return transformers.CLIPTokenizer.from_pretrained(str(folder / name), local_files_only=True)
    except Exception as error:  # the tokenizers' library raises no narrower kind for a damaged file
        raise ValueError(f"{folder / name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


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
        check(cancel)
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


def check(cancel: threading.Event | None) -> None:
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
        if any("\ud800" <= letter <= "\udfff" for prompt in self.prompts for letter in prompt):
            raise ValueError("the prompt holds bytes that are no text: give it in UTF-8")
        if self.steps < 1:
            raise ValueError(f"at least one denoising step is needed, not {self.steps}")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be a finite number from 0, not {self.guidance}")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError("a seed must be a whole number from 0 to 2^63 - 1")


def draw(
    pipeline: DiffusionPipeline,
    order: Order,
    edit: Edit | None = None,
    hook_point: str = "",
    decoded: bool = True,
    cancel: threading.Event | None = None,
) -> list[Image.Image]:
    """The order's images as one batch, once: with `edit` at `hook_point`, or without. Empty where not `decoded`.

    Raises Cancelled where `cancel` is set, and NotFinite.
    """

    def end_of_step(pipeline: DiffusionPipeline, i: int, timestep: Tensor, tensors: dict) -> dict:
        check(cancel)
        check_finite(tensors["latents"])
        return {}

    with locked(pipeline, cancel), nullcontext() if edit is None else hooked(pipeline, hook_point, edit):
        check(cancel)
        found = pipeline(
            prompt=list(order.prompts),
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in order.seeds],
            output_type="pt" if decoded else "latent",
            callback_on_step_end=end_of_step,
        )
    return pictures(pipeline, found.images) if decoded else []


def check_finite(drawn: Tensor) -> None:
    """Raises NotFinite for latents or pixels that are no picture."""
    if not bool(drawn.isfinite().all()):
        raise NotFinite("the drawing runs beyond all finite numbers: take a smaller factor, multiplier or guidance")


def pictures(pipeline: DiffusionPipeline, pixels: Tensor) -> list[Image.Image]:
    """Pixels [images, 3, H, W] from 0 to 1 as images. Raises NotFinite."""
    check_finite(pixels)
    processor = pipeline.image_processor
    return processor.numpy_to_pil(processor.pt_to_numpy(pixels))


def left_out(pipeline: DiffusionPipeline, prompt: str) -> str:
    """The end of the prompt that its text encoder does not read, for it has more tokens than fit; "" if all fit."""
    tokenizer = pipeline.tokenizer
    ids = tokenizer(prompt).input_ids
    return tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1]).strip()


def decode(pipeline: DiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    """Latents [images, C, h, w] -> the images they stand for. Raises NotFinite."""
    check_finite(latents)
    vae = pipeline.vae
    upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)  # SDXL's overflows in float16
    with torch.no_grad(), locked(pipeline):
        try:
            vae.to(torch.float32 if upcast else vae.dtype)
            pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        finally:
            vae.to(torch.float16 if upcast else vae.dtype)
    return pictures(pipeline, pipeline.image_processor.postprocess(pixels, output_type="pt"))

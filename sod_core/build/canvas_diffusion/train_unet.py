"""Trains the embedded Stable Diffusion pipeline: a text encoder and a UNet together, on a world's latents.

What makes it learn on two cores: latents drawn once; velocity prediction with a noise schedule that ends in pure
noise (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed"), without which backgrounds come
out grey; time steps spread evenly over a batch; the Muon optimiser (Jordan et al. 2024) for matrices and kernels; a
moving average of the weights; bfloat16. And token labels, as for the ViT (train_vit): a linear head, thrown away
afterwards, reads off the 8 x 8 tokens of the hook point which object covers each. Without them the network drew fine
textures and no objects for 2,000 steps: what an object is saves little error at any one noise level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import loop
from ..vit.train_vit import token_targets
from . import prompts

TOKENS = 24
"""Longest prompt, in tokens; real pipelines have 77."""
WIDTHS = (64, 128)
"""Channels at 16 x 16 and at 8 x 8."""
HOOK_POINT = "up_blocks.0.attentions.1"
TAUGHT_STEPS = 400
"""Of the text encoder, before the UNet is trained with it."""


@dataclass(frozen=True)
class Recipe:
    steps: int = 6000
    """The last `cooling` of them bring the learning rate to 0; a run may be resumed with another number before."""
    cooling: int = 1500
    warmup: int = 200
    batch: int = 64
    muon_lr: float = 4e-3
    adam_lr: float = 2e-3
    weight_decay: float = 0.01
    towards_noise: float = 0.5
    """Time steps are drawn as a share to this power: below 1 more of them are noisy, where the object is decided."""
    place_weight: float = 0.1
    """Weight of the token labels' loss at the hook point."""
    average: float = 0.999
    """Decay of the moving average of the weights."""
    seed: int = 0


class Latents(NamedTuple):
    """The world, encoded once."""

    values: Tensor
    """[n, 4, 16, 16], half precision, scaled to unit variance."""
    labels: np.ndarray
    """[n], index into `objects`."""
    styles: np.ndarray
    """[n], index into `style_names`."""
    coverage: np.ndarray
    """[n, 64] uint8: the object's share of each of 8 x 8 places, times 255."""
    objects: tuple[str, ...]
    style_names: tuple[str, ...]


class Trained(NamedTuple):
    unet: nn.Module
    text_encoder: nn.Module
    seconds: float


def new_unet() -> nn.Module:
    """A UNet of 4 M parameters over 4 x 16 x 16 latents; cross-attention at 8 x 8 only.

    What the prompt says also enters as a whole, pooled and added to the time embedding: by cross-attention alone the
    object was not learned in 2,000 steps. Almost all of it still passes through the output of
    `up_blocks.0.attentions.1`, the hook point, which is the last module at 8 x 8.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_tokenizer(texts: list[str]):
    """A CLIPTokenizer that has whole words for those of `texts` and spells all others; always the same.

    A word becomes whole from its left: "c a", "ca t</w>". Long words come first, so that no short word's merge breaks
    them up. (Learned merges are no choice: words that are equally frequent get another number in every run.)
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = {word for text in texts for word in text.lower().replace(".", " . ").split()}
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(words, key=lambda word: (-len(word), word)):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts[:2] = [parts[0] + parts[1]]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {word: place for place, word in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=list(merges), model_max_length=TOKENS)


def new_text_encoder(tokenizer) -> nn.Module:
    """A CLIPTextModel of two layers, width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        projection_dim=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    return CLIPTextModel(config)


def new_scheduler():
    """DDIM with velocity prediction, zero terminal signal-to-noise ratio and trailing time steps."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # trailing time steps do not use it, but diffusers asks for it
    )


def train(data: Latents, tokenizer, recipe: Recipe, checkpoint: Path, compiled: bool = True) -> Trained:
    """Both parts with the moving average of their weights, in evaluation mode.

    A step's batch, prompts, noise and time steps depend on (seed, step) alone. `compiled` needs a C++ compiler.
    """
    from diffusers.models.attention_processor import AttnProcessor

    torch.manual_seed(recipe.seed)
    model: Any = nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(tokenizer)})
    model["places"] = nn.Linear(WIDTHS[-1], len(data.objects) + 1)
    tokens_of: dict[str, Tensor] = {}
    model["unet"].get_submodule(HOOK_POINT).register_forward_hook(
        lambda module, inputs, output: tokens_of.update(hook_point=output[0])
    )
    model["unet"].set_attn_processor(AttnProcessor())  # torch's fused attention has a slow backward pass on CPU
    ids = _token_ids(tokenizer, prompts.all_forms(data.objects, data.style_names))
    if not checkpoint.exists():
        _tell_apart(model["text_encoder"], ids, data)
    average: Any = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=_averaging(recipe.average))
    unet = torch.compile(model["unet"]) if compiled else model["unet"]
    optimisers = _optimisers(model, recipe)
    scheduler = new_scheduler()

    def step(i: int) -> dict[str, str]:
        loop.set_rate(optimisers, _rate(i, recipe))
        noisy, target, times, tokens, places = _batch(data, ids, scheduler, recipe, i)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model["text_encoder"](tokens).last_hidden_state
            predicted = unet(noisy, times, states).sample
        loss = F.mse_loss(predicted.float(), target)
        read = model["places"](tokens_of.pop("hook_point").float().flatten(2).mT)
        placed = F.cross_entropy(read.flatten(0, 1), places.flatten(), ignore_index=-1)
        (loss + recipe.place_weight * placed).backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        average.update_parameters(model)
        return {"loss": f"{loss.item():.4f}", "places": f"{placed.item():.3f}"}

    parts = {"model": model, "average": average} | {f"optimiser{i}": o for i, o in enumerate(optimisers)}
    made_from = {name: value for name, value in asdict(recipe).items() if name not in ("steps", "cooling")}
    seconds = loop.train(step, recipe.steps, checkpoint, parts, made_from)
    unet, text_encoder = (average.module[name].requires_grad_(False).eval() for name in ("unet", "text_encoder"))
    return Trained(unet, text_encoder, seconds)


def _tell_apart(text_encoder: Any, ids: dict[str, Tensor], data: Latents) -> None:
    """Teaches the text encoder which object and which style a prompt names, a few seconds' work.

    Untaught, its outputs for two objects are so alike that the UNet does not find the difference.
    """
    names = {"objects": data.objects, "style_names": data.style_names}
    width = text_encoder.config.hidden_size
    heads = nn.ModuleDict({what: nn.Linear(width, len(known) + 1) for what, known in names.items()})
    labels = {what: torch.tensor([_named(text, known) for text in ids]) for what, known in names.items()}
    tokens = torch.stack(list(ids.values()))
    optimiser = torch.optim.AdamW([*text_encoder.parameters(), *heads.parameters()], lr=1e-3)
    for _ in range(TAUGHT_STEPS):
        pooled = text_encoder(tokens).last_hidden_state.mean(1)
        loss = torch.stack([F.cross_entropy(heads[what](pooled), label) for what, label in labels.items()]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _named(text: str, known: tuple[str, ...]) -> int:
    """Place of the name that is a word of the text; behind the last where none is."""
    words = text.replace(".", "").split()
    return next((i for i, name in enumerate(known) if name in words), len(known))


def _batch(data: Latents, ids: dict[str, Tensor], scheduler, recipe: Recipe, step: int) -> tuple[Tensor, ...]:
    """(noisy latents, velocity, time steps, token ids, what covers each place) of a step."""
    rng = np.random.default_rng((recipe.seed, step))
    noise_rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    chosen = rng.integers(0, len(data.labels), recipe.batch)
    clean = data.values[torch.as_tensor(chosen)].float()
    texts = [prompts.draw(data.objects[data.labels[c]], data.style_names[data.styles[c]], rng) for c in chosen]
    spread = (rng.permutation(recipe.batch) + rng.random(recipe.batch)) / recipe.batch
    spread = spread**recipe.towards_noise
    times = torch.as_tensor((spread * scheduler.config.num_train_timesteps).astype(np.int64))
    noise = torch.randn(clean.shape, generator=noise_rng)
    noisy = scheduler.add_noise(clean, noise, times)
    target = scheduler.get_velocity(clean, noise, times)
    labels = torch.as_tensor(data.labels[chosen])
    places = token_targets(torch.as_tensor(data.coverage[chosen]), labels, len(data.objects))
    return noisy, target, times, torch.stack([ids[text] for text in texts]), places


def _token_ids(tokenizer, texts: list[str]) -> dict[str, Tensor]:
    found = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return dict(zip(texts, found.input_ids))


def _rate(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: up, level, and down over the last `cooling` steps."""
    return min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / recipe.cooling)


def _averaging(decay: float):
    """The moving average, quicker at first, when the average would remember mostly the untrained weights."""

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, current, 1 - now)

    return torch.no_grad()(update)


class _Flat(torch.optim.Optimizer):
    """Muon for kernels as well: torch.optim.Muon takes matrices only, so [out, in, h, w] is shown to it as
    [out, in * h * w]."""

    def __init__(self, parameters: list[nn.Parameter], **options):
        self.originals = parameters
        self.flat = [nn.Parameter(p.detach().view(p.shape[0], -1)) for p in parameters]
        self.muon = torch.optim.Muon(self.flat, adjust_lr_fn="match_rms_adamw", **options)
        self.param_groups = self.muon.param_groups
        self.state = self.muon.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody passes a closure
        for flat, original in zip(self.flat, self.originals):
            flat.grad = None if original.grad is None else original.grad.view(original.shape[0], -1)
        self.muon.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for original in self.originals:
            original.grad = None

    def state_dict(self) -> dict:
        return self.muon.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state)
        self.param_groups = self.muon.param_groups


def _optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and kernels inside, AdamW for embeddings, biases, norms and the first and last layer."""
    outer = ("embedding", "conv_in", "conv_out")
    inner = [p for name, p in model.named_parameters() if p.ndim > 1 and not any(part in name for part in outer)]
    known = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in known]
    adam = torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.0)
    muon = _Flat(inner, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)
    for optimiser, rate in ((adam, recipe.adam_lr), (muon, recipe.muon_lr)):
        for group in optimiser.param_groups:
            group["peak_lr"] = rate
    return [adam, muon]

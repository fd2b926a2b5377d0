"""The parts of a diffusion pipeline's folder, each read whole or refused.

diffusers and transformers leave out what they do not know, and fill with random numbers what is missing, with a warning
at most. Here both are errors, as is anything beside the weights that would change what they compute.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..packs import recognise

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A model of a pipeline."""

    library: str
    classes: tuple[str, ...]
    """Those that are read."""
    stem: str
    """Of the weights' file names."""


CLIP = Part("transformers", ("CLIPTextModel", "CLIPTextModelWithProjection"), "model")
PARTS = {
    "unet": Part("diffusers", ("UNet2DConditionModel",), "diffusion_pytorch_model"),
    "vae": Part("diffusers", ("AutoencoderKL", "AutoencoderTiny"), "diffusion_pytorch_model"),
    "text_encoder": CLIP,
    "text_encoder_2": CLIP,
}
VARIANTS = ("fp16", "bf16")
"""Which is read where the plain weights are not there, first choice first; else the only one there is."""
BESIDE = re.compile(
    r"(.*lora.*|adapter_model.*|.*attn_procs.*|learned_embeds.*|.*textual_inversion.*)\.(safetensors|bin|pt)", re.I
)
"""Files that change a pipeline without being part of it."""
FLOATS = ("F64", "F32", "F16", "BF16")
UNREAD = re.compile(r"(.*\.)?(position_ids|text_projection\.weight)")
"""Of a CLIP text encoder: places counted from 0, and a layer that Stable Diffusion never asks."""


def index(folder: Path) -> dict[str, Any]:
    """model_index.json: the pipeline's class, and (library, class) of each part. Raises ValueError."""
    path = folder / "model_index.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no diffusion pipeline (a folder with model_index.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} describes no pipeline")
    _refuse_beside(folder)
    return found


def _refuse_beside(folder: Path) -> None:
    for beside in sorted(folder.iterdir()):
        if BESIDE.fullmatch(beside.name):
            raise ValueError(
                f"{beside} would change the pipeline and is not part of it: fuse it into the weights and save them, "
                "or take it out of the folder"
            )


def class_of(index: dict[str, Any], name: str) -> tuple[str, str]:
    """(library, class) of a part that the pipeline needs. Raises ValueError where the index does not name it."""
    found = index.get(name)
    if not (isinstance(found, list) and len(found) == 2 and all(isinstance(word, str) for word in found)):
        raise ValueError(f"the pipeline's {name} is missing: model_index.json names none")
    return found[0], found[1]


def refuse_others(index: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises ValueError for a part that the pipeline would have, and that is not read."""
    for name, found in index.items():
        if name not in known and isinstance(found, list) and any(found):
            raise ValueError(
                f"model_index.json names a part {name!r} ({'.'.join(map(str, found))}), which is not read and may "
                "change the pipeline: take it out if nothing is lost with it"
            )


def refuse_made_up(tokenizer: Path) -> None:
    """Raises ValueError for a tokenizer's folder without its words, which transformers would fill with none."""
    there = {path.name for path in tokenizer.iterdir()}
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        raise ValueError(f"{tokenizer} has no words: tokenizer.json is missing, or vocab.json and merges.txt")
    if "tokenizer_config.json" not in there:
        raise ValueError(f"{tokenizer} does not say how texts are filled up: tokenizer_config.json is missing")


def read(folder: Path, index: dict[str, Any], name: str) -> nn.Module:
    """A model of the pipeline, in float32 and whole. Raises ValueError."""
    import diffusers
    import transformers

    library, kind = class_of(index, name)
    part, place = PARTS[name], folder / name
    if library != part.library or kind not in part.classes:
        raise ValueError(f"the pipeline's {name} is a {library}.{kind}; {' and '.join(part.classes)} can be read")
    if not (place / "config.json").is_file():
        raise ValueError(f"the pipeline's {name} is missing: there is no {place / 'config.json'}")
    _refuse_quantised(place)
    _refuse_beside(place)
    variant = _variant(place, part.stem)
    options = {"low_cpu_mem_usage": False} if library == "diffusers" else {}
    try:
        model, told = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind).from_pretrained(
            str(place),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        if "mismatch" in str(error):
            raise ValueError(f"the weights in {place} have other shapes than its config.json says") from error
        raise ValueError(f"{place} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    _refuse_half_read(place, told, kind)
    _refuse_not_finite(place, model)
    return model


def _variant(place: Path, stem: str) -> str | None:
    """Which weights are read: the plain ones (None), else a variant of less precision, which is said in the log.

    Raises ValueError where there are none, or only pickles, or others that would change these.
    """
    form = re.compile(rf"{stem}(?:\.(\w+))??(-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")
    files = sorted(place.glob("*.safetensors"))
    fits = {file: form.fullmatch(file.name) for file in files}
    for file, fit in fits.items():
        if fit is None:
            raise ValueError(
                f"{file} is none of the weights that are read ({stem}.safetensors): if it belongs to them, fuse it "
                "into them; if not, take it out of the folder"
            )
    held = {file: _keys(file) for file in files}
    if not files:
        pickles = sorted((*place.glob("*.bin"), *place.glob("*.pt"), *place.glob("*.ckpt")))
        if pickles:
            raise ValueError(
                f"{pickles[0]} is a pickle, which can run code when it is read; convert it to .safetensors first"
            )
        raise ValueError(f"{place} has no weights: {stem}.safetensors is missing")
    kinds = {file: fit[1] or fit[3] for file, fit in fits.items() if fit}
    there = set(kinds.values())
    found = next((name for name in (None, *VARIANTS) if name in there), kinds[files[0]])
    if found not in (None, *VARIANTS) and len(there) > 1:
        raise ValueError(f"{place} has weights of several kinds ({', '.join(sorted(map(str, there)))}): leave one")
    chosen = [file for file, kind in kinds.items() if kind == found]
    shards = [file for file in chosen if (fit := fits[file]) and fit[2]]
    if shards and shards != chosen:
        raise ValueError(f"{place} holds the weights whole and in shards ({shards[0].name}): leave one of the two")
    if shards:
        _refuse_unnamed(place, {file: held[file] for file in shards}, stem)
    if found is not None:
        log.info("%s: the weights are there as %s only", place, found)
    return found


def _refuse_unnamed(place: Path, shards: dict[Path, set[str]], stem: str) -> None:
    """Raises ValueError for weights in shards that no index names: they would not be read."""
    named: dict[str, set[str]] = {}
    for path in sorted(place.glob(f"{stem}*.index*.json")):
        try:
            for key, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
                named.setdefault(file, set()).add(key)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as an index of shards ({type(error).__name__})") from error
    if not named:
        raise ValueError(f"the weights in {place} are in shards, and {stem}.safetensors.index.json is missing")
    for file, keys in shards.items():
        over = sorted(keys - named.get(file.name, set()))
        if over:
            raise ValueError(f"{file} holds {_some(over)}, which its index does not name: save the weights again")


def _refuse_quantised(place: Path) -> None:
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{place / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{place / 'config.json'} describes no model")
    if config.get("quantization_config"):
        raise ValueError(f"{place} holds quantised weights, which are not read: give the weights as floats")
    if (place / "adapter_config.json").exists():
        raise ValueError(f"{place} holds an adapter (adapter_config.json): merge it into the weights and save them")


def _keys(file: Path) -> set[str]:
    """The names of a file's weights. Raises ValueError for weights that are no floats: nobody would apply scales."""
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb") as begun:
            what = recognise.other(begun.read(recognise.HEAD))
        if what is not None:
            raise ValueError(f"{file} is {what}")
        with safe_open(file, "pt") as opened:
            kinds = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read, it may be cut short: {error}") from error
    for key, kind in kinds.items():
        if kind not in FLOATS and not key.endswith("position_ids"):
            raise ValueError(f"{file} holds {key} as {kind}, and weights are floats: quantised ones are not read")
    return set(kinds)


def _refuse_half_read(place: Path, told: dict[str, Any], kind: str) -> None:
    """Raises ValueError where weights were left over, or made up."""
    over = sorted(map(str, told.get("unexpected_keys") or ()))
    if kind == "CLIPTextModel":
        over = [key for key in over if not UNREAD.fullmatch(key)]
    lacking = sorted(key for key in map(str, told.get("missing_keys") or ()) if not key.endswith("position_ids"))
    if lacking:
        raise ValueError(f"the weights in {place} lack {_some(lacking)}: they are incomplete, or of another model")
    if over:
        raise ValueError(
            f"the weights in {place} hold {_some(over)}, which a {kind} of its config.json does not read: if they are "
            "an adapter's, fuse them into the weights and save these"
        )
    if told.get("mismatched_keys"):
        raise ValueError(f"the weights in {place} have other shapes than its config.json says")


def _refuse_not_finite(place: Path, model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the weights in {place} are broken: {name} holds values that are not finite")


def _some(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def fit_together(unet: Any, vae: Any, encoders: list[tuple[Any, Any]], added: str | None) -> None:
    """Raises ValueError where the parts make no pipeline that draws from a text alone.

    encoders: (text encoder, its tokenizer); added: what the pipeline gives the UNet beside the text.
    """
    config, channels = unet.config, vae.config.latent_channels
    if config.in_channels != channels or config.out_channels != channels:
        what = "an inpainting UNet's" if config.in_channels == 9 else "another task's, or another autoencoder's"
        raise ValueError(
            f"the UNet reads {config.in_channels} channels and gives {config.out_channels}, and the autoencoder has "
            f"{channels}: it is {what}, and erase draws from a text alone"
        )
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise ValueError("the UNet projects an adapter's or an image's features (encoder_hid_proj), which erase lacks")
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError("the UNet reads class labels (class_embed_type), and erase draws from a text alone")
    if not config.sample_size:
        raise ValueError("the UNet's config.json does not say sample_size, the size of what it draws")
    if config.addition_embed_type not in (None, "text", added):
        raise ValueError(
            f"the UNet reads {config.addition_embed_type!r} beside the text, and the pipeline gives {added!r}"
        )
    width, wanted = sum(encoder.config.hidden_size for encoder, _ in encoders), config.cross_attention_dim
    if wanted != width and set(wanted if isinstance(wanted, (list, tuple)) else [wanted]) != {width}:
        raise ValueError(f"the UNet reads texts of width {wanted}, and the text encoder gives {width}")
    for encoder, tokenizer in encoders:
        words = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > words:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} words and the text encoder {words}: words that were added "
                "(by textual inversion) have no embedding in its weights"
            )
        if len(tokenizer) < words:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} words and the text encoder {words}: it is another model's, or "
                "lacks words that were added"
            )
        most = encoder.config.max_position_embeddings
        if tokenizer.model_max_length > most:
            raise ValueError(
                f"the tokenizer fills texts up to {tokenizer.model_max_length} words and the text encoder reads {most}:"
                " correct model_max_length in tokenizer_config.json"
            )

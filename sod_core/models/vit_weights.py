"""Foreign weights to ours: ViT state dicts to timm names, and every form of SAE, statistics and expert file.

ViT names understood: Hugging Face transformers 4 (`vit.encoder.layer.0.attention.attention.query`) and 5
(`vit.layers.0.attention.q_proj`), and timm's own; bare or under model_state_dict / state_dict / model, with
or without `module.`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from ..packs.checkpoint import unwrap
from ..packs.errors import PackError
from . import vit as vits
from .vit import ViTShape

_HF_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
}
# In a block: transformers 4 and transformers 5 names for timm's.
_HF_BLOCK = {
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_HF_QKV = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
}


def new_vit(shape: ViTShape, found: Any, file: str) -> nn.Module:
    """A ViT with a checkpoint's weights in it, in evaluation mode. Raises PackError as `load_vit` does."""
    with torch.device("meta"):  # weights are not drawn first, to be thrown away then
        vit = vits.new(shape)
    load_vit(vit, found, file)
    return vit.requires_grad_(False).eval()


def load_vit(vit: nn.Module, found: Any, file: str) -> None:
    """Puts a checkpoint (whatever its names) into a timm ViT. Raises PackError naming file, key and shapes."""
    state = to_timm(unwrap(found, file), file)
    expected = vit.state_dict()
    missing = [key for key in expected if key not in state]
    if missing:
        raise PackError(f"{file} lacks {len(missing)} of {len(expected)} expected tensors, for example {missing[0]!r}")
    blocks = [key for key in state if re.match(rf"blocks\.{len(vit.blocks)}\.", key)]
    if blocks:
        raise PackError(f"{file} has more blocks than the {len(vit.blocks)} expected, for example {blocks[0]!r}")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise PackError(f"{file}: {key} has shape {_shape(state[key])}, expected {_shape(tensor)}{_meaning(key)}")
    vit.load_state_dict({key: state[key].float() for key in expected}, assign=True)


def _meaning(key: str) -> str:
    """What a shape that does not fit says of the model, for those who do not know tensors by heart."""
    meanings = {
        "cls_token": "the width of a token",
        "pos_embed": "1 + patches, so the size of the image or of a patch",
        "patch_embed.proj.weight": "the width of a token, and the size of a patch",
        "head.weight": "one row a class",
    }
    return f" ({meanings[key]})" if key in meanings else ""


HEAD_DIM = 64
"""Width of an attention head in every ViT of the paper (S, B, L, H); no shape in a checkpoint tells it."""


def vit_shape(found: Any, file: str) -> ViTShape:
    """What a checkpoint's tensors say of its ViT, heads taken to be HEAD_DIM wide. Raises PackError."""
    state = to_timm(unwrap(found, file), file)
    try:
        patches, dim = state["pos_embed"].shape[-2] - 1, state["pos_embed"].shape[-1]
        patch, classes = state["patch_embed.proj.weight"].shape[-1], state["head.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise PackError(f"{file} is no ViT's checkpoint: {error}") from error
    numbers = [int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", key) for key in state) if match]
    grid = math.isqrt(max(0, patches))
    whole = len(set(numbers)) == max(numbers, default=-1) + 1 > 0
    whole = whole and all(tensor.numel() for tensor in state.values())  # empty ones may claim any length beside the 0
    if not whole or grid < 1 or grid * grid != patches or dim < 1 or dim % HEAD_DIM:
        raise PackError(
            f"{file} does not tell its shape ({patches} patches, width {dim}, {len(set(numbers))} blocks): "
            "give patch, dim, depth and heads under vit in pack.json"
        )
    return ViTShape(grid * patch, patch, dim, max(numbers) + 1, dim // HEAD_DIM, classes)


def to_timm(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """State dict with Hugging Face (4 or 5) or timm names -> timm names; unknown keys keep theirs. Raises PackError."""
    renamed: dict[str, Tensor] = {}
    qkv: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = key.removeprefix("vit.")
        block = re.match(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)$", name)
        if block:
            number, part, kind = block.groups()
            part = part.removeprefix("mlp.") if part.endswith(".dense") else part
            if part in _HF_QKV:
                qkv.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[_HF_QKV[part]] = value
            else:
                renamed[f"blocks.{number}.{_HF_BLOCK.get(part, part)}.{kind}"] = value
            continue
        stem, dot, kind = name.rpartition(".")
        if name in _HF_OUTSIDE:
            renamed[_HF_OUTSIDE[name]] = value
        elif stem in _HF_OUTSIDE:
            renamed[f"{_HF_OUTSIDE[stem]}.{kind}"] = value
        else:
            renamed[name] = value
    for key, parts in qkv.items():
        if len({part.shape for part in parts.values()}) > 1:
            shapes = ", ".join(f"{name} {_shape(part)}" for name, part in sorted(parts.items()))
            raise PackError(f"{file}: the parts of {key} have different shapes: {shapes}")
        if len(parts) == 3:
            renamed[key] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return renamed


def to_published(vit: nn.Module, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """A timm ViT's weights under the names of the published checkpoints (transformers 4)."""
    outside = {ours: theirs for theirs, ours in _HF_OUTSIDE.items()}
    inside = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    inside |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    state = {}
    for key, value in vit.state_dict().items():
        value = value.to(dtype).contiguous().cpu()
        stem, _, kind = key.rpartition(".")
        prefix = "" if stem == "head" else "vit."
        block = re.match(r"blocks\.(\d+)\.(.+)$", stem)
        if block is None:
            state[prefix + (outside[key] if key in outside else f"{outside[stem]}.{kind}")] = value
        elif block[2] == "attn.qkv":
            for name, part in zip(("query", "key", "value"), value.chunk(3)):
                state[f"vit.encoder.layer.{block[1]}.attention.attention.{name}.{kind}"] = part.clone()
        else:
            state[f"vit.encoder.layer.{block[1]}.{inside[block[2]]}.{kind}"] = value
    return state


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))

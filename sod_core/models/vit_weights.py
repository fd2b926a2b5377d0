"""Foreign names of a ViT's weights to timm's, whatever file they come from.

Understood: Hugging Face transformers 4 (`vit.encoder.layer.0.attention.attention.query`) and 5
(`vit.layers.0.attention.q_proj`), torchvision (`encoder.layers.encoder_layer_0.self_attention.in_proj_weight`),
ViT-pytorch (`transformer.encoder.layer.0.attn.query`), and timm's own, under any prefix and inside of any containers.
What lies beside the expected tensors and could change what the model computes is a reason to refuse the file.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.names import Names
from ..packs import checkpoint
from ..packs.errors import PackError
from . import vit as vits
from . import vit_labels, weights
from .vit import ViTShape

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as ViT

log = logging.getLogger(__name__)

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
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_HF_QKV = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attn.query": "q",
    "attn.key": "k",
    "attn.value": "v",
}
_OUTSIDE = {
    **_HF_OUTSIDE,
    "fc": "head",
    # torchvision
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj": "patch_embed.proj",
    "encoder.ln": "norm",
    "heads.head": "head",
    "heads": "head",
    # ViT-pytorch
    "embeddings.patch_embeddings": "patch_embed.proj",
    "encoder.encoder_norm": "norm",
}
_BLOCK = {
    **_HF_BLOCK,
    # torchvision, newer and older
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.in_proj": "attn.qkv",
    "self_attention.out_proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "mlp.linear_1": "mlp.fc1",
    "mlp.linear_2": "mlp.fc2",
    # ViT-pytorch
    "attention_norm": "norm1",
    "ffn_norm": "norm2",
    "attn.out": "attn.proj",
    "ffn.fc1": "mlp.fc1",
    "ffn.fc2": "mlp.fc2",
}


_ANCHOR = r"(?:embeddings\.)?cls_token|class_token"
"""What every ViT here has, and nothing else does."""
_HEADS = ("head", "classifier", "fc", "heads.head", "heads")
"""What the classifier is called, inside of the ViT or beside it."""
_MEANINGS = {
    "cls_token": "the width of a token",
    "pos_embed": "1 + patches, so the size of the image or of a patch",
    "patch_embed.proj.weight": "the width of a token, and the size of a patch",
    "head.weight": "one row a class",
}
"""What a shape that does not fit says of the model, for those who do not know tensors by heart."""


def new_vit(
    shape: ViTShape,
    found: Any,
    file: str,
    classes: Names | Sequence[str] = (),
    say: Callable[[str], object] = log.warning,
) -> ViT:
    """A ViT with a checkpoint's weights in it, in evaluation mode. Arguments and errors are `load_vit`'s."""
    with torch.device("meta"):  # weights are not drawn first, to be thrown away then
        vit = vits.new(shape)
    load_vit(vit, found, file, classes, say)
    epsilon = vit_labels.epsilon(found, shape, file)
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon
    return vit.requires_grad_(False).eval()


def load_vit(
    vit: ViT,
    found: Any,
    file: str,
    classes: Names | Sequence[str] = (),
    say: Callable[[str], object] = log.warning,
) -> None:
    """Puts a checkpoint (a checkpoint.Checkpoint or its contents, whatever its names) into a timm ViT.

    `classes`: the head's rows are put into this order where the checkpoint says which row is which class. `say` is
    told what a user should know of how the file was read. Raises PackError naming file, key and shapes.
    """
    state, outside = _state(found, file, say)
    blocks = [key for key in state if re.match(rf"blocks\.{len(vit.blocks)}\.", key)]
    expected = vit.state_dict()
    if blocks and all(key in state for key in expected):
        raise PackError(f"{file} has more blocks than the {len(vit.blocks)} expected, for example {blocks[0]!r}")
    fitted = weights.fit(state, expected, file, outside, _MEANINGS)
    names = Names.of(classes)
    if names.classes:
        head = {key: fitted[key] for key in ("head.weight", "head.bias")}
        moved, other = vit_labels.in_order(head, found, names, file)
        fitted |= moved
        if other:
            say(f"{file} says in which order its classes are: the rows of its head were put into the pack's")
    vit.load_state_dict(fitted, assign=True)


def _state(found: Any, file: str, say: Callable[[str], object]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the ViT in a checkpoint by timm's names, and what lies beside it. Raises PackError."""
    models = checkpoint.models(found, _ANCHOR)
    if not models:
        states = checkpoint.state_dicts(found)
        if not checkpoint.has_weights(states):
            raise PackError(checkpoint.nothing(found, file))
        names = max(states.values(), key=len)
        some = ", ".join(repr(name[:80]) for name in list(names)[:3]) + (" ..." if len(names) > 3 else "")
        raise PackError(f"{file} is no ViT's checkpoint: it has no class token (cls_token), its tensors are {some}")
    wanted = found.key if isinstance(found, checkpoint.Checkpoint) else ""
    model = checkpoint.pick(models, wanted, file, say)
    state, outside = dict(model.tensors), dict(model.outside)
    parts = model.prefix.split(".")[:-1]
    for depth in range(len(parts) - 1, -1, -1):  # a head beside the ViT, as transformers has it
        above = ".".join(parts[:depth]) + "." if depth else ""
        heads = [head for head in _HEADS if f"{above}{head}.weight" in outside]
        if heads and not any(f"{head}.weight" in state for head in _HEADS):
            for kind in ("weight", "bias"):
                if f"{above}{heads[0]}.{kind}" in outside:
                    state[f"head.{kind}"] = outside.pop(f"{above}{heads[0]}.{kind}")
    if not any(f"{head}.weight" in state for head in _HEADS):
        for where, other in checkpoint.state_dicts(found).items():  # a head in a dictionary of its own
            beside = checkpoint.named(where[:-1]) == model.where.rpartition(".")[0]
            if where and where[-1] in _HEADS and beside and other.keys() <= {"weight", "bias"}:
                state |= {f"head.{kind}": value for kind, value in other.items()}
    return to_timm(state, file), outside | checkpoint.laid_over(found, models, model)


HEAD_DIM = 64
"""Width of an attention head in every ViT of the paper (S, B, L, H); no shape in a checkpoint tells it."""


def vit_shape(found: Any, file: str) -> ViTShape:
    """What a checkpoint's tensors say of its ViT, heads taken to be HEAD_DIM wide. Raises PackError."""
    state, _ = _state(found, file, lambda said: None)  # who loads it hears it
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
        name = key
        block = re.match(
            r"(?:encoder\.layer|layers|encoder\.layers\.encoder_layer)[._](\d+)\.(.+)[._](weight|bias)$", key
        )
        if block:
            number, part, kind = block.groups()
            part = part.removeprefix("mlp.") if part.endswith(".dense") else part
            if part in _HF_QKV:
                qkv.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[_HF_QKV[part]] = value
                continue
            if part in _BLOCK:
                name = f"blocks.{number}.{_BLOCK[part]}.{kind}"
        else:
            stem, _, kind = key.rpartition(".")
            if key in _OUTSIDE:
                name = _OUTSIDE[key]
            elif stem in _OUTSIDE:
                name = f"{_OUTSIDE[stem]}.{kind}"
        if name in renamed:
            raise PackError(f"{file} holds {name} twice, under two names")
        renamed[name] = value
    for key, parts in qkv.items():
        if len({part.shape for part in parts.values()}) > 1:
            shapes = ", ".join(f"{name} {_shape(part)}" for name, part in sorted(parts.items()))
            raise PackError(f"{file}: the parts of {key} have different shapes: {shapes}")
        quantised = [part for part in parts.values() if part.dtype not in weights.FLOATS]
        if quantised:  # which would not show beside parts that are not
            renamed[key] = quantised[0]
        elif len(parts) == 3:
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

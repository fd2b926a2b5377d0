"""The ViT, split at a layer: `head` takes images to a hidden state, `tail` takes a hidden state to logits.

Layers are counted from 0, as in the published files: the hidden state "at layer L" is the output of
block L, so `tail(vit, head(vit, images, L), L)` is the whole model. No hook is ever placed: one model
serves many visitors at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ..machine import torchvision_guard

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block
    from timm.models.vision_transformer import VisionTransformer as ViT


@dataclass(frozen=True)
class ViTShape:
    """What a manifest says of a ViT. `dim` is the width of a token, `heads` divide it."""

    image_size: int
    patch: int
    dim: int
    depth: int
    heads: int
    classes: int

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch


LAYER_NORM_EPS = 1e-12  # the Hugging Face ViT's; timm's own default is 1e-6


def new(shape: ViTShape) -> ViT:
    """A randomly initialised timm VisionTransformer of this shape (global pooling: the CLS token).

    Under `torch.device("meta")` it has no weights yet and costs nothing.
    """
    torchvision_guard.import_timm()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=shape.heads,
        num_classes=shape.classes,
        norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
    )


def head(vit: ViT, images: Tensor, layer: int) -> Tensor:
    """images [B, 3, H, W], normalised -> hidden state after block `layer`, [B, 1 + N, D], token 0 is CLS.

    Raises ValueError for a layer that the model does not have.
    """
    _check_layer(vit, layer)
    hidden = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block in vit.blocks[: layer + 1]:
        hidden = block(hidden)
    return hidden


def heads(vit: ViT, images: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """As `head`, for several layers in one pass: {layer: hidden state [B, 1 + N, D]}."""
    wanted = sorted(set(layers))
    found = {}
    hidden = head(vit, images, wanted[0])
    found[wanted[0]] = hidden
    for before, layer in zip(wanted, wanted[1:]):
        _check_layer(vit, layer)
        for block in vit.blocks[before + 1 : layer + 1]:
            hidden = block(hidden)
        found[layer] = hidden
    return found


def tail(vit: ViT, hidden: Tensor, layer: int) -> Tensor:
    """Hidden state after block `layer`, [B, 1 + N, D] -> logits [B, classes]."""
    _check_layer(vit, layer)
    for block in vit.blocks[layer + 1 : -1]:
        hidden = block(hidden)
    cls = _cls_of_block(vit.blocks[-1], hidden) if layer + 1 < len(vit.blocks) else hidden[:, 0]
    return vit.head(vit.norm(cls))


def _cls_of_block(block: Block, hidden: Tensor) -> Tensor:
    """What a block makes of CLS, [B, 1 + N, D] -> [B, D]: one query over every token's key and value, one MLP row.

    The classifier reads nothing else of the last block, which so costs a sixth of a whole one.
    """
    attention, normed = block.attn, block.norm1(hidden)
    weight, bias, dim = attention.qkv.weight, attention.qkv.bias, hidden.shape[-1]
    query = F.linear(normed[:, :1], weight[:dim], bias[:dim]).unflatten(-1, (attention.num_heads, -1))
    key_value = F.linear(normed, weight[dim:], bias[dim:]).unflatten(-1, (2, attention.num_heads, -1))
    key, value = key_value.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key, value).transpose(1, 2).flatten(2)
    cls = hidden[:, :1] + attention.proj(mixed)
    return (cls + block.mlp(block.norm2(cls)))[:, 0]


def logits(vit: ViT, images: Tensor) -> Tensor:
    """images [B, 3, H, W], normalised -> logits [B, classes]: the whole model in one go."""
    before_last = len(vit.blocks) - 2
    if before_last < 0:
        return tail(vit, head(vit, images, 0), 0)
    return tail(vit, head(vit, images, before_last), before_last)


def plain_attention_on_cpu(vit: ViT) -> None:
    """Fused attention's bfloat16 backward pass is several times slower than the plain one on CPUs."""
    if next(vit.parameters()).device.type == "cpu":
        for block in vit.blocks:
            block.attn.fused_attn = False


def _check_layer(vit: ViT, layer: int) -> None:
    if not 0 <= layer < len(vit.blocks):
        raise ValueError(f"layer {layer} does not exist: this ViT has layers 0 to {len(vit.blocks) - 1}")

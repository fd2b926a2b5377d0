"""Every file form of a TopK SAE and of its statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..packs.checkpoint import unwrap
from ..packs.errors import PackError
from .topk import TokenStats, TopKSAE

# Names of the same four tensors in the files seen: the publishers', sparsify's, sdxl-unbox's.
_SAE_NAMES = {
    "pre_bias": ("pre_bias", "b_dec", "b_pre"),
    "latent_bias": ("latent_bias", "encoder.bias", "b_enc"),
    "encoder": ("encoder.weight", "W_enc"),
    "decoder": ("decoder.weight", "W_dec"),
}


def load_sae(found: Any, k: int, dim: int, file: str) -> TopKSAE:
    """A TopK SAE from any published form; its width is read from the file. Raises PackError."""
    state = unwrap(found, file)
    parts = {}
    for part, names in _SAE_NAMES.items():
        key = next((name for name in names if name in state), None)
        if key is None:
            raise PackError(f"{file} is no sparse autoencoder: it has none of {', '.join(names)}")
        parts[part] = state[key].float()
    latents = parts["latent_bias"].numel()
    if parts["pre_bias"].numel() != dim:
        raise PackError(f"{file}: pre_bias has shape {_shape(parts['pre_bias'])}, expected ({dim},)")
    matrices = {}
    for part, expected in (("encoder", (latents, dim)), ("decoder", (dim, latents))):
        # W_enc and W_dec are stored in either orientation.
        matrix = parts[part]
        if matrix.ndim == 2 and matrix.shape != expected:
            matrix = matrix.T
        if matrix.shape != expected:
            raise PackError(f"{file}: {part} has shape {_shape(parts[part])}, expected {expected}")
        matrices[part] = matrix.contiguous()
    sae = TopKSAE(dim, latents, k)
    sae.encoder.weight.data, sae.decoder.weight.data = matrices["encoder"], matrices["decoder"]
    sae.pre_bias.data, sae.latent_bias.data = parts["pre_bias"].reshape(-1), parts["latent_bias"].reshape(-1)
    return sae.requires_grad_(False).eval()


def load_stats(found: Any, dim: int, file: str) -> TokenStats:
    """Statistics from {patch_mean, patch_std, cls_mean, cls_std}, {cls: .., patch: ..} or {mean, std}."""
    if not isinstance(found, dict):
        raise PackError(f"{file} holds no dictionary of means and standard deviations")
    flat = {}
    for key, value in found.items():
        if isinstance(value, dict):
            flat |= {f"{key}_{inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    flat.setdefault("patch_mean", flat.get("mean"))
    flat.setdefault("patch_std", flat.get("std"))
    arrays = {}
    for key in TokenStats._fields:
        value = flat.get(key)
        if value is None:
            if key.startswith("patch"):
                raise PackError(f"{file} has neither {key} nor {key.removeprefix('patch_')}")
            continue
        try:
            tensor = torch.as_tensor(value).float().reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PackError(f"{file}: {key} holds no numbers") from error
        if tensor.numel() not in (1, dim):
            raise PackError(f"{file}: {key} has shape {_shape(tensor)}, expected ({dim},)")
        if not tensor.isfinite().all() or (key.endswith("std") and tensor.min() <= 0):
            raise PackError(f"{file}: {key} must be finite{' and above 0' if key.endswith('std') else ''}")
        arrays[key] = tensor.expand(dim).clone()
    return TokenStats(**arrays)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))

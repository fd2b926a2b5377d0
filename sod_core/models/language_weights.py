"""Language models from files: a transformers folder with safetensors, or a GGUF file; each read whole or refused."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..machine import torchvision_guard
from . import parts

_loading = threading.Lock()


def read(place: Path) -> tuple[nn.Module, Any]:
    """(model in float32 on the CPU, tokenizer). Raises ValueError.

    In float32, for transformers would make another type the default of every thread while it loads.
    """
    torchvision_guard.install()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    gguf = place.suffix.lower() == ".gguf"
    where: dict[str, Any] = {"gguf_file": place.name} if gguf else {}
    folder = str(place.parent if gguf else place)
    safe = {"local_files_only": True, "trust_remote_code": False}
    with _loading:
        config = transformers.AutoConfig.from_pretrained(folder, **where, **safe)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where, **safe)
        options: dict[str, Any] = {"attn_implementation": "eager"} if _softcapped(config) else {}
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **where,
            **safe,
            **options,
        )
    parts._refuse_half_read(place, told, type(model).__name__)
    parts._refuse_not_finite(place, model)
    return model, tokenizer


def _softcapped(config: Any) -> bool:
    """Gemma 2's attention has a soft cap, which only the eager code computes in every version."""
    return getattr(config, "attn_logit_softcapping", None) is not None


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that reads text."""
    return model.config.get_text_config()  # type: ignore[union-attr, operator]


def limits(model: nn.Module) -> tuple[int, tuple[int, ...]]:
    """The longest text in tokens, and the ids that end one."""
    config = text_config(model)
    ends: set[int] = set()
    for of in (config, getattr(model, "generation_config", None)):
        found = getattr(of, "eos_token_id", None)
        ends |= set(found if isinstance(found, (list, tuple)) else [] if found is None else [found])
    return int(config.max_position_embeddings), tuple(sorted(ends))


def replacements(model: nn.Module, tensors: dict[str, Tensor]) -> dict[int, Any]:
    """For copy.deepcopy: what stands for each weight of the model, by its id. Raises ValueError."""
    kept = {id(value): value for value in model.parameters()}
    mine: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    memo: dict[int, Any] = dict(kept)
    given: dict[int, str] = {}
    for name, tensor in tensors.items():
        if name not in mine:
            raise ValueError(f"the weights hold {name!r}, which a {type(model).__name__} does not have")
        old = mine[name]
        if tensor.shape != old.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, and the model's has {list(old.shape)}")
        new = tensor.to(old.device, old.dtype)
        if not bool(new.isfinite().all()):
            raise ValueError(f"{name} holds values that are no finite numbers")
        other = given.setdefault(id(old), name)
        if other != name and not torch.equal(memo[id(old)], new):
            raise ValueError(f"{name} and {other} are one tensor in this model, and the weights hold two values")
        memo[id(old)] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    return memo

"""Language models from files: a transformers folder with safetensors, or a GGUF file; each read whole or refused.

Of a folder, transformers gets the configuration, the tokenizer and the tensors, and never the folder itself: there it
looks for adapters, pickles and code as well.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..machine import torchvision_guard
from ..packs import recognise
from . import folders

TEXT_PART = {"gemma3": re.compile(r"^(language_model\.(?=model\.|lm_head\.)|model\.language_model\.)")}
"""Models of texts and pictures whose text part is read: what stands before the names of its weights."""
PICTURES = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")
ASKED = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
"""Arguments of a pass."""
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
T = TypeVar("T")


def read(place: Path) -> tuple[nn.Module, Any]:
    """(model in float32 on the CPU, tokenizer). Raises ValueError.

    In float32, for transformers would make another type the default of every thread while it loads.
    """
    torchvision_guard.install()
    with folders.loading:  # a thread that meets another's first import of transformers is handed half of it
        import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    if not place.exists():
        raise ValueError(f"there is no language model at {place}")
    if place.is_dir():
        model, tokenizer = _read_folder(place)
    elif place.suffix.lower() == ".gguf":
        model, tokenizer = _read_gguf(place)
    else:
        raise ValueError(f"{place} is no language model: give a folder of transformers (with config.json), or a .gguf")
    folders.refuse_not_finite(place, model)
    return model, tokenizer


def _read_folder(place: Path) -> tuple[nn.Module, Any]:
    import transformers

    if not (place / "config.json").is_file():
        raise ValueError(f"{place} holds no language model: there is no config.json")
    folders.read_config(place)
    folders.refuse_beside(place)
    folders.refuse_made_up(place)
    _, files = folders.chosen(place, "model")
    with folders.loading:
        config = _asked(place, lambda: transformers.AutoConfig.from_pretrained(str(place), **LOCAL))
        tokenizer = _asked(place, lambda: transformers.AutoTokenizer.from_pretrained(str(place), **LOCAL))
        tensors = _tensors(files)
        if config.get_text_config() is not config:
            config, tensors = _text_part(place, config, tensors)
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{place} holds a {config.model_type}, which is no causal language model")
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        options = {"config": config, "state_dict": tensors, **_options(config)}
        model, told = _asked(place, lambda: kind.from_pretrained(None, **options))
    folders.refuse_half_read(place, told, kind.__name__)
    model.generation_config.eos_token_id = _ends(place) or model.generation_config.eos_token_id
    return model, tokenizer


def _options(config: Any) -> dict[str, Any]:
    """Gemma 2's attention has a soft cap, which only the eager code computes in every version."""
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    attention = "eager" if capped else "sdpa"
    return {"dtype": torch.float32, "attn_implementation": attention, "output_loading_info": True, **LOCAL}


def _asked(place: Path, work: Callable[[], T]) -> T:
    """What transformers reads; whatever it raises becomes one sentence."""
    try:
        return work()
    except Exception as error:  # it raises many kinds for damaged files, the tokenizers' library no narrower one
        if "mismatch" in str(error):
            raise ValueError(f"the weights in {place} have other shapes than its config.json says") from error
        raise ValueError(f"{place} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def _tensors(files: list[Path]) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in files:
        found |= load_file(file)
    return found


def _text_part(place: Path, config: Any, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The configuration and the weights of the part that reads texts. Raises ValueError."""
    begins = TEXT_PART.get(config.model_type)
    if begins is None:
        known = " and ".join(TEXT_PART)
        raise ValueError(
            f"{place} holds a {config.model_type}, which reads more than texts; the text part alone can be read of "
            f"{known}: give a model of texts"
        )
    # transformers 5 saves `model.language_model.layers`, the hub's files have `language_model.model.layers`
    mine = {key: value for key, value in tensors.items() if not PICTURES.match(key)}
    named = {
        begins.sub(lambda m: "model." if m[0].startswith("model.") else "", key): value for key, value in mine.items()
    }
    return config.get_text_config(), named


def _ends(place: Path) -> list[int]:
    """The ids that end a text, as generation_config.json has them, where there is one."""
    path = place / "generation_config.json"
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(id) is int for id in ends):
        raise ValueError(f"{path} names no token ids as eos_token_id")
    return ends


# ---------------------------------------------------------------- GGUF


def _read_gguf(place: Path) -> tuple[nn.Module, Any]:
    """Whatever its weights are stored as, they are unpacked to float32."""
    import transformers

    with place.open("rb") as begun:
        head = begun.read(recognise.HEAD)
    if not head.startswith(b"GGUF"):
        raise ValueError(f"{place} is {recognise.other(head) or 'no GGUF file'}")
    unpacked = transformers.GgufConfig(dequantize=True)
    with folders.loading, tempfile.TemporaryDirectory() as alone, _read_once(place) as reader:
        _refuse_scaled(place, reader)
        # transformers would also read what lies beside the file
        (Path(alone) / "model.gguf").symlink_to(place.resolve())
        where = {"gguf_file": "model.gguf", **LOCAL}
        config = _asked(place, lambda: transformers.AutoConfig.from_pretrained(alone, **where))
        tokenizer = _asked(place, lambda: transformers.AutoTokenizer.from_pretrained(alone, **where))
        options = {"config": config, "quantization_config": unpacked, **where, **_options(config)}
        model, told = _asked(
            place, lambda: transformers.AutoModelForCausalLM.from_pretrained(alone, use_safetensors=True, **options)
        )
    folders.refuse_half_read(place, told, type(model).__name__)
    _refuse_left_out(place, {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}, model)
    return model, tokenizer


@contextmanager
def _read_once(place: Path) -> Iterator[Any]:
    """The file's reader, also for transformers, which would make one for each thing it asks: seconds each.

    Only for who holds `folders.loading`. Raises ValueError.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError(f"{place} cannot be read without the package gguf: `pip install gguf`") from None
    from transformers import modeling_gguf_pytorch_utils as theirs

    reader = _asked(place, lambda: gguf.GGUFReader(str(place)))
    with (
        patch.object(gguf, "GGUFReader", lambda *_: reader),
        patch.object(theirs, "tqdm", lambda tensors, **_: tensors),
    ):
        yield reader


def _refuse_scaled(place: Path, reader: Any) -> None:
    """Raises ValueError for positions that are scaled, which transformers passes over in a GGUF file."""
    for name, field in reader.fields.items():
        if name.endswith(".rope.scaling.type") and field.contents() not in ("none", None):
            raise ValueError(
                f"{place} scales its positions ({name} is {field.contents()}), which is not read from a GGUF file: "
                "take the model as a folder of transformers"
            )


def _refuse_left_out(place: Path, held: dict[str, int], model: nn.Module) -> None:
    """Raises ValueError where the file holds more numbers than the model took: transformers passes them over."""
    taken = sum(parameter.numel() for parameter in model.parameters())
    if sum(held.values()) != taken:
        odd = [name for name in held if name.startswith("rope") or not re.match(r"blk\.\d+\.|token|output", name)]
        named = f", such as {odd[0]}" if odd else ""
        raise ValueError(
            f"{place} holds {sum(held.values())} numbers and a {type(model).__name__} takes {taken}: it has tensors "
            f"that would not be read{named}"
        )


# ---------------------------------------------------------------- a model in memory


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that reads text."""
    return model.config.get_text_config()  # type: ignore[union-attr, operator]


def check_forward(model: nn.Module) -> None:
    """Raises ValueError for a model whose passes cannot be asked for what they are asked here."""
    taken = inspect.signature(model.forward).parameters
    lacking = [name for name in ASKED if name not in taken]
    if lacking:
        raise ValueError(f"a {type(model).__name__} cannot be used: its passes take no {lacking[0]}")


def limits(model: nn.Module) -> tuple[int, tuple[int, ...]]:
    """The longest text in tokens, and the ids that end one. Raises ValueError."""
    config = text_config(model)
    ends: set[int] = set()
    for of in (config, getattr(model, "generation_config", None)):
        found = getattr(of, "eos_token_id", None)
        ends |= set(found if isinstance(found, (list, tuple)) else [] if found is None else [found])
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        raise ValueError(f"a {config.model_type} does not say how many tokens it reads (max_position_embeddings)")
    return longest, tuple(sorted(ends))


def replacements(model: nn.Module, tensors: dict[str, Tensor]) -> dict[int, Any]:
    """For copy.deepcopy: what stands for each weight of the model, by its id. Raises ValueError."""
    mine = dict(model.named_parameters(remove_duplicate=False))
    memo: dict[int, Any] = {id(value): value for value in mine.values()}
    given: dict[int, str] = {}
    for name, tensor in tensors.items():
        if name not in mine:
            raise ValueError(f"the weights hold {name!r}, which a {type(model).__name__} does not have")
        old = mine[name]
        if tensor.shape != old.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, and the model's has {list(old.shape)}")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: quantised weights are not read")
        new = nn.Parameter(tensor.to(old.device, old.dtype), requires_grad=False)
        if not bool(new.isfinite().all()):
            raise ValueError(f"{name} holds values that are no finite numbers")
        other = given.setdefault(id(old), name)
        if other != name and not torch.equal(memo[id(old)], new):
            raise ValueError(f"{name} and {other} are one tensor in this model, and the weights hold two values")
        memo[id(old)] = new
    return memo

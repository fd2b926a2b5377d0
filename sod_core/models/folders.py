"""A folder of weights as diffusers and transformers write them, read whole or refused.

Both leave out what they do not know, and fill with random numbers what is missing, with a warning at most. Here that is
an error, as is anything beside the weights that would change what they compute.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

from torch import nn

from ..packs import recognise

log = logging.getLogger(__name__)

loading = threading.Lock()
"""diffusers and transformers switch parts of torch off while they load, and two at once would leave them off."""
VARIANTS = ("fp16", "bf16")
"""Which is read where the plain weights are not there, first choice first; else the only one there is."""
BESIDE = re.compile(
    r"(.*lora.*|adapter_model.*|.*attn_procs.*|learned_embeds.*|.*textual_inversion.*)\.(safetensors|bin|pt)", re.I
)
"""Files that change a pipeline without being part of it."""
FLOATS = ("F64", "F32", "F16", "BF16")


def refuse_beside(folder: Path) -> None:
    for beside in sorted(folder.iterdir()):
        if BESIDE.fullmatch(beside.name):
            raise ValueError(
                f"{beside} would change the model and is not part of it: fuse it into the weights and save them, "
                "or take it out of the folder"
            )


def refuse_made_up(tokenizer: Path) -> None:
    """Raises ValueError for a tokenizer's folder without its words, which transformers would fill with none."""
    there = {path.name for path in tokenizer.iterdir()}
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        raise ValueError(f"{tokenizer} has no words: tokenizer.json is missing, or vocab.json and merges.txt")
    if "tokenizer_config.json" not in there:
        raise ValueError(f"{tokenizer} does not say how texts are filled up: tokenizer_config.json is missing")


def read_config(place: Path) -> dict[str, Any]:
    """config.json of a folder. Raises ValueError, too for quantised weights and adapters."""
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
    return config


def chosen(place: Path, stem: str) -> tuple[str | None, list[Path]]:
    """Which weights are read: the plain ones (None), else a variant of less precision, which is said in the log.

    With their files.

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
    read = [file for file, kind in kinds.items() if kind == found]
    shards = [file for file in read if (fit := fits[file]) and fit[2]]
    if shards and shards != read:
        raise ValueError(f"{place} holds the weights whole and in shards ({shards[0].name}): leave one of the two")
    if shards:
        _refuse_unnamed(place, {file: held[file] for file in shards}, stem)
    if found is not None:
        log.info("%s: the weights are there as %s only", place, found)
    return found, read


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
            raise ValueError(f"{file} holds {some(over)}, which its index does not name: save the weights again")


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


def refuse_half_read(place: Path, told: dict[str, Any], kind: str, unread: re.Pattern[str] | None = None) -> None:
    """Raises ValueError where weights were left over, but for those whose names fit `unread`, or made up."""
    over = sorted(map(str, told.get("unexpected_keys") or ()))
    if unread is not None:
        over = [key for key in over if not unread.fullmatch(key)]
    lacking = sorted(key for key in map(str, told.get("missing_keys") or ()) if not key.endswith("position_ids"))
    if lacking:
        raise ValueError(f"the weights in {place} lack {some(lacking)}: they are incomplete, or of another model")
    if over:
        raise ValueError(
            f"the weights in {place} hold {some(over)}, which a {kind} of its config.json does not read: if they are "
            "an adapter's, fuse them into the weights and save these"
        )
    if told.get("mismatched_keys"):
        raise ValueError(f"the weights in {place} have other shapes than its config.json says")


def refuse_not_finite(place: Path, model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the weights in {place} are broken: {name} holds values that are not finite")


def some(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")

"""Folders of the hub of which only some files are wanted: a language model's, and a sparse autoencoder's.

What is here is found without asking the network; what has to be fetched is read off the repository's own list.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from . import checkpoint, hub
from .errors import PackError
from .hub import HubFile
from .source import Source

WORDS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
"""A tokenizer's words, one of these beside TOKENIZER; `models.folders.refuse_made_up` wants the same."""
TOKENIZER = "tokenizer_config.json"
_BESIDE = ("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
"""Are not needed, but change what is read: generation_config.json says what ends a text."""
_MODEL = (checkpoint.CONFIG, *sorted(set().union(*WORDS)), TOKENIZER, *_BESIDE)
_WHOLE, _INDEX, _SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"
SAE_WEIGHTS = ("params.npz", "params.safetensors", "sae_weights.safetensors", "sae.safetensors")
_SAE = ("config.json", "cfg.json", *SAE_WEIGHTS)
"""In this order: an SAE counts as here when its weights are, and without its config it may be read as another."""


def model_here(source: Source) -> Path | None:
    """The folder of a transformers model, if all of it is on this computer: config, tokenizer, safetensors."""
    config, whole, index = (hub.cached(source.file(name)) for name in (checkpoint.CONFIG, _WHOLE, _INDEX))
    if config is None or not _has_tokenizer({name for name in _MODEL if hub.cached(source.file(name))}):
        return None
    if whole is None:
        if index is None or not all(hub.cached(source.file(name)) for name in checkpoint.shards(index)):
            return None
    return config.parent


def model_files(source: Source) -> list[HubFile]:
    """What has to be fetched of a transformers model: its config, tokenizer and safetensors, nothing else.

    Asks the hub for the repository's list. Raises PackError, also for a repository without safetensors.
    """
    there = _listed(source)
    weights = [_WHOLE] if _WHOLE in there else [name for name in there if name == _INDEX or fnmatchcase(name, _SHARDS)]
    where = f"{source.repo_id}/{source.folder}" if source.folder else source.repo_id
    if not any(name.endswith(".safetensors") for name in weights):
        raise PackError(f"{where} has no model.safetensors: weights in another form are not read")
    if checkpoint.CONFIG not in there or not _has_tokenizer(there):
        raise PackError(
            f"{where} lacks config.json or a tokenizer ({TOKENIZER}, and tokenizer.json or vocab.json and merges.txt): "
            "it is no language model that can be read"
        )
    return _missing(source, [*(name for name in _MODEL if name in there), *weights])


def _has_tokenizer(names: Collection[str]) -> bool:
    return TOKENIZER in names and any(words <= set(names) for words in WORDS)


def sae_here(source: Source) -> Path | None:
    """The folder of a sparse autoencoder, if its weights are on this computer."""
    found = [path for name in SAE_WEIGHTS if (path := hub.cached(source.file(name))) is not None]
    return found[0].parent if found else None


def sae_files(source: Source) -> list[HubFile]:
    """What has to be fetched of a sparse autoencoder: its weights, and the config where there is one.

    Asks the hub for the repository's list. Raises PackError, also for a folder without weights.
    """
    there = _listed(source)
    if not any(name in there for name in SAE_WEIGHTS):
        raise PackError(
            f"{source.repo_id} has no sparse autoencoder in {source.folder or 'its root'}: "
            f"expected one of {', '.join(SAE_WEIGHTS)}"
        )
    return _missing(source, [name for name in _SAE if name in there])


def _listed(source: Source) -> list[str]:
    """The names of the files in the source's folder itself."""
    start = f"{source.folder}/" if source.folder else ""
    paths = [file.path for file in hub.listing(source.repo_id, source.revision)]
    return [path[len(start) :] for path in paths if path.startswith(start) and "/" not in path[len(start) :]]


def _missing(source: Source, names: list[str]) -> list[HubFile]:
    return [file for name in names if hub.cached(file := source.file(name)) is None]

"""Everything of a diffusion pack, loaded once and shared: the pipeline, its SAEs, the concepts' statistics, judges."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ..machine import devices
from ..models import diffusion
from ..packs import find, hub, safe
from ..packs.errors import PackError
from ..packs.figures import read_json
from ..packs.hub import HubFile
from ..packs.kept import Kept
from ..sparse import forms
from ..sparse.description import Setting
from ..sparse.topk import TopKSAE
from . import edit, judges, manifest
from .manifest import SAEEntry

PICKLES = (".pkl", ".pickle")
ERASED = "figures/erased.json"
"""What `build canvas-diffusion --only erased` stored."""


@dataclass(frozen=True)
class ConceptSetting:
    """How one concept is best erased: by our factor, or by the authors' multiplier."""

    percentile: float
    factor: float | None = None
    multiplier: float | None = None


class ErasePack:
    """A diffusion pack. Loading is lazy, happens once, and is safe from several threads."""

    def __init__(self, folder: Path, device: torch.device | None = None):
        """Reads pack.json only. Raises PackError."""
        self.manifest = manifest.read(Path(folder))
        self.device = device or devices.choose_device()
        self._kept = Kept()

    # ------------------------------------------------------------ models

    def pipeline(self) -> Any:
        """The diffusers pipeline; the same object for everybody. Raises PackError where it is not on this computer."""
        return self._kept.get("pipeline", self._load_pipeline)

    def _load_pipeline(self) -> Any:
        m = self.manifest
        folder = m.folder / m.pipeline
        here = ":" not in m.pipeline and (folder / "model_index.json").is_file()
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        try:
            return diffusion.load(folder if here else m.pipeline, self.device, dtype)
        except ValueError as error:
            told = str(error) if here else f"the pipeline of {m.name} is not on this computer: {m.note or error}"
            raise PackError(told) from error

    def sae(self, id: str) -> TopKSAE:
        """An SAE of the hook point. Raises PackError."""
        return self._kept.get(("sae", id), lambda: self._load_sae(self.manifest.sae(id)))

    def _load_sae(self, entry: SAEEntry) -> TopKSAE:
        config = self._file(entry, *forms.CONFIGS)
        settings = forms.read_config(config)
        dim, k = (_whole(settings, names) for names in (("d_in", "d_model", "activation_dim"), ("k", "top_k")))
        if dim is None or (entry.k is None and k is None):
            raise PackError(f"{config.name} of the SAE {entry.id} does not say d_in and k")
        file = self._file(entry, *forms.WEIGHTS)
        # trained with BatchTopK, these are used with TopK
        sae = forms.load_sae(safe.read_torch(file), entry.k, dim, forms.shown(file), settings, batch_topk=True)
        return sae.to(self.device)

    def eraser(self, id: str) -> edit.Eraser:
        """An SAE with its weights laid out for erasing."""
        return self._kept.get(("eraser", id), lambda: edit.Eraser(self.sae(id)))

    def statistics(self, id: str) -> edit.ConceptStatistics | None:
        """The concepts' mean latents for an SAE; None where the pack names none or they are not here yet."""
        entry = self.manifest.sae(id)
        path = self.statistics_file(entry)
        return None if path is None else self._kept.get(("statistics", id), lambda: self._load_statistics(entry, path))

    def statistics_file(self, entry: SAEEntry) -> Path | None:
        """The file that the manifest names, or else what our command made in its place; None if neither is here."""
        if entry.statistics is None:
            return None
        ours = str(PurePosixPath(entry.statistics).with_suffix(".safetensors"))
        return self._beside(entry.statistics) or self._beside(ours)

    def _load_statistics(self, entry: SAEEntry, path: Path) -> edit.ConceptStatistics:
        found = read_statistics(path)
        if found.means.shape[2] != self.sae(entry.id).latents:
            raise PackError(
                f"{path.name} was made for an SAE of {found.means.shape[2]} latents, "
                f"{entry.id} has {self.sae(entry.id).latents}"
            )
        return found

    def settings(self, id: str) -> dict[str, ConceptSetting]:
        """The best setting of each concept, by name; empty where the pack has none."""
        path = self._beside(self.manifest.sae(id).settings)
        return {} if path is None else self._kept.get(("settings", id), lambda: read_settings(path))

    def erased(self) -> dict[str, Any] | None:
        """UA, IRA and CRA of every SAE and fidelity as they are stored; None where nothing is. Raises PackError."""
        path = self.manifest.path(ERASED)
        if not path.is_file():
            return None
        found = self._kept.get("erased", lambda: read_json(path))
        if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
            raise PackError(f"{ERASED} of pack {self.manifest.name} holds no figures of erasing")
        return found

    def judge(self, what: str) -> judges.Judge | None:
        """The judge of "object" or "style"; None where the pack has none here. Raises PackError for a broken one."""
        entry = self.manifest.judges.get(what)
        path = None if entry is None else self._beside(entry.file)
        if entry is None or path is None:
            return None
        return self._kept.get(("judge", what), lambda: judges.load(path, entry.spec, self.device))

    def both_judges(self) -> tuple[judges.Judge, judges.Judge]:
        """Of the object, and of the style. Raises PackError where the pack has not both here."""
        object, style = self.judge("object"), self.judge("style")
        if object is None or style is None:
            raise PackError(f"pack {self.manifest.name} has no judges here; the images can be judged elsewhere")
        return object, style

    # ------------------------------------------------------------ files

    def lacking(self, id: str | None = None) -> list[HubFile]:
        """What has to be fetched from the hub, for one SAE or for all.

        Weights that come in one of two forms count as the first of them.
        """
        files = []
        for entry in self._entries(id):
            if entry.source is not None:
                for names in (forms.CONFIGS, forms.WEIGHTS):
                    wanted = [entry.source.file(name) for name in names]
                    here = any((self.manifest.path(entry.folder) / name).is_file() for name in names)
                    if not here and not any(hub.cached(file) for file in wanted):
                        files.append(wanted[0])
        return files

    def ready(self) -> bool:
        """Whether at least one of the SAEs can erase with what is on this computer."""
        return any(not self.missing(entry.id) for entry in self.manifest.saes)

    def missing(self, id: str | None = None) -> list[str]:
        """A sentence for everything that erasing with one SAE, or with all, needs and that is not on this computer."""
        m, found = self.manifest, []
        if (
            ":" not in m.pipeline
            and "/" not in m.pipeline
            and not (m.folder / m.pipeline / "model_index.json").is_file()
        ):
            found.append(f"the pipeline is missing: {m.note}")
        found += [f"{file.repo_id}/{file.path}: `python -m sod_core packs get {m.name}`" for file in self.lacking(id)]
        for entry in self._entries(id):
            if self.statistics_file(entry) is None:
                command = f"python -m sod_core erase statistics --pack {m.name} --sae {entry.id}"
                found.append(f"the statistics of {entry.title} are missing: `{command}`")
        return found

    def _entries(self, id: str | None) -> tuple[SAEEntry, ...]:
        return self.manifest.saes if id is None else (self.manifest.sae(id),)

    def _file(self, entry: SAEEntry, *names: str) -> Path:
        """The first of `names` that is in the SAE's folder or in the hub's cache. Raises PackError."""
        for name in names:
            path = self.manifest.path(entry.folder) / name
            if path.is_file():
                return path
            found = hub.cached(entry.source.file(name)) if entry.source else None
            if found is not None:
                return found
        get = f"; `python -m sod_core packs get {self.manifest.name}` fetches it" if entry.source else ""
        raise PackError(f"the SAE {entry.title} is not on this computer ({' or '.join(names)} in {entry.folder}){get}")

    def _beside(self, file: str | None) -> Path | None:
        path = None if file is None else self.manifest.path(file)
        return path if path is not None and path.is_file() else None


def _whole(settings: list[Setting], names: tuple[str, ...]) -> int | None:
    found = [setting.value for setting in settings if setting.key in names]
    return found[0] if found and type(found[0]) is int and found[0] > 0 else None


def open_erase_pack(name: str, device: torch.device | None = None) -> ErasePack:
    """A diffusion pack by its name, or by its folder. Raises PackError."""
    return ErasePack(find.folder(name, manifest.KIND), device)


def shared_erase_pack(name: str) -> ErasePack:
    """As `open_erase_pack`, opened once for everybody in this process."""
    return find.shared(name, manifest.KIND, ErasePack)


def folders() -> dict[str, Path]:
    """Name -> folder of every diffusion pack."""
    return find.folders(manifest.KIND)


def write_statistics(statistics: edit.ConceptStatistics, path: Path) -> None:
    """Writes `means` [C, T, F] in half precision and `counts` [C] as safetensors; the names are its metadata."""
    from safetensors.torch import save_file

    tensors = {"means": statistics.means.half().contiguous(), "counts": statistics.counts.to(torch.int64).contiguous()}
    save_file(tensors, path, {"concepts": json.dumps(statistics.names), "unit": "latents, averaged over tokens"})


def read_statistics(path: Path) -> edit.ConceptStatistics:
    """Our safetensors, or the authors' pickle: concept -> [samples, steps, F]. Raises PackError."""
    if path.suffix.lower() in PICKLES:
        found = safe.read_pickle(path)
        fits = isinstance(found, dict) and found and all(_is_latents(value) for value in found.values())
        if not fits or len({tuple(value.shape[1:]) for value in found.values()}) > 1:
            raise PackError(f"{path.name} holds no latents: expected concept -> [samples, steps, latents]")
        return _finite(edit.statistics({str(name): value for name, value in found.items()}), path)
    tensors = safe.read_torch(path)
    means, counts = tensors.get("means"), tensors.get("counts")
    try:
        names = json.loads(_metadata(path).get("concepts", "null"))
    except (ValueError, RecursionError):
        names = None
    fits = isinstance(means, Tensor) and means.ndim == 3 and means.is_floating_point() and 0 not in means.shape
    fits = fits and isinstance(counts, Tensor) and counts.shape == means.shape[:1] and bool((counts > 0).all())
    if not fits or not isinstance(names, list) or len(set(map(str, names))) != len(means):
        raise PackError(
            f"{path.name} holds no statistics of concepts; `python -m sod_core erase statistics` makes them"
        )
    return _finite(edit.ConceptStatistics(tuple(map(str, names)), means.float(), counts), path)


def _finite(found: edit.ConceptStatistics, path: Path) -> edit.ConceptStatistics:
    """The statistics. Raises PackError where they are no finite numbers."""
    for name, mean in zip(found.names, found.means):
        if not bool(mean.isfinite().all()):
            raise PackError(f"{path.name} is broken: the latents of {name} are no finite numbers")
    return found


def _is_latents(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() and len(value) > 0


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def read_settings(path: Path) -> dict[str, ConceptSetting]:
    """Our JSON {concept: {percentile, factor}}, or the authors' class_params.pth {concept: {percentile, multiplier}}.

    Raises PackError.
    """
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise PackError(f"{path.name} cannot be read: {error}") from error
    else:
        found = safe.read_torch(path)
    try:
        return {str(name): _setting(item) for name, item in found.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackError(f"{path.name} holds no settings of concepts ({error})") from error


def _setting(item: dict[str, Any]) -> ConceptSetting:
    factor, multiplier = (None if item.get(key) is None else float(item[key]) for key in ("factor", "multiplier"))
    if (factor is None) == (multiplier is None):
        raise ValueError("a concept needs either a factor or a multiplier")
    found = ConceptSetting(float(item["percentile"]), factor, multiplier)
    if not 0 <= found.percentile <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {found.percentile}")
    if not all(math.isfinite(scale) for scale in (factor, multiplier) if scale is not None):
        raise ValueError("a factor or multiplier is a finite number")
    return found

"""The stored atlas of a pack: written whole, and on reading checked whole against itself and the pack.

A .npz file of plain arrays, one of which is JSON: the pack's classes, the models, and the sums of all files that the
figures depend on. Images are not stored: an atlas points into the pack's own set, which gives the same ones again.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..machine.files import whole
from ..packs import figures
from ..packs.errors import PackError
from .atlas import ORIGINAL, STRONGEST, TOGETHER
from .atlas_layers import Atlas, Layer, Model
from .pack import Pack

FILE = "atlas.npz"
FORMAT = 1
MOST_BYTES = 5_000_000
"""Of a stored atlas."""
DETAIL = ((255, STRONGEST), (63, STRONGEST), (15, STRONGEST), (15, 8), (15, 4), (15, 0))
"""Of the heat, finest first: in how many steps of the latent's largest value, and on how many of its images."""


# ---------------------------------------------------------------- writing


def write(atlas: Atlas, path: Path, most: int = MOST_BYTES) -> None:
    """Compressed by LZMA, the heat in the finest DETAIL at which the file has at most so many bytes.

    Raises ValueError where the file cannot be written, or is larger even without the heat.
    """
    try:
        with whole(path) as part:
            for levels, images in DETAIL:
                _write(atlas, part, levels, images)
                if part.stat().st_size <= most:
                    return
            raise ValueError(f"the atlas has more than {most} bytes even without heat: name fewer models")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def _write(atlas: Atlas, path: Path, levels: int, images: int) -> None:
    about = json.dumps(_about(atlas) | {"levels": levels})
    arrays = {"about": np.frombuffer(about.encode(), np.uint8)}
    arrays |= {"labels": _small(atlas.labels), "styles": _small(atlas.image_styles)}
    for number, layer in atlas.layers.items():
        arrays |= {f"{number}/{name}": array for name, array in _arrays(layer, levels, images).items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_LZMA)


def _about(atlas: Atlas) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "pack": atlas.pack,
        "data": atlas.data,
        "classes": atlas.classes,
        "styles": atlas.styles,
        "models": [model._asdict() for model in atlas.models],
        "sums": {str(layer): found for layer, found in atlas.sums.items()},
    }


def _arrays(layer: Layer, levels: int, images: int) -> dict[str, np.ndarray]:
    top = layer.peaks[:, :1, None].clamp(min=1e-30)
    steps = (layer.heat[:, :images] / top * levels).ceil()  # what fires a little is not 0
    return {
        "class_fires": _small(layer.class_fires),
        "class_strength": _half(layer.class_strength),
        "style_fires": _small(layer.style_fires),
        "style_strength": _half(layer.style_strength),
        "patches": layer.patches.float().numpy(),
        "cls": layer.cls.float().numpy(),
        "on_object": layer.on_object.half().numpy(),
        "strongest": _small(layer.strongest),
        "peaks": _half(layer.peaks),
        "heat": steps.clamp(max=levels).to(torch.uint8).numpy(),
        "together": _small(layer.together),
        "overlap": layer.overlap.half().numpy(),
    }


def _small(found: Tensor) -> np.ndarray:
    """Whole numbers in as few bytes as hold them."""
    array = found.numpy()
    return array.astype(np.int16 if not array.size or array.max() < 2**15 else np.int32)


def _half(found: Tensor) -> np.ndarray:
    """Half precision, where that holds the values."""
    half = found.half()
    return half.numpy() if half.isfinite().all() else found.float().numpy()


# ---------------------------------------------------------------- reading


def read(pack: Pack) -> Atlas | None:
    """The pack's stored atlas (`python -m sod_core atlas --pack NAME`); None where it has none.

    Raises PackError for a file that is damaged, of another version, or of another pack's classes or layers. Whether the
    models and SAEs are still the ones it was made of, `stale` says.
    """
    path = pack.manifest.folder / FILE
    if not path.is_file():
        return None
    found = figures.read_npz(path)
    try:
        about = json.loads(found["about"].tobytes())
        if about["format"] != FORMAT:
            raise PackError(f"{path.name} has format {about['format']!r}, this version reads format {FORMAT}")
        atlas = _read(about, found)
    except PackError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise PackError(f"{path.name} is damaged: it does not hold what an atlas holds") from error
    problem = _fault(atlas, pack)
    if problem:
        raise PackError(f"{path.name} {problem}")
    return atlas


def _read(about: dict[str, Any], found: dict[str, np.ndarray]) -> Atlas:
    """Raises KeyError, ValueError or TypeError where it is not of the form that `write` gives."""
    classes, styles = tuple(map(str, about["classes"])), tuple(map(str, about["styles"]))
    models = tuple(
        Model(str(m["id"]), None if m["target"] is None else int(m["target"]), str(m["sum"])) for m in about["models"]
    )
    labels, image_styles = _numbers(found["labels"], 0, len(classes)), _numbers(found["styles"], 0, len(styles))
    if labels.ndim != 1 or image_styles.shape != ((len(labels),) if styles else (0,)):
        raise ValueError("labels")
    if not models or models[0].id != ORIGINAL or any(m.target not in range(len(classes)) for m in models[1:]):
        raise ValueError("models")
    sums = {int(layer): (str(one), str(other)) for layer, (one, other) in about["sums"].items()}
    sizes, levels = (len(models), len(classes), len(styles), len(labels)), int(about["levels"])
    if levels not in [level for level, _ in DETAIL]:
        raise ValueError("levels")
    layers = {layer: _read_layer(found, f"{layer}/", levels, *sizes) for layer in sums}
    return Atlas(str(about["pack"]), str(about["data"]), classes, styles, labels, image_styles, models, layers, sums)


def _read_layer(
    found: dict[str, np.ndarray], at: str, levels: int, models: int, classes: int, styles: int, images: int
) -> Layer:
    latents, shown, patches = found[at + "heat"].shape
    shapes = {
        "class_fires": (models, classes, latents),
        "class_strength": (models, classes, latents),
        "style_fires": (models, styles, latents),
        "style_strength": (models, styles, latents),
        **dict.fromkeys(("patches", "cls", "on_object"), (latents,)),
        **dict.fromkeys(("strongest", "peaks"), (latents, STRONGEST)),
        "heat": (latents, min(shown, STRONGEST), patches),
        **dict.fromkeys(("together", "overlap"), (latents, TOGETHER)),
    }
    if any(found[at + name].shape != shape for name, shape in shapes.items()) or found[at + "heat"].dtype != np.uint8:
        raise ValueError("shapes")
    real = {name: _real(found[at + name]) for name in ("class_strength", "style_strength", "patches", "cls", "overlap")}
    heat, peaks = torch.from_numpy(found[at + "heat"]).float(), _real(found[at + "peaks"])
    return Layer(
        class_fires=_numbers(found[at + "class_fires"], 0, images + 1),
        style_fires=_numbers(found[at + "style_fires"], 0, images + 1),
        strongest=_numbers(found[at + "strongest"], -1, images),
        peaks=peaks,
        heat=heat * (peaks / levels)[:, :1, None],
        together=_numbers(found[at + "together"], -1, latents),
        on_object=torch.from_numpy(found[at + "on_object"]).float(),
        **real,
    )


def _numbers(found: np.ndarray, least: int, end: int) -> Tensor:
    """Whole numbers from `least` to below `end`. Raises ValueError."""
    if found.dtype.kind not in "iu" or (found.size and not least <= found.min() <= found.max() < end):
        raise ValueError("numbers")
    return torch.from_numpy(found.astype(np.int64))


def _real(found: np.ndarray) -> Tensor:
    """Finite numbers, none below 0. Raises ValueError."""
    if found.dtype.kind != "f" or not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError("figures")
    return torch.from_numpy(found.astype(np.float32))


def _fault(atlas: Atlas, pack: Pack) -> str:
    """Why a sound atlas does not fit the pack; "" where it does."""
    m = pack.manifest
    if atlas.classes != m.classes:
        return f"was made for the classes {', '.join(atlas.classes)}, which are not those of pack {m.name}"
    if set(atlas.layers) != set(m.layers):
        return f"has the layers {', '.join(map(str, atlas.layers))}, pack {m.name} has {', '.join(map(str, m.layers))}"
    for layer in atlas.layers.values():
        if m.vit is not None and layer.heat.shape[2] != m.vit.grid**2:
            return f"has {layer.heat.shape[2]} patches an image, the models of pack {m.name} have {m.vit.grid**2}"
    return ""

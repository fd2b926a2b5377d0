"""Makes `import timm` and `import transformers` work where torchvision's compiled operators cannot load.

PyPI's torchvision wheel is built against CUDA torch. Beside a CPU build of torch its operators stay
unregistered, and torchvision's own fake-tensor registrations then raise `operator torchvision::nms does
not exist` (pytorch/vision issue 9085). Declaring the two missing schemas is enough to import: nothing
here ever calls them. Where the operators do load (CUDA wheels, matching CPU wheels) nothing is done.
"""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_lock = threading.RLock()
_library = None  # a torch Library unregisters its schemas when collected: keep it


def install() -> bool:
    """Declares the missing schemas if they are missing. Returns True where it had to. Safe to call often."""
    global _library
    import torch

    with _lock:
        if _library is not None or importlib.util.find_spec("torchvision") is None or _operators_load(torch):
            return False
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        return True


def import_timm() -> None:
    """Imports timm whole, one thread at a time: two that enter its circular imports at once see half of it."""
    install()
    with _lock:
        import timm  # noqa: F401


def _operators_load(torch) -> bool:
    """Tries to load torchvision's operators without importing torchvision (importing is what fails)."""
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    folder = Path(spec.submodule_search_locations[0])
    for library in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")):
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError, ImportError):
            continue
    return hasattr(torch.ops.torchvision, "nms")

"""A model's tensors against those in a checkpoint: all there, nothing else, numbers, of the expected shapes."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..packs.errors import PackError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_QUANTISED = re.compile(
    r"(^|[._])(SCB|(weight|input)_scale(_inv)?|absmax|quant_(map|state).*|qweight|qzeros|g_idx|zero_points?|"
    r"weight_format|_packed_params.*)$"
)
_UNUSED = re.compile(r"(^|\.)(pooler\.dense\.(weight|bias)|position_ids|mask_token)$")
"""What classifying an image never reads: a pooler, the numbers of the positions, what stands for a masked patch."""
_AROUND = re.compile(
    r"^(.*\.)?((\w+_)?(criterion|loss|acc|accuracy|metrics?|f1|auc|auroc|precision|recall|conf_?mat|confusion|top[15])"
    r"(_\w+)?\.|(class|pos|loss|ce)_weights?$)",
    re.IGNORECASE,
)
"""What belongs to training: a loss's weights, what a metric has counted."""


def fit(
    state: dict[str, Tensor],
    expected: dict[str, Tensor],
    file: str,
    outside: dict[str, Tensor] | None = None,
    meanings: dict[str, str] | None = None,
) -> dict[str, Tensor]:
    """The tensors that a model expects, in float32. Raises PackError naming what is missing, left over or no number.

    `outside`: what lies beside the model in the file; `meanings`: what a shape that does not fit says.
    """
    left = {key: value for key, value in state.items() if key not in expected and not _changes_nothing(key, value)}
    for key, value in (outside or {}).items():
        if not _changes_nothing(key, value) and not _AROUND.search(key):
            left[key] = value
    _check_kinds(state, expected, left, file)
    missing = [key for key in expected if key not in state]
    if missing:
        beside = f"; it holds {_some(left)}, which this model does not have" if left else ""
        lacks = f"{file} lacks {len(missing)} of {len(expected)} expected tensors, for example {missing[0]!r}"
        raise PackError(lacks + beside)
    if left:
        what = "tensors" if len(left) > 1 else "a tensor"
        raise PackError(f"{file} holds {what} that this model does not have, and may compute otherwise: {_some(left)}")
    found = {}
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            meaning = f" ({meanings[key]})" if meanings and key in meanings else ""
            raise PackError(f"{file}: {key} has shape {_shape(state[key])}, expected {_shape(tensor)}{meaning}")
        found[key] = state[key].to(torch.float32) if tensor.is_floating_point() else state[key]
        if not found[key].isfinite().all():
            bad = (~found[key].isfinite()).sum().item()
            raise PackError(f"{file}: {key} holds {bad} values that are no finite numbers (NaN or infinite)")
    _check_filled(found, file)
    return found


def _check_filled(found: dict[str, Tensor], file: str) -> None:
    """Weights that nothing was ever written to, and those that only say which of others count."""
    matrices = {key: value for key, value in found.items() if value.ndim > 1 and key.endswith("weight")}
    matrices.pop("head.weight", None)  # one that names nothing is a model that does not work
    empty = next((key for key, value in matrices.items() if not value.any()), None)
    if empty is not None:
        raise PackError(f"{file}: {empty} holds nothing but zeros: the file is damaged, or was never filled")
    if matrices and all(((value == 0) | (value == 1)).all() for value in matrices.values()):
        raise PackError(f"{file} is a mask, not a model: its weights are all 0 or 1")


def _check_kinds(state: dict[str, Tensor], expected: dict[str, Tensor], left: dict[str, Tensor], file: str) -> None:
    """Integers where weights are expected, or the scales of such: it was quantised."""
    kinds = {key: str(value.dtype).removeprefix("torch.") for key, value in state.items() if key in expected}
    wrong = [key for key in kinds if expected[key].is_floating_point() and state[key].dtype not in FLOATS]
    scales = [key for key in left if _QUANTISED.search(key)]
    if wrong or scales:
        named = f"{wrong[0]} is {kinds[wrong[0]]}" if wrong else f"it holds {scales[0]!r}"
        raise PackError(f"{file} looks quantised ({named}): save the model's weights as float16 or float32")


def _changes_nothing(key: str, value: Tensor) -> bool:
    """Counters, whatever they count, and what is never read."""
    counter = value.numel() == 1 and not value.is_floating_point() and not value.is_complex()
    return counter or bool(_UNUSED.search(key))


def _some(left: dict[str, Tensor]) -> str:
    return ", ".join(repr(key[:80]) for key in list(left)[:2]) + (f" and {len(left) - 2} more" if len(left) > 2 else "")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))

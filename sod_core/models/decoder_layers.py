"""The decoder layers of a language model, found by what they do, and the one hook that reads and edits their output.

Architectures keep their layers under other names (`model.layers`, `transformer.h`, `gpt_neox.layers`), and others nest
lists of the same length. The list that is meant is the one that carries the residual stream: each module's input is the
output of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]
"""hidden [B, T, D] -> hidden [B, T, D]; the tensor it got where nothing is to change."""


class Enough(Exception):
    """Ends a pass after the layer that was wanted; never seen outside of `until`."""


def find(model: nn.Module, depth: int) -> list[nn.Module]:
    """The `depth` decoder layers, in the order in which they run. Runs the model once, on one token.

    Raises ValueError where no list of modules carries the residual stream, or more than one.
    """
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    seen: dict[nn.Module, list[tuple[Tensor | None, Tensor | None]]] = {}
    order: list[nn.Module] = []

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        seen.setdefault(module, []).append((kwargs.get("hidden_states", given), hidden_of(output)))
        order.append(module)

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in {m for found in lists for m in found}]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = [modules for modules in lists if _carries(modules, seen, order)]
    if len(found) != 1:
        told = "none" if not found else "more than one"
        raise ValueError(
            f"a {type(model).__name__} cannot be used: of its lists of {depth} modules {told} hands the hidden state "
            "from module to module"
        )
    return found[0]


def _carries(
    modules: list[nn.Module], seen: dict[nn.Module, list[tuple[Tensor | None, Tensor | None]]], order: list[nn.Module]
) -> bool:
    """Whether each ran once, in order, and was given what the one before had put out."""
    if any(len(seen.get(module, ())) != 1 for module in modules) or [m for m in order if m in modules] != modules:
        return False
    passed = [seen[module][0] for module in modules]
    if any(given is None or put is None or put.ndim != 3 or given.shape != put.shape for given, put in passed):
        return False
    return all(put is given or torch.equal(put, given) for (_, put), (given, _) in zip(passed, passed[1:]))  # type: ignore[arg-type]


def hidden_of(output: Any) -> Tensor | None:
    """The hidden state [B, T, D] in a layer's output: a bare tensor in transformers 5, a tuple in 4."""
    found = output[0] if isinstance(output, tuple) and output else output
    return found if isinstance(found, Tensor) else None


@contextmanager
def edited(layer: nn.Module, edit: Edit) -> Iterator[None]:
    """Inside the `with`, what the layer puts out goes through `edit`; the hook is removed whatever happens.

    The module is shared: only who holds the model's turn may be in here.
    """

    def replace(module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = hidden_of(output)
        assert hidden is not None  # `find` has seen it
        new = edit(hidden)
        if new is hidden:
            return None
        return new if isinstance(output, Tensor) else (new, *output[1:])

    with layer.register_forward_hook(replace):
        yield


def until(layer: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What `layer` puts out [B, T, D] while `run` runs the model, which is ended there: no later layer runs."""
    kept: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        kept.append(hidden)
        raise Enough

    try:
        with edited(layer, keep):
            run()
    except Enough:
        pass
    return kept[0]

"""The rules by which the house is built: who may import whom."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "sod_core"
VERBS = ("restore", "erase", "clamp", "mask")
BELOW = ("data", "machine", "models", "packs", "sparse", "worlds")
"""What verbs stand on."""
SCREEN = ("gradio", "gradio_client", "plotly")


@cache
def modules() -> dict[str, Path]:
    """Name -> file of every module, packages by their __init__."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """Module -> all that it imports, at its top, in functions and for type checkers alike; of this house by module."""
    return {
        name: imported(path.read_text(encoding="utf-8"), name, path.stem == "__init__")
        for name, path in modules().items()
    }


def imported(text: str, name: str, is_package: bool = False) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in modules() else base)
    return found


def room(module: str) -> str:
    """ "restore" of sod_core.restore.edit; "" of sod_core itself."""
    parts = module.split(".")[1:]
    return parts[0] if parts else ""


def crossings(allowed) -> list[str]:
    """Every import between rooms that allowed(from room, to room) forbids, as a line."""
    return [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if other.startswith("sod_core") and not allowed(room(name), room(other))
    ]


def test_a_verb_imports_no_other_verb():
    assert crossings(lambda here, there: here not in VERBS or there not in VERBS or here == there) == []


def test_nothing_below_a_verb_imports_one_or_what_lies_above():
    above = (*VERBS, "unlearn", "build", "ui", "__main__")
    assert crossings(lambda here, there: here not in BELOW or there not in above) == []


def test_a_tab_draws_its_own_verb_only():
    for name, others in imports().items():
        if name.startswith("sod_core.ui.") and name.split(".")[2] in VERBS:
            foreign = [verb for verb in VERBS if verb != name.split(".")[2]]
            found = {
                other
                for other in others
                for verb in foreign
                if other.startswith((f"sod_core.{verb}", f"sod_core.ui.{verb}"))
            }
            assert not found, name


def test_the_core_knows_no_screen():
    for name, others in imports().items():
        if room(name) not in ("ui", "__main__"):  # the command line knows every room
            assert not [
                other for other in others if other.split(".")[0] in SCREEN or other.startswith("sod_core.ui")
            ], name


def test_there_is_no_circle():
    """None, not even one that is hidden in a function."""
    inside = {
        name: {other for other in others if other in modules() and other != name} for name, others in imports().items()
    }
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(inside[name]):
                follow(other, (*way, name))
            done.add(name)

    for name in inside:
        follow(name, ())


def test_the_reader_of_imports_sees_all_kinds():
    text = "import gradio as gr\ndef f():\n    from ..packs import hub\n    from .pack import Pack"
    found = {"gradio", "sod_core.packs.hub", "sod_core.erase.pack"}
    assert imported(text, "sod_core.erase.command") == found
    assert imported("from . import edit", "sod_core.erase", is_package=True) == {"sod_core.erase.edit"}


def test_a_file_is_read_in_one_sitting_and_says_what_it_is_for():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, name
        assert ast.get_docstring(ast.parse(text)), name

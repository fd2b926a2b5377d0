"""The Space (README.md's front matter) and the container, as far as they can be checked without either."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import ROOT
from fake_hub import FakeHub
from huggingface_hub import SpaceHardware

COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
"""The hub's."""
LONGEST_DESCRIPTION = 60
"""The hub refuses a README.md with a longer one."""


class Preload(NamedTuple):
    """An entry of preload_from_hub: "repo_id file,file", or "repo_id file,file commit"."""

    repo_id: str
    files: set[str]
    revision: str = "main"


@pytest.fixture(scope="module")
def space() -> dict[str, Any]:
    """README.md's front matter."""
    start, front, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert start == "", "front matter must be the first thing in README.md"
    return yaml.safe_load(front)


def packs() -> dict[str, dict[str, Any]]:
    """Name -> pack.json of every pack that ships with the project."""
    return {path.parent.name: json.loads(path.read_text()) for path in (ROOT / "assets").glob("*/pack.json")}


def pinned(package: str) -> str:
    """The version in requirements.txt."""
    return dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())[package]


# ---------------------------------------------------------------- the Space


def test_the_card_is_one_that_the_hub_takes(space):
    assert space["title"] and space["emoji"] and space["license"] == "mit"
    assert {space["colorFrom"], space["colorTo"]} <= set(COLOURS)
    assert 0 < len(space["short_description"]) <= LONGEST_DESCRIPTION
    assert space["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}


def test_the_space_runs_what_is_tested(space):
    assert space["sdk"] == "gradio" and space["sdk_version"] == pinned("gradio")
    assert (ROOT / space["app_file"]).is_file()
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert "py" + space["python_version"].replace(".", "") == ruff["target-version"]


def test_the_card_names_every_repository_that_a_pack_fetches_from(space):
    models, datasets = set(), set()
    for pack in packs().values():
        items = [pack, *pack.get("unlearned", []), *pack.get("saes", [])]
        models |= {item["source"]["repo_id"] for item in items if "source" in item}
        datasets |= {pack["examples_source"]["repo_id"]} if "examples_source" in pack else set()
        models |= {place["repo_id"] for place in pack.get("model", []) if "repo_id" in place}
        asked = [one for files in pack.get("questions", {}).values() if isinstance(files, list) for one in files]
        datasets |= {one["repo_id"] for one in asked if "repo_id" in one}
    assert (set(space["models"]), set(space["datasets"])) == (models, datasets)


def test_the_space_preloads_what_cifar10_opens_with(space):
    """The original, every layer's SAE, statistics and experts, and the first unlearned model; no more than that."""
    pack = packs()["cifar10"]
    first, source, files = pack["unlearned"][0], pack["source"], pack["files"]
    names = {files["original"]} | {
        files[kind].replace("{layer}", str(layer)).replace("{k}", str(pack["k"]))
        for kind in ("sae", "stats", "experts")
        for layer in pack["layers"]
    }
    wanted = [
        Preload(source["repo_id"], {f"{source['folder']}/{name}" for name in names}, source["revision"]),
        Preload(first["source"]["repo_id"], {first["file"]}, first["source"]["revision"]),
    ]
    entries = [entry.split(" ") for entry in space["preload_from_hub"]]
    assert [Preload(repo_id, set(files.split(",")), *commit) for repo_id, files, *commit in entries] == wanted


# ---------------------------------------------------------------- the container


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The Dockerfile: (instruction, the rest of it), comments out and continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined if line]


def every(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    """The rests of all instructions of a kind, in order."""
    return [rest for name, rest in steps if name == instruction]


def environment(steps: list[tuple[str, str]]) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in every(steps, "ENV") for pair in shlex.split(rest))


def copied(steps: list[tuple[str, str]]) -> list[str]:
    """The sources of all COPY."""
    words = [[word for word in shlex.split(rest) if not word.startswith("--")] for rest in every(steps, "COPY")]
    return [source for *sources, _ in words for source in sources]


def test_the_container_does_not_run_as_root(steps):
    assert every(steps, "USER")[-1].split(":")[0] not in ("root", "0")


def test_the_container_has_the_space_s_python(steps, space):
    assert every(steps, "FROM") == [f"python:{space['python_version']}-slim"]


def test_torch_is_the_cpu_s_unless_a_build_argument_says_otherwise(steps):
    index = dict(rest.split("=", 1) for rest in every(steps, "ARG"))["TORCH_INDEX"]
    assert index.rstrip("/").endswith("/cpu")
    torch = [rest for rest in every(steps, "RUN") if "$TORCH_INDEX" in rest]
    assert len(torch) == 1 and {"torch", "torchvision"} <= set(torch[0].split())


def test_downloads_go_to_a_volume_that_the_user_may_write_to(steps):
    (volume,) = every(steps, "VOLUME")
    assert environment(steps)["HF_HOME"].startswith(f"{volume}/")
    owned = next(i for i, (_, rest) in enumerate(steps) if "--owner=user" in rest and rest.endswith(volume))
    assert owned < steps.index(("VOLUME", volume)), "what is done to a volume's folder afterwards is lost"


def test_the_port_that_is_served_is_exposed_and_checked(steps):
    assert every(steps, "EXPOSE") == [environment(steps)["GRADIO_SERVER_PORT"]]
    (check,) = every(steps, "HEALTHCHECK")
    command = json.loads(check.split("CMD", 1)[1])
    assert "GRADIO_SERVER_PORT" in command[-1]
    compile(command[-1], "HEALTHCHECK", "exec")


def test_what_is_copied_exists_and_reaches_the_builder(steps):
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*", "everything stays out but what is let in"
    for source in copied(steps):
        assert (ROOT / source).exists() and f"!{source}" in rules
    assert {"app.py", "sod_core", "assets", "requirements.txt"} <= set(copied(steps))


# ---------------------------------------------------------------- make space


LEFT_OUT = ("tests/test_x.py", ".build/canvas/x.npy", ".venv/x.py", "docs/x.md", "sod_core/__pycache__/x.pyc")
LEFT_OUT += (
    "sod_core/ui/__pycache__/x.cpython-311.pyc",
    "sod_core/ui/x.pyi",
    "assets/screenshots/x.png",
    "benchmarks/x.py",
)


def make_space(hub: FakeHub, tree: Path, home: Path, repo: str) -> subprocess.CompletedProcess:
    """`make space` in a tree, with this environment's programs and nothing installed."""
    line = ["make", "-f", str(ROOT / "Makefile"), "-o", "setup", f"BIN={Path(sys.executable).parent}", "space"]
    told = os.environ | hub.environment(home) | {"HF_TOKEN": "hf_made_up"}
    return subprocess.run([*line, f"REPO={repo}"], cwd=tree, env=told, capture_output=True, text=True, timeout=60)


def test_a_space_is_made_and_kept_up_to_date(tmp_path):
    tree = tmp_path / "tree"
    wanted = {path: path.encode() for path in ("README.md", "LICENSE", "app.py", "requirements.txt", "sod_core/a.py")}
    wanted |= {path: path.encode() * 9 for path in ("sod_core/ui/style.css", "assets/canvas/unlearned/x.pth")}
    for path, content in {**wanted, **dict.fromkeys(LEFT_OUT, b"no")}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    with FakeHub({}) as hub:
        done = make_space(hub, tree, tmp_path, "me/demo")
        assert done.returncode == 0, done.stdout + done.stderr
        assert hub.files["spaces/me/demo"] == wanted
        assert hub.created["spaces/me/demo"]["sdk"] == "gradio"
        hub.files["spaces/me/demo"] |= {".gitattributes": b"the hub's", "sod_core/gone.py": b"of before"}
        (tree / "app.py").write_bytes(b"changed")
        done = make_space(hub, tree, tmp_path, "me/demo")
        assert done.returncode == 0, done.stdout + done.stderr
        assert hub.files["spaces/me/demo"] == wanted | {"app.py": b"changed", ".gitattributes": b"the hub's"}


def test_a_space_needs_a_name(tmp_path):
    with FakeHub({}) as hub:
        done = make_space(hub, tmp_path, tmp_path, "")
        assert done.returncode and "Name the Space, for example: make space REPO=" in done.stdout
        assert not hub.requests


def test_a_space_gets_what_the_container_gets(steps):
    """And its card; what is left out of either is the same."""
    text = (ROOT / "Makefile").read_text()
    sent = re.search(r"^SPACE = (.+)$", text, re.M)[1].split()
    assert {name.removesuffix("/*") for name in sent} == {*copied(steps), "README.md"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    kept_out = re.search(r"^NOT_SPACE = (.+)$", text, re.M)[1].split()
    lost = [path for path in tracked if any(fnmatch(path, name) for name in kept_out)]
    assert lost and all(path.startswith("assets/screenshots/") for path in lost)

"""The Space (README.md's front matter) and the container, as far as they can be checked without either."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import ROOT
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

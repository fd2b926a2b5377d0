"""`pip install .`: what the package's metadata promises, and that an installed one finds its packs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib

from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_pinned_requirement_is_one_of_the_package():
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())
    asked = {found.name: found for found in map(Requirement, PROJECT["project"]["dependencies"])}
    assert asked.keys() == pinned.keys()
    for name, version in pinned.items():
        assert asked[name].specifier and asked[name].specifier.contains(version), name


def test_the_command_is_the_one_of_the_module():
    [command] = PROJECT["project"]["scripts"].items()
    entry = importlib.metadata.EntryPoint(*command, group="console_scripts")
    assert entry.name == "sod-core" and entry.load().__module__ == "sod_core.__main__"


def test_python_is_the_one_that_is_linted_for():
    assert PROJECT["project"]["requires-python"] == ">=3.11" and PROJECT["tool"]["ruff"]["target-version"] == "py311"


def test_the_wheel_has_the_packs_and_what_is_no_python():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == ["sod_core", "assets"] and wheel["sources"] == {"assets": "sod_core/assets"}
    assert (ROOT / "sod_core" / "ui" / "style.css").is_file()  # hatchling takes all files that git does not ignore


def test_an_installed_package_finds_the_packs_that_lie_in_it(tmp_path):
    """As a wheel lays it out, beside another package's folder that is called assets, too."""
    shutil.copytree(ROOT / "sod_core", tmp_path / "sod_core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "assets" / "foreign").mkdir(parents=True)
    (tmp_path / "assets" / "foreign" / "pack.json").write_text("{}")
    shutil.copytree(ROOT / "assets" / "imagenette", tmp_path / "sod_core" / "assets" / "imagenette")
    (tmp_path / "elsewhere").mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "sod_core", "packs", "list"],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert [line.split(":")[0] for line in run.stdout.splitlines()] == ["imagenette"]

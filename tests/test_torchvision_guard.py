"""`import timm` beside a torchvision whose operators cannot load (pytorch/vision issue 9085).

Each case is a fresh interpreter, or the fork of one that has imported torch alone. Where this machine's own torchvision
is sound, a fake one stands in for the broken.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import Forks

ROOT = Path(__file__).parents[1]

# What torchvision does at import: try its compiled operators, then register a fake of nms, which must exist.
FAKE = """
import torch
from pathlib import Path
for library in Path(__file__).parent.glob("_C*.so"):
    try:
        torch.ops.load_library(str(library))
    except OSError:
        pass

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets.new_empty(0)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Runs code where nothing but torch is imported (packages of `beside` come first), and returns what it prints."""
    forks = Forks("torch")

    def run(code: str, *, beside: Path) -> str:
        folder = tmp_path_factory.mktemp("fresh")
        out, err = folder / "out", folder / "err"
        ended = forks.start(["-c", f"import sys; sys.path.insert(0, {str(beside)!r})\n{code}"], os.environ, out, err)
        return out.read_text().strip() if ended.wait() == 0 else err.read_text().strip().splitlines()[-1]

    yield run
    forks.close()


@pytest.fixture
def broken(tmp_path) -> Path:
    """A folder with a torchvision whose compiled operators are no library."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(FAKE)
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"built against another torch")
    return tmp_path


def test_timm_can_be_imported():
    code = """
from sod_core.machine import torchvision_guard
torchvision_guard.install()
import timm, torchvision
from timm.data import create_transform
print(torchvision_guard.install())
"""
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and ran.stdout.strip() == "False", ran.stderr


def test_the_second_time_nothing_is_done(broken, fresh):
    code = "from sod_core.machine.torchvision_guard import install; print(install(), install(), install())"
    assert fresh(code, beside=broken) == "True False False"


def test_a_broken_torchvision_is_mended(broken, fresh):
    assert "nms does not exist" in fresh("import torchvision", beside=broken)
    mended = "from sod_core.machine.torchvision_guard import install; install(); import torchvision; print('fine')"
    assert fresh(mended, beside=broken) == "fine"


def test_operators_that_load_are_left_alone(broken, fresh):
    """The second schema of the guard would show if it had acted."""
    code = """
import torch
theirs = torch.library.Library("torchvision", "DEF")
theirs.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from sod_core.machine.torchvision_guard import install
print(install(), hasattr(torch.ops.torchvision, "qnms"))
import torchvision
"""
    assert fresh(code, beside=broken) == "False False"


def test_a_library_is_tried_before_the_guard_steps_in(broken, fresh):
    """Here the library "loads": loading it defines the operators."""
    code = """
import torch
tried = []
def load_library(path):
    tried.append(path)
    torch.theirs = torch.library.Library("torchvision", "DEF")
    torch.theirs.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.ops.load_library = load_library
from sod_core.machine.torchvision_guard import install
print(install(), len(tried))
"""
    assert fresh(code, beside=broken) == "False 1"


def test_without_torchvision_nothing_is_done(fresh, tmp_path):
    code = """
import sys, importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else real(name, *rest)
import torch
from sod_core.machine.torchvision_guard import install
print(install(), hasattr(torch.ops.torchvision, "nms"))
"""
    assert fresh(code, beside=tmp_path) == "False False"

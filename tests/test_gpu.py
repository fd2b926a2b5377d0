"""sod_core.machine.gpu: a forward at a time on a CUDA device, and on a ZeroGPU Space all in a forked process."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXPERTS, LAYERS, ROOT, UNLEARNED, random_images, random_vit
from forks import Forks
from torch import Tensor

from sod_core.machine import devices, gpu
from sod_core.packs import safe
from sod_core.restore import pack as restore_pack
from sod_core.restore.edit import MODES
from sod_core.restore.pack import Pack

FIRST, SECOND = UNLEARNED
SECONDS = 60
"""For what must come; only a failure takes so long."""
SPACES = '''
"""The part of the spaces package that this project meets.

As there, each decorated function has one forked process, which starts with its first call, waits for the next one,
gets its arguments and gives its results by way of queues that pickle them, and runs each call in a thread. While it
is imported, the main process is told that there is a GPU.
"""

import concurrent.futures
import functools
import multiprocessing
import os

import torch

real_is_available = torch.cuda.is_available
torch.cuda.is_available = lambda: True
fork = multiprocessing.get_context("fork")
calls = []
"""(name, seconds asked for, process that ran it) of every call."""


def GPU(task=None, *, duration=None):
    if task is None:
        return functools.partial(GPU, duration=duration)
    worker = []

    @functools.wraps(task)
    def there(*args, **kwargs):
        if not worker:
            arguments, results = fork.SimpleQueue(), fork.SimpleQueue()
            fork.Process(target=work, args=(task, arguments, results), daemon=True).start()
            worker.extend((arguments, results))
        worker[0].put((args, kwargs))
        process, found = worker[1].get()
        calls.append((task.__name__, duration, process))
        if isinstance(found, Exception):
            raise found
        return found

    return there


def work(task, arguments, results):
    torch.cuda.is_available = real_is_available
    while True:
        args, kwargs = arguments.get()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            try:
                found = threads.submit(task, *args, **kwargs).result()
            except Exception as error:
                found = error
        results.put((os.getpid(), found))
'''


def figures(folder: Path) -> dict[str, Tensor]:
    """What a session gives with one model, with another, and with a checkpoint that is in no pack."""
    pack = Pack(folder)
    session = pack.session(FIRST)
    session.set_image(random_images(0, 2))
    found = _of(session, "first")
    session.set_image(random_images(1, 1))
    found |= _of(session, "another image")
    session.set_unlearned(partial(pack.unlearned, SECOND))
    found |= _of(session, "second")
    own = folder.parent / "own.pth"
    torch.save(random_vit(5).state_dict(), own)
    session.set_unlearned(partial(pack.model_at, own))
    return found | _of(session, "own")


def _of(session: Any, name: str) -> dict[str, Tensor]:
    found = {f"{name}, {which}": session.logits(which) for which in ("original", "unlearned")}
    for layer in LAYERS:
        found[f"{name}, hidden {layer}"] = session.hidden("unlearned", layer)
        for mode in MODES:
            found[f"{name}, {mode} {layer}"] = session.restore([0.0, 1.0, 2.5], layer, mode, EXPERTS[0])
    return found


def two_packs(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The figures of the pack in folder/fruit, then of one that is made only then, with another first model."""
    found = {"first": figures(folder / "fruit")}
    later = Path(shutil.copytree(folder / "fruit", folder / "later" / "fruit"))
    torch.save(random_vit(7).state_dict(), later / "unlearned" / f"{FIRST}.pth")
    return found | {"later": figures(later)}


def write_figures(folder: str, out: str) -> None:
    """Runs in a process of its own: `two_packs`, and who computed them."""
    import spaces

    torch.save({**two_packs(Path(folder)), "calls": spaces.calls, "main": os.getpid()}, out)


def fork_while_a_model_loads(folder: str) -> None:
    """Runs in a process of its own: forks while another thread loads a model, and asks the fork for that model."""
    read, reading, go_on, main = safe.read_torch, threading.Event(), threading.Event(), os.getpid()

    def slow_read(path: Path) -> Any:
        if path.stem == SECOND and os.getpid() == main:
            reading.set()
            go_on.wait()
        return read(path)

    safe.read_torch = slow_read
    pack = restore_pack.shared_pack(folder)
    loading = threading.Thread(target=pack.unlearned, args=[SECOND])
    loading.start()
    reading.wait()
    session = pack.session(FIRST)
    session.set_image(random_images(0, 1))
    session.logits("unlearned")
    go_on.set()
    loading.join()
    session.set_unlearned(partial(pack.unlearned, SECOND))
    print(session.logits("unlearned").tolist())


ANEW = """
import sys
kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "sod_core"}
"""
"""In a fork: this project reads the environment as it is imported. (torch needs what torchvision_guard has kept.)"""


@pytest.fixture(scope="module")
def on_zero(forks: Forks) -> Callable[..., str]:
    """What `code` prints where SPACES_ZERO_GPU=1 and `spaces` can be imported."""

    def run(code: str, folder: Path, **environment: str) -> str:
        (folder / "modules").mkdir()
        (folder / "modules" / "spaces.py").write_text(SPACES)
        out, err = folder / "out.txt", folder / "err.txt"
        paths = f"sys.path[:0] = {[str(folder / 'modules'), str(ROOT), str(ROOT / 'tests')]}\n"
        process = forks.start(
            ["-c", ANEW + paths + code], os.environ | {"SPACES_ZERO_GPU": "1"} | environment, out, err
        )
        try:
            assert process.wait(SECONDS) == 0, err.read_text()
        finally:
            process.kill()
        return out.read_text()

    return run


# ---------------------------------------------------------------- ZeroGPU


@pytest.fixture(scope="module")
def lent(pack_folder: Path, on_zero, tmp_path_factory) -> dict[str, Any]:
    """What `write_figures` wrote."""
    folder = tmp_path_factory.mktemp("zero")
    shutil.copytree(pack_folder, folder / "fruit")
    on_zero(f"import test_gpu; test_gpu.write_figures({str(folder)!r}, {str(folder / 'out.pt')!r})", folder)
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.fixture(scope="module")
def here(pack_folder: Path, tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """The same figures, computed in this process."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(pack_folder, folder / "fruit")
    return two_packs(folder)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit, and on the CPU."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].device.type == "cpu" and torch.equal(found[name], value), name


def test_sessions_give_the_same_numbers_in_a_forked_process(lent, here):
    assert_equal(lent["first"], here["first"])
    models = ["first, unlearned", "another image, unlearned", "second, unlearned", "own, unlearned"]
    assert len({str(here["first"][name].tolist()) for name in models}) == len(models)


def test_every_forward_runs_in_a_fork_that_stays(lent):
    assert {name for name, *_ in lent["calls"]} == {"hidden_states", "_tail"}
    assert {seconds for _, seconds, _ in lent["calls"]} == {gpu.ZERO_SECONDS}
    forks = {(name, process) for name, _, process in lent["calls"]}
    assert len(forks) == 2 and lent["main"] not in {process for _, process in forks}


def test_what_comes_after_the_fork_is_found_there(lent, here):
    """A whole pack that was not on the disk then."""
    assert_equal(lent["later"], here["later"])
    assert not torch.equal(here["later"]["first, unlearned"], here["first"]["first, unlearned"])


def test_a_fork_does_not_wait_for_what_other_threads_were_loading(pack_folder, on_zero, tmp_path):
    folder = shutil.copytree(pack_folder, tmp_path / "fruit")
    printed = on_zero(f"import test_gpu; test_gpu.fork_while_a_model_loads({str(folder)!r})", tmp_path)
    session = Pack(pack_folder).session(SECOND)
    session.set_image(random_images(0, 1))
    assert printed.strip() == str(session.logits("unlearned").tolist())


def test_models_of_the_main_process_stay_on_the_cpu(on_zero, tmp_path):
    """Although it is told that there is a GPU: only the forks have one."""
    code = (
        "import torch; from sod_core.machine import devices; from sod_core.restore import session; "
        "print(torch.cuda.is_available(), devices.choose_device())"
    )
    assert on_zero(code, tmp_path, SOD_DEVICE="").split() == ["True", "cpu"]


def test_a_pack_is_pickled_as_its_folder(pack, pack_folder):
    shared = restore_pack.shared_pack(str(pack_folder))
    assert pickle.loads(pickle.dumps(pack)) is shared and pickle.loads(pickle.dumps(shared)) is shared
    assert len(pickle.dumps(pack)) < 1000
    model_of = pickle.loads(pickle.dumps(partial(pack.unlearned, SECOND)))
    assert model_of() is shared.unlearned(SECOND)


@pytest.mark.parametrize(
    ("value", "zero"),
    [("1", True), ("true", True), ("T", True), ("0", False), ("false", False), ("", False), (None, False)],
)
def test_only_a_zerogpu_space_is_one(monkeypatch, value, zero):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    if value is not None:
        monkeypatch.setenv("SPACES_ZERO_GPU", value)
    spec = importlib.util.spec_from_file_location("sod_core.machine.again", gpu.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.ZERO is zero


def test_elsewhere_heavy_changes_nothing(monkeypatch):
    monkeypatch.setattr(gpu, "ZERO", False)
    monkeypatch.setitem(sys.modules, "spaces", None)  # importing it would raise

    def work() -> None:
        pass

    assert gpu.heavy(work) is work


# ---------------------------------------------------------------- one at a time


def enters(device: torch.device) -> tuple[threading.Thread, threading.Event]:
    """A thread that takes its turn on the device, and what is set once it has it."""
    entered = threading.Event()

    def run() -> None:
        with gpu.turn(device):
            entered.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, entered


def test_threads_take_turns_on_a_cuda_device():
    with pytest.raises(RuntimeError), gpu.turn(torch.device("cuda", 0)):
        waiting = [enters(torch.device("cuda", 0)) for _ in range(4)]
        assert not any(entered.wait(0.05) for _, entered in waiting)
        other, entered = enters(torch.device("cuda", 1))  # another device is free
        assert entered.wait(SECONDS)
        raise RuntimeError("out of memory")  # what fails gives its turn back
    assert all(entered.wait(SECONDS) for _, entered in waiting)
    for thread, _ in [*waiting, (other, None)]:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_the_turn_is_one_whoever_asks_first():
    found, start = [], threading.Barrier(16)

    def ask() -> None:
        start.wait()
        found.append(gpu.turn(torch.device("cuda", 7)))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(found) == 16 and all(turn is found[0] for turn in found)


def test_nobody_waits_on_the_cpu():
    with gpu.turn(torch.device("cpu")), gpu.turn(torch.device("cpu")):
        _, entered = enters(torch.device("cpu"))
        assert entered.wait(SECONDS)


def test_every_forward_takes_its_turn(pack, monkeypatch):
    devices, free = [], gpu.turn(torch.device("cpu"))
    monkeypatch.setattr(gpu, "turn", lambda device: (devices.append(device), free)[1])
    session = pack.session(FIRST)
    session.set_image(random_images(0, 1))
    assert len(devices) == 4  # each model up to the layers, and from there to its logits
    session.restore([0.0], LAYERS[0], "inject", EXPERTS[0])
    assert devices == [torch.device("cpu")] * 5


@pytest.mark.parametrize(
    "has, device, wanted",
    [
        ({"avx512_bf16": True}, "cpu", "bfloat16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "cpu", "bfloat16"),
        ({"bf16": True}, "cpu", "bfloat16"),  # ARM's name
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "cpu", "float32"),
        ({}, "cpu", "float32"),
        ({}, "cuda", "bfloat16"),
    ],
)
def test_training_takes_the_precision_that_the_device_is_fast_in(monkeypatch, has, device, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert devices.training_precision(torch.device(device)) == wanted

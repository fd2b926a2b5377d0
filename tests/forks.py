"""Starts programs in forks of a process that has imported what they need: each starts in a tenth of a second.

`Forks` is the tests' side. The other side is this file run as a program: it reads what is asked as lines of JSON, and
answers each with one. A fork is a process of its own with its own environment; what it does not have are imports of
its own, so variables that Gradio or the hub's client read as they are imported have no effect.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 120


class Fork:
    """A program that runs, with a Popen's names for the same things."""

    def __init__(self, forks: Forks, pid: int):
        self._forks, self.pid = forks, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it has ended; None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.ask(poll=self.pid)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = SECONDS) -> int:
        """How it has ended, once it has. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} has not ended after {seconds} seconds")
            time.sleep(0.01)
        return self.returncode


class Forks:
    """The process that forks; it starts when it is first needed. It imports `modules`, or all that app.py needs."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._process: subprocess.Popen | None = None

    def start(self, command: list[str], environment: Mapping[str, str], out: Path, err: Path) -> Fork:
        """Python in the repository's folder, with these arguments: FILE, -c CODE or -m MODULE, and more.

        `out` and `err` are files that take what it prints.
        """
        return Fork(self, self.ask(command=command, environment=dict(environment), out=str(out), err=str(err)))

    def ask(self, **what: Any) -> Any:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *self._modules],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # its forks are in its group, which ends together
            )
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends whatever still runs, too."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(SECONDS)
            self._process.stdout.close()


# ---------------------------------------------------------------- the program


def serve() -> None:
    sys.path[0] = str(ROOT)  # as `python app.py` and `python -m` have it
    if len(sys.argv) == 1:
        _import_app()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _become(**asked)
        print(json.dumps(answer), flush=True)
    os.killpg(0, signal.SIGKILL)


def _import_app() -> None:
    """All that app.py imports until its first model is there. None of it starts a thread of Python's."""
    import matplotlib.pyplot  # noqa: F401  by Gradio, at the first event

    from sod_core.machine import torchvision_guard
    from sod_core.ui import app  # noqa: F401

    torchvision_guard.import_timm()


def _become(command: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """Runs the program, and never returns."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), number)
    try:
        _run(*command)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(kind: str, *rest: str) -> None:
    if kind == "-m":
        sys.argv = list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve()

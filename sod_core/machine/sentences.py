"""What a user can mend ends a command in one sentence on standard error, with status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """Inside the `with`, what a user can mend ends the process with status 2 and one line on standard error.

    Ctrl-C ends it quietly. What else goes wrong is a defect, and keeps its traceback.
    """
    say_everything()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        if (error.name or "").startswith("sod_core"):
            raise
        _end(program, not_installed(error))
    except (ValueError, OSError) as error:
        _end(program, said(error))


def said(error: Exception) -> str:
    """An error's sentence in one line, without the number that the system gives its own."""
    told = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        told = f"{error.filename}: {error.strerror}"
    return " ".join(told.split())


def not_installed(error: ImportError) -> str:
    """A sentence for a package that is not there, or not as it should be."""
    what = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
    return f"{what}: `make run` installs what is needed, or `pip install -r requirements.txt`"


def say_everything() -> None:
    """Names that the terminal's encoding lacks (in the locale C) are written in escapes, in place of an error.

    Where there is no output at all, as under some services, what is said goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _end(program: str, sentence: str) -> None:
    print(f"{program}: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(2)

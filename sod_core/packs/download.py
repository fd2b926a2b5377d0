"""Downloads in the background, one for all who wait for the same files: each sees how far it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from . import hub
from .errors import PackError
from .hub import HubFile

log = logging.getLogger(__name__)
_running: dict[tuple[HubFile, ...], Download] = {}
_starting = threading.Lock()


class Download:
    """Some files on their way, one after another. Its numbers may be read at any time, from any thread."""

    def __init__(self, files: Sequence[HubFile], most_bytes: int | None = None):
        self.files = tuple(files)
        self.number = 0
        """Of the file on its way, from 0."""
        self.here = self.total = 0
        """Bytes of it."""
        self._most_bytes = most_bytes
        self._problem: PackError | None = None
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    @property
    def name(self) -> str:
        """Of the file on its way."""
        return self.files[min(self.number, len(self.files) - 1)].name

    @property
    def share(self) -> float:
        """Of the file on its way, 0 to 1."""
        return self.here / self.total if self.total else 0.0

    def start(self) -> Download:
        self._thread.start()
        return self

    def done(self, wait: float | None) -> bool:
        """Whether it is over, after `wait` seconds at most (None: no limit). Raises PackError if it failed."""
        self._thread.join(wait)
        if self._thread.is_alive():
            return False
        if self._problem is not None:
            raise PackError(str(self._problem))
        return True

    def _run(self) -> None:
        try:
            for number, file in enumerate(self.files):
                self.number, self.here, self.total = number, 0, 0
                hub.fetch(file, self._progress, self._most_bytes)
        except PackError as error:
            self._problem = error
        except Exception:
            log.exception("download of %s failed", self.name)
            self._problem = PackError(f"{self.name} could not be fetched, for a reason in the server's log")
        finally:
            with _starting:
                _running.pop(self.files, None)

    def _progress(self, here: int, total: int) -> None:
        self.here, self.total = here, total


def start(files: Sequence[HubFile], most_bytes: int | None = None) -> Download:
    """The download of these files: the one that runs, or a new one. Files that are here cost nothing."""
    with _starting:
        key = tuple(files)
        if key not in _running:
            _running[key] = Download(files, most_bytes).start()
        return _running[key]

"""Files on the Hugging Face hub: looked up on this computer, fetched with progress, resumed where they broke off.

Files lie in the hub client's own cache, in its own layout: what `hf download` or a Space's preload_from_hub put
there is found, and what is fetched here is found by every other tool.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..machine import environment
from .errors import PackError

Progress = Callable[[int, int], None]
"""Called with (bytes here, bytes in all) while a file comes in; what it raises ends the fetch."""


class NoFile(PackError):
    """The repository has no such file."""


class HubFile(NamedTuple):
    """A file of a hub repository."""

    repo_id: str
    path: str
    """Inside the repository."""
    revision: str = "main"
    repo_type: str = "model"

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


def cached(file: HubFile) -> Path | None:
    """Where the file lies on this computer; None if it does not. Never asks the network.

    Raises PackError for names that nothing on the hub can have.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(file.repo_id, file.path, revision=file.revision, repo_type=file.repo_type)
    except HFValidationError as error:
        raise _explained(file, error) from error
    except ValueError as error:
        raise PackError(f"{file.path!r} can be no file of {file.repo_id}: it leads out of the repository") from error
    return Path(found) if isinstance(found, str) else None


def known_missing(file: HubFile) -> bool:
    """Whether it was found before that the repository has no such file; the hub client keeps that, too."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    found = try_to_load_from_cache(file.repo_id, file.path, revision=file.revision, repo_type=file.repo_type)
    return found is _CACHED_NO_EXIST


def remember_missing(file: HubFile) -> None:
    """So that it is asked for once only, where the commit is known and the cache can be written to."""
    folder = _repo_folder(file)
    ref = folder / "refs" / file.revision
    try:
        commit = ref.read_text().strip() if ref.is_file() else file.revision
        if (folder / "snapshots" / commit).is_dir():
            marker = folder / ".no_exist" / commit / file.path
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    except OSError:
        return


def commit(file: HubFile) -> str | None:
    """The commit that a file on this computer is of."""
    path = cached(file)
    return None if path is None else path.parts[-1 - len(Path(file.path).parts)]


def fetch(file: HubFile, progress: Progress = lambda here, total: None, most_bytes: int | None = None) -> Path:
    """The file, downloaded unless it is here. Raises PackError with what happened and what to do.

    `most_bytes`: larger files are refused before anything is downloaded.
    """
    found = cached(file)
    if found is not None:
        return found
    try:
        environment.check_network()
    except ValueError as error:
        raise PackError(f"{file.name} of {file.repo_id} cannot be fetched: {error}") from error
    try:
        return _download(file, progress, most_bytes)
    except PackError:
        raise
    except Exception as error:
        raise _explained(file, error) from error


def listing(repo_id: str, revision: str = "main", repo_type: str = "model") -> list[HubFile]:
    """Every file of a repository, as the hub tells. Raises PackError with what happened and what to do."""
    from huggingface_hub import HfApi

    what = HubFile(repo_id, "the list of files", revision, repo_type)
    try:
        environment.check_network()
        found = HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type)
    except PackError:
        raise
    except Exception as error:
        raise _explained(what, error) from error
    return [HubFile(repo_id, one.rfilename, revision, repo_type) for one in found.siblings or ()]


def fetch_shown(file: HubFile) -> Path:
    """As `fetch`, with a progress bar on standard error."""
    with tqdm(desc=file.name, unit="B", unit_scale=True) as bar:
        return fetch(file, shown_by(bar))


def shown_by(bar: tqdm) -> Progress:
    """A progress that a bar shows."""

    def show(here: int, total: int) -> None:
        bar.total = total
        bar.update(here - bar.n)

    return show


def _download(file: HubFile, progress: Progress, most_bytes: int | None) -> Path:
    """Into the hub client's cache, by way of `<etag>.part`.

    Not hf_hub_download: it drops what it has when a download fails, and these files take minutes.
    """
    from filelock import FileLock
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(file.repo_id, file.path, repo_type=file.repo_type, revision=file.revision)
    found = get_hf_file_metadata(url)
    named = [found.commit_hash or "", found.etag or ""]  # these become names of files
    if found.size is None or not all(re.fullmatch(r"[\w-]+", name) for name in named):
        raise PackError(f"{file.path} of {file.repo_id}: the server that answered is no Hugging Face hub")
    if most_bytes is not None and found.size > most_bytes:
        raise PackError(f"{file.name} has {megabytes(found.size)}; at most {megabytes(most_bytes)} are taken")
    folder = _repo_folder(file)
    part = folder / "blobs" / f"{found.etag}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    blob = part.with_suffix("")
    target = folder / "snapshots" / found.commit_hash / file.path
    with FileLock(f"{part}.lock"):
        if not target.is_file() and not blob.is_file():
            _check_space(file, found.size - _size(part), part.parent)
            with part.open("ab") as out:
                here = out.tell() if out.tell() <= found.size else out.truncate(0)
                at_commit = hf_hub_url(file.repo_id, file.path, repo_type=file.repo_type, revision=found.commit_hash)
                try:
                    http_get(
                        at_commit,
                        out,
                        resume_size=here,
                        headers=build_hf_headers(),
                        expected_size=found.size,
                        tqdm_class=_reporting(progress),
                    )
                except OSError as error:
                    if type(error) is not OSError or error.errno is not None:
                        raise
                    out.truncate(0)  # something else came, of another length: a network's login page, for example
                    raise PackError(
                        f"{file.name} of {file.repo_id} came with another length than announced: "
                        "check the network and try again"
                    ) from error
            part.replace(blob)
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(blob, target)
    ref = folder / "refs" / file.revision
    if file.revision != found.commit_hash:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(found.commit_hash)
    return target


def _link(blob: Path, target: Path) -> None:
    """As the hub client does: several commits share a file that is the same in them."""
    target.unlink(missing_ok=True)  # a link that leads nowhere
    try:
        target.symlink_to(os.path.relpath(blob, target.parent))
    except OSError:  # no links here
        blob.replace(target)


def _reporting(progress: Progress) -> type:
    """What the hub client takes for a tqdm class."""

    class Bar:
        def __init__(self, total: int | None = None, initial: int = 0, **_: object):
            self.here, self.total = initial, total or 0
            progress(self.here, self.total)

        def update(self, more: int) -> None:
            self.here += more
            progress(self.here, self.total)

        def close(self) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Bar


def _explained(file: HubFile, error: Exception) -> PackError:
    """One sentence for the user: what happened, and what to do."""
    from huggingface_hub import constants, errors

    host = constants.ENDPOINT.split("://")[-1]
    what = f"{file.name} of {file.repo_id}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return PackError(f"{what} is not on this computer, and HF_HUB_OFFLINE forbids to fetch it")
    if isinstance(error, errors.GatedRepoError):
        return PackError(f"{what} is gated: accept its terms on {host}, then {_LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return PackError(f"{host} shows no repository {file.repo_id}; if it is private, {_LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return PackError(f"{file.repo_id} has no revision {file.revision!r}")
    if isinstance(error, errors.EntryNotFoundError):
        return NoFile(f"{file.repo_id} has no file {file.path}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return PackError(f"{what} cannot be fetched, {host} answers {status}: {_advice(status)}")
    if isinstance(error, errors.HFValidationError):
        return PackError(f"{file.repo_id!r} is no repository's name; write user/repository")
    if isinstance(error, (errors.HTTPError, ConnectionError, TimeoutError)):
        return PackError(
            f"{what} is not on this computer, and {host} cannot be reached ({type(error).__name__}): "
            "check the network and try again, what has come so far is kept"
        )
    if isinstance(error, OSError):
        return PackError(f"{what} cannot be stored in {constants.HF_HUB_CACHE}: {error.strerror or error}")
    return PackError(f"{what} cannot be fetched ({type(error).__name__})")


_LOG_IN = "log in with `hf auth login`, or give a token that may read it in HF_TOKEN"


def _advice(status: int) -> str:
    """What to do about an HTTP status."""
    if status in (401, 403):
        return f"the repository may be private or gated, or your token is not valid; {_LOG_IN}"
    if status == 404:
        return "it has no such file; check the name"
    if status == 429:
        return "too many requests came from here; try again later, or log in with `hf auth login`"
    return "try again later" if status >= 500 else "it does not accept the request; check the name and HF_ENDPOINT"


def own_folder() -> Path:
    """Where this project keeps what it made out of fetched files, beside the hub client's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "sod_core")


def _repo_folder(file: HubFile) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=file.repo_id, repo_type=file.repo_type))


def _check_space(file: HubFile, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PackError(f"{file.name} needs {megabytes(needed)} more, and {folder} has {megabytes(free)} free")


def _size(path: Path) -> int:
    return os.path.getsize(path) if path.exists() else 0


def megabytes(size: int) -> str:
    """ "343 MB"; of a small file "0.2 MB"."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"

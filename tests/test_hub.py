"""Files from the hub, and packs whose files lie there: against a hub on this computer, through the real client."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from conftest import (
    CLASSES,
    EXPERTS,
    LAYERS,
    ROOT,
    UNLEARNED,
    WIDTH,
    K,
    Outcome,
    cut_short,
    manifest,
    random_images,
    random_stats,
    random_vit,
    sae_state,
    transformers_4_names,
    write_manifest,
)
from fake_hub import FakeHub
from PIL import Image

from sod_core.models import vit as vits
from sod_core.models import vit_weights
from sod_core.models.vit import ViTShape
from sod_core.packs import download, hub, own
from sod_core.packs.errors import PackError
from sod_core.packs.hub import HubFile
from sod_core.restore import examples
from sod_core.restore.manifest import ExamplesSource
from sod_core.restore.pack import Pack
from sod_core.sparse.topk import TopKSAE

SOON = 20
"""Seconds that nothing here takes unless it is stuck."""
CHUNK = 1024
"""The hub client writes whole chunks of this size."""
CONTENT = random.Random(0).randbytes(10_000)
OTHER = random.Random(1).randbytes(5_000)
FILE = HubFile("user/repo", "folder/model.pth")
TABLE = HubFile("user/set", "plain/test.parquet", "refs/convert/parquet", "dataset")


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """A hub with two repositories, which the client of this process uses, with an empty cache."""
    from huggingface_hub import close_session, file_download
    from huggingface_hub.utils import _http

    files = {"user/repo": {FILE.path: CONTENT, "small.pth": OTHER}, "datasets/user/set": {TABLE.path: CONTENT}}
    with FakeHub(files) as fake:
        fake.use(monkeypatch, tmp_path / "home", CHUNK)
        without_waiting = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
        for module in (file_download, _http):  # which wait for seconds before they try again
            monkeypatch.setattr(module, "time", without_waiting)
        yield fake
    close_session()


def refused(call: Callable[[], object], *says: str) -> str:
    """The message of the PackError that `call` raises: one sentence that has every one of `says` in it.

    What another library said may stand in brackets.
    """
    with pytest.raises(PackError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and ". " not in re.sub(r"\(.*\)", "", message) and len(message) < 400
    for part in says:
        assert part in message
    return message


def asked(fake: FakeHub, method: str, name: str = "") -> list[str]:
    """The paths that were asked for, of files called `name`."""
    paths = [unquote(request.path) for request in fake.requests if request.method == method]
    return [path for path in paths if path.endswith(name)]


def sent_ranges(fake: FakeHub) -> list[str | None]:
    return [request.range for request in fake.requests if request.method == "GET"]


def part_of(file: HubFile) -> Path:
    """What has come so far of a file that is not here."""
    (found,) = hub._repo_folder(file).glob("blobs/*.part")
    return found


def by_client(file: HubFile, **options: object) -> str:
    """Where the hub's own client says that a file is."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(file.repo_id, file.path, revision=file.revision, repo_type=file.repo_type, **options)


def break_off(fake: FakeHub, file: HubFile = FILE, after: int = 5000) -> PackError:
    """Fetches a file from a hub that goes down on the way."""

    def show(here: int, total: int) -> None:
        fake.down = fake.down or here > 0

    fake.cut_after = after
    try:
        with pytest.raises(PackError) as caught:
            hub.fetch(file, show)
    finally:
        fake.cut_after, fake.down = None, False
    return caught.value


# ---------------------------------------------------------------- fetched and found


def test_a_file_is_fetched_once_and_then_found_without_a_request(fake):
    assert hub.cached(FILE) is None and hub.commit(FILE) is None and fake.requests == []
    path = hub.fetch(FILE)
    assert path.read_bytes() == CONTENT and path.name == FILE.name == "model.pth"
    assert len(asked(fake, "HEAD")) == len(asked(fake, "GET")) == 1
    count = len(fake.requests)
    fake.down = True
    assert hub.fetch(FILE) == path == hub.cached(FILE) and hub.commit(FILE) == fake.commit
    fake.close()
    assert hub.fetch(FILE) == path and len(fake.requests) == count


@pytest.mark.parametrize("file", [FILE, HubFile("user/repo", "small.pth"), TABLE], ids=["folder", "root", "data set"])
def test_the_hubs_client_finds_what_was_fetched(fake, file):
    path = hub.fetch(file)
    fake.requests.clear()
    assert Path(by_client(file, local_files_only=True)) == path and fake.requests == []
    assert Path(by_client(file)) == path and asked(fake, "GET") == []


@pytest.mark.parametrize("file", [FILE, TABLE], ids=["model", "data set"])
def test_what_the_hubs_client_fetched_is_found(fake, file):
    path = Path(by_client(file))
    fake.down = True
    assert hub.cached(file) == hub.fetch(file) == path and path.read_bytes() == CONTENT
    assert hub.commit(file) == fake.commit


def test_the_hubs_client_counts_what_was_fetched(fake):
    from huggingface_hub import scan_cache_dir

    break_off(fake)
    for file in (FILE, HubFile("user/repo", "small.pth"), TABLE):
        hub.fetch(file)
    found = scan_cache_dir()
    assert found.warnings == [] and found.size_on_disk == 2 * len(CONTENT) + len(OTHER)
    assert {(repo.repo_type, repo.repo_id) for repo in found.repos} == {("model", "user/repo"), ("dataset", "user/set")}
    assert {ref for repo in found.repos for ref in repo.refs} == {"main", "refs/convert/parquet"}


def test_a_revision_with_slashes_is_one_part_of_the_address(fake):
    assert hub.fetch(TABLE).read_bytes() == CONTENT
    (head,) = [request.path for request in fake.requests if request.method == "HEAD"]
    assert "/resolve/refs%2Fconvert%2Fparquet/" in head
    assert hub.cached(TABLE._replace(revision=fake.commit)) == hub.cached(TABLE) and hub.commit(TABLE) == fake.commit
    assert hub.cached(TABLE._replace(revision="main")) is None and hub.cached(TABLE._replace(repo_type="model")) is None


def test_a_commit_may_be_named(fake):
    file = FILE._replace(revision=fake.commit)
    assert hub.fetch(file).read_bytes() == CONTENT and hub.commit(file) == fake.commit
    assert hub.cached(FILE) is None  # nobody asked what main is
    assert hub.fetch(FILE) == hub.fetch(file) and len(asked(fake, "GET")) == 1


def test_what_was_fetched_stays_when_the_hub_has_a_new_commit(fake):
    path = hub.fetch(FILE)
    fake.files["user/repo"][FILE.path], fake.commit = OTHER, "beef" * 10
    assert hub.fetch(FILE) == path and path.read_bytes() == CONTENT


def test_a_new_commit_that_leaves_a_file_as_it_was_costs_no_download(fake):
    """Someone edits the repository's card between the downloads of two of its files."""
    hub.fetch(FILE)
    fake.commit = "beef" * 10
    hub.fetch(HubFile("user/repo", "small.pth"))
    fake.requests.clear()
    assert hub.fetch(FILE).read_bytes() == CONTENT
    assert asked(fake, "GET") == []


def test_large_files_come_from_another_host_that_sees_no_token(fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake.redirect = True
    assert hub.fetch(FILE).read_bytes() == CONTENT and hub.fetch(TABLE).read_bytes() == CONTENT
    elsewhere = [request for request in fake.requests if request.path.startswith("/cdn/")]
    assert len(elsewhere) == 2 and all(request.authorization is None for request in elsewhere)
    assert {r.authorization for r in fake.requests if r not in elsewhere} == {"Bearer hf_secret"}
    assert Path(by_client(FILE, local_files_only=True)) == hub.cached(FILE)


def test_an_empty_file_is_a_file(fake):
    fake.files["user/repo"]["empty"] = b""
    assert hub.fetch(HubFile("user/repo", "empty")).read_bytes() == b""


# ---------------------------------------------------------------- broken off and resumed


@pytest.mark.parametrize("redirect", [False, True], ids=["direct", "redirected"])
def test_a_download_goes_on_where_it_broke_off(fake, redirect):
    fake.redirect = redirect
    error = break_off(fake)
    assert "what has come so far is kept" in str(error)
    assert hub.cached(FILE) is None and part_of(FILE).read_bytes() == CONTENT[: 4 * CHUNK]
    fake.requests.clear()
    seen = []
    assert hub.fetch(FILE, lambda here, total: seen.append((here, total))).read_bytes() == CONTENT
    assert set(sent_ranges(fake)) == {f"bytes={4 * CHUNK}-"}
    assert seen[0] == (4 * CHUNK, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert not list(hub._repo_folder(FILE).glob("blobs/*.part"))


def test_a_short_cut_goes_on_by_itself(fake):
    fake.cut_after, fake.cuts = 3000, 2
    seen = []
    assert hub.fetch(FILE, lambda here, total: seen.append(here)).read_bytes() == CONTENT
    assert sent_ranges(fake) == [None, f"bytes={2 * CHUNK}-", f"bytes={4 * CHUNK}-"]
    assert seen == sorted(seen) and seen[-1] == len(CONTENT)


def test_progress_counts_every_byte(fake):
    seen = []
    hub.fetch(FILE, lambda here, total: seen.append((here, total)))
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [here for here, _ in seen] == sorted({here for here, _ in seen}) and len(seen) == 11


def test_what_came_is_kept_when_the_caller_has_had_enough(fake):
    class Enough(Exception):
        pass

    def show(here: int, total: int) -> None:
        if here >= 3 * CHUNK:
            raise Enough

    with pytest.raises((Enough, PackError)):
        hub.fetch(FILE, show)
    assert hub.cached(FILE) is None and part_of(FILE).stat().st_size in (2 * CHUNK, 3 * CHUNK)
    assert hub.fetch(FILE).read_bytes() == CONTENT and sent_ranges(fake)[-1] is not None


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 1, 3 * len(CONTENT)])
def test_a_part_as_long_as_the_file_or_longer(fake, size):
    """The first only has to be put in its place; the others are no part of it."""
    break_off(fake)
    right = size == len(CONTENT)
    part_of(FILE).write_bytes(CONTENT if right else bytes(size))
    fake.requests.clear()
    assert hub.fetch(FILE).read_bytes() == CONTENT
    assert sent_ranges(fake) == ([] if right else [None])


def test_a_part_of_another_version_is_not_gone_on_with(fake):
    break_off(fake)
    newer = random.Random(2).randbytes(9_000)
    fake.files["user/repo"][FILE.path], fake.commit = newer, "beef" * 10
    fake.requests.clear()
    assert hub.fetch(FILE).read_bytes() == newer and sent_ranges(fake) == [None]
    assert hub.commit(FILE) == "beef" * 10


@contextlib.contextmanager
def login_page(fake: FakeHub, length: int) -> Iterator[None]:
    """Whoever asks for a file gets a page instead, as in a hotel's network."""
    answer = fake._answer

    def page(request: Any, form: Any) -> Any:
        found = answer(request, form)
        return found._replace(status=200, body=b"<" * length) if request.method == "GET" else found

    fake._answer = page
    yield
    fake._answer = answer


@pytest.mark.parametrize("length", [100, 3000, 20_000])
def test_a_page_in_place_of_the_file_is_one_sentence(fake, length):
    with login_page(fake, length):
        refused(lambda: hub.fetch(FILE), "model.pth", "user/repo")
    assert hub.cached(FILE) is None


@pytest.mark.parametrize("length", [100, 3000, 20_000])
def test_a_page_in_place_of_the_file_does_not_become_a_part_of_it(fake, length):
    with login_page(fake, length), pytest.raises(PackError):
        hub.fetch(FILE)
    assert hub.fetch(FILE).read_bytes() == CONTENT


def test_a_commit_between_the_question_and_the_answer_mixes_nothing(fake, monkeypatch):
    """What is kept as a commit's file is that commit's."""
    answer, newer = fake._answer, random.Random(2).randbytes(len(CONTENT))

    def commit_after_the_question(request: Any, form: Any) -> Any:
        found = answer(request, form)
        if request.method == "HEAD":
            fake.files["user/repo"][FILE.path], fake.commit = newer, "beef" * 10
        return found

    monkeypatch.setattr(fake, "_answer", commit_after_the_question)
    with contextlib.suppress(PackError):
        hub.fetch(FILE)
    assert hub.cached(FILE._replace(revision="c0de" * 10)) is None
    assert hub.fetch(FILE).read_bytes() == newer and hub.commit(FILE) == "beef" * 10


def test_nothing_half_written_is_found(fake):
    found = []

    def show(here: int, total: int) -> None:
        found.append(hub.cached(FILE))
        with pytest.raises(FileNotFoundError):
            by_client(FILE, local_files_only=True)

    for _ in range(2):
        break_off(fake, after=2500)
        assert hub.cached(FILE) is None
    hub.fetch(FILE, show)
    assert found == [None] * len(found) and len(found) > 2
    assert hub.cached(FILE).read_bytes() == CONTENT


@pytest.mark.parametrize("file", [FILE, TABLE], ids=["model", "data set"])
def test_who_asks_at_once_gets_one_download(fake, file):
    fake.bytes_per_second = 50_000
    together = threading.Barrier(4)

    def ask(_: int) -> Path:
        together.wait(SOON)
        return hub.fetch(file)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, range(4)))
    assert found == {hub.cached(file)} and hub.cached(file).read_bytes() == CONTENT
    assert len(asked(fake, "GET")) == 1


# ---------------------------------------------------------------- what is refused


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(fake):
    message = refused(lambda: hub.fetch(FILE, most_bytes=len(CONTENT) - 1), "model.pth", "at most")
    assert "0.0 MB" in message and asked(fake, "GET") == []
    assert hub.fetch(FILE, most_bytes=len(CONTENT)).read_bytes() == CONTENT


def test_a_disk_that_is_full_is_noticed_before_the_download(fake, monkeypatch):
    usage = shutil.disk_usage(".")
    break_off(fake)
    fake.requests.clear()
    missing = len(CONTENT) - 4 * CHUNK
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=missing - 1))
    refused(lambda: hub.fetch(FILE), "model.pth needs", "free")
    assert asked(fake, "GET") == [] and part_of(FILE).stat().st_size == 4 * CHUNK
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=missing))
    assert hub.fetch(FILE).read_bytes() == CONTENT  # what came before needs no room


def test_a_cache_that_cannot_be_written_is_named(fake, tmp_path):
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "hub").write_text("a file where the cache should be")
    refused(lambda: hub.fetch(FILE), "model.pth", "user/repo", str(tmp_path / "home" / "hub"), "Not a directory")


@pytest.mark.parametrize(
    ("error", "says"),
    [(OSError(errno.ENOSPC, "No space left on device"), "No space left on device"), (RuntimeError("boom\nbang"), "")],
)
def test_what_happens_while_the_file_is_written_is_told(fake, monkeypatch, error, says):
    from huggingface_hub import file_download

    def http_get(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(file_download, "http_get", http_get)
    refused(lambda: hub.fetch(FILE), "model.pth", "user/repo", says)
    assert hub.cached(FILE) is None


def offline(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def stalled(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    fake.bytes_per_second = 0


def answers(**changes: str | None) -> Callable:
    """A server that answers with other headers; None leaves one out."""

    def change(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        answer = fake._answer
        named = {name.replace("_", "-"): value for name, value in changes.items()}

        def changed(request: Any, form: Any) -> Any:
            found = answer(request, form)
            headers = {name: value for name, value in (found.headers | named).items() if value is not None}
            return found._replace(headers=headers)

        monkeypatch.setattr(fake, "_answer", changed)

    return change


UNREACHABLE = ("model.pth", "user/repo", "127.0.0.1", "cannot be reached", "check the network and try again")
NO_HUB = ("model.pth", "user/repo", "no Hugging Face hub")
PROBLEMS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "offline": (offline, ("model.pth", "user/repo", "not on this computer", "HF_HUB_OFFLINE")),
    "gated": (lambda fake, _: fake.gated.add("user/repo"), ("model.pth", "user/repo", "accept its terms", "hf auth")),
    "private": (lambda fake, _: fake.private.add("user/repo"), ("user/repo", "if it is private", "hf auth login")),
    "no repository": (lambda fake, _: fake.files.pop("user/repo"), ("127.0.0.1", "user/repo", "hf auth login")),
    "no file": (lambda fake, _: fake.files["user/repo"].pop(FILE.path), ("user/repo", "no file folder/model.pth")),
    "500": (lambda fake, _: setattr(fake, "broken", 500), ("model.pth", "user/repo", "500", "try again later")),
    "503": (lambda fake, _: setattr(fake, "broken", 503), ("model.pth", "user/repo", "503", "try again later")),
    "429": (lambda fake, _: setattr(fake, "broken", 429), ("model.pth", "user/repo", "429", "try again later")),
    "down": (lambda fake, _: setattr(fake, "down", True), UNREACHABLE),
    "closed": (lambda fake, _: fake.close(), UNREACHABLE),
    "stalled": (stalled, UNREACHABLE),
    "no commit": (answers(X_Repo_Commit=None), NO_HUB),
    "no etag": (answers(ETag=None), NO_HUB),
    "neither": (answers(X_Repo_Commit=None, ETag=None), NO_HUB),
    "evil commit": (answers(X_Repo_Commit="../../../evil"), NO_HUB),
    "evil etag": (answers(ETag='"../../../evil"'), NO_HUB),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_is_one_sentence(fake, monkeypatch, tmp_path, problem):
    make, says = PROBLEMS[problem]
    make(fake, monkeypatch)
    refused(lambda: hub.fetch(FILE), *says)
    assert hub.cached(FILE) is None and not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("problem", ["gated", "private", "no repository"])
def test_a_login_without_access_changes_nothing(fake, monkeypatch, problem):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    make, says = PROBLEMS[problem]
    make(fake, monkeypatch)
    assert "hf_secret" not in refused(lambda: hub.fetch(FILE), *says)


def test_an_unknown_revision_is_one_sentence(fake):
    refused(lambda: hub.fetch(FILE._replace(revision="v2")), "user/repo", "no revision 'v2'")
    refused(lambda: hub.fetch(TABLE._replace(revision="0" * 40)), "user/set", "0" * 40)


def test_a_problem_is_not_remembered(fake):
    fake.broken = 503
    refused(lambda: hub.fetch(FILE), "503")
    fake.broken = None
    fake.files["user/repo"].pop(FILE.path)
    refused(lambda: hub.fetch(FILE), "no file")
    fake.files["user/repo"][FILE.path] = CONTENT
    assert hub.fetch(FILE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "name", ["user/re po", "user/-repo", "user/re--po", "user/repo.git", "a/b/c", "", "us\ner/repo", "../repo"]
)
def test_a_name_that_no_repository_can_have_is_refused(fake, name):
    refused(lambda: hub.fetch(FILE._replace(repo_id=name)))
    assert fake.requests == []


@pytest.mark.parametrize("path", ["../model.pth", "a/../../model.pth", "/etc/passwd", "a\\..\\..\\b", "C:\\model.pth"])
def test_a_path_that_leads_elsewhere_is_refused(fake, path):
    refused(lambda: hub.fetch(FILE._replace(path=path)))
    assert asked(fake, "GET") == []


# ---------------------------------------------------------------- downloads in the background


def over(coming: download.Download) -> bool:
    """Waits for its end. Raises PackError as `done` does."""
    assert coming.done(SOON), "the download does not end"
    return True


def test_a_download_shows_how_far_it_is(fake):
    fake.bytes_per_second = 30_000
    files = [FILE, HubFile("user/repo", "small.pth")]
    coming = download.start(files)
    names, of_first = [], []
    while not coming.done(0.005):
        here, share = coming.here, coming.share
        names.append(coming.name)
        if coming.number == 0:
            of_first.append((here, share))
    assert names == sorted(names) and set(names) == {"model.pth", "small.pth"}
    assert of_first == sorted(of_first) and any(0 < here < len(CONTENT) for here, _ in of_first)
    assert all(0 <= share <= 1 for _, share in of_first)
    assert (coming.number, coming.here, coming.total, coming.share) == (1, len(OTHER), len(OTHER), 1.0)
    assert coming.done(0) and coming.done(None)
    assert [hub.cached(file).read_bytes() for file in files] == [CONTENT, OTHER]


def test_files_that_are_here_cost_nothing(fake):
    hub.fetch(FILE)
    fake.close()
    assert over(download.start([FILE])) and over(download.start([]))


def test_many_who_ask_at_once_share_a_download(fake):
    fake.bytes_per_second = 0
    together = threading.Barrier(8)

    def ask(_: int) -> download.Download:
        together.wait(SOON)
        return download.start([FILE])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
        assert len(set(found)) == 1 and not found[0].done(0)
        fake.bytes_per_second = None
        assert all(pool.map(over, found))
    assert len(asked(fake, "GET")) == 1
    assert download.start([FILE]) is not found[0]  # what is over is forgotten


def test_a_file_of_two_downloads_is_fetched_once(fake):
    fake.bytes_per_second = 50_000
    both = [download.start([FILE]), download.start([HubFile("user/repo", "small.pth"), FILE])]
    assert both[0] is not both[1] and all(map(over, both))
    assert len(asked(fake, "GET", "model.pth")) == 1


def test_a_problem_reaches_everybody_and_a_new_start_tries_again(fake):
    fake.bytes_per_second = 0
    coming = download.start([HubFile("user/repo", "small.pth"), FILE])
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(coming.done, SOON) for _ in range(4)]
        fake.down = True
        problems = [refused(wait.result, "user/repo") for wait in waiting]
    assert len(set(problems)) == 1
    refused(lambda: coming.done(0), problems[0])
    fake.down, fake.bytes_per_second = False, None
    again = download.start(coming.files)
    assert again is not coming and over(again) and hub.cached(FILE).read_bytes() == CONTENT


def test_what_came_before_the_problem_stays(fake):
    missing = HubFile("user/repo", "missing.pth")
    coming = download.start([FILE, missing])
    refused(lambda: over(coming), "missing.pth")
    assert hub.cached(FILE) is not None and coming.number == 1 and coming.name == "missing.pth"


def test_a_download_keeps_to_its_bound(fake):
    refused(lambda: over(download.start([FILE], most_bytes=100)), "model.pth", "at most")
    assert asked(fake, "GET") == [] and over(download.start([FILE]))


def test_an_unexpected_error_is_logged_and_not_shown(monkeypatch, caplog):
    def fetch(*arguments: object) -> Path:
        raise ZeroDivisionError("secret inner workings")

    monkeypatch.setattr(hub, "fetch", fetch)
    with caplog.at_level(logging.ERROR):
        coming = download.start([FILE])
        message = refused(lambda: over(coming), "model.pth", "log")
    assert "secret" not in message
    (record,) = caplog.records
    assert "model.pth" in record.getMessage() and record.exc_info[0] is ZeroDivisionError
    monkeypatch.setattr(hub, "fetch", lambda *arguments: Path())
    assert over(download.start([FILE]))


# ---------------------------------------------------------------- a visitor's own checkpoint


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("hub:user/repo/model.pth", HubFile("user/repo", "model.pth")),
        ("  hub:user/repo/a/b/model.pth\n", HubFile("user/repo", "a/b/model.pth")),
        ("hub:user/repo/model.pth@v1.0", HubFile("user/repo", "model.pth", "v1.0")),
        ("hub:user/repo/a/model.pth@refs/pr/7", HubFile("user/repo", "a/model.pth", "refs/pr/7")),
        ("hub:user/repo/model.pth@", HubFile("user/repo", "model.pth")),
        ("hub:user/repo/my model (2).pth", HubFile("user/repo", "my model (2).pth")),
        ("hub:user/repo/..model..pth", HubFile("user/repo", "..model..pth")),
    ],
)
def test_what_names_a_file_on_the_hub(text, file):
    assert own.parse_hub(text) == file


@pytest.mark.parametrize(
    "text",
    [
        "hub:",
        "hub:model.pth",
        "hub:user/repo",
        "hub:user/repo/",
        "hub:user//model.pth",
        "hub:user/repo//model.pth",
        "hub:user/repo/../../model.pth",
        "hub:../repo/model.pth",
        "hub:user/repo/..",
        "hub:@main",
        "hub:user/repo@main",
        "hub:user/repo@main/model.pth",
        "hub:user/repo/mod\nel.pth",
        "hub:user/repo/mod\x00el.pth",
        "hub:user/repo/\x1b[31mmodel.pth",
        "hub:user/repo/model.pth@ma\nin",
    ],
)
def test_what_names_no_file_on_the_hub(text):
    refused(lambda: own.parse_hub(text), repr(text), "hub:user/repo/file")


def test_an_own_checkpoint_is_a_path_or_comes_from_the_hub(fake, tmp_path):
    (tmp_path / "own.pth").write_bytes(OTHER)
    assert own.find(str(tmp_path / "own.pth")) == tmp_path / "own.pth"
    (tmp_path / "empty").mkdir()
    for text in (str(tmp_path / "empty"), str(tmp_path / "missing.pth"), "retrain-pear", "", "x" * 5000, "a\x00b"):
        assert own.find(text) is None
    with pytest.raises(PackError, match="own.pth.*name what is meant"):
        own.find(str(tmp_path))
    assert fake.requests == []
    path = own.find("hub:user/repo/folder/model.pth")
    assert path.read_bytes() == CONTENT and path == hub.cached(FILE)
    assert own.find(f"hub:user/repo/small.pth@{fake.commit}").read_bytes() == OTHER
    refused(lambda: own.find("hub:user/repo/missing.pth"), "user/repo", "missing.pth")


def test_an_own_checkpoint_of_an_impossible_repository_is_refused(fake):
    refused(lambda: own.find("hub:user/re po/model.pth"), "user/re po")


# ---------------------------------------------------------------- example images out of a data set

SOURCE = ExamplesSource(TABLE, "image", "label")
CLASS_COUNT = 4


def picture(number: int, kind: str = "PNG") -> bytes:
    """An image file of its own for every number."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (number * 7 % 256, number * 31 % 256, number % 256)).save(buffer, kind)
    return buffer.getvalue()


def write_table(
    path: Path,
    rows: Sequence[tuple[dict[str, Any] | None, int | None]],
    row_group_size: int = 1000,
    names: tuple[str, str] = ("image", "label"),
) -> Path:
    """Parquet as Hugging Face data sets have it: images are {bytes, path}, labels are numbers."""
    import pyarrow
    from pyarrow import parquet

    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    pictures = pyarrow.array([image for image, _ in rows], struct)
    labels = pyarrow.array([label for _, label in rows], pyarrow.int64())
    parquet.write_table(pyarrow.table({names[0]: pictures, names[1]: labels}), path, row_group_size=row_group_size)
    return path


def labelled(labels: Sequence[int], kind: str = "PNG") -> list[tuple[dict[str, Any], int]]:
    return [({"bytes": picture(row, kind), "path": f"{row}.png"}, label) for row, label in enumerate(labels)]


def extracted(folder: Path, classes: int = CLASS_COUNT) -> dict[int, list[tuple[str, bytes]]]:
    """Class -> (name, content) of its images, in order."""
    by_class = {label: examples.found(folder, label) for label in range(classes)}
    return {label: [(path.name, path.read_bytes()) for path in paths] for label, paths in by_class.items()}


ORDERS = {
    "mixed": random.Random(3).choices(range(CLASS_COUNT), k=60),
    "sorted": sorted(random.Random(4).choices(range(CLASS_COUNT), k=60)),
    "backwards": sorted(random.Random(5).choices(range(CLASS_COUNT), k=60), reverse=True),
    "others in between": random.Random(6).choices([-1, *range(CLASS_COUNT), CLASS_COUNT, 99], k=80),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("row_group_size", [1000, 7, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_the_first_images_of_every_class_come_out(tmp_path, order, row_group_size, kind):
    labels = ORDERS[order]
    table = write_table(tmp_path / "test.parquet", labelled(labels, kind), row_group_size)
    folder = tmp_path / "kept" / "fruit" / "examples"
    examples.extract(table, SOURCE, CLASS_COUNT, folder)
    suffix = "png" if kind == "PNG" else "jpg"
    for label, found in extracted(folder).items():
        rows = [row for row, other in enumerate(labels) if other == label][: examples.PER_CLASS]
        assert found == [(f"{label}-{row:06d}.{suffix}", picture(row, kind)) for row in rows] and len(rows) == 3
    assert len(list(folder.iterdir())) == 3 * CLASS_COUNT and list(folder.parent.iterdir()) == [folder]


def test_classes_of_two_digits_are_kept_apart(tmp_path):
    labels = random.Random(7).choices(range(12), k=150)
    examples.extract(write_table(tmp_path / "a.parquet", labelled(labels)), SOURCE, 12, tmp_path / "examples")
    for label, found in extracted(tmp_path / "examples", 12).items():
        rows = [row for row, other in enumerate(labels) if other == label][: examples.PER_CLASS]
        assert [content for _, content in found] == [picture(row) for row in rows]


def test_a_class_with_few_images_has_few(tmp_path):
    examples.extract(write_table(tmp_path / "a.parquet", labelled([2, 0, 2])), SOURCE, CLASS_COUNT, tmp_path / "made")
    assert [len(found) for found in extracted(tmp_path / "made").values()] == [1, 0, 2, 0]


def test_columns_have_the_names_that_the_pack_gives(tmp_path):
    table = write_table(tmp_path / "test.parquet", labelled([0, 1]), names=("img", "fine_label"))
    source = ExamplesSource(TABLE, "img", "fine_label")
    examples.extract(table, source, CLASS_COUNT, tmp_path / "examples")
    assert len(list((tmp_path / "examples").iterdir())) == 2


def damaged_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(bytes(data))


NO_EXAMPLES: dict[str, Callable[[Path], object]] = {
    "cut": cut_short,
    "zeros inside": damaged_pages,
    "text": lambda path: path.write_text("<html>not found</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "no rows": lambda path: write_table(path, []),
    "other columns": lambda path: write_table(path, labelled([0, 1]), names=("picture", "label")),
    "other labels": lambda path: write_table(path, labelled([0, 1]), names=("image", "class")),
    "no class of the pack": lambda path: write_table(path, labelled([8, 9, -1])),
    "null images": lambda path: write_table(path, [(None, 0), (None, 1)]),
    "null bytes": lambda path: write_table(path, [({"bytes": None, "path": "0.png"}, 0)]),
    "some null bytes": lambda path: write_table(path, [*labelled([0, 1]), ({"bytes": None, "path": "2.png"}, 2)]),
    "null labels": lambda path: write_table(path, [({"bytes": picture(0), "path": "0.png"}, None)]),
}


@pytest.mark.parametrize("problem", NO_EXAMPLES)
def test_a_file_without_examples_is_refused_and_leaves_nothing(tmp_path, problem):
    table = write_table(tmp_path / "test.parquet", labelled([0, 1, 2, 3]))
    NO_EXAMPLES[problem](table)
    folder = tmp_path / "kept" / "fruit" / "examples"
    refused(lambda: examples.extract(table, SOURCE, CLASS_COUNT, folder), "test.parquet", "example images")
    assert not folder.exists() and not [path for path in (tmp_path / "kept").rglob("*") if path != folder.parent]


def test_labels_and_images_of_another_kind_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path, folder = tmp_path / "test.parquet", tmp_path / "examples"
    for image, label in (([picture(0)], [0]), (["0.png"], [0]), ([7], [0]), ([{"path": "0.png"}], [0])):
        parquet.write_table(pyarrow.table({"image": image, "label": label}), path)
        refused(lambda: examples.extract(path, SOURCE, CLASS_COUNT, folder), "test.parquet")
    for labels in (["apple"], [0.5], [[0]]):
        struct = [{"bytes": picture(0), "path": None}]
        parquet.write_table(pyarrow.table({"image": struct, "label": labels}), path)
        refused(lambda: examples.extract(path, SOURCE, CLASS_COUNT, folder), "test.parquet")
    assert not folder.exists()


def test_two_who_extract_at_once_both_get_the_images(tmp_path):
    table = write_table(tmp_path / "test.parquet", labelled(ORDERS["mixed"]), 7)
    folder, together = tmp_path / "kept" / "examples", threading.Barrier(4)

    def extract(_: int) -> dict:
        together.wait(SOON)
        examples.extract(table, SOURCE, CLASS_COUNT, folder)
        return extracted(folder)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(extract, range(4)))
    assert all(other == found[0] for other in found) and all(len(images) == 3 for images in found[0].values())
    assert list(folder.parent.iterdir()) == [folder]


def test_what_reads_data_sets_is_installed_with_the_app():
    """pyarrow comes with no other package that the app needs."""
    pinned = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().split()}
    assert "pyarrow" in pinned


# ---------------------------------------------------------------- a pack whose files lie on the hub

FRUIT = "user/fruit"
OTHERS = "user/fruit-unlearned"
FRUITS = "datasets/user/fruits"
FIRST, SECOND = UNLEARNED
BAG = {"repo_id": "user/fruits", "file": "plain/test.parquet", "image": "img", "label": "label", "megabytes": 3}


def hub_manifest(**changes: Any) -> dict[str, Any]:
    """What write_manifest takes for the tiny pack, its files on the hub."""
    first, second = manifest()["unlearned"]
    return {
        "source": {"repo_id": FRUIT, "folder": "tiny", "revision": "main", "megabytes": 12},
        "examples": None,
        "examples_source": BAG,
        "unlearned": [first, second | {"source": {"repo_id": OTHERS}}],
    } | changes


@pytest.fixture(scope="session")
def fruit_files(pack_folder, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The tiny pack as it lies on the hub, with its examples as a data set in mixed order."""
    files = {path.relative_to(pack_folder).as_posix(): path.read_bytes() for path in pack_folder.rglob("*.*")}
    images = [[files[f"examples/{name}/{number}.png"] for number in range(3)] for name in CLASSES]
    labels = [2, 0, 1, 1, 2, 0, 0, 2, 1, 0, 2]
    seen = [0] * len(CLASSES)
    rows: list[tuple[dict[str, Any], int]] = []
    for label in labels:
        content = images[label][seen[label]] if seen[label] < 3 else picture(len(rows))
        rows.append(({"bytes": content, "path": None}, label))
        seen[label] += 1
    table = write_table(tmp_path_factory.mktemp("fruits") / "test.parquet", rows, 4, ("img", "label"))
    away = f"unlearned/{SECOND}.pth"
    tiny = {f"tiny/{name}": content for name, content in files.items() if name not in (away, "pack.json")}
    return {FRUIT: tiny, OTHERS: {away: files[away]}, FRUITS: {BAG["file"]: table.read_bytes()}}


@pytest.fixture
def fruit(fake, fruit_files, tmp_path, monkeypatch) -> Path:
    """The folder of a pack that is a pack.json and nothing else. Its parent is in SOD_PACKS."""
    fake.files.update({repo: dict(files) for repo, files in fruit_files.items()})
    folder = tmp_path / "packs" / "fruit"
    folder.mkdir(parents=True)
    write_manifest(folder, **hub_manifest())
    monkeypatch.setenv("SOD_PACKS", str(folder.parent))
    return folder


ORIGINAL = HubFile(FRUIT, "tiny/vit_fruit_original.pth")
FILE_NAMES = ["vit_fruit_original.pth"] + [
    name
    for layer in LAYERS
    for name in (
        f"sae_layer{layer}_k{K}.pt",
        f"activations_layer{layer}_stats.npy",
        f"expert_features_layer{layer}_k{K}.pt",
    )
]


def fetch_everything(pack: Pack) -> None:
    ids = [entry.id for entry in pack.manifest.unlearned]
    for file in [*pack.lacking(), *(file for id in ids for file in pack.lacking(id)), *pack.lacking_examples()]:
        hub.fetch(file)


def test_a_pack_says_what_has_to_be_fetched(fake, fruit):
    pack = Pack(fruit)
    assert pack.lacking() == [HubFile(FRUIT, f"tiny/{name}") for name in FILE_NAMES]
    assert pack.lacking(FIRST) == [HubFile(FRUIT, f"tiny/unlearned/{FIRST}.pth")]
    assert pack.lacking(SECOND) == [HubFile(OTHERS, f"unlearned/{SECOND}.pth")]
    assert pack.lacking_examples() == [HubFile("user/fruits", BAG["file"], "main", "dataset")]
    refused(lambda: pack.lacking("salun-fig"), "'salun-fig'")
    hub.fetch(ORIGINAL)
    hub.fetch(pack.lacking(SECOND)[0])
    assert [file.name for file in pack.lacking()] == FILE_NAMES[1:]
    assert len(pack.lacking(FIRST)) == 1 and pack.lacking(SECOND) == []
    fetch_everything(pack)
    assert pack.lacking() == pack.lacking(FIRST) == pack.lacking_examples() == []


def test_opening_before_the_download_names_what_fetches_it(fake, fruit):
    pack = Pack(fruit)
    get = "python -m sod_core packs get fruit"
    refused(pack.original, "vit_fruit_original.pth", FRUIT, get)
    refused(lambda: pack.unlearned(SECOND), f"{SECOND}.pth", OTHERS, get)
    refused(lambda: pack.experts(1, 0), f"expert_features_layer1_k{K}.pt", FRUIT, get)
    hub.fetch(ORIGINAL)
    assert pack.original() is not None
    refused(lambda: pack.sae(1), f"sae_layer1_k{K}.pt", get)
    assert asked(fake, "GET") != [] and not [path for path in asked(fake, "GET") if "sae" in path]


def test_a_pack_from_the_hub_is_the_same_pack(fake, fruit, pack):
    there = Pack(fruit)
    fetch_everything(there)
    fake.down = True
    images = random_images(0, 2)
    for name in (None, *UNLEARNED):
        here, model = (p.original() if name is None else p.unlearned(name) for p in (pack, there))
        assert torch.equal(vits.logits(model, images), vits.logits(here, images))
    for layer in LAYERS:
        assert all(torch.equal(a, b) for a, b in zip(there.sae(layer).parameters(), pack.sae(layer).parameters()))
        assert there.sae(layer).normalised == pack.sae(layer).normalised
        assert there.sae_fit(layer) == pytest.approx(pack.sae_fit(layer))
        assert there.experts(layer, 1) == pack.experts(layer, 1)
        assert torch.equal(there.activity(layer), pack.activity(layer))
    assert there.file("vit_fruit_original.pth") == hub.cached(ORIGINAL)
    assert not [path for path in fruit.iterdir() if path.name != "pack.json"]


def test_examples_come_out_of_the_data_set(fake, fruit, pack):
    there = Pack(fruit)
    assert there.examples() == []
    hub.fetch(there.lacking_examples()[0])
    found = there.examples()
    assert [example.label for example in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [e.path.read_bytes() for e in found] == [e.path.read_bytes() for e in pack.examples()]
    assert all(example.path.is_relative_to(hub.own_folder()) for example in found)
    hub.cached(HubFile("user/fruits", BAG["file"], "main", "dataset")).unlink()
    assert there.lacking_examples() == [] and Pack(fruit).examples() == found  # the images are all it takes


def test_a_pack_opens_without_its_data_set(fake, fruit, pack):
    there = Pack(fruit)
    for file in [*there.lacking(), *there.lacking(FIRST)]:
        hub.fetch(file)
    assert there.examples() == [] and there.example_thumbs(8) == []
    for layer in LAYERS:
        fit = there.sae_fit(layer)
        assert fit.normalised is None and fit.raw is None and fit.saw_cls
        assert there.sae(layer).normalised  # as it was trained, as far as anybody knows
        assert torch.equal(there.activity(layer), torch.zeros(WIDTH))
    session = there.session(FIRST)
    session.set_image(random_images(0, 1))
    assert session.restore([0.0, 1.0], 1, "inject", EXPERTS[0]).shape == (2, 1, 3)
    refused(there.example_inputs, "fruit", "no example images")


def test_a_pack_that_was_open_takes_examples_that_come_later(fake, fruit, pack):
    """As in the app, which opens a pack before the data set is here."""
    there = Pack(fruit)
    for file in there.lacking():
        hub.fetch(file)
    assert there.sae_fit(1).raw is None and there.example_thumbs(8) == []
    hub.fetch(there.lacking_examples()[0])
    assert len(there.examples()) == 9
    assert torch.equal(there.activity(1), pack.activity(1))
    assert len(there.example_thumbs(8)) == 9
    assert there.sae_fit(1) == pytest.approx(pack.sae_fit(1))
    assert there.sae(1).normalised == pack.sae(1).normalised


def test_files_in_the_folder_stand_before_the_hubs(fake, fruit):
    there = Pack(fruit)
    fetch_everything(there)
    torch.save(transformers_4_names(random_vit(7)), fruit / "vit_fruit_original.pth")
    (fruit / "unlearned").mkdir()
    torch.save(transformers_4_names(random_vit(8)), fruit / "unlearned" / f"{SECOND}.pth")
    images, pack = random_images(0, 2), Pack(fruit)
    assert torch.equal(vits.logits(pack.original(), images), vits.logits(random_vit(7), images))
    assert torch.equal(vits.logits(pack.unlearned(SECOND), images), vits.logits(random_vit(8), images))
    assert pack.file("vit_fruit_original.pth") == fruit / "vit_fruit_original.pth"


def test_what_lies_in_the_folder_is_not_lacking(fake, fruit, pack_folder):
    for name in FILE_NAMES[1:]:
        shutil.copy(pack_folder / name, fruit / name)
    assert Pack(fruit).lacking() == [ORIGINAL]


def test_a_file_that_is_not_the_hubs_is_not_asked_for(fake, fruit):
    """A pack without a source, one of whose models has its own."""
    write_manifest(fruit, **hub_manifest(source=None, examples_source=None))
    pack = Pack(fruit)
    assert pack.lacking() == pack.lacking(FIRST) == pack.lacking_examples() == [] and len(pack.lacking(SECOND)) == 1
    refused(pack.original, "vit_fruit_original.pth is missing in")
    refused(lambda: pack.unlearned(FIRST), f"{FIRST}.pth is missing in")
    refused(lambda: pack.unlearned(SECOND), OTHERS)


def test_revisions_are_the_manifests(fake, fruit):
    source = {"repo_id": FRUIT, "folder": "tiny", "revision": fake.commit}
    write_manifest(fruit, **hub_manifest(source=source, examples_source=BAG | {"revision": "refs/convert/parquet"}))
    pack = Pack(fruit)
    assert {file.revision for file in pack.lacking()} == {fake.commit}
    assert [file.revision for file in pack.lacking_examples()] == ["refs/convert/parquet"]
    assert [file.revision for file in pack.lacking(SECOND)] == ["main"]
    fetch_everything(pack)
    assert len(pack.examples()) == 9 and pack.original() is not None


def test_another_class_count_ignores_other_labels(fake, fruit):
    write_manifest(fruit, **hub_manifest(classes=["apple", "pear"]))
    pack = Pack(fruit)
    hub.fetch(pack.lacking_examples()[0])
    assert [example.label for example in pack.examples()] == [0, 0, 0, 1, 1, 1]


def test_two_packs_of_one_name_have_their_own_examples(fake, fruit, tmp_path):
    """A copy of a pack whose owner put in another data set, and left the name."""
    table = write_table(tmp_path / "other.parquet", [({"bytes": picture(9), "path": None}, 1)], names=("img", "label"))
    fake.files["datasets/user/other"] = {"other.parquet": table.read_bytes()}
    copy = tmp_path / "copies" / "fruit"
    copy.mkdir(parents=True)
    write_manifest(copy, **hub_manifest(examples_source=BAG | {"repo_id": "user/other", "file": "other.parquet"}))
    for pack in (Pack(fruit), Pack(copy)):
        for file in pack.lacking_examples():
            hub.fetch(file)
        pack.examples()
    assert len(Pack(fruit).examples()) == 9
    assert [(example.label, example.path.read_bytes()) for example in Pack(copy).examples()] == [(1, picture(9))]


@pytest.mark.parametrize("name", ["../evil.pth", "/etc/passwd", "a/../../evil.pth", "C:\\evil.pth", "a\\..\\evil.pth"])
def test_names_that_lead_outside_are_refused(fake, fruit, name):
    """Neither looked for nor asked for."""
    first = manifest()["unlearned"][0]
    write_manifest(fruit, **hub_manifest(files=manifest()["files"] | {"original": name}))
    for call in (Pack(fruit).original, Pack(fruit).lacking, partial(Pack(fruit).manifest.hub_file, name)):
        refused(call, repr(name), "outside")
    write_manifest(fruit, **hub_manifest(unlearned=[first | {"file": name, "source": {"repo_id": OTHERS}}]))
    for call in (lambda: Pack(fruit).unlearned(FIRST), lambda: Pack(fruit).lacking(FIRST)):
        refused(call, repr(name), "outside")
    write_manifest(fruit, **hub_manifest(examples_source=BAG | {"file": name}))
    refused(lambda: [call() for call in (Pack(fruit).examples, Pack(fruit).lacking_examples)])
    assert fake.requests == []


BAD_SOURCES = {
    "folder": {"source": {"repo_id": FRUIT, "folder": "../tiny"}},
    "repository": {"source": {"repo_id": "no repository", "folder": "tiny"}},
    "model's repository": {"unlearned": [manifest()["unlearned"][0] | {"source": {"repo_id": "../../etc"}}]},
    "data set": {"examples_source": BAG | {"repo_id": "a/b/c"}},
    "data set's file": {"examples_source": BAG | {"file": "../test.parquet"}},
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_source_that_cannot_be_is_refused_as_every_fault_of_a_pack(fake, fruit, case):
    """With a PackError, which the app and the command line know what to do with, when the pack is opened or used."""
    write_manifest(fruit, **hub_manifest(**BAD_SOURCES[case]))

    def use() -> None:
        pack = Pack(fruit)
        fetch_everything(pack)
        pack.examples()

    refused(use)


@pytest.mark.parametrize("name", ["../../evil", "TMP/evil"])
def test_a_packs_name_leads_nowhere_else(fake, fruit, tmp_path, name):
    """The name is part of the folder that the example images are kept in."""
    write_manifest(fruit, **hub_manifest(name=name.replace("TMP", str(tmp_path))))
    with contextlib.suppress(PackError):
        pack = Pack(fruit)
        hub.fetch(pack.lacking_examples()[0])
        pack.examples()
    made = [path for path in tmp_path.rglob("evil*") if not path.is_relative_to(hub.own_folder().resolve())]
    assert made == []


# ---------------------------------------------------------------- the command line


def assert_one_line(outcome: Outcome, *says: str) -> None:
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    for part in says:
        assert part in outcome.err


def lines_of(outcome: Outcome) -> dict[str, str]:
    """Name -> what is said of it."""
    assert outcome.code == 0, outcome.err
    return dict(line.split(": ", 1) for line in outcome.out.splitlines())


def test_list_says_what_is_here(fake, fruit, run):
    found = lines_of(run("packs", "list"))
    assert found["fruit"].startswith("Fruit, a tiny ViT; not on this computer, about 12 MB; 2 unlearned models")
    assert "2 of them not on this computer" in found["fruit"]
    assert "here" in found["canvas"] and "not" not in found["canvas"]
    assert "not on this computer, about 430 MB" in found["cifar10"] and "imagenette" in found
    assert fake.requests == []
    pack = Pack(fruit)
    for file in [*pack.lacking(), *pack.lacking(SECOND)]:
        hub.fetch(file)
    found = lines_of(run("packs", "list"))
    assert found["fruit"] == "Fruit, a tiny ViT; here; 2 unlearned models, 1 of them not on this computer"
    fetch_everything(pack)
    assert lines_of(run("packs", "list"))["fruit"] == "Fruit, a tiny ViT; here; 2 unlearned models"


@pytest.mark.parametrize("case", ["cut", "outside", *BAD_SOURCES])
def test_list_goes_on_past_a_pack_that_cannot_be_used(fake, fruit, run, case):
    broken = fruit.parent / "broken"
    broken.mkdir()
    if case == "cut":
        (broken / "pack.json").write_text('{"format": 1,')
    elif case == "outside":
        write_manifest(broken, **hub_manifest(files=manifest()["files"] | {"original": "../evil.pth"}))
    else:
        write_manifest(broken, **hub_manifest(**BAD_SOURCES[case]))
    found = lines_of(run("packs", "list"))
    assert "broken" in found and {"canvas", "fruit"} <= found.keys()
    if case in ("cut", "outside"):
        assert "cannot be used" in found["broken"]


def test_get_fetches_the_pack_and_its_first_model(fake, fruit, run):
    outcome = run("packs", "get", "fruit")
    assert (outcome.code, outcome.out) == (0, "fruit: 9 files fetched\n")
    assert "vit_fruit_original.pth" in outcome.err and "Traceback" not in outcome.err
    pack = Pack(fruit)
    assert pack.lacking() == pack.lacking(FIRST) == pack.lacking_examples() == [] and pack.lacking(SECOND) != []
    count = len(fake.requests)
    assert run("packs", "get", "fruit") == (0, "fruit: all is here\n", "") and len(fake.requests) == count


@pytest.mark.parametrize(
    ("ids", "files", "here"),
    [(["all"], 10, [FIRST, SECOND]), ([SECOND], 9, [SECOND]), ([SECOND, FIRST, SECOND], 10, [FIRST, SECOND])],
)
def test_get_fetches_the_models_that_are_named(fake, fruit, run, ids, files, here):
    outcome = run("packs", "get", fruit, "--unlearned", *ids)
    assert (outcome.code, outcome.out) == (0, f"fruit: {files} files fetched\n")
    assert [id for id in UNLEARNED if not Pack(fruit).lacking(id)] == here
    assert run("packs", "get", fruit, "--unlearned", *ids).out == "fruit: all is here\n"


def test_get_fetches_only_what_is_missing(fake, fruit, run):
    hub.fetch(ORIGINAL)
    fake.requests.clear()
    assert run("packs", "get", "fruit").out == "fruit: 8 files fetched\n"
    assert asked(fake, "GET", "vit_fruit_original.pth") == []


def test_get_that_fails_is_one_line_and_goes_on_from_there(fake, fruit, run):
    assert_one_line(run("packs", "get", "fruit", "--unlearned", "salun-fig"), "'salun-fig'", FIRST)
    assert_one_line(run("packs", "get", "vegetables"), "unknown pack 'vegetables'")
    assert fake.requests == []
    fake.private.add("datasets/user/fruits")
    outcome = run("packs", "get", "fruit")
    assert outcome.code == 2 and outcome.out == "" and "Traceback" not in outcome.err
    assert "user/fruits" in outcome.err.splitlines()[-1]
    fake.private.clear()
    assert run("packs", "get", "fruit").out == "fruit: 1 files fetched\n"


@pytest.mark.parametrize("missing", ["original", "second model", "original of a folder"])
def test_the_command_that_an_error_names_mends_it(fake, fruit, run, monkeypatch, missing):
    if missing != "original":
        assert run("packs", "get", "fruit").code == 0
    if missing == "original of a folder":
        hub.cached(ORIGINAL).unlink()
        monkeypatch.delenv("SOD_PACKS")
    pack = Pack(fruit)
    open_it = partial(pack.unlearned, SECOND) if missing == "second model" else pack.original
    command = re.search(r"`python -m sod_core ([^`]+)`", refused(open_it))[1]
    assert run(*shlex.split(command)).code == 0
    assert open_it() is not None


def test_check_loads_what_is_here(fake, fruit, run):
    assert run("packs", "get", "fruit").code == 0
    outcome = run("packs", "check", "fruit")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    cautions = [line for line in lines if line.startswith("fit of the SAE")]  # the tiny pack's SAEs are random
    assert len(cautions) == 2 and all(": caution: this SAE does not fit" in line for line in cautions)
    assert all(line.endswith(": ok") for line in lines if line not in cautions)
    assert {"original model: ok", "SAE of layer 1: ok", "experts of layer 2: ok", f"unlearned model {FIRST}: ok"} <= {
        *lines
    }
    assert sum(line.startswith("example image") for line in lines) == 9 and SECOND not in outcome.out


def test_check_names_a_file_that_is_damaged(fake, fruit, run):
    assert run("packs", "get", "fruit").code == 0
    cut_short(hub.cached(HubFile(FRUIT, f"tiny/unlearned/{FIRST}.pth")))
    cut_short(hub.cached(HubFile(FRUIT, "tiny/activations_layer2_stats.npy")))
    cut_short(Pack(fruit).examples()[4].path)
    outcome = run("packs", "check", "fruit")
    bad = [line for line in outcome.out.splitlines() if not line.endswith(": ok") and ": caution: " not in line]
    assert "original model: ok" in outcome.out.splitlines()
    assert any(line.startswith(f"unlearned model {FIRST}: {FIRST}.pth") for line in bad)
    assert any(line.startswith("SAE of layer 2: activations_layer2_stats.npy") for line in bad)
    assert any(line.startswith("example image 1-") for line in bad)
    assert_one_line(outcome, f"{len(bad)} parts of pack fruit cannot be used")


def test_check_goes_on_past_a_damaged_data_set(fake, fruit, run):
    assert run("packs", "get", "fruit").code == 0
    cut_short(hub.cached(HubFile("user/fruits", BAG["file"], "main", "dataset")))
    outcome = run("packs", "check", "fruit")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    assert "original model: ok" in outcome.out.splitlines() and "test.parquet" in outcome.out + outcome.err


def test_check_of_a_pack_that_is_not_here_is_one_line(fake, fruit, run):
    outcome = run("packs", "check", "fruit")
    assert_one_line(outcome, "not on this computer, about 12 MB", "packs get fruit")
    assert outcome.out == "" and fake.requests == []


def test_the_card_says_how_well_the_saes_fit(fake, fruit, run, pack):
    assert run("packs", "get", "fruit").code == 0
    fake.down = True
    outcome = run("packs", "card", "fruit")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("# Fruit, a tiny ViT\n") and ", ".join(CLASSES) in outcome.out
    assert f"From `{FRUIT}`, {fake.commit}." in outcome.out and "9 example images" in outcome.out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in outcome.out.splitlines() if "|" in line]
    for layer in LAYERS:
        (row,) = [row for row in rows if row[0] == str(layer)]
        fit = pack.sae_fit(layer)
        used = "normalised" if fit.normalised <= fit.raw else "raw"
        assert row[1:] == [str(WIDTH), str(K), f"{fit.normalised:.3f}", f"{fit.raw:.3f}", used, "yes", "5"]
    forget, retain = pack.accuracy_on_examples(pack.unlearned(FIRST), 0)
    assert [FIRST, "Random labels", "apple", f"{forget:.1%}", f"{retain:.1%}"] in rows
    assert [SECOND, "Retrained", "pear", "not on this computer", ""] in rows


def test_the_card_without_examples_and_without_files(fake, fruit, run):
    outcome = run("packs", "card", "fruit")
    assert outcome.code == 0 and "not on this computer, about 12 MB" in outcome.out and "packs get fruit" in outcome.out
    assert f"From `{FRUIT}`, revision main." in outcome.out
    for file in [*Pack(fruit).lacking(), *Pack(fruit).lacking(FIRST)]:
        hub.fetch(file)
    outcome = run("packs", "card", "fruit")
    assert outcome.code == 0 and "No example images." in outcome.out
    assert outcome.out.count("| not measured | not measured | normalised |") == len(LAYERS)
    assert f"| {FIRST} | Random labels | apple | no examples |" in outcome.out


def test_the_card_of_a_local_pack(spoilt_pack, run, pack):
    shutil.rmtree(spoilt_pack / "examples" / "apple")  # which the first model forgot
    outcome = run("packs", "card", spoilt_pack)
    assert outcome.code == 0 and "From `" not in outcome.out
    assert "nan" not in outcome.out


def restored(run: Callable, *options: object) -> Outcome:
    image = ROOT / "assets" / "screenshots" / "restore.png"
    return run(
        *("restore", "--pack", "fruit", "--image", image, "--target-class", "apple", "--layer", 1, "--alpha", 0, 2),
        *options,
    )


def test_restore_takes_a_model_from_the_hub(fake, fruit, run):
    assert run("packs", "get", "fruit", "--unlearned", "all").code == 0
    by_id = restored(run, "--unlearned", SECOND)
    assert by_id.code == 0, by_id.err
    fake.files["user/mine"] = {"some/folder/own.pth": fake.files[OTHERS][f"unlearned/{SECOND}.pth"]}
    for name in ("hub:user/mine/some/folder/own.pth", f"hub:user/mine/some/folder/own.pth@{fake.commit}"):
        found = restored(run, "--unlearned", name)
        assert found.code == 0 and json.loads(found.out) == json.loads(by_id.out)
    assert len(asked(fake, "GET", "own.pth")) == 1
    assert json.loads(restored(run, "--unlearned", FIRST).out) != json.loads(by_id.out)


def test_restore_with_a_model_that_cannot_come_is_one_line(fake, fruit, run):
    assert run("packs", "get", "fruit").code == 0
    fake.files["user/mine"] = {"text.pth": b"no model"}
    for name, says in [
        ("hub:user/mine/missing.pth", "user/mine has no file missing.pth"),
        ("hub:user/nobody/own.pth", "user/nobody"),
        ("hub:user/mine", "hub:user/repo/file"),
        ("hub:user/mine/text.pth", "text.pth"),
        ("hub:us er/mine/text.pth", "us er/mine"),
        (SECOND, "packs get fruit"),
    ]:
        outcome = restored(run, "--unlearned", name)
        assert_one_line(outcome, says)
        assert outcome.out == ""
    fake.down = True
    assert_one_line(restored(run, "--unlearned", "hub:user/mine/later.pth"), "check the network")


def test_restore_before_the_download_is_one_line(fake, fruit, run):
    assert_one_line(restored(run, "--unlearned", FIRST), "packs get fruit")
    assert fake.requests == []


def test_get_as_a_program(fake, fruit, tmp_path):
    environment = os.environ | fake.environment(tmp_path / "home") | {"SOD_PACKS": str(fruit.parent)}
    command = [sys.executable, "-m", "sod_core", "packs", "get", "fruit"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "fruit: 9 files fetched\n"), ran.stderr
    assert hub.cached(ORIGINAL) is not None and Pack(fruit).lacking() == []


# ---------------------------------------------------------------- any ViT

SIZES = {
    "S/16": ViTShape(224, 16, 384, 12, 6, 1000),
    "B/16": ViTShape(224, 16, 768, 12, 12, 10),
    "B/32": ViTShape(384, 32, 768, 12, 12, 100),
    "L/14": ViTShape(336, 14, 1024, 24, 16, 37),
    "H/14": ViTShape(224, 14, 1280, 32, 20, 2),
}


@cache
def shell(shape: ViTShape) -> torch.nn.Module:
    """A ViT without weights."""
    with torch.device("meta"):
        return vits.new(shape)


def transformers_5_names(vit: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A timm ViT's weights as transformers 5 names them."""
    names = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    found = {}
    for key, value in transformers_4_names(vit).items():
        for old, new in names.items():
            key = key.replace(old, new)
        found[key] = value
    return found


NAMES: dict[str, Callable[[torch.nn.Module], dict[str, Any]]] = {
    "timm": lambda vit: vit.state_dict(),
    "transformers 4": transformers_4_names,
    "transformers 5": transformers_5_names,
    "model_state_dict": lambda vit: {"epoch": 3, "model_state_dict": transformers_4_names(vit)},
    "state_dict with module": lambda vit: {"state_dict": {f"module.{key}": v for key, v in vit.state_dict().items()}},
    "model": lambda vit: {"model": transformers_5_names(vit)},
}


@pytest.mark.parametrize(
    ("size", "names"), [(size, "timm") for size in SIZES] + [("S/16", name) for name in list(NAMES)[1:]]
)
def test_a_checkpoint_tells_its_shape(size, names):
    assert vit_weights.vit_shape(NAMES[names](shell(SIZES[size])), "vit.pth") == SIZES[size]


def without(*keys: str) -> Callable[[dict], dict]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(keys)}


TELLS_NOTHING: dict[str, tuple[Callable[[dict], Any], str]] = {
    "no positions": (without("pos_embed"), "pos_embed"),
    "no patches": (without("patch_embed"), "patch_embed.proj.weight"),
    "no head": (without("head"), "head.weight"),
    "no blocks": (without("blocks"), "0 blocks"),
    "positions of another kind": (lambda s: s | {"pos_embed": torch.zeros(5)}, ""),
    "patches in no square": (lambda s: s | {"pos_embed": torch.zeros(1, 16, 128)}, "15 patches"),
    "no patch at all": (lambda s: s | {"pos_embed": torch.zeros(1, 1, 128)}, "0 patches"),
    "width of no whole heads": (lambda s: s | {"pos_embed": torch.zeros(1, 17, 100)}, "width 100"),
    "no width": (lambda s: s | {"pos_embed": torch.zeros(1, 17, 0)}, ""),
    "scalar head": (lambda s: s | {"head.weight": torch.tensor(3.0)}, ""),
    "a block far away": (lambda s: s | {"blocks.1000000000.norm1.weight": torch.zeros(128)}, "blocks"),
    "an SAE": (lambda s: {"encoder.weight": torch.zeros(64, 32)}, "no ViT"),
    "no tensors": (lambda s: {"epoch": 3}, "no state dict"),
    "a list": (lambda s: [1, 2], "no state dict"),
}

TOLD = ViTShape(image_size=32, patch=8, dim=128, depth=3, heads=2, classes=3)
"""Of heads as wide as every ViT's that is not told its shape by pack.json."""


@pytest.mark.parametrize("case", TELLS_NOTHING)
def test_a_checkpoint_that_tells_no_shape_is_refused(case):
    change, says = TELLS_NOTHING[case]
    refused(lambda: vit_weights.vit_shape(change(dict(shell(TOLD).state_dict())), "vit.pth"), "vit.pth", says)


@pytest.fixture(scope="session")
def told_files(tmp_path_factory) -> Path:
    """A pack whose pack.json says nothing of the ViT, without the pack.json."""
    folder = tmp_path_factory.mktemp("told")
    torch.save(transformers_4_names(random_vit(0, TOLD)), folder / "vit_fruit_original.pth")
    (folder / "unlearned").mkdir()
    for seed, id in enumerate(UNLEARNED, start=1):
        torch.save(random_vit(seed, TOLD).state_dict(), folder / "unlearned" / f"{id}.pth")
    torch.manual_seed(0)
    torch.save(sae_state(TopKSAE(TOLD.dim, 256, 4)), folder / "sae_layer1_k4.pt")
    stats = {key: value.numpy() for key, value in random_stats(0, TOLD.dim)._asdict().items()}
    np.save(folder / "activations_layer1_stats.npy", stats, allow_pickle=True)
    torch.save({c: [1, 2, 3] for c in range(3)}, folder / "expert_features_layer1_k4.pt")
    return folder


@pytest.fixture
def write_told(told_files, tmp_path) -> Callable[..., Path]:
    """Makes the pack, with changes to its pack.json."""

    def write(**changes: Any) -> Path:
        folder = Path(shutil.copytree(told_files, tmp_path / "told"))
        write_manifest(folder, **{"vit": None, "examples": None, "layers": [1], "k": 4} | changes)
        return folder

    return write


@pytest.fixture
def told(write_told) -> Path:
    return write_told()


def test_a_pack_that_says_nothing_of_its_vit_opens(told):
    pack, images = Pack(told), random_images(0, 2)
    assert pack.manifest.vit is None and pack.shape == TOLD
    assert torch.equal(vits.logits(pack.original(), images), vits.logits(random_vit(0, TOLD), images))
    assert torch.equal(vits.logits(pack.unlearned(SECOND), images), vits.logits(random_vit(2, TOLD), images))
    assert pack.sae(1).latents == 256 and pack.expert_ids(1, 2) == [1, 2, 3]
    session = pack.session(FIRST)
    session.set_image(images[:1])
    expected = vits.logits(random_vit(1, TOLD), images[:1])
    assert torch.allclose(session.restore([0.0], 1, "inject", [1, 2])[0], expected, atol=1e-5)


def test_the_card_and_the_check_of_such_a_pack(told, run):
    outcome = run("packs", "card", told)
    assert outcome.code == 0 and "3 blocks, width 128, 2 heads" in outcome.out
    outcome = run("packs", "check", told)
    assert outcome.code == 0 and outcome.out.splitlines()[0] == "original model: ok"


@pytest.mark.parametrize("layer", [3, 11, -1])
def test_a_layer_that_the_checkpoint_does_not_have_is_refused(write_told, layer):
    folder = write_told(layers=[layer])
    refused(lambda: Pack(folder).shape and Pack(folder).sae(layer), "pack.json", str(layer))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": ["apple", "pear"], "unlearned": []}, ("head", "(3, 128)", "(2, 128)", "a class")),
        ({"image": manifest()["image"] | {"size": 40, "resize": 40}}, ("pos_embed", "(1, 17, 128)", "(1, 26, 128)")),
        ({"image": manifest()["image"] | {"size": 4, "resize": 4}}, ("vit_fruit_original.pth",)),
        ({"image": manifest()["image"] | {"size": 35, "resize": 35}}, ()),
    ],
    ids=["classes", "larger image", "image below a patch", "image of no whole patches"],
)
def test_a_checkpoint_that_does_not_fit_the_rest_of_the_pack_is_refused(write_told, changes, says):
    folder = write_told(**changes)
    if says:
        refused(lambda: Pack(folder).original(), *says)
        return
    try:  # 35 pixels are four patches of 8 and a rest, which the ViT either cannot take or leaves out
        assert vits.logits(Pack(folder).original(), torch.zeros(1, 3, 35, 35)).shape == (1, 3)
    except PackError as error:
        assert "\n" not in str(error)


def drop(key: str) -> Callable[[dict], dict]:
    return lambda state: {name: value for name, value in state.items() if name != key}


MISFITS: dict[str, tuple[ViTShape, Callable[[dict], dict], tuple[str, ...]]] = {
    "classes": (ViTShape(32, 8, 128, 3, 2, 10), dict, ("head.weight", "(10, 128)", "(3, 128)", "one row a class")),
    "width": (ViTShape(32, 8, 192, 3, 3, 3), dict, ("cls_token", "(1, 1, 192)", "(1, 1, 128)", "width")),
    "more blocks": (ViTShape(32, 8, 128, 4, 2, 3), dict, ("more blocks than the 3 expected", "blocks.3.")),
    "many more blocks": (ViTShape(32, 8, 128, 12, 2, 3), dict, ("more blocks than the 3 expected",)),
    "fewer blocks": (ViTShape(32, 8, 128, 2, 2, 3), dict, ("lacks 12 of 44 expected tensors", "blocks.2.")),
    "larger image": (ViTShape(40, 8, 128, 3, 2, 3), dict, ("pos_embed", "(1, 26, 128)", "(1, 17, 128)", "image")),
    "smaller patch": (ViTShape(16, 4, 128, 3, 2, 3), dict, ("patch_embed", "(128, 3, 4, 4)", "(128, 3, 8, 8)")),
    "no head": (TOLD, without("head."), ("lacks 2 of 44", "head.weight")),
    "no positions": (TOLD, drop("pos_embed"), ("lacks 1 of 44", "pos_embed")),
    "no bias of a block": (TOLD, drop("blocks.1.mlp.fc2.bias"), ("lacks 1 of 44", "blocks.1.mlp.fc2.bias")),
}


OF_ANOTHER_SHAPE = [case for case, (shape, _, _) in MISFITS.items() if shape != TOLD]


def assert_misfit(told: Path, case: str, state: dict[str, Any]) -> None:
    """Refused with what was found and what was expected, while the pack's other models still work."""
    torch.save(state, told / "unlearned" / f"{SECOND}.pth")
    pack = Pack(told)
    refused(lambda: pack.unlearned(SECOND), f"{SECOND}.pth", *MISFITS[case][2])
    assert pack.unlearned(FIRST) is not None


@pytest.mark.parametrize("case", MISFITS)
def test_a_model_that_does_not_fit_says_so(told, case):
    shape, change, _ = MISFITS[case]
    assert_misfit(told, case, change(dict(random_vit(5, shape).state_dict())))


@pytest.mark.parametrize("names", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize("case", OF_ANOTHER_SHAPE)
def test_a_model_of_another_shape_says_so_under_any_names(told, case, names):
    assert_misfit(told, case, NAMES[names](random_vit(5, MISFITS[case][0])))


@pytest.mark.parametrize("names", NAMES)
def test_a_model_that_fits_is_taken_under_any_names(told, names):
    torch.save(NAMES[names](random_vit(5, TOLD)), told / "unlearned" / f"{SECOND}.pth")
    images = random_images(0, 2)
    assert torch.equal(vits.logits(Pack(told).unlearned(SECOND), images), vits.logits(random_vit(5, TOLD), images))

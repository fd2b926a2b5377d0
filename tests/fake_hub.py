"""A Hugging Face hub on this computer, for the real hub client to download from and to upload to, with faults to be
set at any time."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import runpy
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qs, unquote

import pytest

_RESOLVE = re.compile(r"/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(r"/api/(?P<kind>\w+)/(?P<repo>.+?)(/(?P<call>revision|paths-info)/(?P<revision>[^/]+))?")
_CDN = re.compile(r"/cdn/(?P<sha256>\w+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_SPACE = re.compile(r"/api/(?P<repo>spaces/.+?)/(?P<call>preupload|commit|tree)/main")
_BATCH = re.compile(r"/spaces/.+?\.git/info/lfs/objects/batch")
_BINARY = (".pth", ".pt", ".npy", ".safetensors", ".png", ".jpg", ".parquet")
"""What the hub takes as LFS alone."""
_EMPTIED = "HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_OIDC_RESOURCE HUGGINGFACE_CO_STAGING"


class Request(NamedTuple):
    """What a client asked for."""

    method: str
    path: str
    """As it was sent: percent-encoded, with the query."""
    range: str | None = None
    authorization: str | None = None


class _Answer(NamedTuple):
    """What it gets."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    is_file: bool = False
    """Whether the body is a file's, so that it comes slowly or is broken off if the hub is told so."""


class FakeHub:
    """Serves `files`, {"user/repo" or "datasets/user/repo": {path: content}}, from construction to close().

    Every repository has one commit, `commit`, which is what "main" and "refs/convert/parquet" stand for; a commit that
    was replaced is an unknown revision. Everything public here may be changed while the hub runs.
    """

    def __init__(self, files: dict[str, dict[str, bytes]]):
        self.files = files
        self.commit = "c0de" * 10
        self.requests: list[Request] = []
        """All that came so far, those included that a fault left without an answer."""
        self.redirect = False
        """Send those who ask for a file to another origin, as the real hub does for large files."""
        self.down = False
        """Break off what is being sent, and close every new connection once it has been asked something.

        The client sees RemoteProtocolError. After close() it is refused: ConnectError.
        """
        self.bytes_per_second: int | None = None
        """How fast files come; with 0 they stall."""
        self.cut_after: int | None = None
        """Close the connection after so many bytes of a file's content, if it has more."""
        self.cuts: int | None = None
        """How many more times to do that, counted down; None: always."""
        self.gated: set[str] = set()
        """Repositories that tell what is in them, but whose files are refused."""
        self.private: set[str] = set()
        """Repositories that seem not to exist."""
        self.broken: int | None = None
        """The status that every request is answered with."""
        self.created: dict[str, dict[str, Any]] = {}
        """{"spaces/user/repo": what was said of it} of the repositories that clients made here."""
        self._uploaded: dict[str, bytes] = {}
        """{sha256: content} of LFS files that came and wait for their commit."""
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._cdn = f"http://localhost:{self._server.server_port}/cdn"  # the client takes it for another host
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.down = True
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(self, home: Path) -> dict[str, str]:
        """What a subprocess needs in its environment, over os.environ, to use this hub, and home/hub as the cache."""
        paths = {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token", "HF_ASSETS_CACHE": "assets"}
        return {
            "HF_ENDPOINT": self.url,
            **{name: str(home / path) for name, path in paths.items()},
            **dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1"),
            **dict.fromkeys(("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"), "3"),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
            **dict.fromkeys(_EMPTIED.split(), ""),
        }

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path, chunk: int = 1024) -> None:
        """The same for this process: each constant becomes what the client, imported anew, would read.

        `chunk`: of a download that breaks off, the client keeps whole chunks of this size (its own have 10 MiB).
        """
        from huggingface_hub import close_session, constants, hf_api  # so that most of it binds its constants first

        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        old, new = dict(vars(constants)), runpy.run_path(constants.__file__)
        changed = {name: new[name] for name in new if name.isupper() and new[name] != old[name]}
        changed["DOWNLOAD_CHUNK_SIZE"] = chunk
        for module in [module for name, module in sys.modules.items() if name.startswith("huggingface_hub.")]:
            for name in changed.keys() & vars(module).keys():
                monkeypatch.setattr(module, name, changed[name])
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        close_session()  # it was opened under the old environment

    def _answer(self, request: Request, form: dict[str, list[str]]) -> _Answer:
        if self.broken is not None:
            return _Answer(self.broken, {"Retry-After": "0"})
        path = request.path.partition("?")[0]
        if match := _CDN.fullmatch(path):
            contents = {_sha256(content): content for repo in self.files.values() for content in repo.values()}
            content = contents.get(match["sha256"])
            return _refusal(404, "EntryNotFound") if content is None else _file(content, request.range)
        if match := _API.fullmatch(path):
            repo = match["repo"] if match["kind"] == "models" else f"{match['kind']}/{match['repo']}"
            refusal = self._refusal(request, repo, unquote(match["revision"] or "main"))
            return refusal or self._api(repo, match["call"], form)
        if match := _RESOLVE.fullmatch(path):
            refusal = self._refusal(request, match["repo"], unquote(match["revision"]), content=True)
            return refusal or self._resolve(request, match["repo"], unquote(match["path"]))
        return _refusal(404, "NotFound")

    def _refusal(self, request: Request, repo: str, revision: str, content: bool = False) -> _Answer | None:
        """Why the client cannot have anything of this revision or, with `content`, no file of it."""
        logged_in = request.authorization is not None
        if repo not in self.files or repo in self.private:
            return _refusal(404 if logged_in else 401, "RepoNotFound")
        if content and repo in self.gated:
            return _refusal(403 if logged_in else 401, "GatedRepo")
        if revision not in ("main", "refs/convert/parquet", self.commit):
            return _refusal(404, "RevisionNotFound")
        return None

    def _resolve(self, request: Request, repo: str, path: str) -> _Answer:
        commit = {"X-Repo-Commit": self.commit}
        content = self.files[repo].get(path)
        if content is None:
            return _refusal(404, "EntryNotFound", commit)
        if self.redirect:
            linked = {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            return _Answer(302, {"Location": f"{self._cdn}/{_sha256(content)}", **linked, **commit})
        answer = _file(content, request.range)
        return answer._replace(headers=answer.headers | commit)

    def _api(self, repo: str, call: str | None, form: dict[str, list[str]]) -> _Answer:
        """What is known of a repository or, for paths-info, of some of its files and folders."""
        files = self.files[repo]
        if call != "paths-info":
            siblings = [{"rfilename": path} for path in files]
            return _json(200, {"id": repo.removeprefix("datasets/"), "sha": self.commit, "siblings": siblings})
        entries: list[dict[str, object]] = []
        for path in form.get("paths", []):
            if path in files:
                oid, size = _sha256(files[path]), len(files[path])
                lfs = {"oid": oid, "size": size, "pointerSize": 134}
                entries.append({"type": "file", "path": path, "oid": oid[:40], "size": size, "lfs": lfs})
            elif any(other.startswith(f"{path}/") for other in files):
                entries.append({"type": "directory", "path": path, "oid": self.commit})
        return _json(200, entries)

    def _take(self, request: Request, body: bytes) -> _Answer | None:
        """What a client that writes gets; None where it does not write."""
        path = request.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return _json(200, {"errors": [], "warnings": []})
        match = _SPACE.fullmatch(path)
        if match and match["call"] == "tree":
            found = self.files[match["repo"]].items()
            entries = [{"type": "file", "path": name, "oid": _sha256(c)[:40], "size": len(c)} for name, c in found]
            return _json(200, entries)
        writes = path == "/api/repos/create" or match or _BATCH.fullmatch(path)
        if writes and request.authorization is None:
            return _refusal(401, "Unauthorized")
        if path == "/api/repos/create":
            said = json.loads(body)
            repo = f"{said['type']}s/{said.get('organization', 'me')}/{said['name']}"
            status = 409 if repo in self.files else 200
            self.files.setdefault(repo, {})
            self.created.setdefault(repo, said)
            return _json(status, {"url": f"{self.url}/{repo}", "error": "it is there"})
        if request.method == "PUT":
            self._uploaded[_sha256(body)] = body
            return _json(200, {})
        if _BATCH.fullmatch(path):
            objects = [self._place(one) for one in json.loads(body)["objects"]]
            return _json(200, {"transfer": "basic", "objects": objects})
        if match is None:
            return None
        if match["call"] == "preupload":
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "lfs" if path.endswith(_BINARY) else "regular"} for path in files]
            return _json(200, {"files": [mode | {"shouldIgnore": False} for mode in modes]})
        self._commit(match["repo"], [json.loads(line) for line in body.splitlines() if line])
        url = f"{self.url}/{match['repo']}"
        return _json(200, {"success": True, "commitOid": self.commit, "commitUrl": f"{url}/commit/{self.commit}"})

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.url}/lfs/{one['oid']}", "header": {}}
        return one | {"actions": {"upload": upload}}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = self.files[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self._uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]

    def _sent_of(self, size: int) -> int:
        """How many of a file's next `size` bytes are to be sent."""
        with self._lock:
            if self.cut_after is None or self.cut_after >= size or self.cuts == 0:
                return size
            if self.cuts is not None:
                self.cuts -= 1
            return self.cut_after


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> _Answer:
    return _Answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


def _refusal(status: int, code: str, headers: dict[str, str] | None = None) -> _Answer:
    return _json(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})


def _file(content: bytes, wanted: str | None) -> _Answer:
    """All of a file, or the range that is wanted of it."""
    headers = {"ETag": f'"{_sha256(content)}"', "Accept-Ranges": "bytes"}
    match = _RANGE.fullmatch(wanted or "")
    if match is None:
        return _Answer(200, headers, content, is_file=True)
    first, size = int(match[1]), len(content)
    if first >= size:
        return _Answer(416, {"Content-Range": f"bytes */{size}"})
    part = content[first : int(match[2]) + 1 if match[2] else size]
    headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{size}"
    return _Answer(206, headers, part, is_file=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection, which is closed after one answer."""

    server: _Server
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        hub = self.server.hub
        body = _body(self.rfile, self.headers)
        request = Request(self.command, self.path, self.headers["Range"], self.headers["Authorization"])
        hub.requests.append(request)
        if hub.down:
            return
        answer = hub._take(request, body) or hub._answer(request, parse_qs(body.decode(errors="replace")))
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        here, end = 0, hub._sent_of(len(answer.body)) if answer.is_file else len(answer.body)
        while here < end and not hub.down:
            rate = hub.bytes_per_second if answer.is_file else None
            piece = 2**16 if rate is None else -(-rate // 20)  # what is slow comes twenty times a second
            self.wfile.write(answer.body[here : min(here + piece, end)])
            here += piece
            if rate is not None:
                time.sleep(piece / rate if rate else 0.05)

    do_HEAD = do_GET = do_POST = do_PUT = _handle

    def log_message(self, *_: object) -> None:
        pass


def _body(file: IO[bytes], headers: Any) -> bytes:
    """All that a client sends, at once or in chunks."""
    if headers["Transfer-Encoding"] != "chunked":
        return file.read(int(headers["Content-Length"] or 0))
    parts = []
    while size := int(file.readline(), 16):
        parts.append(file.read(size))
        file.readline()
    file.readline()
    return b"".join(parts)


class _Server(ThreadingHTTPServer):
    hub: FakeHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

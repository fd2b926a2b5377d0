"""Start-up where the environment is not clean: one sentence and status 2, or a way round, and never a traceback."""

from __future__ import annotations

import ast
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import getproxies

import httpx
import pytest
from conftest import ROOT, serving

from sod_core.machine import devices, environment, sentences
from sod_core.packs import find, hub
from sod_core.packs.errors import PackError
from sod_core.packs.hub import HubFile

OWN = [name for name in os.environ if name.startswith(("SOD_", "GRADIO_")) or name.lower().endswith("_proxy")]
OWN += ["WORLD_SIZE", "HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR"]
DEAD = "http://127.0.0.1:9"
"""A proxy that refuses."""


@pytest.fixture
def clean(monkeypatch) -> Iterator[Callable[..., None]]:
    """An environment without what this project reads; called with variables, it sets them. All is put back."""
    before = dict(os.environ)
    for name in OWN:
        os.environ.pop(name, None)
    monkeypatch.setattr(environment, "_set_aside", {})
    yield os.environ.update
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# ---------------------------------------------------------------- settings that can only be wrong


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("GRADIO_SERVER_PORT", port) for port in ("", "web", "0", "65536", "-1", "7860.0", "７８６０", "1" * 30)),
        *(
            ("GRADIO_SERVER_NAME", host)
            for host in ("", "http://127.0.0.1", "127.0.0.1:7860", "a b", "no.host.invalid")
        ),
        *(("SOD_DEVICE", device) for device in ("gpu", "cuda:", "cuda:x", "meta")),
        *(("SOD_MEMORY_GB", number) for number in ("", "nan", "-1", "4 GB")),
        *(("SOD_MAX_UPLOAD_MB", number) for number in ("", "lots", "1.5", "²")),
        *(("HF_ENDPOINT", address) for address in ("huggingface.co", "ftp://x", "https://")),
        ("GRADIO_NUM_PORTS", "many"),
        ("GRADIO_NUM_WORKERS", ""),
        ("GRADIO_DEFAULT_CONCURRENCY_LIMIT", "abc"),
        ("GRADIO_ANALYTICS_CACHE_FREQUENCY", "often"),
        *(("GRADIO_ROOT_PATH", path) for path in ("app", "a path", "https:/x", "ftp://x/app")),
        ("GRADIO_TEMP_DIR", "/proc/nowhere"),
        ("SSL_CERT_FILE", "/nowhere.pem"),
        ("SSL_CERT_FILE", str(ROOT / "LICENSE")),
        ("SSLKEYLOGFILE", "/nowhere/keys"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "ten"),
        ("WORLD_SIZE", "two"),
    ],
)
def test_a_wrong_setting_is_named(clean, name, value):
    clean({"GRADIO_SERVER_PORT": str(free_port()), name: value})
    with pytest.raises(ValueError, match=f"^{name}") as caught:
        environment.prepare()
    assert "\n" not in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_that_is_taken_is_named_and_the_way_to_another(clean, taken, name):
    clean(GRADIO_SERVER_PORT=str(taken), GRADIO_SERVER_NAME=name)
    with pytest.raises(ValueError, match=rf"port {taken} of .*GRADIO_SERVER_PORT="):
        environment.prepare()


def test_an_address_of_another_computer_is_named(clean):
    clean(GRADIO_SERVER_NAME="192.0.2.1", GRADIO_SERVER_PORT=str(free_port()))
    with pytest.raises(ValueError, match="192.0.2.1"):
        environment.prepare()


def test_what_is_right_is_taken(clean):
    port = free_port()
    clean(GRADIO_SERVER_PORT=f" {port} ", SOD_DEVICE="CPU", HF_ENDPOINT="", WORLD_SIZE="1")
    assert environment.prepare() == ("127.0.0.1", port)
    assert environment.device() == "cpu" and devices.choose_device().type == "cpu"
    assert "HF_ENDPOINT" not in os.environ  # empty: the hub's client would take it for an address


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
@pytest.mark.parametrize("name", ["::1", "[::1]"])
def test_an_ipv6_address_is_in_brackets_as_gradio_wants_it(clean, name, monkeypatch):
    monkeypatch.setattr(environment, "_listen", lambda address: None)
    clean(GRADIO_SERVER_NAME=name)
    assert environment.prepare().name == "[::1]"


def test_a_device_that_is_not_there_names_the_variable(clean):
    clean(SOD_DEVICE="cuda:99")
    with pytest.raises(ValueError, match="^SOD_DEVICE: device 'cuda:99' cannot be used here"):
        devices.choose_device()
    with pytest.raises(ValueError, match="^device 'cuda:99'"):
        devices.choose_device("cuda:99")


def test_folders_that_are_not_there_are_a_warning(clean, caplog, tmp_path):
    clean(SOD_PACKS=f"/nowhere{os.pathsep}{tmp_path}", SOD_ALLOW_UPLOADS="yes", GRADIO_SERVER_PORT=str(free_port()))
    with caplog.at_level(logging.WARNING):
        environment.prepare()
    assert "not there: /nowhere" in caplog.text and str(tmp_path) not in caplog.text
    assert "SOD_ALLOW_UPLOADS is not 1" in caplog.text and not environment.uploads_allowed()


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "All_Proxy"])
@pytest.mark.parametrize("mine", ["NO_PROXY", "no_proxy", "No_Proxy"])
def test_no_proxy_reaches_this_computer(clean, name, mine):
    clean({name: DEAD, mine: "example.com, 10.0.0.0/8", "GRADIO_SERVER_PORT": str(free_port())})
    environment.prepare()
    left_out = getproxies()["no"].split(",")
    assert {"example.com", "10.0.0.0/8", "127.0.0.1", "localhost", "::1", "0.0.0.0"} <= set(left_out)
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] and os.environ[name] == DEAD
    with httpx.Client(verify=False) as client:
        for url in ("http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/"):
            assert client._transport_for_url(httpx.URL(url)) is client._transport  # the one without proxy
        other = client._transport_for_url(httpx.URL("https://huggingface.co/" if "S" in name else "http://hub/"))
        assert (other is client._transport) is False


def test_without_a_proxy_nothing_is_set(clean):
    clean(GRADIO_SERVER_PORT=str(free_port()))
    environment.prepare()
    assert not [name for name in os.environ if name.lower() == "no_proxy"]


def test_a_blank_proxy_is_none(clean, caplog):
    clean(HTTPS_PROXY=" ", GRADIO_SERVER_PORT=str(free_port()))
    environment.prepare()
    assert "HTTPS_PROXY" not in os.environ and not caplog.text
    environment.check_network()
    httpx.Client(verify=False).close()


@pytest.mark.parametrize("path", ["/sub/app", "https://example.org/app/", "https://example.org", ""])
def test_a_root_path_is_taken(clean, path):
    clean(GRADIO_ROOT_PATH=path, GRADIO_DEFAULT_CONCURRENCY_LIMIT="None", GRADIO_SERVER_PORT=str(free_port()))
    environment.prepare()


def test_a_folder_that_is_gone_is_said(clean, tmp_path, monkeypatch):
    clean(GRADIO_SERVER_PORT=str(free_port()))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValueError, match="started in is gone"):
        environment.prepare()


def test_a_service_without_output_is_served(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    sentences.say_everything()
    print("to nobody")
    print("to nobody", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        assert not stream.isatty()
        stream.close()


def test_an_error_of_the_system_is_said_without_its_number():
    with pytest.raises(OSError) as caught:
        open("/nowhere/a.json")
    assert sentences.said(caught.value) == "/nowhere/a.json: No such file or directory"


@pytest.mark.parametrize("entry", ["[::1]", "::1/128", "fe80::/10", "[::1]:80", "host:*", "é.fr", "http://[::1"])
def test_entries_that_end_every_call_are_mended_or_passed_over(clean, entry):
    clean(HTTP_PROXY=DEAD, NO_PROXY=f"{entry},example.com", GRADIO_SERVER_PORT=str(free_port()))
    with pytest.raises(httpx.InvalidURL):
        httpx.Client(verify=False)
    environment.prepare()
    httpx.Client(verify=False).close()
    assert "example.com" in os.environ["no_proxy"]


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://user:secret@127.0.0.1:9", "socksio"),
        ("socks5h://127.0.0.1:9", "socksio"),
        ("socks4://127.0.0.1:9", "socks4"),
        ("ftp://host:1", "ftp"),
        *(
            (proxy, "no address")
            for proxy in ("garbage::", "://x", "http://[::1", " http://x:1", "http://x:99999", ":3")
        ),
    ],
)
def test_a_proxy_that_cannot_be_used_stops_downloads_only(clean, monkeypatch, tmp_path, caplog, proxy, said):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    wanted = HubFile("nobody/nothing", "model.pth")
    clean(ALL_PROXY=proxy)
    with pytest.raises(PackError, match=rf"ALL_PROXY.*{said}") as caught:  # as on the command line
        hub.fetch(wanted)
    assert "secret" not in str(caught.value)
    clean(GRADIO_SERVER_PORT=str(free_port()))
    environment.prepare()
    assert "ALL_PROXY" not in os.environ and "nothing can be downloaded" in caplog.text
    httpx.Client(verify=False).close()
    with pytest.raises(PackError, match=rf"ALL_PROXY.*{said}"):  # not past the proxy
        hub.fetch(wanted)


# ---------------------------------------------------------------- temporary files


def test_a_gradio_folder_of_somebody_else_is_not_used(clean, monkeypatch, tmp_path):
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    clean(GRADIO_SERVER_PORT=str(free_port()))
    environment.prepare()
    assert "GRADIO_TEMP_DIR" not in os.environ and (tmp_path / "gradio").is_dir()  # Gradio's own place
    monkeypatch.setattr(environment.os, "geteuid", lambda: os.getuid() + 1, raising=False)
    clean(GRADIO_SERVER_PORT=str(free_port()))
    environment.prepare()
    own = Path(os.environ["GRADIO_TEMP_DIR"])
    assert own.is_dir() and own != tmp_path / "gradio" and own.parent == tmp_path
    shutil.rmtree(own)


def test_a_file_called_gradio_is_no_folder(clean, monkeypatch, tmp_path):
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "gradio").write_text("not a folder")
    clean(GRADIO_SERVER_PORT=str(free_port()))
    environment.prepare()
    assert Path(os.environ["GRADIO_TEMP_DIR"]).is_dir()


def test_without_any_temporary_folder_one_is_asked_for(clean, monkeypatch):
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(environment.tempfile, "gettempdir", none)
    clean(GRADIO_SERVER_PORT=str(free_port()))
    with pytest.raises(ValueError, match="TMPDIR"):
        environment.prepare()


# ---------------------------------------------------------------- the process


def started(*before: str, **variables: str) -> subprocess.CompletedProcess:
    """app.py, which ends by itself; `before` are lines of Python that are run first."""
    code = ["import runpy", *before, "runpy.run_path('app.py', run_name='__main__')"]
    kept = {name: value for name, value in os.environ.items() if name not in OWN}
    command = [sys.executable, "-c", "\n".join(code)]
    return subprocess.run(command, cwd=ROOT, env=kept | variables, capture_output=True, text=True, timeout=120)


def assert_one_sentence(ended: subprocess.CompletedProcess, said: str) -> None:
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("app.py: ") and said in ended.stderr and ended.stdout == ""


@pytest.mark.parametrize("variables", [{"GRADIO_SERVER_PORT": "web"}, {"SOD_DEVICE": "gpu"}])
def test_a_wrong_setting_ends_the_app_at_once(variables):
    from_start = time.monotonic()
    assert_one_sentence(started(**variables), *variables)
    assert time.monotonic() - from_start < 3  # nothing heavy was imported


def test_a_device_that_is_not_there_ends_the_app(clean, pack_folder, tmp_path):
    from sod_core.ui import app

    shutil.copytree(pack_folder, tmp_path / "peaches")  # no other test has opened it
    clean(SOD_PACKS=str(tmp_path), SOD_DEFAULT_PACK="peaches", SOD_DEVICE="cuda:99")
    with pytest.raises(SystemExit) as ended, sentences.one_sentence("app.py"):
        app.default_pack()
    assert ended.value.code == 2


def test_an_older_python_is_told():
    assert_one_sentence(started("import sys; sys.version_info = (3, 9, 1, 'final', 0)"), "Python 3.11 or newer")
    for file in ("app.py", "sod_core/__main__.py"):
        ast.parse((ROOT / file).read_text(encoding="utf-8"), feature_version=(3, 7))


def test_a_package_that_is_missing_is_named():
    ended = started("import sys; sys.modules['gradio'] = None", GRADIO_SERVER_PORT=str(free_port()))
    assert_one_sentence(ended, "gradio is not installed: `make run`")


def test_the_environment_is_read_without_anything_heavy():
    code = "import sys; import sod_core.machine.environment; print({'torch', 'gradio', 'httpx'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_an_environment_full_of_traps_is_served(pack_folder, tmp_path):
    """Proxies that refuse or cannot be used, nowhere to write at home, no such TMPDIR, and a locale without letters."""
    traps = {"http_proxy": DEAD, "HTTPS_PROXY": DEAD, "ALL_PROXY": "socks4://127.0.0.1:9", "NO_PROXY": "::1/128,é.fr"}
    traps |= {"HOME": "/proc", "HF_HOME": "/proc/hub", "XDG_CACHE_HOME": "/proc/cache", "TMPDIR": "/nowhere"}
    traps |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "few"}
    packs = tmp_path / "päckchen"
    shutil.copytree(pack_folder, packs / pack_folder.name)
    with serving(packs, tmp_path, **traps) as server:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"Suppression or Deletion" in opener.open(server.url, timeout=20).read()
        log = server.log.read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in log and "ALL_PROXY names a proxy of the kind socks4" in log


def test_ctrl_c_ends_quietly():
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # what runs in the background may ignore it
    pressed = "environment.prepare = lambda: signal.raise_signal(signal.SIGINT)"
    ended = started("import signal", heard, "from sod_core.machine import environment", pressed)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_packs_folder_that_may_not_be_looked_at_is_a_warning(clean, caplog, monkeypatch, tmp_path):
    closed = tmp_path / "closed" / "packs"

    def stat(path, *, follow_symlinks=True, dir_fd=None, real=os.stat):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, follow_symlinks=follow_symlinks, dir_fd=dir_fd)

    clean(SOD_PACKS=str(closed), GRADIO_SERVER_PORT=str(free_port()))
    monkeypatch.setattr(os, "stat", stat)
    environment.prepare()
    assert str(closed) in caplog.text and "canvas" in find.folders()

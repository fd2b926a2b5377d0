"""The environment's variables: each is read and checked here, and put right where Gradio would trip over it.

Nothing heavy is imported, so that a wrong setting is told within a second.
"""

from __future__ import annotations

import atexit
import errno
import importlib.util
import ipaddress
import logging
import math
import os
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

PORT = 7860
DEVICES = ("cuda", "mps", "cpu", "xpu")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
"""In any case; the HTTP client behind Gradio and the hub reads all of them whenever it is made."""
HERE = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
"""Hosts that no proxy reaches: Gradio calls itself once it has started."""
MAY_BE_NONE = ("GRADIO_DEFAULT_CONCURRENCY_LIMIT",)
WHOLE_NUMBERS = (
    *("GRADIO_NUM_PORTS", "GRADIO_NUM_WORKERS", "GRADIO_NODE_SERVER_PORT", "GRADIO_NODE_NUM_PORTS"),
    *("GRADIO_DEBUG", "GRADIO_ANALYTICS_MAX_EVENTS", "GRADIO_ANALYTICS_CACHE_FREQUENCY", *MAY_BE_NONE),
    *("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"),
)
"""Gradio's own and the hub client's, which they read with int()."""

_set_aside: dict[str, str] = {}
"""Proxies that were taken out of the environment, since no HTTP client can be made while they are there."""


# ---------------------------------------------------------------- this project's own


def device() -> str | None:
    """SOD_DEVICE; None where it is unset or empty. Raises ValueError for what is no device's name."""
    text = os.environ.get("SOD_DEVICE", "").strip().lower()
    if text and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", text):
        raise ValueError(f"SOD_DEVICE={text!r} is no device: give cuda, mps or cpu, or unset it for the best there is")
    return text or None


def packs() -> list[Path]:
    """The folders that SOD_PACKS names, split as PATH is, whether or not they are there."""
    return [Path(os.path.expanduser(root)) for root in os.environ.get("SOD_PACKS", "").split(os.pathsep) if root]


def default_pack() -> str | None:
    """SOD_DEFAULT_PACK: the name of a pack, which may not exist."""
    return os.environ.get("SOD_DEFAULT_PACK") or None


def may_open_on(packs: Collection[str]) -> bool:
    """Whether visitors may come for one of these: not where SOD_DEFAULT_PACK names another pack."""
    asked = default_pack()
    return not asked or asked in packs


def memory_gb() -> float:
    """SOD_MEMORY_GB: gigabytes of weights that are kept, 4 unless set. Raises ValueError."""
    text = os.environ.get("SOD_MEMORY_GB", "4")
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not found > 0:
        raise ValueError(f"SOD_MEMORY_GB={text!r} is no number of gigabytes above 0")
    return found


def uploads_allowed() -> bool:
    """Whether the server's owner lets visitors bring checkpoints: SOD_ALLOW_UPLOADS=1."""
    return os.environ.get("SOD_ALLOW_UPLOADS") == "1"


def most_upload_bytes() -> int:
    """SOD_MAX_UPLOAD_MB in bytes, 1500 megabytes unless set. Raises ValueError."""
    text = os.environ.get("SOD_MAX_UPLOAD_MB", "1500")
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"SOD_MAX_UPLOAD_MB={text!r} is no whole number of megabytes")
    return int(text) * 10**6


def on_space() -> bool:
    """Whether this is a Hugging Face Space."""
    return "SPACE_ID" in os.environ


def zero_gpu() -> bool:
    """Whether this is a Space whose GPU is lent for each call."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def processes() -> int:
    """WORLD_SIZE, as `accelerate launch` sets it; 1 unless set. Raises ValueError."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ValueError(f"WORLD_SIZE={text!r} is no number of processes: unset it, or start with `accelerate launch`")
    return int(text)


# ---------------------------------------------------------------- where the app is served


class Address(NamedTuple):
    """Where the app listens."""

    name: str
    """A host's name or address; an IPv6 address in brackets, as Gradio wants it."""
    port: int


def address() -> Address:
    """GRADIO_SERVER_NAME and GRADIO_SERVER_PORT; 127.0.0.1 and 7860 unless set.

    Raises ValueError for what cannot be an address, or one at which nothing can listen here.
    """
    found = Address(_server_name(), _server_port())
    _listen(found)
    return found


def _server_name() -> str:
    text = os.environ.get("GRADIO_SERVER_NAME", HERE[0]).strip()
    bare = text.strip("[]")
    if _is_ipv6(bare):
        return f"[{bare}]"
    if not re.fullmatch(r"[\w.-]+", text):
        raise ValueError(
            f"GRADIO_SERVER_NAME={text!r} is no host's name or address alone: give 127.0.0.1 for this computer, "
            "0.0.0.0 for every network, or unset it"
        )
    return text


def _server_port() -> int:
    text = os.environ.get("GRADIO_SERVER_PORT", str(PORT)).strip()
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 65535:
        raise ValueError(
            f"GRADIO_SERVER_PORT={text!r} is no port: give a whole number from 1 to 65535, or unset it for {PORT}"
        )
    return int(text)


def _listen(address: Address) -> None:
    """Listens there for a moment. Raises ValueError where that cannot be."""
    name, port = address
    try:
        found = socket.getaddrinfo(name.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"GRADIO_SERVER_NAME={name!r} is no host that is known here: give its address") from error
    problems = [_problem(family, kind, place) for family, kind, _, _, place in found]
    known = [problem for problem in problems if problem is not None]
    if len(known) < len(problems) and not any(problem.errno == errno.EADDRINUSE for problem in known):
        return
    raise ValueError(
        f"nothing can listen at port {port} of {name} ({known[0].strerror if known else 'it has no address'}): "
        f"choose another port with GRADIO_SERVER_PORT, for example GRADIO_SERVER_PORT={_another(port)}"
        + ("" if name == HERE[0] else ", or another address of this computer with GRADIO_SERVER_NAME")
    )


def _problem(family: int, kind: int, place: tuple) -> OSError | None:
    """Why a socket cannot be bound there; None where it can."""
    try:
        with socket.socket(family, kind) as tried:
            if os.name == "posix":  # elsewhere it would share the port
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            tried.bind(place)
    except OSError as error:
        return error
    return None


def _another(port: int) -> int:
    return port + 1 if 1024 <= port < 65535 else PORT


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


# ---------------------------------------------------------------- before Gradio is imported


def prepare() -> Address:
    """Checks what the app reads, and puts right what Gradio would trip over. Returns where to listen.

    Raises ValueError, with one sentence, for a setting that can only be wrong.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ValueError("the folder that this was started in is gone: change to one that is there") from error
    device(), memory_gb(), most_upload_bytes(), processes()
    found = address()
    for name in WHOLE_NUMBERS:
        _whole_number(name)
    _check_root_path()
    _check_certificates()
    _check_hub()
    _temporary_folder()
    for folder in packs():
        if not os.path.isdir(folder):  # unlike Path.is_dir: no error where one may not look
            log.warning("SOD_PACKS names a folder that is not there: %s", folder)
    if os.environ.get("SOD_ALLOW_UPLOADS", "0") not in ("", "0", "1"):
        log.warning("SOD_ALLOW_UPLOADS is not 1: visitors may not bring checkpoints")
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):  # given to launch; Gradio's own look at them is narrower
        os.environ.pop(name, None)
    _leave_out_of_proxies(found.name.strip("[]"))
    for name, sentence in _unusable_proxies().items():
        log.warning("%s; nothing can be downloaded", sentence)
        _set_aside[name] = sentence
        del os.environ[name]
    return found


def _whole_number(name: str) -> None:
    text = os.environ.get(name, "0")
    if name in MAY_BE_NONE and text.lower() in ("", "none"):
        return
    try:
        int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is no whole number: correct it, or unset it") from None


def _check_root_path() -> None:
    """Raises ValueError for a GRADIO_ROOT_PATH with which no page could be made."""
    text = os.environ.get("GRADIO_ROOT_PATH", "")
    if text and not re.fullmatch(r"(https?://[^\s/]+)?(/\S*)?", text):
        raise ValueError(f"GRADIO_ROOT_PATH={text!r} is no path of a page: it begins with / or https://, or unset it")


def _check_certificates() -> None:
    """The HTTP client reads these files whenever it is made, for calls to this computer, too."""
    for name, exists in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        path = os.environ.get(name)
        if path and not exists(path):
            raise ValueError(f"{name}={path!r} is not there: correct it, or unset it")
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSLKEYLOGFILE")):
        return
    try:
        ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or None)  # writes to SSLKEYLOGFILE
    except ssl.SSLError as error:
        raise ValueError(
            f"SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE')!r} holds no certificates: unset it"
        ) from error
    except OSError as error:
        path = os.environ.get("SSLKEYLOGFILE")
        raise ValueError(f"SSLKEYLOGFILE={path!r} cannot be written: correct it, or unset it") from error


def _check_hub() -> None:
    """Raises ValueError for an HF_ENDPOINT that is no address. An empty one counts as unset."""
    text = os.environ.get("HF_ENDPOINT")
    if text is not None and not text.strip():
        del os.environ["HF_ENDPOINT"]
    elif text is not None and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text.strip()):
        raise ValueError(f"HF_ENDPOINT={text!r} is no address of a hub: it begins with https://, or unset it")


def _temporary_folder() -> None:
    """Where Gradio keeps uploads: GRADIO_TEMP_DIR, else `gradio` among the temporary files, else a folder of our own.

    Raises ValueError where the named one, or every temporary folder, cannot be written.
    """
    named = os.environ.get("GRADIO_TEMP_DIR")
    if named:
        if not _ours(Path(named)):
            raise ValueError(f"GRADIO_TEMP_DIR={named!r} cannot be written: name another folder, or unset it")
        return
    try:
        folder = Path(tempfile.gettempdir())  # passes over a TMPDIR that cannot be used
    except FileNotFoundError:
        raise ValueError("there is no folder for temporary files that can be written: name one in TMPDIR") from None
    if not _ours(folder / "gradio", anybodys=False):
        own = tempfile.mkdtemp(prefix="gradio-")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        os.environ["GRADIO_TEMP_DIR"] = own


def _ours(folder: Path, anybodys: bool = True) -> bool:
    """Whether files can be written to the folder, which is made; not `anybodys`: and it belongs to this user."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return anybodys or not hasattr(os, "geteuid") or folder.stat().st_uid == os.geteuid()
    except OSError:
        return False


# ---------------------------------------------------------------- proxies


def check_network() -> None:
    """To be called before anything is downloaded. Raises ValueError for a proxy or a hub that cannot be used."""
    _check_hub()
    problems = [*_set_aside.values(), *_unusable_proxies().values()]
    if problems:
        raise ValueError(problems[0])
    _leave_out_of_proxies()


def _proxies() -> dict[str, str]:
    """Variable -> value of every proxy; spaces alone are none, and go, since the HTTP client would read them."""
    found = {name: value for name, value in os.environ.items() if name.lower() in PROXIES and value}
    for name in [name for name, value in found.items() if value.isspace()]:
        del os.environ[name], found[name]
    return found


def _unusable_proxies() -> dict[str, str]:
    """Variable -> one sentence, for each proxy with which no HTTP client can be made."""
    found = {name: _fault(value) for name, value in _proxies().items()}
    return {name: f"{name} {fault}" for name, fault in found.items() if fault is not None}


def _fault(proxy: str) -> str | None:
    """What is wrong with a proxy's address. The address itself is not told: it may hold a password."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        whole = bool(parts.hostname) and (parts.port or 1) > 0 and not re.search(r"\s", proxy)
    except ValueError:
        whole = False
    if not whole or not parts.scheme:
        return "is no address of a proxy, such as http://host:3128: correct it, or unset it"
    if parts.scheme in ("socks5", "socks5h"):
        here = importlib.util.find_spec("socksio") is not None
        return None if here else "names a SOCKS proxy, which needs the package socksio: `pip install socksio`"
    if parts.scheme not in ("http", "https"):
        return f"names a proxy of the kind {parts.scheme}, which cannot be used: give an http:// or socks5:// one"
    return None


def _leave_out_of_proxies(*hosts: str) -> None:
    """Puts this computer and `hosts` beside what the user leaves out of the proxies, where there are proxies.

    Without those that the HTTP client cannot read (IPv6 networks), which would end every call.
    """
    if not _proxies():
        return
    given = ",".join(value for name, value in os.environ.items() if name.lower() == "no_proxy")
    entries = dict.fromkeys(entry for entry in map(_bare, given.split(",")) if entry)
    kept = [entry for entry in entries if _readable(entry)]
    for entry in entries:
        if entry not in kept:
            log.warning("NO_PROXY: %s cannot be read, and is passed over", entry)
    for name in [name for name in os.environ if name.lower() == "no_proxy"]:
        del os.environ[name]
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(dict.fromkeys((*kept, *HERE, *hosts)))


def _bare(entry: str) -> str:
    """ "::1" of "[::1]"."""
    entry = entry.strip()
    return entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry


def _readable(entry: str) -> bool:
    return entry.isascii() and (_is_ipv6(entry) or re.fullmatch(r"([a-z]+://)?[^:\[\]]*(:\d+)?", entry) is not None)

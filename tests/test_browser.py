"""Which browser the page's tests find, and how one is installed: with stand-ins for all the programs."""

from __future__ import annotations

import shutil
from pathlib import Path

import browser
import pytest


@pytest.fixture
def programs(tmp_path: Path, monkeypatch) -> Path:
    """The only folder on the PATH. No place has a browser, and Playwright has downloaded none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "env", "chmod"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    monkeypatch.setattr(browser, "PLACES", (str(tmp_path / "opt" / "chrome"),))
    monkeypatch.setattr(browser, "MAC", ("Safari",))
    monkeypatch.setattr(browser, "playwrights_own", lambda: str(tmp_path / "downloaded"))
    monkeypatch.setattr(browser.sys, "executable", str(folder / "python"))
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    return folder


def program(path: Path, script: str = "exit 0") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def noting(folder: Path, name: str, script: str = "") -> None:
    """A program that writes its arguments into the file `asked`."""
    program(folder / name, f'echo {name} "$@" >> {folder}/asked\n{script}')


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def making(path: Path) -> str:
    """A script's line that makes a browser."""
    return f'case "$*" in *install*) printf "#!/bin/sh\\n" > {path}; chmod 755 {path};; esac'


@pytest.mark.parametrize("name", browser.NAMES)
def test_every_name_on_the_path_is_found(programs, name):
    assert browser.find_browser() is None
    path = program(programs / name)
    assert browser.find_browser() == path


def test_places_beside_the_path_and_a_download_are_found(programs, tmp_path):
    path = program(tmp_path / "downloaded")
    assert browser.find_browser() == path
    path = program(tmp_path / "opt" / "chrome")
    assert browser.find_browser() == path


def test_an_application_of_a_mac_is_found(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "MAC", ("No Such Browser",))
    there = tmp_path / "Applications" / "No Such Browser.app" / "Contents" / "MacOS"
    there.mkdir(parents=True)
    assert browser.find_browser() is None
    path = program(there / "No Such Browser")
    assert browser.find_browser() == path


def test_what_does_not_start_is_none(programs):
    program(programs / "chromium", "echo needs the snap; exit 1")
    (programs / "google-chrome").write_text("words")
    assert browser.find_browser() is None
    path = program(programs / "microsoft-edge")
    assert browser.find_browser() == path


def test_the_variable_comes_first(programs, tmp_path, monkeypatch, capsys):
    program(programs / "chromium")
    path = program(tmp_path / "mine")
    monkeypatch.setenv(browser.VARIABLE, path)
    assert browser.find_browser() == path and browser.main() == 0
    monkeypatch.setenv(browser.VARIABLE, "nothing")
    assert browser.main() == 2
    assert capsys.readouterr().err == "SOD_BROWSER names no browser that starts: nothing\n"


def test_what_is_here_is_not_installed(programs):
    program(programs / "chromium")
    noting(programs, "apt-get")
    noting(programs, "python")
    assert browser.main() == 0 and asked(programs) == []


@pytest.mark.parametrize("root", [True, False])
def test_by_apt_where_that_is_allowed(programs, monkeypatch, root):
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0 if root else 1000)
    noting(programs, "apt-get", making(programs / "chromium"))
    noting(programs, "python")
    if not root:
        program(programs / "sudo", f'echo sudo "$1" >> {programs}/asked; shift; exec "$@"')
        program(programs / "true")
    assert browser.main() == 0
    steps = ["apt-get update", "apt-get install -y --no-install-recommends chromium"]
    assert [line for line in asked(programs) if not line.startswith("sudo")] == steps
    assert [line for line in asked(programs) if line.startswith("sudo")] == ([] if root else ["sudo -n"] * 3)


@pytest.mark.parametrize("why", ["no apt", "no sudo", "a password", "no such package"])
def test_else_playwrights_own(programs, tmp_path, monkeypatch, why):
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0 if why == "no such package" else 1000)
    if why != "no apt":
        noting(programs, "apt-get", "exit 100")
    if why == "a password":
        program(programs / "sudo", "exit 1")
    noting(programs, "python", making(tmp_path / "downloaded"))
    assert browser.main() == 0 and browser.find_browser() == str(tmp_path / "downloaded")
    with_apt = why == "no such package"
    libraries = "--with-deps " if with_apt else ""
    assert asked(programs)[-1] == f"python -m playwright install {libraries}chromium"
    assert any("apt-get" in line for line in asked(programs)) is with_apt


def test_else_one_sentence(programs, capfd):
    noting(programs, "python", "exit 1")
    assert browser.main() == 2
    out, err = capfd.readouterr()
    assert err == f"{browser.WANTED}\n" and "apt-get install chromium" in err

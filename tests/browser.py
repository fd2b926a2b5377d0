"""The browser that the page's tests run in. As a program: finds one, or installs one, or says what to install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VARIABLE = "SOD_BROWSER"
"""Names a browser's program, by its path or as the PATH knows it. Nothing else is tried then."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NAMES += ("microsoft-edge", "microsoft-edge-stable")
PLACES = ("/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/microsoft-edge", "/snap/bin/chromium")
PLACES += ("/opt/google/chrome/chrome", "/opt/microsoft/msedge/msedge")
MAC = ("Chromium", "Google Chrome", "Microsoft Edge")
WANTED = (
    "the page's tests need a browser: install Chromium, Chrome or Edge (on Debian: sudo apt-get install chromium), "
    f"or name one with {VARIABLE}="
)


def find_browser() -> str | None:
    """The path of a browser that starts; None if there is none. ValueError if SOD_BROWSER names none."""
    if named := os.environ.get(VARIABLE):
        path = shutil.which(named)
        if path is None or not _starts(path):
            raise ValueError(f"{VARIABLE} names no browser that starts: {named}")
        return path
    apps = [f"{root}/Applications/{name}.app/Contents/MacOS/{name}" for root in ("", Path.home()) for name in MAC]
    for place in (*NAMES, *PLACES, *apps):
        path = shutil.which(place)
        if path is not None and _starts(path):
            return path
    path = playwrights_own()
    return path if shutil.which(path) and _starts(path) else None


def playwrights_own() -> str:
    """Where `playwright install chromium` puts its browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def _starts(path: str) -> bool:
    """Not so Ubuntu's /usr/bin/chromium-browser, which names a snap, and a download whose libraries are missing."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install() -> str | None:
    """By apt-get where it asks nothing; else what Playwright downloads. The path, None if all of it came to nothing."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    allowed = shutil.which("apt-get") and (not as_root or shutil.which("sudo") and _done(*as_root, "true"))
    if allowed:
        _done(*apt, "update")
        _done(*apt, "install", "-y", "--no-install-recommends", "chromium")
        if found := find_browser():
            return found
    libraries = ["--with-deps"] if allowed else []  # Ubuntu has no such package, only a snap
    _done(sys.executable, "-m", "playwright", "install", *libraries, "chromium")
    return find_browser()


def _done(*command: str) -> bool:
    print(*command, flush=True)
    return subprocess.run(command).returncode == 0


def main() -> int:
    """The exit status: 2, with one sentence, where there is no browser and none can be had."""
    try:
        found = find_browser() or install()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if found is None:
        print(WANTED, file=sys.stderr)
        return 2
    print(f"The page's tests run in {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

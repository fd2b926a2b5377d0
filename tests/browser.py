"""The browser that the page's tests run in. As a program: finds it, or installs one, or says what to install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VARIABLE = "SOD_BROWSER"
"""Names a browser's program, as a path or as a name on the PATH; nothing else is tried then."""
NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("microsoft-edge", "microsoft-edge-stable"),
)
PLACES = (
    *("/usr/bin/chromium", "/usr/bin/chromium-browser", "/snap/bin/chromium", "/opt/google/chrome/chrome"),
    *("/opt/microsoft/msedge/msedge", "/Applications/Chromium.app/Contents/MacOS/Chromium"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
"""Where they are installed; on a Mac also below the user's own folder."""
WANTED = (
    "the page's tests need a browser: install Chromium, Chrome or Edge (on Debian: sudo apt-get install chromium), "
    f"or name one with {VARIABLE}="
)


def find_browser() -> str | None:
    """The path of a browser that is here; None if there is none. ValueError if SOD_BROWSER names none."""
    if named := os.environ.get(VARIABLE):
        found = shutil.which(named)
        if found is None:
            raise ValueError(f"{VARIABLE} names no program: {named}")
        return found
    candidates = [*NAMES, *PLACES, *(str(Path.home()) + place for place in PLACES if place.startswith("/App"))]
    return next((found for found in map(shutil.which, candidates) if found), _playwrights_own())


def _playwrights_own() -> str | None:
    """The browser that `playwright install chromium` puts into the user's cache."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.access(path, os.X_OK) else None


def _administrator() -> list[str] | None:
    """What a command that installs begins with; None where a password would be asked for."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    return sudo if shutil.which("sudo") and _succeeds([*sudo, "true"]) else None


def _succeeds(command: list[str]) -> bool:
    print(*command, flush=True)
    return subprocess.run(command).returncode == 0


def install() -> None:
    """By apt-get where nothing is asked for that; else what Playwright downloads. It may come to nothing."""
    administrator = _administrator() if shutil.which("apt-get") else None
    if administrator is not None:
        apt = [*administrator, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        if _succeeds([*apt, "update"]) and _succeeds([*apt, "install", "-y", "--no-install-recommends", "chromium"]):
            return
    _succeeds([sys.executable, "-m", "playwright", "install", "chromium"])


def main() -> int:
    """The exit status: 2, with one sentence, where there is no browser and none can be had."""
    try:
        if find_browser() is None:
            install()
        found = find_browser()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"browser: {found}" if found else WANTED, file=sys.stdout if found else sys.stderr)
    return 0 if found else 2


if __name__ == "__main__":
    sys.exit(main())

"""The menu "Export", the same on every tab: a file is made of what the visitor sees, and the browser saves it."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import gradio as gr

from ..data.charts import SCALES
from . import handling

TITLES = {
    "png": ("PNG", "the figure as a picture"),
    "gif": ("GIF", "the sweep as a moving picture"),
    "csv": ("CSV", "the curves as a table"),
    "json": ("JSON", "settings and figures, for python -m sod_core"),
}
CLICKS = """
element.addEventListener('click', (event) => {
  const item = event.target.closest('[data-export]');
  if (!item) return;
  element.querySelector('[role=status]').textContent = 'Making the file ...';
  const scale = SCALES.find((name) => document.body.classList.contains(`sod-${name}`)) || SCALES[0];
  trigger('click', {kind: item.dataset.export, scale});
});
""".replace("SCALES", json.dumps(list(SCALES)))
SAVES = """(file) => {
  document.querySelectorAll('.sod-export [role=status]').forEach((place) => { place.textContent = ''; });
  if (!file) return;
  const link = document.createElement('a');
  link.href = file.url;
  link.download = file.orig_name;
  link.click();
}"""
Make = Callable[..., tuple[str, bytes]]
"""make(kind, scale, *values of the inputs): a file's name, and what is in it. Raises ValueError."""


class Folder:
    """Where a page's files lie; it goes with the page. Created empty: Gradio copies it for each page."""

    def __init__(self) -> None:
        self._made: tempfile.TemporaryDirectory | None = None

    def write(self, name: str, content: bytes) -> str:
        """The path of a new file."""
        if self._made is None:
            self._made = tempfile.TemporaryDirectory(prefix="sod-export-")
        path = Path(tempfile.mkdtemp(dir=self._made.name), name)
        path.write_bytes(content)
        return str(path)


class Menu:
    """The menu of one tab, laid out in the current Blocks: `kinds` are keys of TITLES."""

    def __init__(self, tab: str, kinds: Sequence[str] = tuple(TITLES)):
        items = "".join(
            f'<button type="button" data-export="{kind}" title="{TITLES[kind][1]}">{TITLES[kind][0]}</button>'
            for kind in kinds
        )
        self._html = gr.HTML(
            '<details class="sod-export"><summary>Export</summary>'
            f'<div>{items}</div><span role="status"></span></details>',
            js_on_load=CLICKS,
            elem_id=f"{tab}-export",
        )
        self._file = gr.DownloadButton(visible="hidden", elem_id=f"{tab}-exported")
        self._folder = gr.State(Folder())

    def wire(self, make: Make, inputs: Sequence[Any]) -> None:
        """`make` is called with the values of `inputs`."""

        def run(event: gr.EventData, folder: Folder, *values: Any) -> str | None:
            try:
                return folder.write(*make(event.kind, event.scale, *values))
            except Exception as error:
                handling.warn(error, make)
                return None

        made = self._html.click(
            run, [self._folder, *inputs], self._file, show_progress="hidden", api_visibility="private",
            concurrency_limit=2, concurrency_id="export",
        )  # fmt: skip
        made.then(None, self._file, js=SAVES)


def name(kind: str, *parts: object) -> str:
    """A file's name out of what it shows: "restore-canvas-salun-boat-layer9-alpha1.5.png"."""
    said = "-".join(str(part) for part in parts if part not in (None, ""))
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', said).strip('-')[:150]}.{kind}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file; None is an empty cell."""
    text = StringIO()
    written = csv.writer(text, lineterminator="\n")
    written.writerow(head)
    written.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return text.getvalue().encode()


def for_command(
    words: Sequence[str], options: dict[str, Any], figures: dict[str, Any], tab: str, page: dict[str, Any]
) -> bytes:
    """A JSON file that `python -m sod_core WORDS --from FILE` computes again, and `draw FILE` draws: of `page`, what
    `tab` shows. Options that are None are left out."""
    known = {key: value for key, value in options.items() if value is not None}
    held = {"sod_core": list(words), "options": known, "figures": figures, "tab": tab, "page": page}
    return (json.dumps(held, indent=1) + "\n").encode()

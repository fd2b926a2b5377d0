"""How long people wait, beside a bare Gradio app: first page, a hand's move to the picture, Play, a new image.

    python benchmarks/slider.py

Both apps run one after the other as servers of their own, in the same browser (Playwright with an installed Chromium);
the bare one has a slider that answers with a ready-made Plotly figure, which is the least that a request costs in
Gradio. Figures are of this machine and this run: read the ratios.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
MOVES, IMAGES, LAUNCHES = 100, 10, 3
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
BARE = """
import os
import gradio as gr
import plotly.graph_objects as go

def figure(alpha):
    return go.Figure([go.Bar(x=[str(i) for i in range(10)], y=[alpha] * 10) for _ in range(3)])

with gr.Blocks(analytics_enabled=False) as demo:
    slider, plot = gr.Slider(0, 10, step=0.05, elem_id="alpha"), gr.Plot(figure(1), elem_id="bars")
    slider.input(figure, slider, plot, show_progress="hidden", trigger_mode="always_last")
demo.launch(server_port=int(os.environ["GRADIO_SERVER_PORT"]))
"""
SET = """const range = document.querySelector('#alpha input[type=range]');
    range.value = alpha; range.dispatchEvent(new Event('input', {bubbles: true}));"""
OURS = f"""alpha => {{ const started = performance.now(); {SET}
    const shown = document.querySelector('#bars tr.restored td.mine').innerText;
    return shown === '' ? NaN : performance.now() - started; }}"""
"""From the input event to bars and heat in the page; reading a text forces what was written to be laid out."""
THEIRS = f"""alpha => new Promise((done, failed) => {{ setTimeout(failed, 10000);
    const started = performance.now(); {SET}
    const look = () => Math.abs(document.querySelector('#bars .js-plotly-plot').data[0].y[0] - alpha) < 1e-6
        ? done(performance.now() - started) : setTimeout(look, 1);
    look(); }})"""
FRAMES = """seconds => new Promise(done => { let frames = 0; const started = performance.now();
    const step = now => { frames++; if (now - started < 1000 * seconds) requestAnimationFrame(step);
        else done(frames / (now - started) * 1000); };
    requestAnimationFrame(step); })"""
PLAYED = """() => new Promise(done => { const seen = new Set(); let started = 0, frames = 0;
    const range = document.querySelector('#alpha input[type=range]');
    const cell = document.querySelector('#curves .sod-now');
    document.querySelector('#play').click();
    const step = now => { started ||= now; frames++; seen.add(cell.dataset.alpha);
        if (document.body.classList.contains('sod-playing')) requestAnimationFrame(step);
        else done([seen.size, frames, (now - started) / 1000]); };
    requestAnimationFrame(step); })"""


class Measured(NamedTuple):
    page: float
    """Median seconds from launch to the first page."""
    moves: list[float]
    """Milliseconds of each move of the slider."""


def main() -> None:
    """Runs both apps and prints what was measured."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        rows = {"bare Gradio app": measure_bare(bare, browser)}
        rows["this app"] = measure_app(browser)
        browser.close()
    print("| | launch to first page, s | slider p50, ms | slider p95, ms |\n|---|---|---|---|")
    for name, (page, moves) in rows.items():
        print(f"| {name} | {page:.1f} | {percentile(moves, 50):.1f} | {percentile(moves, 95):.1f} |")
    (page, moves), (bare_page, bare_moves) = rows["this app"], rows["bare Gradio app"]
    ratios = (page / bare_page, *(percentile(moves, p) / percentile(bare_moves, p) for p in (50, 95)))
    print("| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


def measure_bare(script: Path, browser: Browser) -> Measured:
    seconds, server = launched(script)
    try:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#bars .js-plotly-plot .bars path")
        return Measured(seconds, moved(page, THEIRS))
    finally:
        server.stop()


def measure_app(browser: Browser) -> Measured:
    """The slider, and beside it what the table does not hold: requests, Play, a new image."""
    seconds, server = launched(ROOT / "app.py")
    try:
        page = opened(browser, server)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        moves = moved(page, OURS)
        empty = browser.new_page().evaluate(FRAMES, 4)
        page.bring_to_front()
        positions, frames, lasted = page.evaluate(PLAYED)
        print(f"requests while the slider moved {MOVES + 10} times and Play ran: {len(asked)}")
        print(
            f"Play: {positions} positions in {frames} frames of {lasted:.1f} s, {frames / lasted:.0f} frames a second; "
            f"an empty page in the same browser {empty:.0f}; share {frames / lasted / empty:.0%}"
        )
        fast, whole = zip(*(new_image(page, i) for i in range(IMAGES)))
        found = f"bars after {statistics.median(fast):.0f} ms, every position after {statistics.median(whole):.0f}"
        print(f"a new image: {found}; opening a page: bars after {opening(browser, server):.0f}")
        return Measured(seconds, moves)
    finally:
        server.stop()


def opened(browser: Browser, server: Server) -> Page:
    """A page whose sweep is whole."""
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_function(
        "() => (document.querySelector('#sweep [data-sweep]')?.dataset.sweep || '').includes('0.05')"
    )
    page.wait_for_selector("#curves .sod-now", state="attached")
    return page


def moved(page: Page, script: str) -> list[float]:
    """Milliseconds of each move, after ten that do not count."""
    page.wait_for_timeout(1000)
    for i in range(10):
        page.evaluate(script, i + 1)
    return [page.evaluate(script, round(0.1 * (i % 100) + 0.05, 2)) for i in range(MOVES)]


def new_image(page: Page, number: int) -> tuple[float, float]:
    """Milliseconds from the click on an example to its bars, and to its whole sweep."""
    script = """number => new Promise(done => { const started = performance.now(); let bars = 0;
        const before = document.querySelector('.sod-bars').dataset.drawn;
        document.querySelectorAll('#picker button')[number].click();
        const look = () => {
            const drawn = document.querySelector('.sod-bars').dataset.drawn;
            const sweep = JSON.parse(document.querySelector('#sweep [data-sweep]').dataset.sweep);
            if (!bars && drawn !== before) bars = performance.now() - started;
            if (bars && sweep.drawn === drawn && sweep.every < 0.06) done([bars, performance.now() - started]);
            else setTimeout(look, 2);
        };
        look(); })"""
    bars, whole = page.evaluate(script, number + 1)
    page.wait_for_timeout(300)
    return bars, whole


def opening(browser: Browser, server: Server) -> float:
    """Median milliseconds from the address to the first bars."""
    found = []
    for _ in range(5):
        page = browser.new_page()
        started = time.perf_counter()
        page.goto(server.url)
        page.wait_for_selector("#bars .sod-bars")
        found.append((time.perf_counter() - started) * 1000)
        page.close()
    return statistics.median(found)


def launched(script: Path) -> tuple[float, Server]:
    """Median seconds from launch to first page, and the last of the servers, running."""
    seconds = []
    for _ in range(LAUNCHES):
        server = Server(script)
        seconds.append(server.seconds)
        if len(seconds) < LAUNCHES:
            server.stop()
    return statistics.median(seconds), server


class Server:
    """An app in a process of its own, until `stop`."""

    def __init__(self, script: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
        started = time.perf_counter()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env=environment, **quiet)
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).read()
                break
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - started > 120:
                    raise SystemExit(f"{script} did not start") from None
                time.sleep(0.02)
        self.seconds = time.perf_counter() - started

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()

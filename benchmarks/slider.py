"""How long people wait: launch to first page, and slider to answer, side by side with a bare Gradio app.

    python benchmarks/slider.py

Both apps run one after the other as servers of their own; the bare one has a slider that answers with a
ready-made Plotly figure, which is the least that Gradio itself costs. Figures are of this machine and this
run: read the ratios.
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

from gradio_client import Client

ROOT = Path(__file__).resolve().parents[1]
MOVES = 100
LAUNCHES = 3
BARE = """
import os
import gradio as gr
import plotly.graph_objects as go

figure = go.Figure([go.Bar(x=[str(i) for i in range(10)], y=[0.1] * 10) for _ in range(3)])
with gr.Blocks(analytics_enabled=False) as demo:
    slider, plot = gr.Slider(0, 10), gr.Plot()
    slider.input(lambda alpha: figure, slider, plot, api_name="move_alpha")
demo.launch(server_port=int(os.environ["GRADIO_SERVER_PORT"]))
"""


def main() -> None:
    """Runs both apps and prints a Markdown table."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE)
        rows = {"bare Gradio app": measure(bare, bare_move), "this app": measure(ROOT / "app.py", app_move)}
    print("| | launch to first page, s | slider p50, ms | slider p95, ms |\n|---|---|---|---|")
    for name, (page, moves) in rows.items():
        print(f"| {name} | {page:.1f} | {percentile(moves, 50):.0f} | {percentile(moves, 95):.0f} |")
    (page, moves), (bare_page, bare_moves) = rows["this app"], rows["bare Gradio app"]
    ratios = (page / bare_page, *(percentile(moves, p) / percentile(bare_moves, p) for p in (50, 95)))
    print("| ratio | " + " | ".join(f"{ratio:.1f}" for ratio in ratios) + " |")


def measure(script: Path, move) -> tuple[float, list[float]]:
    """(median seconds from launch to first page, milliseconds of each slider move)."""
    launches = []
    for _ in range(LAUNCHES):
        server = Server(script)
        launches.append(server.seconds)
        if len(launches) < LAUNCHES:
            server.stop()
    try:
        client = Client(server.url, verbose=False)
        once = move(client)
        for i in range(10):
            once(i / 10)
        moves = []
        for i in range(MOVES):
            started = time.perf_counter()
            once(10 * i / MOVES)
            moves.append((time.perf_counter() - started) * 1000)
    finally:
        server.stop()
    return statistics.median(launches), moves


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


def bare_move(client: Client):
    return lambda alpha: client.predict(alpha, api_name="/move_alpha")


def app_move(client: Client):
    """The page's own events: open a pack, then move alpha; the state stays on the server."""
    settings = ["inject", 0.0, "all", "experts", "", 0]
    client.predict("canvas", 9, *settings, api_name="/open_pack")
    client.predict(api_name="/settle")
    return lambda alpha: client.predict(9, settings[0], alpha, *settings[2:], api_name="/move_alpha")


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()

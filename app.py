"""Suppression or Deletion: builds the Gradio app from sod_core.ui and launches it."""

import logging
import os
import threading

from sod_core.ui import app as ui
from sod_core.ui.visitor import warm

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)

demo = ui.build()

if __name__ == "__main__":
    threading.Thread(target=warm, args=[ui.default_pack()], daemon=True).start()
    demo.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        **ui.launch_options(),
    )

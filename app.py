"""Suppression or Deletion: builds the Gradio app from sod_core.ui and launches it."""

import logging
import os
import sys

from sod_core.packs.errors import PackError
from sod_core.ui import app as ui

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
for noisy in ("httpx", "httpx2"):
    logging.getLogger(noisy).setLevel(logging.WARNING)

if __name__ == "__main__":
    try:
        demo = ui.build()
    except PackError as error:
        sys.exit(str(error))
    demo.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        prevent_thread_lock=True,  # the first page comes before the models
        **ui.launch_options(),
    )
    ui.warm_up()
    demo.block_thread()

"""Suppression or Deletion: builds the Gradio app from sod_core.ui and launches it."""

import logging
import sys

if sys.version_info < (3, 11):  # noqa: UP036  told before an older Python meets what it cannot read
    sys.stderr.write("app.py: Python 3.11 or newer is needed, and this is %d.%d\n" % sys.version_info[:2])  # noqa: UP031
    sys.exit(2)

from sod_core.machine import environment, sentences  # noqa: E402

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
for noisy in ("httpx", "httpx2"):
    logging.getLogger(noisy).setLevel(logging.WARNING)

if __name__ == "__main__":
    with sentences.one_sentence("app.py"):
        address = environment.prepare()  # before Gradio is imported, which reads the environment then
        from sod_core.ui import app as ui

        demo = ui.build()
        demo.launch(
            server_name=address.name,
            server_port=address.port,
            prevent_thread_lock=True,  # the first page comes before the models
            **ui.launch_options(),
        )
        ui.warm_up()
        demo.block_thread()

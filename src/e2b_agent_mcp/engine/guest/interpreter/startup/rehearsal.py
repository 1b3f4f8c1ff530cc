"""The life of a kernel in short, for a child of the zygote that notes what a kernel calls."""

import tempfile
import threading
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from . import launch

CELLS = ("1", "import pandas")
TIMEOUT = 10  # seconds


def rehearse() -> None:
    """The kernel is this process, which is good for nothing else then."""
    with tempfile.TemporaryDirectory() as folder:
        connection = str(Path(folder, "connection.json"))
        write_connection_file(connection, transport="ipc", ip=str(Path(folder, "zmq")))
        threading.Thread(target=_ask, args=[connection]).start()
        launch.main(connection)


def _ask(connection: str) -> None:
    client = BlockingKernelClient(connection_file=connection)
    client.load_connection_file()
    client.start_channels()
    for cell in CELLS:
        client.execute(cell, reply=True, timeout=TIMEOUT)
    client.shutdown()

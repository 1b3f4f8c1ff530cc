"""A zygote does some times what a guest does first, so that its guests share more memory with it.

Until a function has run some times, Python writes into it what it has met; each guest would write
the same into a copy of its own. Nothing is left of a rehearsal but that: no thread, no event loop,
no zmq context, no file.
"""

import asyncio
import os
import socket
import tempfile
import threading
from pathlib import Path

import anyio
import zmq.asyncio

from .. import __main__ as guest
from ..app import ENVD_PORT, INTERPRETER_PORT
from ..config import GuestConfig

TIMES = 15  # each takes a tenth of a second, most of it asleep
CODE = b'{"code": "1"}'  # no kernel will start: there is no Python at the place that it is told

REQUESTS = (
    (b"POST /init", ENVD_PORT, b'{"envVars": {"NAME": "value"}}'),
    (b"GET /health", ENVD_PORT, b""),
    (b"GET /health", INTERPRETER_PORT, b""),
    (b"POST /execute", INTERPRETER_PORT, CODE),
)


def rehearse(times: int = TIMES) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(times):
            anyio.run(_serve_some, Path(folder), Path(folder, str(number)))
    zmq.asyncio.Context.instance().destroy(linger=0)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()


def rehearse_once() -> None:
    rehearse(1)


async def _serve_some(home: Path, path: Path) -> None:
    ready = guest.Guest(GuestConfig(home=home, python=home / "none", relay_socket=home / "none"))
    stdin, end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ready.run, listener, stdin)
            for head, port, body in REQUESTS:
                await _ask(path, head, port, body)
            os.close(end)
    os.close(stdin)


async def _ask(path: Path, head: bytes, port: int, body: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(
        b"%b HTTP/1.1\r\nhost: localhost\r\ne2b-sandbox-port: %d\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (head, port, len(body), body)
    )
    await reader.read()
    writer.close()
    await writer.wait_closed()

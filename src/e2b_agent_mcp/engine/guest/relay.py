"""The box's end of its only way out: a loopback port that leads to the engine's proxy.

Programs know proxies by `HTTPS_PROXY=http://127.0.0.1:3128`; the proxy itself is on a unix
socket, as a box has no network to reach it by.
"""

import asyncio
import socket

import anyio

BACKLOG = 128
ACCEPT_PAUSE = 0.5  # seconds
CHUNK = 64 * 1024  # bytes


async def serve(socket_path: str, port: int) -> None:
    """Runs until it is cancelled."""
    with socket.create_server(("127.0.0.1", port), backlog=BACKLOG) as listener:
        listener.setblocking(False)
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    client, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:  # no descriptor left: some will be freed
                    await anyio.sleep(ACCEPT_PAUSE)
                else:
                    tasks.start_soon(_relay, client, socket_path)


async def _relay(client: socket.socket, socket_path: str) -> None:
    with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as proxy:
        proxy.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(proxy, socket_path)
        except OSError:  # the client sees its connection end
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_pump, client, proxy, tasks.cancel_scope)
            tasks.start_soon(_pump, proxy, client, tasks.cancel_scope)


async def _pump(source: socket.socket, sink: socket.socket, both: anyio.CancelScope) -> None:
    """An ended side ends its direction, a broken one both."""
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(source, CHUNK):
            await loop.sock_sendall(sink, data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        both.cancel()

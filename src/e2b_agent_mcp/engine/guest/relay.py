"""The box's end of its only way out: a loopback port that leads to the engine's proxy.

Programs know proxies by `HTTPS_PROXY=http://127.0.0.1:3128`; the proxy itself is on a unix
socket, as a box has no network to reach it by.
"""

from contextlib import suppress

import anyio
from anyio.abc import SocketStream

CONNECTIONS = 256  # at once; more wait


async def serve(socket_path: str, port: int) -> None:
    """Runs until it is cancelled."""
    slots = anyio.Semaphore(CONNECTIONS)

    async def connect(client: SocketStream) -> None:
        async with slots, client:
            with suppress(OSError):
                async with await anyio.connect_unix(socket_path) as proxy:
                    await _join(client, proxy)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    await listener.serve(connect)


async def _join(one: SocketStream, other: SocketStream) -> None:
    async with anyio.create_task_group() as tasks:

        async def pump(source: SocketStream, sink: SocketStream) -> None:
            try:
                async for data in source:
                    await sink.send(data)
                await sink.send_eof()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                tasks.cancel_scope.cancel()

        tasks.start_soon(pump, one, other)
        tasks.start_soon(pump, other, one)

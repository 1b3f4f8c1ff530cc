"""Upgraded connections, as WebSockets are: one HTTP head, then bytes both ways that nobody reads.

uvicorn hands such a connection over, head and all, to what its option `ws` names.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple

import anyio
import h11

CHUNK = 64 * 1024  # bytes
LONGEST_HEAD = 1 << 20  # bytes of a request; metadata of files come in it
END_OF_HEAD = b"\r\n\r\n"
LOOPBACKS = ("127.0.0.1", "::1")
ID_HEADER = b"e2b-sandbox-id"
PORT_HEADER = b"e2b-sandbox-port"


class Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


Serve = Callable[[h11.Request, Connection], Awaitable[None]]


class UpgradedConnection(asyncio.StreamReaderProtocol):
    """Lives as long as `serve` runs for it. The keywords are uvicorn's."""

    # `Any`: objects of uvicorn's, of which the set of open connections is used.
    def __init__(self, serve: Serve, *, config: Any, server_state: Any, app_state: Any) -> None:
        super().__init__(asyncio.StreamReader(LONGEST_HEAD), self._begin)
        self._serve = serve
        self._connections: set[asyncio.BaseProtocol] = server_state.connections
        self._open: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._open = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Called by uvicorn when it ends."""
        if self._open is not None:
            self._open.close()

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = _parse(await reader.readuntil(END_OF_HEAD))
            await self._serve(request, Connection(reader, writer))
        except (OSError, EOFError, h11.ProtocolError, asyncio.LimitOverrunError):
            pass  # the other side has gone, or does not speak HTTP as it should
        finally:
            writer.close()


def _parse(head: bytes) -> h11.Request:
    http = h11.Connection(h11.SERVER)
    http.receive_data(head)
    request = http.next_event()
    assert isinstance(request, h11.Request)  # uvicorn has parsed it before
    return request


def write_head(request: h11.Request) -> bytes:
    return h11.Connection(h11.CLIENT).send(request) or b""


async def refuse(client: Connection, status: int, body: Mapping[str, object]) -> None:
    content = json.dumps(body).encode()
    client.writer.write(
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode()
        + content
    )
    await client.writer.drain()


async def join(one: Connection, other: Connection) -> None:
    """Moves bytes until both sides have ended; a broken side ends both."""
    async with anyio.create_task_group() as tasks:

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(CHUNK):
                    sink.write(data)
                    await sink.drain()
                sink.write_eof()
            except OSError:
                tasks.cancel_scope.cancel()

        tasks.start_soon(pump, one.reader, other.writer)
        tasks.start_soon(pump, other.reader, one.writer)


class PortTunnel:
    """To a server of the user's own, on the port that the engine's header names.

    `taken` are the ports of services that know no upgrade.
    """

    def __init__(self, taken: frozenset[int]) -> None:
        self._taken = taken

    async def serve(self, request: h11.Request, client: Connection) -> None:
        headers = dict(request.headers)
        port = int(headers.get(PORT_HEADER, b"0"))
        server = None if port in self._taken else await _connect(port)
        if server is None:
            message = "The sandbox is running but port is not open"
            sandbox_id = headers.get(ID_HEADER, b"").decode()
            await refuse(client, 502, {"sandboxId": sandbox_id, "message": message, "code": 502})
            return
        try:
            server.writer.write(write_head(request))
            await join(client, server)
        finally:
            server.writer.close()


async def _connect(port: int) -> Connection | None:
    for host in LOOPBACKS:
        with suppress(OSError):
            return Connection(*await asyncio.open_connection(host, port))
    return None

"""Upgraded connections (WebSockets) on their way into a sandbox.

Rule: the client's connection is the sandbox's only after the sandbox has agreed to the upgrade. Any
other answer of it is the connection's last: a client that would use the connection again, for a
request with a key perhaps, would send that to the sandbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import h11

from .connection import CHUNK, MAX_HEAD
from .guest.tunnel import Connection, join

if TYPE_CHECKING:
    from collections.abc import Iterable

ANSWER_TIMEOUT = 60.0  # seconds for the head of the answer
SWITCHING = 101

_OF_ONE_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})


async def carry(client: Connection, guest: Connection, request: h11.Request) -> None:
    """Returns when the exchange is over; the caller closes both."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    guest.writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    with anyio.fail_after(ANSWER_TIMEOUT):
        answer = await _next_event(http, guest)
        while isinstance(answer, h11.InformationalResponse) and answer.status_code != SWITCHING:
            answer = await _next_event(http, guest)
    if isinstance(answer, h11.InformationalResponse):
        client.writer.write(_head(answer, answer.headers) + http.trailing_data[0])
        await join(client, guest)
    elif isinstance(answer, h11.Response):
        kept = [(k, v) for k, v in answer.headers if k not in _OF_ONE_CONNECTION]
        client.writer.write(_head(answer, [*kept, (b"connection", b"close")]))
        while isinstance(part := await _next_event(http, guest), h11.Data):
            client.writer.write(part.data)
            await client.writer.drain()


async def _next_event(http: h11.Connection, guest: Connection) -> object:
    await anyio.lowlevel.checkpoint()  # however small its pieces: others have their turn
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await guest.reader.read(CHUNK))
    return event


def _head(
    answer: h11.InformationalResponse | h11.Response, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (answer.status_code, answer.reason)]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", b""])

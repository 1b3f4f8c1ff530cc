"""One HTTP exchange with a guest, over a connection of its own.

Rule: the guest is a hostile peer. Its heads are bounded, its framing is checked by h11, an
early end is an error and never the end of a body, and nothing it says is acted upon here. However
small the pieces in which it answers: between two of them others have their turn.
A connection carries one exchange, so closing it tells the guest that the client has gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import h11

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import SocketStream

ENVD_PORT: Final = 49983
INTERPRETER_PORT: Final = 49999
MAX_HEAD = 64 * 1024  # bytes
MAX_ANSWER = 1024 * 1024  # bytes; of an answer read whole
MAX_HEADS = 100  # 1xx ones, before the answer's own
CHUNK = 256 * 1024  # bytes

Headers = Iterable[tuple[bytes, bytes]]


class GuestGone(Exception):
    """The guest broke the connection off, or does not speak HTTP."""


class GuestConnection:
    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._heads = 0

    async def send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        data = self._h11.send(event)
        if not data:
            return
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise GuestGone from exc

    async def next_event(self) -> h11.Response | h11.Data | h11.EndOfMessage:
        """The next part of the answer; 1xx heads are passed over."""
        await anyio.lowlevel.checkpoint()
        while self._heads <= MAX_HEADS:
            try:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    self._h11.receive_data(await self._read())
                    continue
            except h11.RemoteProtocolError as exc:
                raise GuestGone from exc
            if isinstance(event, h11.Response | h11.Data | h11.EndOfMessage):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise GuestGone
            self._heads += 1
        raise GuestGone

    def arrived(self) -> h11.Data | h11.EndOfMessage | None:
        """The next part of a body, if that is there without waiting."""
        if self._h11.their_state is not h11.SEND_BODY:
            return None
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            raise GuestGone from exc
        return event if isinstance(event, h11.Data | h11.EndOfMessage) else None

    async def _read(self) -> bytes:
        try:
            return await self._stream.receive(CHUNK)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise GuestGone from exc


class GuestRefuses(GuestGone):
    """It is dead: as long as it lives it holds the listener."""


@asynccontextmanager
async def connect(socket_path: Path) -> AsyncIterator[GuestConnection]:
    """A fresh connection; it waits in the listener's queue until the guest takes it."""
    try:
        stream = await anyio.connect_unix(socket_path)
    except ConnectionRefusedError as exc:
        raise GuestRefuses from exc
    except OSError as exc:
        raise GuestGone from exc
    async with stream:
        yield GuestConnection(stream)


async def exchange(
    socket_path: Path, method: str, path: str, *, body: bytes = b"", port: int = ENVD_PORT
) -> tuple[int, bytes]:
    """One request of the engine's own; the answer's status and its bounded body."""
    headers = [
        ("host", "localhost"),
        ("e2b-sandbox-port", str(port)),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    async with connect(socket_path) as guest:
        await guest.send(h11.Request(method=method, target=path, headers=headers))
        if body:
            await guest.send(h11.Data(data=body))
        await guest.send(h11.EndOfMessage())
        return await _whole_answer(guest)


async def _whole_answer(guest: GuestConnection) -> tuple[int, bytes]:
    status, answer = 0, bytearray()
    while True:
        event = await guest.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
        else:
            return status, bytes(answer)
        if len(answer) > MAX_ANSWER:
            raise GuestGone

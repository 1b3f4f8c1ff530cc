"""A reverse proxy between E2B's SDK and the engine that fails as it is told.

`FaultProxy` asks its `program` about every request, in the order of their arrival; what the program
answers is a `Fault`: a coroutine that does with the exchange what it likes, or None to pass it on.

    async with FaultProxy.serve(engine) as proxy:
        proxy.program = Script(create=[reset_after, answer(503, retry_after=1)])
        ... Connector(proxy.address) ...
        proxy.log  # what was asked, and what became of it

HTTP/1.1 in plain text, connections kept alive, control plane and data plane through one port.
"""

import json
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self
from urllib.parse import urlsplit

import anyio
import h11
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup

from e2b_agent_mcp.engine import EngineAddress

CHUNK = 64 * 1024  # bytes

Route = Literal[
    *("create", "connect", "extend", "list", "inspect", "kill", "pause"),
    *("execute", "contexts", "files", "rpc", "health", "other"),
]
CONTROL: tuple[Route, ...] = ("create", "connect", "extend", "list", "inspect", "kill", "pause")
DATA: tuple[Route, ...] = ("execute", "contexts", "files", "rpc", "health")
ROUTES = (*CONTROL, *DATA)

_ROUTES: Sequence[tuple[str, Route]] = (
    (r"POST (/v2)?/sandboxes", "create"),
    (r"GET /v2/sandboxes", "list"),
    (r"POST (/v2)?/sandboxes/\w+/connect", "connect"),
    (r"POST /sandboxes/\w+/timeout", "extend"),
    (r"POST /sandboxes/\w+/pause", "pause"),
    (r"GET /sandboxes/\w+", "inspect"),
    (r"DELETE /sandboxes/\w+", "kill"),
    (r"POST /execute", "execute"),
    (r"\w+ /contexts.*", "contexts"),
    (r"\w+ /files", "files"),
    (r"POST /(filesystem|process)\..*", "rpc"),
    (r"GET /health", "health"),
)

Outcome = Literal["open", "answered", "failed", "left"]


class Fault(Protocol):
    """Does with an exchange what it likes; returning without an answer closes the connection."""

    def __call__(self, exchange: "Exchange", /) -> Awaitable[None]: ...


class Program(Protocol):
    """Which fault an exchange meets; None passes it on unharmed."""

    def __call__(self, exchange: "Exchange", /) -> Fault | None: ...


@dataclass(eq=False)
class Exchange:
    """One request, and all that a fault can do with it."""

    request: h11.Request
    body: bytes
    route: Route
    client: "_Client"
    engine: EngineAddress
    fault: str = ""  # the name of the fault that it met
    forwarded: bool = False  # the engine has the whole request
    status: int = 0  # of the engine's answer
    outcome: Outcome = "open"
    _upstream: "_Upstream | None" = None

    @property
    def path(self) -> str:
        return self.request.target.decode().partition("?")[0]

    async def relay(self) -> None:
        """The whole way there and back."""
        head = await self.forward()
        await self.client.send(head)
        async for piece in self.pieces():
            await self.client.send(h11.Data(data=piece))
        await self.finish()

    async def forward(self) -> h11.Response:
        """Sends the request on; the head of the engine's answer."""
        self._upstream = await _Upstream.connect(self.engine)
        await self._upstream.send(self.request, self.body)
        self.forwarded = True
        head = await self._upstream.head()
        self.status = head.status_code
        return h11.Response(status_code=head.status_code, headers=_end_to_end(head.headers))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body of the engine's answer, as it comes."""
        assert self._upstream is not None
        async for piece in self._upstream.pieces():
            yield piece

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """An answer of the proxy's own."""
        length = {"content-length": str(len(body)), **headers}
        await self.client.send(h11.Response(status_code=status, headers=list(length.items())))
        await self.client.send(h11.Data(data=body))
        await self.finish()

    async def finish(self) -> None:
        await self.client.send(h11.EndOfMessage())
        self.outcome = "answered"

    async def aclose(self) -> None:
        if self.outcome == "open":
            self.outcome = "failed"
        if self._upstream is not None:
            await self._upstream.aclose()


# Faults


async def close_before(exchange: Exchange) -> None:
    """The connection ends before the engine hears of the request."""


async def close_after(exchange: Exchange) -> None:
    """The engine has done what was asked; its answer gets lost."""
    await _swallow(exchange)


async def reset_before(exchange: Exchange) -> None:
    exchange.client.reset()


async def reset_after(exchange: Exchange) -> None:
    await _swallow(exchange)
    exchange.client.reset()


async def hang_before(exchange: Exchange) -> None:
    """No answer, until the client gives up."""
    await anyio.sleep_forever()


async def hang_after(exchange: Exchange) -> None:
    await _swallow(exchange)
    await anyio.sleep_forever()


async def truncate(exchange: Exchange) -> None:
    """Half of the answer's first piece, and then a reset."""
    await exchange.client.send(await exchange.forward())
    async for piece in exchange.pieces():
        await exchange.client.send(h11.Data(data=piece[: len(piece) // 2]))
        break
    exchange.client.reset()


async def end_early(exchange: Exchange) -> None:
    """Half of the answer, ended as if that were all of it."""
    head = await exchange.forward()
    whole = b"".join([piece async for piece in exchange.pieces()])
    half = whole[: len(whole) // 2]
    headers = [(k, v) for k, v in head.headers if k != b"content-length"]
    headers.append((b"content-length", str(len(half)).encode()))
    await exchange.client.send(h11.Response(status_code=head.status_code, headers=headers))
    await exchange.client.send(h11.Data(data=half))
    await exchange.finish()


async def not_json(exchange: Exchange) -> None:
    """A gateway's page, as if all were well."""
    await _swallow(exchange)
    await exchange.answer(200, b"<html>Welcome!</html>", {"content-type": "text/html"})


async def empty(exchange: Exchange) -> None:
    await _swallow(exchange)
    await exchange.answer(200, b"", {"content-type": "application/json"})


def answer(
    status: int, *, retry_after: int | None = None, forwarded: bool = False, as_json: bool = True
) -> Fault:
    """A gateway's own answer, in place of the engine's (`forwarded`) or without asking it."""

    async def answer(exchange: Exchange) -> None:
        if forwarded:
            await _swallow(exchange)
        text = json.dumps({"code": status, "message": "injected"}) if as_json else "<html>"
        headers = {"content-type": "application/json" if as_json else "text/html"}
        if retry_after is not None:
            headers["retry-after"] = str(retry_after)
        await exchange.answer(status, text.encode(), headers)

    return answer


def delay(seconds: float) -> Fault:
    async def delay(exchange: Exchange) -> None:
        await anyio.sleep(seconds)
        await exchange.relay()

    return delay


def slow(seconds: float, *, size: int = 16) -> Fault:
    """The first pieces of the body trickle, `size` bytes each `seconds`; the rest flows."""

    async def slow(exchange: Exchange) -> None:
        await exchange.client.send(await exchange.forward())
        trickles = 8
        async for piece in exchange.pieces():
            while piece and trickles:
                trickles -= 1
                await exchange.client.send(h11.Data(data=piece[:size]))
                piece = piece[size:]
                await anyio.sleep(seconds)
            await exchange.client.send(h11.Data(data=piece))
        await exchange.finish()

    return slow


@dataclass(eq=False)
class Gate:
    """Holds one exchange at a stage: before it reaches the engine, or before its answer leaves."""

    stage: Literal["before", "after"]
    reached: anyio.Event = field(default_factory=anyio.Event)
    opened: anyio.Event = field(default_factory=anyio.Event)

    async def __call__(self, exchange: Exchange) -> None:
        if self.stage == "before":
            await self._wait()
            await exchange.relay()
            return
        head = await exchange.forward()
        # The whole answer, so that what was asked has been done.
        pieces = [piece async for piece in exchange.pieces()]
        await self._wait()
        await exchange.client.send(head)
        for piece in pieces:
            await exchange.client.send(h11.Data(data=piece))
        await exchange.finish()

    async def _wait(self) -> None:
        self.reached.set()
        await self.opened.wait()


async def _swallow(exchange: Exchange) -> None:
    await exchange.forward()
    async for _ in exchange.pieces():
        pass


# Programs


def no_faults(exchange: Exchange) -> Fault | None:
    return None


class Script:
    """For each route the faults that its requests meet, in order; None in a list passes one on."""

    def __init__(self, **faults: Sequence[Fault | None]) -> None:
        self._left = {route: list(queue) for route, queue in faults.items()}
        self.routes = set(faults)

    def __call__(self, exchange: Exchange) -> Fault | None:
        queue = self._left.get(exchange.route)
        return queue.pop(0) if queue else None


class Always:
    """Every request of a route meets the same fault."""

    def __init__(self, fault: Fault, *routes: Route) -> None:
        self._fault = fault
        self._routes = routes

    def __call__(self, exchange: Exchange) -> Fault | None:
        return self._fault if exchange.route in self._routes else None


class Random:
    """A `share` of the requests of `routes` meets one of `faults`."""

    def __init__(
        self, seed: int, share: float, faults: Sequence[Fault], routes: Sequence[Route]
    ) -> None:
        self._random = random.Random(seed)
        self._share = share
        self._faults = faults
        self._routes = routes

    def __call__(self, exchange: Exchange) -> Fault | None:
        if exchange.route in self._routes and self._random.random() < self._share:
            return self._random.choice(self._faults)
        return None


# The proxy


class FaultProxy:
    """Serves one engine; use `FaultProxy.serve`."""

    def __init__(self, engine: EngineAddress, port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        self.engine = engine
        self.address = replace(engine, api_url=url, sandbox_url=url)
        self.program: Program = no_faults
        self.log: list[Exchange] = []

    @classmethod
    @asynccontextmanager
    async def serve(cls, engine: EngineAddress) -> AsyncIterator[Self]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with anyio.create_task_group() as tasks:
            proxy = cls(engine, listener.extra(SocketAttribute.local_port))
            tasks.start_soon(proxy._listen, listener, tasks)
            try:
                yield proxy
            finally:
                with anyio.CancelScope(shield=True):
                    await listener.aclose()
                tasks.cancel_scope.cancel()

    def asked(self, *routes: Route) -> list[Exchange]:
        return [exchange for exchange in self.log if exchange.route in routes]

    def faults(self) -> list[Exchange]:
        return [exchange for exchange in self.log if exchange.fault]

    async def _listen(self, listener: Listener[SocketStream], conversations: TaskGroup) -> None:
        """Until it is closed: asyncio fails when it is cancelled while somebody connects."""
        with anyio.CancelScope(shield=True):
            try:
                await listener.serve(self._converse, conversations)
            except* anyio.ClosedResourceError:
                pass

    async def _converse(self, stream: SocketStream) -> None:
        """The exchanges of one connection."""
        client = _Client(stream)
        async with stream:
            while (asked := await client.next_request()) is not None:
                request, body = asked
                exchange = Exchange(request, body, route_of(request), client, self.engine)
                self.log.append(exchange)
                await self._carry_out(exchange)
                if not client.start_again():
                    return

    async def _carry_out(self, exchange: Exchange) -> None:
        fault = self.program(exchange)
        exchange.fault = _name(fault) if fault is not None else ""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, exchange, tasks.cancel_scope)
                with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await (fault(exchange) if fault is not None else exchange.relay())
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await exchange.aclose()

    async def _watch(self, exchange: Exchange, scope: anyio.CancelScope) -> None:
        """A client that leaves ends its exchange, and with it the engine's side."""
        await exchange.client.left()
        exchange.outcome = "left"
        scope.cancel()


def route_of(request: h11.Request) -> Route:
    line = f"{request.method.decode()} {request.target.decode().partition('?')[0]}"
    return next((route for pattern, route in _ROUTES if re.fullmatch(pattern, line)), "other")


def _name(fault: Fault) -> str:
    return getattr(fault, "__name__", type(fault).__name__)


class _Client:
    """One connection of the SDK's."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER)
        self._is_reset = False

    async def next_request(self) -> tuple[h11.Request, bytes] | None:
        request, body = None, bytearray()
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError:  # the client left in the middle
                return None
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self._read())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                return request, bytes(body)
            else:
                return None

    async def send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        if data := self._h11.send(event):
            await self._stream.send(data)

    async def left(self) -> None:
        while data := await self._read():
            self._h11.receive_data(data)

    def reset(self) -> None:
        """The connection will end with a reset instead of an end."""
        linger = struct.pack("ii", 1, 0)
        raw = self._stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._is_reset = True

    def start_again(self) -> bool:
        """False when the connection carries no further request."""
        if self._is_reset or self._h11.our_state is not h11.DONE:
            return False
        if self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    async def _read(self) -> bytes:
        try:
            return await self._stream.receive(CHUNK)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return b""


class _Upstream:
    """One request to the engine, on a connection of its own."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    @classmethod
    async def connect(cls, engine: EngineAddress) -> Self:
        at = urlsplit(engine.api_url)
        return cls(await anyio.connect_tcp(at.hostname or "", at.port or 80))

    async def send(self, request: h11.Request, body: bytes) -> None:
        headers = [*_end_to_end(request.headers), (b"connection", b"close")]
        if any(name == b"transfer-encoding" for name, _ in request.headers):
            headers.append((b"content-length", str(len(body)).encode()))
        head = h11.Request(method=request.method, target=request.target, headers=headers)
        sent = self._h11.send(head) or b""
        sent += self._h11.send(h11.Data(data=body)) or b""
        await self._stream.send(sent + (self._h11.send(h11.EndOfMessage()) or b""))

    async def head(self) -> h11.Response:
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise anyio.BrokenResourceError
        return event

    async def pieces(self) -> AsyncIterator[bytes]:
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise anyio.BrokenResourceError
            yield bytes(event.data)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _next(self) -> object:
        while True:
            try:
                event = self._h11.next_event()
                if event is not h11.NEED_DATA:
                    return event
                self._h11.receive_data(await self._stream.receive(CHUNK))
            except anyio.EndOfStream:
                self._h11.receive_data(b"")
            except h11.RemoteProtocolError:
                # Cut off: the client's side ends the same way.
                raise anyio.BrokenResourceError from None


_HOP_BY_HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"expect")


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name not in _HOP_BY_HOP]

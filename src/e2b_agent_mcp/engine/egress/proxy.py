"""The only way out of a box: an HTTP proxy on a unix socket, one per sandbox.

The client is hostile. The proxy resolves names itself and connects to the address it has
checked. It reads one bounded head per connection and then moves bytes: tunnels (CONNECT) are
never looked into. A replaced policy ends the open connections, so that none outlives the
permission it was made under.
"""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self

import anyio

from .policy import Address, Denied, NetworkPolicy
from .request import END_OF_HEAD, LARGEST_HEAD, BadRequest, ProxyRequest, parse_head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from anyio.abc import AsyncResource, ByteStream, SocketListener, SocketStream, TaskGroup

logger = logging.getLogger(__name__)

CONNECTIONS = 128  # at once, per sandbox
RESOLUTIONS = 4  # at once, per sandbox: each occupies a thread of the engine
HEAD_TIMEOUT = 30.0  # seconds for the client to send its head
CONNECT_TIMEOUT = 15.0  # seconds, resolving included
IDLE_TIMEOUT = 600.0  # seconds without a byte in either direction
ACCEPT_PAUSE = 0.5  # seconds
CHUNK = 64 * 1024  # bytes

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class EgressProxy:
    """Serves from `async with` on. `policy` may be replaced at any time."""

    def __init__(
        self,
        socket_path: Path,
        policy: NetworkPolicy,
        endpoints: Collection[tuple[str, int]] = (),
    ) -> None:
        self._socket_path = socket_path
        self._policy = policy
        self._endpoints = frozenset(endpoints)
        self._resolving = anyio.CapacityLimiter(RESOLUTIONS)
        self._open: set[anyio.CancelScope] = set()
        self._tasks: TaskGroup | None = None

    @property
    def policy(self) -> NetworkPolicy:
        return self._policy

    @policy.setter
    def policy(self, policy: NetworkPolicy) -> None:
        if policy != self._policy:
            self._policy = policy
            for scope in self._open:
                scope.cancel()

    async def __aenter__(self) -> Self:
        # Everybody may connect who can pass through the folder: the box's user need not be ours.
        listener = await anyio.create_unix_listener(self._socket_path, mode=0o666)
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._listen, listener)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        with suppress(FileNotFoundError):
            self._socket_path.unlink()

    async def _listen(self, listener: SocketListener) -> None:
        async with _closing(listener), anyio.create_task_group() as clients:
            while True:
                try:
                    client = await listener.accept()
                except OSError as exc:  # no descriptor left: some will be freed
                    logger.warning("cannot accept a connection: %s", exc)
                    await anyio.sleep(ACCEPT_PAUSE)
                else:
                    clients.start_soon(self._serve, client)

    async def _serve(self, client: SocketStream) -> None:
        """One connection; whatever goes wrong with it stays in it."""
        async with _closing(client):
            with anyio.CancelScope() as scope:
                self._open.add(scope)
                try:
                    if len(self._open) > CONNECTIONS:
                        await _answer(client, 503, "too many connections of this sandbox")
                    else:
                        await self._exchange(client)
                except (anyio.BrokenResourceError, anyio.EndOfStream, OSError) as exc:
                    logger.debug("connection ended: %r", exc)
                finally:
                    self._open.discard(scope)

    async def _exchange(self, client: SocketStream) -> None:
        try:
            with anyio.fail_after(HEAD_TIMEOUT):
                head, rest = await _read_head(client)
            request = parse_head(head)
        except BadRequest as exc:
            await _answer(client, 400, str(exc))
            return
        server = await self._connect(client, request)
        if server is None:
            return
        async with _closing(server):
            with anyio.move_on_after(IDLE_TIMEOUT) as idle:
                if request.forward is None:
                    await client.send(ESTABLISHED)
                await server.send((request.forward or b"") + rest)
                await _join(client, server, idle)

    async def _connect(self, client: SocketStream, request: ProxyRequest) -> SocketStream | None:
        """None when the client has got its refusal."""
        host, port = request.host, request.port
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                addresses = await self._resolve(host, port)
                own = [address for address in addresses if is_own(address)]
                decision = self._policy.decide(
                    host, port, addresses, own=own, endpoints=self._endpoints
                )
                if isinstance(decision, Denied):
                    await _answer(client, 403, decision.reason, decision.remedy)
                    return None
                return await _connect_any(decision.addresses, port)
        except socket.gaierror:
            await _answer(client, 502, f"no address is known for {host}")
        except (OSError, TimeoutError):
            await _answer(client, 504, f"{host}:{port} does not answer")
        return None

    async def _resolve(self, host: str, port: int) -> list[Address]:
        async with self._resolving:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))


def is_own(address: Address) -> bool:
    """Whether this machine has the address: only then a socket can be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as attempt:
        try:
            attempt.bind((str(address), 0))
        except OSError as exc:
            return exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL}
    return True


@asynccontextmanager
async def _closing(resource: AsyncResource) -> AsyncIterator[None]:
    """Closes even when cancelled: else bytes that the peer does not take would keep it open."""
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await resource.aclose()


async def _connect_any(addresses: Collection[Address], port: int) -> SocketStream:
    """The first that answers; OSError of the last one."""
    *others, last = addresses
    for address in others:
        with suppress(OSError):
            return await anyio.connect_tcp(str(address), port)
    return await anyio.connect_tcp(str(last), port)


async def _read_head(client: ByteStream) -> tuple[bytes, bytes]:
    """The head and what came after it."""
    data = b""
    while END_OF_HEAD not in data:
        if len(data) > LARGEST_HEAD:
            raise BadRequest("the head of the request is too large")
        data += await client.receive(CHUNK)
    head, _, rest = data.partition(END_OF_HEAD)
    return head, rest


async def _join(one: SocketStream, other: SocketStream, idle: anyio.CancelScope) -> None:
    """Moves bytes both ways until both sides have ended."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_pump, one, other, idle)
        tasks.start_soon(_pump, other, one, idle)


async def _pump(source: SocketStream, sink: SocketStream, idle: anyio.CancelScope) -> None:
    """A broken side ends the whole exchange, an ended one its direction."""
    try:
        async for data in source:
            idle.deadline = anyio.current_time() + IDLE_TIMEOUT
            await sink.send(data)
        await sink.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        idle.cancel()


async def _answer(client: ByteStream, status: int, reason: str, remedy: str = "") -> None:
    """The reason is the status line's phrase too: of a refused CONNECT clients show only that."""
    phrase = reason.encode("ascii", "replace").decode()
    body = f"{reason}. {remedy}".strip().encode() + b"\n"
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await client.send(head.encode("ascii") + body)

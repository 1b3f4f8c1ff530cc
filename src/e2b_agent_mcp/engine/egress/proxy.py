"""The only way out of a box: an HTTP proxy on a unix socket, one per sandbox.

The client is hostile. The proxy resolves names itself and connects to the address it has
checked; where the host has to use a proxy itself, it hands that one the name that it checked. It
reads one bounded head per connection and then moves bytes: tunnels (CONNECT) are never looked
into. A replaced policy ends the open connections, so that none outlives the permission it was
made under.

Sockets are used bare: closing one is then immediate, whatever its peer has not read yet.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, Self

import anyio

from .policy import Address, Allowed, Denied, NetworkPolicy, unwrap
from .request import END_OF_HEAD, LARGEST_HEAD, BadRequest, ProxyRequest, parse_head
from .upstream import Proxy, Upstream

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from anyio.abc import TaskGroup

logger = logging.getLogger(__name__)

CONNECTIONS = 128  # at once, per sandbox, where descriptors suffice
FEWEST = 8  # what programs need at least
RESOLUTIONS = 4  # at once, per sandbox: each occupies a thread, which nothing can interrupt
HEAD_TIMEOUT = 30.0  # seconds for the client to send its head
CONNECT_TIMEOUT = 15.0  # seconds, resolving included
IDLE_TIMEOUT = 600.0  # seconds without a byte in either direction
ACCEPT_PAUSE = 0.5  # seconds
BACKLOG = 128
CHUNK = 64 * 1024  # bytes

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(frozen=True)
class HostNetwork:
    """What is the same for all sandboxes: what their owner permits at most, how this machine
    reaches the internet, and the package index, whose `endpoints` may still be found out.

    A sandbox has `connections` at once; each takes two descriptors of this process.
    """

    ceiling: NetworkPolicy = field(default_factory=NetworkPolicy)
    endpoints: Collection[tuple[str, int]] = frozenset()
    upstream: Upstream = field(default_factory=Upstream)
    connections: int = CONNECTIONS


def share_of_connections(sandboxes: int, descriptors: int) -> int:
    """So that all sandboxes together leave this process half of its descriptors."""
    return max(FEWEST, min(CONNECTIONS, descriptors // (4 * sandboxes)))


class EgressProxy:
    """Serves from `async with` on. `policy` may be replaced at any time."""

    def __init__(
        self,
        socket_path: Path,
        policy: NetworkPolicy,
        network: HostNetwork | None = None,
    ) -> None:
        self._socket_path = socket_path
        self._policy = policy
        self._network = network or HostNetwork()
        # Of its own: names that never resolve are no other sandbox's matter.
        self._resolvers = ThreadPoolExecutor(RESOLUTIONS, "resolver")
        self._open: set[anyio.CancelScope] = set()
        self._listener = _stream_socket(socket.AF_UNIX)
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
        self._listener.bind(str(self._socket_path))
        # Everybody may connect who can pass through the folder: the box's user need not be ours.
        self._socket_path.chmod(0o666)
        self._listener.listen(BACKLOG)
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._listen)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._listener.close()
            self._socket_path.unlink(missing_ok=True)
            self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def _listen(self) -> None:
        assert self._tasks is not None
        while True:
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as exc:  # no descriptor left: some will be freed
                logger.warning("cannot accept a connection: %s", exc)
                await anyio.sleep(ACCEPT_PAUSE)
            else:
                self._tasks.start_soon(self._serve, client)

    async def _serve(self, client: socket.socket) -> None:
        """One connection; whatever goes wrong with it stays in it."""
        with client, anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                if len(self._open) > self._network.connections:
                    await _answer(client, 503, "too many connections of this sandbox")
                else:
                    await self._exchange(client)
            except OSError as exc:
                logger.debug("connection ended: %r", exc)
            finally:
                self._open.discard(scope)

    async def _exchange(self, client: socket.socket) -> None:
        try:
            with anyio.fail_after(HEAD_TIMEOUT):
                head, rest = await _read_head(client)
            request = parse_head(head)
        except BadRequest as exc:
            await _answer(client, 400, str(exc))
            return
        way = await self._connect(client, request)
        if way is None:
            return
        server, first, answered = way
        with server, anyio.move_on_after(IDLE_TIMEOUT) as idle:
            if request.forward is None:
                await _send(client, ESTABLISHED + answered)
            await _send(server, first + rest)
            await _join(client, server, idle)

    async def _connect(self, client: socket.socket, request: ProxyRequest) -> _Way | None:
        """None when the client has got its refusal."""
        host, port = request.host, request.port
        proxy = self._network.upstream.proxy_for(host, port, tunnel=request.forward is None)
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                decision = await self._decide(host, port, by_proxy=proxy is not None)
                if isinstance(decision, Denied):
                    await _answer(client, 403, decision.reason, decision.remedy)
                    return None
                if proxy is not None:
                    return await _connect_by(proxy, request)
                return _Way(await _connect_any(decision.addresses, port), request.forward or b"")
        except (socket.gaierror, UnicodeError):
            await _answer(client, 502, f"no address is known for {host}")
        except ProxyRefusal as exc:
            await _answer(client, 502, f"the proxy of this host does not lead to {host}: {exc}")
        except OSError:
            await _answer(client, 504, f"{host}:{port} does not answer")
        return None

    async def _decide(self, host: str, port: int, *, by_proxy: bool) -> Allowed | Denied:
        network = self._network
        try:
            addresses = await self._resolve(host, port)
        except (socket.gaierror, UnicodeError):
            if not by_proxy:
                raise
            denied = self._policy.decide_unresolved(
                host, port, endpoints=network.endpoints, ceiling=network.ceiling
            )
            return denied or Allowed(())
        return self._policy.decide(
            host,
            port,
            addresses,
            own=[address for address in addresses if is_own(address)],
            endpoints=network.endpoints,
            ceiling=network.ceiling,
        )

    async def _resolve(self, host: str, port: int) -> list[Address]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._resolvers, look_up)
        return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))


class ProxyRefusal(Exception):
    """The host's own proxy makes no tunnel; its status line says why."""


class _Way(NamedTuple):
    """A connection, what goes into it first, and what came out of it already."""

    server: socket.socket
    first: bytes
    answered: bytes = b""


async def _connect_by(proxy: Proxy, request: ProxyRequest) -> _Way:
    found = await anyio.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    addresses = [ip_address(entry[4][0]) for entry in found]
    with _closing_on_error(await _connect_any(addresses, proxy.port)) as server:
        if request.forward is not None:
            return _Way(server, proxy.absolute(request.forward, request.host, request.port))
        await _send(server, proxy.tunnel_head(request.host, request.port))
        try:
            head, rest = await _read_head(server)
        except BadRequest as exc:
            raise ProxyRefusal("its answer is not understood") from exc
        status_line = head.partition(b"\r\n")[0].decode("latin-1")
        if status_line.split(" ")[1:2] != ["200"]:
            raise ProxyRefusal(_printable(status_line[:200]))
        return _Way(server, b"", rest)


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def is_own(address: Address) -> bool:
    """Whether this machine has the address: only then a socket can be bound to it."""
    address = unwrap(address)
    with socket.socket(_family(address), socket.SOCK_DGRAM) as attempt:
        try:
            attempt.bind((str(address), 0))
        except OSError as exc:
            return exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL}
    return True


async def _connect_any(addresses: Collection[Address], port: int) -> socket.socket:
    """The first that answers; OSError of the last one."""
    *others, last = addresses
    for address in others:
        with suppress(OSError):
            return await _connect(address, port)
    return await _connect(last, port)


async def _connect(address: Address, port: int) -> socket.socket:
    with _closing_on_error(_stream_socket(_family(address))) as server:
        await asyncio.get_running_loop().sock_connect(server, (str(address), port))
        return server


async def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """The head and what came after it."""
    data = b""
    while END_OF_HEAD not in data:
        if len(data) > LARGEST_HEAD:
            raise BadRequest("the head of the request is too large")
        received = await _receive(client)
        if not received:
            raise ConnectionError("ended within its head")
        data += received
    head, _, rest = data.partition(END_OF_HEAD)
    return head, rest


async def _join(one: socket.socket, other: socket.socket, idle: anyio.CancelScope) -> None:
    """Moves bytes both ways until both sides have ended; a broken side ends both."""
    async with anyio.create_task_group() as tasks:

        async def pump(source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := await _receive(source):
                    idle.deadline = anyio.current_time() + IDLE_TIMEOUT
                    await _send(sink, data)
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                tasks.cancel_scope.cancel()

        tasks.start_soon(pump, one, other)
        tasks.start_soon(pump, other, one)


async def _answer(client: socket.socket, status: int, reason: str, remedy: str = "") -> None:
    """The reason is the status line's phrase too: of a refused CONNECT clients show only that."""
    body = f"{reason}. {remedy}".strip() + "\n"
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await _send(client, (head + body).encode("ascii"))


async def _receive(source: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(source, CHUNK)


async def _send(sink: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sink, data)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _stream_socket(family: socket.AddressFamily) -> socket.socket:
    stream = socket.socket(family, socket.SOCK_STREAM)
    stream.setblocking(False)
    return stream


@contextmanager
def _closing_on_error(stream: socket.socket) -> Iterator[socket.socket]:
    try:
        yield stream
    except BaseException:
        stream.close()
        raise

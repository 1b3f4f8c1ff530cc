"""Serves one engine until it is told to end, or until nobody has needed it for a while.

Rule: whatever ends it (SIGTERM, SIGINT, SIGHUP, an authenticated shutdown, idleness), the
sandboxes end first, then the answers in progress, and no process, socket or home is left.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import uvicorn

from .app import FrontDoor
from .discovery import EngineAddress, lasting_key, locked, write_runtime
from .errors import StartError
from .guest.tunnel import LONGEST_HEAD, UpgradedConnection
from .host import Host, prepare_host
from .isolation import Nest, Zygotes
from .orchestrator import Orchestrator
from .template import in_use, prune

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from .options import EngineOptions

logger = logging.getLogger(__name__)

PREDECESSOR_TIMEOUT = 5.0  # seconds for an engine that is ending; it promises 2
# Longer than the SDKs keep idle connections: else one is closed just as they use it again.
KEEP_ALIVE = 600  # seconds
KEPT_MEMORY = 4 * 1024 * 1024  # bytes
GOODBYE = 1  # seconds that answers in progress get at the end


async def serve(options: EngineOptions, announce: Callable[[EngineAddress], None]) -> None:
    """Returns when the engine has ended and cleaned up; `announce` hears when it is ready."""
    _take_all_descriptors()
    _keep_freed_memory()
    async with _only_engine(options):
        with _listener(options) as listener:
            host = await prepare_host(options, logger.info)
            with in_use(host.template.folders):
                await anyio.to_thread.run_sync(prune, options.cache_dir)
                await _serve_limited(options, host, listener, announce)


def _keep_freed_memory() -> None:
    """Up to twice this block, for the next bytes that pass through. glibc learns how large the
    blocks of a program are from what it frees; else it gives each back, and the kernel clears it
    anew, which costs as much as to copy it twice."""
    bytearray(KEPT_MEMORY)


async def _serve_limited(
    options: EngineOptions,
    host: Host,
    listener: socket.socket,
    announce: Callable[[EngineAddress], None],
) -> None:
    isolation = host.isolation
    logger.info("isolation: %s %s", isolation.name, isolation.version)
    async with isolation.limiting() as limiting:
        logger.info("control groups: %s", isolation.delegation.describe())
        await _serve(options, host._replace(isolation=limiting), listener, announce)


async def _serve(
    options: EngineOptions,
    host: Host,
    listener: socket.socket,
    announce: Callable[[EngineAddress], None],
) -> None:
    address = _address(options, listener)
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as life:
            tasks.start_soon(_end_on_signal, life)
            async with (
                _zygotes(options, host) as zygotes,
                Orchestrator(options, host, zygotes=zygotes) as orchestrator,
            ):
                door = FrontDoor(
                    orchestrator,
                    api_key=address.api_key,
                    domain=f"localhost:{listener.getsockname()[1]}",
                    shutdown=life.cancel,
                )
                server = _Server(door)
                tasks.start_soon(server.serve, [listener])
                await server.up.wait()
                with _published(options, address), door:
                    announce(address)
                    await _idle(door, orchestrator)
        server.should_exit = True
        await server.down.wait()
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _zygotes(options: EngineOptions, host: Host) -> AsyncIterator[Zygotes | None]:
    if not options.zygote or host.isolation.runsc is not None:
        yield None
        return
    nest = Nest(
        launcher=host.isolation.launcher,
        template=host.template,
        engine_dir=options.engine_dir,
        homes_dir=options.homes_dir,
    )
    async with Zygotes(nest) as zygotes:
        yield zygotes


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: the end is ours to order."""

    def __init__(self, app: FrontDoor) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                # uvicorn's hint asks for a class; it calls whatever it is given.
                ws=partial(UpgradedConnection, app.tunnel),  # type: ignore[arg-type]
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=LONGEST_HEAD,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GOODBYE,
            )
        )
        self.up = anyio.Event()
        self.down = anyio.Event()
        # A cut answer is our way to abort a client; uvicorn takes each for a bug of ours.
        logging.getLogger("uvicorn.error").addFilter(_is_no_cut_answer)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.down.set()


def _is_no_cut_answer(record: logging.LogRecord) -> bool:
    return "without completing response" not in record.getMessage()


async def _end_on_signal(life: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        async for number in received:
            logger.info("ending: %s", number.name)
            life.cancel()


async def _idle(door: FrontDoor, orchestrator: Orchestrator) -> None:
    """Returns when for `idle_exit` seconds there was no sandbox and no request."""
    idle_exit, clock = orchestrator.options.idle_exit, orchestrator.clock
    while True:
        busy = orchestrator.busy or door.in_flight
        since = clock.now() if busy else max(orchestrator.last_change, door.last_request)
        if clock.now() >= since + idle_exit:
            logger.info("ending: idle for %.0f s", idle_exit)
            return
        await clock.wait(anyio.Event(), since + idle_exit)


def _take_all_descriptors() -> None:
    """A hundred sandboxes need more than the usual 1024. And the kernel lets a process send none
    as long as its user's others, which sandboxes can be, have sent more than it may open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@asynccontextmanager
async def _only_engine(options: EngineOptions) -> AsyncIterator[None]:
    options.make_dirs()
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(locked(options.lock_file, PREDECESSOR_TIMEOUT))
        except TimeoutError:
            raise StartError(f"Another engine uses {options.state_dir}.") from None
        yield


@contextmanager
def _listener(options: EngineOptions) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as exc:
        raise StartError(f"Cannot listen on {options.host}:{options.port}: {exc}") from exc
    # Inherited by every connection. asyncio sets it only on sockets that say which protocol they
    # have, and a delayed answer costs 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


@contextmanager
def _published(options: EngineOptions, address: EngineAddress) -> Iterator[None]:
    write_runtime(options, address)
    try:
        yield
    finally:
        options.runtime_file.unlink(missing_ok=True)


def _address(options: EngineOptions, listener: socket.socket) -> EngineAddress:
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    return EngineAddress(url, url, lasting_key(options), os.getpid())

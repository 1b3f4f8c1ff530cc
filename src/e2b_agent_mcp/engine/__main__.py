"""Serves one engine: `python -m e2b_agent_mcp.engine`.

Rule: it ends on SIGTERM, SIGINT, SIGHUP, an authenticated shutdown, or when nothing has
happened for `idle_exit` seconds, and leaves no process, socket, file or home behind.
Standard output carries one line, only when asked for with `--json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from logging.handlers import RotatingFileHandler

import anyio
import uvicorn

from .app import FrontDoor
from .discovery import EngineAddress, private, runtime_file, take_lock, write_runtime
from .errors import EngineError, StartError
from .host import prepare_host
from .options import EngineOptions
from .orchestrator import Orchestrator

logger = logging.getLogger("e2b_agent_mcp.engine")

GOODBYE = 1  # seconds that answers in progress get at the end
LOG_SIZE = 1024 * 1024  # bytes; one older file is kept

Announce = Callable[[EngineAddress], None]


def main() -> int:
    arguments = _parse()
    if arguments.background:
        _detach(arguments.ready_fd)
    options = EngineOptions.from_json(arguments.options_json)
    _log_to(options, background=arguments.background)
    try:
        options.make_dirs()
        anyio.run(serve, options, _announcer(arguments))
    except EngineError as exc:
        logger.error("%s", exc)
        return 1
    return 0


async def serve(options: EngineOptions, announce: Announce) -> None:
    """Returns when the engine has ended and cleaned up."""
    with _only_engine(options), _listener(options) as listener:
        host = await prepare_host(options, logger.info)
        logger.info("isolation: %s %s", host.isolation.name, host.isolation.version)
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_on_signal, stop)
            async with Orchestrator(options, host) as orchestrator:
                address = _address(options, listener)
                door = FrontDoor(orchestrator, api_key=address.api_key, shutdown=stop.set)
                server = _Server(door)
                tasks.start_soon(server.serve, [listener])
                await server.up.wait()
                with _published(options, address):
                    announce(address)
                    tasks.start_soon(_stop_when_idle, door, orchestrator, stop)
                    await stop.wait()
                door.close()
            server.should_exit = True
            await server.down.wait()
            tasks.cancel_scope.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: the end is ours to order."""

    def __init__(self, app: FrontDoor) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GOODBYE,
            )
        )
        self.up = anyio.Event()
        self.down = anyio.Event()

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
            self.up.set()
            self.down.set()


async def _stop_on_signal(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        async for number in received:
            logger.info("ending: %s", number.name)
            stop.set()


async def _stop_when_idle(door: FrontDoor, orchestrator: Orchestrator, stop: anyio.Event) -> None:
    idle_exit, clock = orchestrator.options.idle_exit, orchestrator.clock
    while True:
        busy = orchestrator.busy or door.in_flight
        since = clock.now() if busy else max(orchestrator.last_change, door.last_request)
        if clock.now() >= since + idle_exit:
            logger.info("ending: idle for %.0f s", idle_exit)
            stop.set()
            return
        await clock.wait(stop, since + idle_exit)


@contextmanager
def _only_engine(options: EngineOptions) -> Iterator[None]:
    with open(options.lock_file, "ab", opener=private) as lock:
        if not take_lock(lock.fileno()):
            raise StartError(f"Another engine uses {options.state_dir}.")
        yield


@contextmanager
def _listener(options: EngineOptions) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as exc:
        raise StartError(f"Cannot listen on {options.host}:{options.port}: {exc}") from exc
    with listener:
        yield listener


@contextmanager
def _published(options: EngineOptions, address: EngineAddress) -> Iterator[None]:
    write_runtime(options, address)
    try:
        yield
    finally:
        runtime_file(options).unlink(missing_ok=True)


def _address(options: EngineOptions, listener: socket.socket) -> EngineAddress:
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    return EngineAddress(url, url, f"e2b_{secrets.token_hex(20)}", os.getpid())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--options-json", default="{}", help="EngineOptions as JSON")
    parser.add_argument("--json", action="store_true", help="print the address when ready")
    parser.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _detach(ready_fd: int) -> None:
    """Leaves the process that was started, so that whoever started it has no child to reap."""
    if os.fork():
        os._exit(0)
    os.write(ready_fd, b"%d\n" % os.getpid())


def _announcer(arguments: argparse.Namespace) -> Announce:
    def announce(address: EngineAddress) -> None:
        logger.info("serving on %s", address.api_url)
        if arguments.json:
            print(json.dumps(asdict(address)), flush=True)
        if arguments.ready_fd is not None:
            os.write(arguments.ready_fd, b"ready\n")
            os.close(arguments.ready_fd)

    return announce


def _log_to(options: EngineOptions, *, background: bool) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if background:
        handler = RotatingFileHandler(options.log_file, maxBytes=LOG_SIZE, backupCount=1)
    logging.basicConfig(
        level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(message)s"
    )
    # A cut answer is our way to abort a client; uvicorn reports each as its own error.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: "without completing response" not in record.getMessage()
    )


if __name__ == "__main__":
    sys.exit(main())

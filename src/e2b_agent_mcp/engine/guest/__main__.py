"""Runs one guest: it serves until its stdin ends, which means that the engine is gone.

The engine hands over a listening socket (`--listen-fd`). Every other file it may have left open
is closed before anything else happens, so that nothing started in the box inherits it.
"""

import os
import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import anyio
import uvicorn

from . import relay, rights
from .app import create_app, create_tunnel
from .config import Environment, GuestConfig
from .home import prepare_home
from .interpreter.nursery import Nursery
from .limits import apply_limits
from .tunnel import LONGEST_HEAD, UpgradedConnection

STANDARD_FDS = frozenset({0, 1, 2})
UMASK = 0o022
GOODBYE = 1  # seconds that open requests get at the end
RELAY_PORT = 3128
BACKLOG = 1024


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.listen_fd is not None:  # in a box
        rights.take_share()
        rights.give_up()
    prepare(options)
    Guest(GuestConfig.of(options)).serve(options)


def prepare(options: Namespace, *, keep: frozenset[int] = frozenset()) -> None:
    """What holds for this process and all that it starts; `keep` are descriptors to leave open."""
    close_all_but(STANDARD_FDS | {options.listen_fd, *options.kills.descriptors} | keep)
    for fd in options.kills.descriptors:
        os.set_inheritable(fd, False)
    os.umask(UMASK)
    apply_limits(options.limits)


class Guest:
    """A guest that serves as soon as it is told for which sandbox; all of them have one home.

    Making one is what costs time and memory: a zygote does it once, for all of its boxes.
    """

    def __init__(self, config: GuestConfig) -> None:
        self._config = config
        self._environment = Environment()
        self._nursery = Nursery()
        settings = uvicorn.Config(
            create_app(self._config, self._environment, self._nursery),
            http="h11",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            # uvicorn's hint asks for a class; it calls whatever it is given.
            ws=partial(UpgradedConnection, create_tunnel().serve),  # type: ignore[arg-type]
            h11_max_incomplete_event_size=LONGEST_HEAD,
            timeout_graceful_shutdown=GOODBYE,
            timeout_keep_alive=3600,  # seconds; the engine decides, it is the only client
        )
        settings.load()
        self._server = uvicorn.Server(settings)

    def serve(self, options: Namespace, nursery: socket.socket | None = None) -> None:
        """Kernels come from the nursery, if there is one."""
        self._config.learn(options)
        if self._config.python.is_relative_to(self._config.home):  # no other is ours to change
            prepare_home(self._config)
        self._environment.start_from(self._config, os.environ)
        if nursery is not None:
            self._nursery.attach(nursery)
        anyio.run(self.run, _listener(options), _keep_stdin())

    async def run(self, listener: socket.socket, stdin: int) -> None:
        """Until `stdin` ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_at_end_of, stdin, self._server)
            if self._config.relay_socket.exists():
                tasks.start_soon(relay.serve, str(self._config.relay_socket), RELAY_PORT)
            await self._server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(prog="guest")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--listen-fd", type=int, help="an inherited, listening stream socket")
    where.add_argument("--listen-path", help="of a unix socket to make")
    where.add_argument("--port", type=int, help="of 127.0.0.1, for a guest outside of a box")
    parser.add_argument("--limits", default="{}", help="resource limits as JSON")
    GuestConfig.add_arguments(parser)
    return parser.parse_args(arguments)


def close_all_but(kept: frozenset[int | None]) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in kept:
            with suppress(OSError):  # the directory that was just read
                os.close(fd)


def _listener(options: Namespace) -> socket.socket:
    if options.listen_path is not None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options.listen_path)
        listener.listen(BACKLOG)
        return listener
    if options.listen_fd is None:
        return socket.create_server(("127.0.0.1", options.port))
    os.set_inheritable(options.listen_fd, False)
    return socket.socket(fileno=options.listen_fd)


def _keep_stdin() -> int:
    """The engine's end of life, moved away from fd 0 so that no child can read or hold it."""
    kept = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    return kept


async def _stop_at_end_of(stdin: int, server: uvicorn.Server) -> None:
    await anyio.wait_readable(stdin)
    while os.read(stdin, 1024):
        await anyio.wait_readable(stdin)
    server.should_exit = True


if __name__ == "__main__":
    main()

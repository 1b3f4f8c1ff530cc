"""Starts and stops the boxes of sandboxes, with all that the host keeps for each.

One task owns one box, from launch to the last file removed. Whatever ends the box (a kill, its
own death, the engine's end) ends that task, and the task cleans up.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Self

import anyio

from .connection import GuestGone, exchange
from .egress import EgressProxy
from .errors import EngineError, LaunchError, LaunchRefused
from .homes import make_home
from .isolation import Box, BoxSpec, Limits
from .options import make_folder
from .sandbox import Machine, Sandbox, socket_name
from .ward import Ward

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from anyio.abc import TaskGroup, TaskStatus

    from .egress import HostNetwork
    from .host import Host
    from .isolation import Zygotes
    from .options import EngineOptions

logger = logging.getLogger(__name__)

LAUNCH_TIMEOUT = 60.0  # seconds from launch to a guest that answers
CLEANUP_TIMEOUT = 30.0  # seconds for a box to die
GUEST_LOG_TAIL = 2000  # characters
LISTEN_BACKLOG = 1024


class Machines:
    """`async with` it; leaving ends every box.

    `watch` runs beside a box that answered. `ended` is told of every box that ended: whether it
    had answered, and how many of its processes were killed for memory.
    """

    def __init__(
        self,
        options: EngineOptions,
        host: Host,
        network: HostNetwork,
        zygotes: Zygotes | None,
        *,
        watch: Callable[[Sandbox, Machine], Coroutine[None, None, None]],
        ended: Callable[[Sandbox, bool, int], None],
    ) -> None:
        self._options = options
        self._host = host
        self._limits = Limits(
            memory_mb=options.memory_mb,
            cpu_count=options.cpu_count,
            disk_mb=options.disk_mb,
            max_files=options.max_files,
            max_processes=options.max_processes,
        )
        self._network = network
        self._zygotes = zygotes
        self._watch = watch
        self._ended = ended
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def start(self, sandbox: Sandbox) -> None:
        """A box for this sandbox that answers; on failure nothing of it is left but the home."""
        try:
            with anyio.fail_after(LAUNCH_TIMEOUT):
                await self._tasks.start(self._own_box, sandbox)
        except (LaunchError, EngineError, GuestGone, OSError, TimeoutError) as exc:
            logger.error("launching %s failed: %r", sandbox.id, exc)
            raise LaunchRefused(f"The sandbox could not be started: {_reason(exc)}") from exc

    async def stop(self, sandbox: Sandbox) -> None:
        """Returns when its box and all that belonged to it are gone."""
        if (machine := sandbox.machine) is not None:
            machine.box.kill()
            with anyio.move_on_after(CLEANUP_TIMEOUT):
                await machine.stopped.wait()

    async def greet(self, sandbox: Sandbox, box: Box) -> None:
        """Tells the guest what it needs; a guest that answers serves."""
        # The identity again: a spare was launched before it was known what it would be.
        told = {"envVars": sandbox.identity | dict(sandbox.spec.env_vars)}
        body = json.dumps(told).encode()
        try:
            status, _ = await exchange(sandbox.socket_path, "POST", "/init", body=body)
        except GuestGone as exc:
            # Nothing of a user has run yet: the guest's own words are safe to log.
            logger.error("the guest of %s wrote: %s", sandbox.id, box.log[-GUEST_LOG_TAIL:])
            raise LaunchError("the guest ended before it answered") from exc
        if status != 204:
            raise LaunchError(f"the guest answered /init with {status}")

    async def _own_box(
        self, sandbox: Sandbox, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        answered, stopped = False, anyio.Event()
        oom_kills = 0
        try:
            async with self._machine(sandbox, stopped) as machine:
                await self.greet(sandbox, machine.box)
                machine.egress.policy = sandbox.network  # it may have changed meanwhile
                sandbox.machine, answered = machine, True
                task_status.started()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, sandbox, machine)
                    status = await machine.box.wait()
                    tasks.cancel_scope.cancel()
                logger.info("box of %s ended (%s)", sandbox.id, status)
            oom_kills = machine.box.oom_kills
        except Exception:
            # After the start nobody waits for this task: its failure must not end the engine.
            if not answered:
                raise
            logger.exception("could not clean up after the box of %s", sandbox.id)
        finally:
            sandbox.machine = None
            sandbox.drop_exchanges()
            self._ended(sandbox, answered, oom_kills)
            stopped.set()

    @asynccontextmanager
    async def _machine(self, sandbox: Sandbox, stopped: anyio.Event) -> AsyncIterator[Machine]:
        egress_dir = self._options.engine_dir / f"{socket_name(sandbox.id)}.net"
        with _folder(egress_dir), _listener(sandbox.socket_path) as listener:
            proxy = EgressProxy(egress_dir / "proxy.sock", sandbox.network, self._network)
            async with proxy as egress:
                box = await self._launch(sandbox, listener, egress_dir)
                try:
                    ward = Ward(box, sandbox.home, self._limits, self._host.isolation.launcher)
                    yield Machine(box, egress, ward, stopped)
                finally:
                    with shielded():
                        box.kill()
                        await box.aclose()

    async def _launch(self, sandbox: Sandbox, listener: socket.socket, egress_dir: Path) -> Box:
        if not sandbox.home.exists():
            make_home(sandbox.home, self._host.isolation.owner)
        launcher = self._zygotes or self._host.isolation
        try:
            return await launcher.launch(
                BoxSpec(
                    sandbox_id=sandbox.id,
                    home=sandbox.home,
                    listener=listener,
                    template=self._host.template,
                    egress_dir=egress_dir,
                    limits=self._limits,
                    env=sandbox.identity,
                )
            )
        finally:
            # Only the guest may hold the listener: when it dies, connections fail at once.
            listener.close()


@contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(path))
        try:
            path.chmod(0o600)
            listener.listen(LISTEN_BACKLOG)
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    make_folder(path, 0o711)
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)  # no sandbox can write to it


@contextmanager
def shielded() -> Iterator[None]:
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLEANUP_TIMEOUT) as scope:
        yield
    if scope.cancelled_caught:
        logger.error("cleaning up after a box took longer than %s s", CLEANUP_TIMEOUT)


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return f"it did not answer within {LAUNCH_TIMEOUT:.0f} s"
    return str(exc) or type(exc).__name__

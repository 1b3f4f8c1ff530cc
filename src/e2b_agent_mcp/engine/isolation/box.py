"""One box: a process tree of bubblewrap, started, watched, frozen and killed from here.

A box ends with its guest, by `kill`, and when the engine is gone: the guest sees the end of
its stdin, whose other end only the engine holds, and bubblewrap dies with its parent (that of
a zygote's box with the zygote's own). Whatever way it ends, the kernel kills the whole pid
namespace with its init.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import subprocess
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import anyio

from ..errors import LaunchError
from . import processes
from .bubblewrap import (
    BoxSpec,
    HostTree,
    build_arguments,
    build_command,
    build_environment,
    build_rights,
    set_environment,
)
from .cord import Cord, closing, memory_file
from .kills import Kills

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from .cgroups import Cgroup, Cgroups
    from .owner import Owner
    from .processes import Usage

LAUNCH_TIMEOUT = 10.0  # seconds until bubblewrap names the init of the box; usually 5 ms
DEATH_TIMEOUT = 10.0  # seconds until the kernel has ended a killed box
FREEZE_TIMEOUT = 5.0  # seconds until every process stands still
FREEZE_PAUSE = 0.002  # seconds for signalled processes to stop


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """What all boxes of this host have in common."""

    bubblewrap: Path
    owner: Owner
    tree: HostTree
    seccomp: bytes
    disable_userns: bool
    cgroups: Cgroups | None = None

    async def launch(self, spec: BoxSpec) -> Box:
        """Returns when the box exists; whether its guest comes up is for the caller to ask."""
        arguments = build_arguments(spec, self.tree, disable_userns=self.disable_userns)
        listener = [spec.listener.fileno()] if spec.listener is not None else []
        with memory_file(self.seccomp) as seccomp, self.restraints(spec) as restraints:
            if spec.command is None and self.disable_userns:  # a setuid bubblewrap gives none
                arguments += build_rights()
            told = restraints.kills.descriptors if spec.command is None else []
            command = build_command(spec, platform.release(), restraints.kills.to_json(told))
            return await self.start(
                spec.sandbox_id,
                [*arguments, "--seccomp", str(seccomp)],
                command,
                environment=build_environment(spec),
                inherited=[seccomp, *listener, *told],
                restraints=restraints,
            )

    @contextmanager
    def restraints(self, spec: BoxSpec) -> Iterator[Restraints]:
        """For one box, which owns them from its launch on; a launch that fails leaves none."""
        cgroup = self.cgroups.create(spec.sandbox_id, spec.limits) if self.cgroups else None
        try:
            restraints = Restraints(Kills(spec.limits, cgroup), cgroup)
        except BaseException:
            if cgroup is not None:
                cgroup.remove_now()
            raise
        try:
            yield restraints
        except BaseException:
            restraints.kills.close()
            if cgroup is not None:
                cgroup.remove_now()
            raise

    async def start(
        self,
        name: str,
        arguments: Sequence[str],
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        inherited: Sequence[int],
        restraints: Restraints | None = None,
    ) -> Box:
        """The box that bubblewrap's `arguments` describe; it dies with the engine.

        bubblewrap waits for its arguments, so it does nothing before it is in its group.
        """
        words = ["--die-with-parent", *set_environment(environment), *arguments]
        (info, info_end), (packed, packed_end) = os.pipe(), os.pipe()
        with closing(info), ExitStack() as waiting:
            waiting.callback(os.close, packed_end)
            cord = Cord()
            with closing(info_end), closing(packed), cord.handed_over():
                argv = ["bwrap", "--args", str(packed), "--info-fd", str(info_end), "--", *command]
                process = self._popen(argv, cord, [packed, info_end, *inherited])
            box = Box(name, cord, _Exit(os.pidfd_open(process.pid), process.wait), restraints)
            try:
                with suppress(ProcessLookupError, BrokenPipeError):  # its log says why
                    if restraints is not None and restraints.cgroup is not None:
                        restraints.cgroup.join(process.pid)
                    os.write(packed_end, _pack(words))
                waiting.close()
                with anyio.fail_after(LAUNCH_TIMEOUT):
                    await box.learn_init(info, process.pid)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await box.aclose()
                raise
            return box

    def _popen(
        self, argv: Sequence[str], cord: Cord, inherited: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        other = self.owner.is_other
        return subprocess.Popen(
            argv,
            executable=self.bubblewrap,
            env={},  # the box can read bubblewrap's own environment
            cwd="/",
            stdin=cord.stdin,
            stdout=cord.log,
            stderr=cord.log,
            pass_fds=inherited,
            process_group=0,  # Ctrl-C is for the engine, which ends its boxes in order
            user=self.owner.uid if other else None,
            group=self.owner.gid if other else None,
            extra_groups=[] if other else None,
        )


class Restraints(NamedTuple):
    """What holds a box to its limits from outside."""

    kills: Kills
    cgroup: Cgroup | None

    @contextmanager
    def doors(self) -> Iterator[list[int]]:
        """Through which a process joins the groups; see `Cgroup.doors`."""
        if self.cgroup is None:
            yield []
        else:
            with self.cgroup.doors() as doors:
                yield doors


class Box:
    """Owns its descriptors; `aclose` kills and frees, in whatever state."""

    def __init__(
        self, sandbox_id: str, cord: Cord, exit: _Exit, restraints: Restraints | None = None
    ) -> None:
        self.sandbox_id = sandbox_id
        self.restraints = restraints
        self.pid = 0  # of the box's init, on the host
        self._cord = cord
        self._exit = exit
        self._init_fd: int | None = None
        self._guest: _Exit | None = None  # watched here only if the init does not end with it
        self._namespace = 0
        self._own = 2  # its first processes: init and guest
        self.oom_kills = 0  # known when it has ended
        self.opaque = False  # what runs in it cannot be told apart from outside
        self._belongings = AsyncExitStack()
        self._frozen: set[int] = set()

    @classmethod
    def adopt(
        cls, sandbox_id: str, cord: Cord, init_fd: int, guest_fd: int, restraints: Restraints
    ) -> Self:
        """A box that a zygote made, by pidfds. How its guest ended is known to nobody."""
        box = cls(sandbox_id, cord, _Exit(os.dup(init_fd), lambda: None), restraints)
        box._init_fd = init_fd
        box._know(_pid_of(init_fd))
        box._own = 4  # init, what keeps the box, nursery, guest
        box._guest = _Exit(guest_fd, box.kill)
        return box

    async def learn_init(self, info: int, bubblewrap: int) -> None:
        """From bubblewrap's own words."""
        try:
            pid = await _read_child_pid(info)
        except ValueError as exc:
            await self.wait()
            raise LaunchError(f"bubblewrap made no box: {self.log.strip() or exc}") from exc
        # It may have come and gone: a command can be that short, or bubblewrap's last steps fail.
        with suppress(ProcessLookupError, FileNotFoundError):
            self._init_fd = _open_child(pid, bubblewrap)
            self._know(pid)

    def _know(self, init: int) -> None:
        with suppress(ProcessLookupError, FileNotFoundError):
            self._namespace = processes.namespace_of(init)
            self.pid = init

    @property
    def log(self) -> str:
        """The end of what bubblewrap and the guest wrote to stdout and stderr."""
        return self._cord.text()

    @property
    def ended(self) -> bool:
        return self._exit.ended.is_set()

    async def wait(self) -> int | None:
        """The guest's exit status, 128 + signal when it was killed; None: not known."""
        return await self._exit.wait()

    def kill(self) -> None:
        """Ends every process of the box at once. May be called at any time, repeatedly."""
        if self._init_fd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
        else:
            self._exit.hasten()

    def hang_up(self) -> None:
        """Tells the guest to end, as the end of the engine would."""
        self._cord.hang_up()

    async def freeze(self) -> None:
        """Stops every process; memory stays. LaunchError when the box does not stand still."""
        stop = partial(processes.stop_all, self._namespace, self.pid, self._frozen)
        if not await _until_at_rest(stop):
            raise LaunchError("the processes of the sandbox do not stop")

    def thaw(self) -> None:
        """Continues what `freeze` stopped, not what the sandbox itself had stopped."""
        processes.continue_all(self._namespace, self._frozen)
        self._frozen = set()

    @property
    def namespace(self) -> int:
        """Of its processes; see `processes.measure`."""
        return self._namespace

    def usage(self) -> Usage:
        """Costs a look at every process of the host: some milliseconds."""
        return processes.measure({self._namespace})[self._namespace]

    def memory_above(self, limit: int) -> dict[int, int]:
        """Bytes by process, if together they are above `limit`. As costly as `usage`."""
        return processes.memory_above(self._namespace, limit)

    def kill_largest(self, used: Mapping[int, int], limit: int) -> bool:
        """False when what the guest itself needs is too much."""
        return processes.kill_largest(self._namespace, self._own, used, limit)

    def deleted_bytes(self, home: Path) -> int:
        return processes.deleted_bytes(self._namespace, home)

    async def kill_all_but_guest(self) -> bool:
        """False when its processes make new ones faster than they are killed."""
        return await _until_at_rest(partial(processes.kill_all, self._namespace, self._own))

    def also_frees(self, belongings: AsyncExitStack) -> None:
        """At its end, in reverse order."""
        self._belongings.push_async_exit(belongings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    async def aclose(self) -> None:
        self.kill()
        with anyio.fail_after(DEATH_TIMEOUT):
            await self.wait()
        self._exit.close()
        if self._guest is not None:
            self._guest.close()
        self._cord.close()
        if self._init_fd is not None:
            os.close(self._init_fd)
            self._init_fd = None
        if self.restraints is not None:
            self.restraints.kills.close()
            if self.restraints.cgroup is not None:
                with suppress(OSError):
                    self.oom_kills = self.restraints.cgroup.oom_kills()
                await self.restraints.cgroup.remove()
        await self._belongings.aclose()


class _Exit:
    """Reaps a process as soon as it ends. Owns the pidfd; `status` is asked once."""

    def __init__(self, pidfd: int, status: Callable[[], int | None]) -> None:
        self._status = status
        self._code: int | None = None
        self.ended = anyio.Event()
        self._fd: int | None = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._reap)

    async def wait(self) -> int | None:
        await self.ended.wait()
        if self._code is not None and self._code < 0:
            return 128 - self._code
        return self._code

    def hasten(self) -> None:
        if self._fd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _reap(self) -> None:
        self._code = self._status()
        self.ended.set()
        self.close()


async def _until_at_rest(act: Callable[[Collection[int]], processes.Round]) -> bool:
    """Round after round; False when the processes do not come to rest in time."""
    known: set[int] = set()
    with anyio.move_on_after(FREEZE_TIMEOUT):
        while True:
            found = act(known)
            if found.at_rest:
                return True
            known = found.met
            await anyio.sleep(FREEZE_PAUSE)
    return False


async def _read_child_pid(info: int) -> int:
    """From bubblewrap's `--info-fd`; ValueError when it ends without having written."""
    text = b""
    while not text.rstrip().endswith(b"}"):
        await anyio.wait_readable(info)
        data = os.read(info, 4096)
        if not data:
            raise ValueError("bubblewrap ended early")
        text += data
    pid: int = json.loads(text)["child-pid"]
    return pid


def _open_child(pid: int, parent: int) -> int:
    """A descriptor that cannot mean a stranger who got the same pid meanwhile."""
    with ExitStack() as on_error:
        fd = os.pidfd_open(pid)
        on_error.callback(os.close, fd)
        if _parent_of(pid) != parent:
            raise ProcessLookupError(pid)
        on_error.pop_all()
        return fd


def _parent_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    return 0


def _pid_of(pidfd: int) -> int:
    """Seen from here; a negative number when the process has ended."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1


def _pack(arguments: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)

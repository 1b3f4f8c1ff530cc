"""Kernels: the process (launch, wait, interrupt, kill), and what we know about a live one.

Whatever launches a process hands over a pid: it is waited for through its pidfd, so it need not
be a child of the guest. It leads a process group of its own, and a signal goes to the group, as
a terminal's would: what a cell started in the foreground is interrupted with it.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread

from ..kills import Kills
from ..limits import let_go_first
from .channels import Channels
from .nursery import ForkedKernel

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LOG_TAIL = 2000  # characters
LONGEST_CHARACTER = 4  # bytes
KILL_TIMEOUT = 2.0  # seconds; a process in uninterruptible sleep is left to the box


@dataclass(kw_only=True)
class KernelProcess:
    pid: int
    _pidfd: int | None  # None: `_status` waits for the end by itself
    _status: Callable[[], Awaitable[int | None]]
    _code: int | None = None
    _ended: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        let_go_first(self.pid)

    @classmethod
    def launch(
        cls, command: Sequence[str], *, environ: Mapping[str, str], cwd: Path, log: Path
    ) -> Self:
        """Raises `OSError` when the program or `cwd` is missing."""
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                env=environ,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        async def status() -> int:
            return await anyio.to_thread.run_sync(child.wait, abandon_on_cancel=True)

        return cls(pid=child.pid, _pidfd=_open_pidfd(child.pid), _status=status)

    @classmethod
    def adopt(cls, forked: ForkedKernel) -> Self:
        return cls(pid=_pid_of(forked.pidfd), _pidfd=forked.pidfd, _status=forked.status)

    async def wait(self) -> None:
        """Until the process has ended, and takes it off the process table."""
        if not self.poll():
            return
        if self._pidfd is not None:
            await anyio.wait_readable(self._pidfd)
        self._code = await self._status()
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._ended.set()

    def poll(self) -> bool:
        """Whether the process lives."""
        return not self._ended.is_set()

    def interrupt(self) -> None:
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends the process and what it started in its group; idempotent."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def describe_end(self) -> str:
        code = self._code
        if code == -signal.SIGKILL:
            return "was killed by code in the sandbox, or by the machine that it is on"
        if code is not None and code < 0:
            return f"was ended by {_name_of(-code)}"
        return "ended" if code is None else f"exited with status {code}"


@dataclass(kw_only=True)
class Kernel:
    """A kernel and the connection to it. `variables`: the environment we last gave it."""

    process: KernelProcess
    channels: Channels
    folder: Path
    variables: Mapping[str, str]
    kills: Kills
    log: str = ""
    _verdict: str = ""
    _killed_before: Mapping[str, int] = field(init=False)
    _closed: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self._killed_before = self.kills.counts()

    async def serve(self) -> None:
        """Moves its messages until the process ends; kills it when cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.channels.serve)
                await self.process.wait()
                tasks.cancel_scope.cancel()
            await self.channels.drain()
        finally:
            await self._close()

    async def _close(self) -> None:
        with anyio.move_on_after(KILL_TIMEOUT, shield=True):
            self.process.kill()
            await self.process.wait()
        if reason := self.kills.since(self._killed_before):
            self._verdict = self._verdict or f"The context's process was killed: {reason}."
        self.channels.close()
        self.log = _read_tail(self.folder / "log")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._closed.set()

    async def end(self, verdict: str) -> None:
        """Kills it; `verdict` is what its users are told."""
        self._verdict = verdict
        self.process.kill()
        await self._closed.wait()

    def describe_end(self) -> str:
        return self._verdict or f"The context's process {self.process.describe_end()}."


def _open_pidfd(pid: int) -> int | None:
    """None where the kernel is gVisor's, which has none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _pid_of(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise ProcessLookupError


def _name_of(number: int) -> str:
    """Most real-time signals have no name."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _read_tail(log: Path) -> str:
    """Of whatever is there now: code in the sandbox can have put anything in its place."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return ""
        length = LOG_TAIL * LONGEST_CHARACTER
        text = os.pread(fd, length, max(0, found.st_size - length)).decode(errors="replace")
    finally:
        os.close(fd)
    return COLOURS.sub("", text)[-LOG_TAIL:].strip()

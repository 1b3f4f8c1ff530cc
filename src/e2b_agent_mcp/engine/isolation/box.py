"""One box: a process tree of bubblewrap, started, watched, frozen and killed from here.

A box ends with its guest, by `kill`, and when the engine is gone: the guest sees the end of
its stdin, whose other end only the engine holds, and bubblewrap dies with its parent.
Whatever way it ends, the kernel kills the whole pid namespace with its init.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import anyio

from ..errors import LaunchError
from . import processes
from .bubblewrap import BoxSpec, HostTree, build_arguments, build_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .owner import Owner
    from .processes import Usage

LAUNCH_TIMEOUT = 10.0  # seconds until bubblewrap names the init of the box; usually 5 ms
DEATH_TIMEOUT = 10.0  # seconds until the kernel has ended a killed box
FREEZE_TIMEOUT = 5.0  # seconds until every process stands still
FREEZE_PAUSE = 0.002  # seconds for signalled processes to stop
LOG_BYTES = 64 * 1024  # of what bubblewrap and the guest wrote, the end is kept


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """What all boxes of this host have in common."""

    bubblewrap: Path
    owner: Owner
    tree: HostTree
    seccomp: bytes
    disable_userns: bool

    async def launch(self, spec: BoxSpec) -> Box:
        """Returns when the box exists; whether its guest comes up is for the caller to ask."""
        info, info_end = os.pipe()
        with _closing(info):
            with _closing(info_end):
                process = self._start(spec, info_end)
            box = Box(spec.sandbox_id, process)
            try:
                with anyio.fail_after(LAUNCH_TIMEOUT):
                    await box.adopt(info)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await box.aclose()
                raise
            return box

    def _start(self, spec: BoxSpec, info_end: int) -> subprocess.Popen[bytes]:
        with _memory_file(self.seccomp) as seccomp:
            arguments = build_arguments(
                spec,
                self.tree,
                seccomp_fd=seccomp,
                info_fd=info_end,
                disable_userns=self.disable_userns,
            )
            with _memory_file(_pack(arguments)) as packed:
                inherited = [info_end, seccomp, packed]
                if spec.listener is not None:
                    inherited.append(spec.listener.fileno())
                command = build_command(spec, platform.release())
                return self._popen(["bwrap", "--args", str(packed), "--", *command], inherited)

    def _popen(self, argv: Sequence[str], inherited: Sequence[int]) -> subprocess.Popen[bytes]:
        other = self.owner.is_other
        return subprocess.Popen(
            argv,
            executable=self.bubblewrap,
            env={},  # the box can read bubblewrap's own environment
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=inherited,
            user=self.owner.uid if other else None,
            group=self.owner.gid if other else None,
            extra_groups=[] if other else None,
        )


class Box:
    """Owns the process and its descriptors; `aclose` kills and frees, in whatever state."""

    def __init__(self, sandbox_id: str, process: subprocess.Popen[bytes]) -> None:
        self.sandbox_id = sandbox_id
        self.pid = 0  # of the box's init, on the host
        self._process = process
        self._log = _Log(process.stdout)
        self._exit = _Exit(process)
        self._init_fd: int | None = None
        self._namespace = 0
        self._frozen: set[int] = set()

    async def adopt(self, info: int) -> None:
        """Learns the box's init from bubblewrap."""
        try:
            pid = await _read_child_pid(info)
        except ValueError as exc:
            await self.wait()
            raise LaunchError(f"bubblewrap made no box: {self.log.strip() or exc}") from exc
        # It may have come and gone: a command can be that short, or bubblewrap's last steps fail.
        with suppress(ProcessLookupError, FileNotFoundError):
            self._init_fd = _open_child(pid, self._process.pid)
            self._namespace = processes.namespace_of(pid)
            self.pid = pid

    @property
    def log(self) -> str:
        """The end of what bubblewrap and the guest wrote to stdout and stderr."""
        return self._log.text()

    async def wait(self) -> int:
        """The guest's exit status; 128 + signal when it was killed."""
        return await self._exit.wait()

    def kill(self) -> None:
        """Ends every process of the box at once. May be called at any time, repeatedly."""
        if self._init_fd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
        else:
            self._process.kill()

    async def freeze(self) -> None:
        """Stops every process; memory stays. LaunchError when the box does not stand still."""
        with anyio.move_on_after(FREEZE_TIMEOUT):
            while stopped := processes.stop_all(self._namespace, self.pid, self._frozen):
                self._frozen |= stopped
                await anyio.sleep(FREEZE_PAUSE)
            return
        raise LaunchError("the processes of the sandbox do not stop")

    def thaw(self) -> None:
        """Continues what `freeze` stopped, not what the sandbox itself had stopped."""
        processes.continue_all(self._namespace, self._frozen)
        self._frozen = set()

    def usage(self) -> Usage:
        """Costs a look at every process of the host: some milliseconds."""
        return processes.measure(self._namespace)

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
        self._log.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._init_fd is not None:
            os.close(self._init_fd)
            self._init_fd = None


class _Exit:
    """Reaps bubblewrap as soon as it ends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._ended = anyio.Event()
        self._fd: int | None = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._fd, self._reap)

    async def wait(self) -> int:
        await self._ended.wait()
        status: int = self._process.returncode
        return 128 - status if status < 0 else status

    def close(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _reap(self) -> None:
        self._process.wait()
        self._ended.set()
        self.close()


class _Log:
    """Keeps the end of a pipe that a sandbox may flood."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self._pipe = pipe
        self._tail = bytearray()
        os.set_blocking(pipe.fileno(), False)
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._read)

    def text(self) -> str:
        if not self._pipe.closed:
            self._read()
        return self._tail.decode(errors="replace")

    def close(self) -> None:
        if not self._pipe.closed:
            self._read()
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._pipe.fileno(), LOG_BYTES)
            self._tail += data
            del self._tail[:-LOG_BYTES]
            if not data:
                asyncio.get_running_loop().remove_reader(self._pipe.fileno())


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


def _pack(arguments: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)


@contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    with _closing(os.memfd_create("box")) as fd:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)

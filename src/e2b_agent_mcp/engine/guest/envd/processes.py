"""Commands and terminals: each lives on without the client that started it.

- A process ends when it exited *and* what it wrote was read. A background child that keeps the
  pipes open holds the end back for `DRAIN_GRACE` only; its later output is read and dropped, so
  that it never meets a broken pipe.
- Output goes to whoever is subscribed at that moment, whole and in order: a slow subscriber slows
  the process down. Without subscribers it is dropped.
- A process is its process group: signals, and its own deadline, reach all of it.
- Who connects within `LATE_CONNECT` seconds of the end still learns how it ended.
"""

import asyncio
import errno
import fcntl
import math
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio
from anyio.abc import ObjectReceiveStream, TaskGroup

from ..config import Environment, GuestConfig
from ..kills import Kills
from ..limits import let_go_first
from .paths import resolve
from .rpc import RpcError

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectSendStream

CHUNK = 256 * 1024  # bytes
BACKLOG = 16  # chunks that a subscriber may lag behind
DRAIN_GRACE = 0.2  # seconds
LATE_CONNECT = 30.0  # seconds
SHUTDOWN_GRACE = 1.0  # seconds

Channel = Literal["stdin", "stdout", "stderr", "pty"]


class Data(NamedTuple):
    channel: Channel
    octets: bytes


class End(NamedTuple):
    returncode: int  # negative: the signal that ended it
    limit: str = ""  # for which it was killed from outside


Event = Data | End


class TerminalSize(NamedTuple):
    columns: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start. `stdin` says whether input can be sent; a terminal always takes input."""

    program: str
    arguments: tuple[str, ...]
    variables: dict[str, str]
    cwd: str | None
    stdin: bool
    terminal: TerminalSize | None
    tag: str | None


class Processes:
    """Every process that was started through envd, and the tasks that read their output."""

    def __init__(self, config: GuestConfig, environment: Environment) -> None:
        self._config = config
        self._environment = environment
        self._processes: dict[int, Process] = {}
        self._tasks: TaskGroup

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While open, processes can be started; on leaving it, all are killed."""
        async with anyio.create_task_group() as self._tasks:
            try:
                yield
            finally:
                await self._kill_all()
                self._tasks.cancel_scope.cancel()

    def list(self) -> "list[Process]":
        return [process for process in self._processes.values() if process.end is None]

    def find(self, selector: int | str, *, ended: bool = False) -> "Process":
        """By pid or tag. With `ended`, a process that ended a moment ago is found too."""
        for process in self._processes.values():
            if selector in (process.pid, process.command.tag) and (ended or not process.end):
                return process
        name = f"pid {selector}" if isinstance(selector, int) else f"tag '{selector}'"
        raise RpcError("not_found", f"process with {name} not found")

    async def start(self, command: Command, timeout: float | None) -> "Process":
        """Starts it; after `timeout` seconds its group is killed, whoever is connected.

        Its first output is read at the caller's next `await`: subscribing before loses nothing.
        """
        process = await self._launch(command)
        self._processes[process.pid] = process
        self._tasks.start_soon(self._supervise, process, timeout)
        return process

    async def _launch(self, command: Command) -> "Process":
        cwd = self._cwd(command)
        try:
            environment = self._environment.build(command.variables)
            return await _launch(command, cwd, environment, self._config.kills)
        except (OSError, ValueError) as error:
            raise RpcError("invalid_argument", f"cannot start the process: {error}") from error

    def _cwd(self, command: Command) -> str:
        path = resolve(command.cwd or "", self._config.home)
        if not os.path.isdir(path):
            raise RpcError("invalid_argument", f"cwd '{command.cwd or path}' does not exist")
        return path

    async def _supervise(self, process: "Process", timeout: float | None) -> None:
        async with anyio.create_task_group() as readers:
            for output in process.outputs:
                readers.start_soon(output.pump, process.publish)
            await process.wait(timeout)
            await anyio.sleep(LATE_CONNECT)
            if self._processes.get(process.pid) is process:  # a pid comes round again
                del self._processes[process.pid]

    async def _kill_all(self) -> None:
        with anyio.move_on_after(SHUTDOWN_GRACE, shield=True):
            for process in self.list():
                process.send_signal(signal.SIGKILL)
            for process in self.list():
                await process.exited()


class Process:
    def __init__(
        self,
        command: Command,
        child: asyncio.subprocess.Process,
        outputs: "list[Output]",
        input_fd: int | None,
        kills: Kills,
    ) -> None:
        let_go_first(child.pid)
        self._kills = kills
        self._killed_before = kills.counts()
        self.command = command
        self.outputs = outputs
        self.end: End | None = None
        self._child = child
        self._input_fd = input_fd
        self._input_lock = anyio.Lock()  # one sender at a time: input never interleaves
        self._subscribers: set[MemoryObjectSendStream[Event]] = set()

    @property
    def pid(self) -> int:
        return self._child.pid

    @contextmanager
    def subscribe(self) -> Iterator[ObjectReceiveStream[Event]]:
        """Events from now on, the `End` being the last; if it ended already, just the `End`."""
        sender, receiver = anyio.create_memory_object_stream[Event](BACKLOG)
        with sender, receiver:
            if self.end:
                sender.send_nowait(self.end)
                sender.close()
            else:
                self._subscribers.add(sender)
            yield receiver
        self._subscribers.discard(sender)

    async def publish(self, event: Event) -> None:
        for subscriber in list(self._subscribers):
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await subscriber.send(event)

    async def exited(self) -> int:
        return await self._child.wait()

    async def wait(self, timeout: float | None) -> None:
        """Until it ended, then tells the subscribers; kills the group after `timeout` seconds."""
        with anyio.move_on_after(timeout):
            await self.exited()
        if self._child.returncode is None:
            self.send_signal(signal.SIGKILL)
        returncode = await self.exited()
        limit = self._kills.since(self._killed_before) if returncode == -signal.SIGKILL else ""
        for output in self.outputs:
            output.expect_end(anyio.current_time() + DRAIN_GRACE)
        for output in self.outputs:
            await output.drained.wait()
        self.end = End(returncode, limit)
        await self.publish(self.end)
        for subscriber in self._subscribers:
            subscriber.close()
        self.close_input()

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def send_input(self, channel: Channel, octets: bytes) -> None:
        """Returns when the process's pipe has taken all of it, which may wait for the process."""
        if (channel == "pty") != (self.command.terminal is not None):
            raise RpcError("failed_precondition", f"the process has no {channel}")
        async with self._input_lock:
            view = memoryview(octets)
            while view:
                view = view[await self._write_some(view) :]

    async def _write_some(self, octets: memoryview) -> int:
        if self._input_fd is None:
            raise RpcError("failed_precondition", "stdin is not enabled or already closed")
        try:
            return os.write(self._input_fd, octets)
        except BlockingIOError:
            pass
        except OSError as error:
            raise RpcError("failed_precondition", f"the input is closed: {error}") from error
        try:
            await anyio.wait_writable(self._input_fd)
        except anyio.ClosedResourceError as error:
            raise RpcError("failed_precondition", "the input was closed meanwhile") from error
        return 0

    def close_input(self) -> None:
        """Does not wait for a sender that is blocked: that one fails."""
        if self._input_fd is not None:
            anyio.notify_closing(self._input_fd)
            os.close(self._input_fd)
        self._input_fd = None

    def resize(self, size: TerminalSize) -> None:
        if self.command.terminal is None or self._input_fd is None:
            raise RpcError("failed_precondition", "the process has no terminal")
        _set_size(self._input_fd, size)


class Output:
    """One pipe or terminal of a process, read until nobody holds its other end."""

    def __init__(self, channel: Channel, fd: int) -> None:
        self.drained = anyio.Event()  # nothing that belongs to the process is left to read
        self._channel = channel
        self._fd = fd
        self._deadline = math.inf
        self._waiting = anyio.CancelScope()

    def expect_end(self, deadline: float) -> None:
        """The process exited: silence until `deadline` means that it has said everything."""
        self._deadline = self._waiting.deadline = deadline

    async def pump(self, publish: Callable[[Event], Awaitable[None]]) -> None:
        try:
            while octets := await self._read():
                if not self.drained.is_set():
                    await publish(Data(self._channel, octets))
        finally:
            self.drained.set()
            os.close(self._fd)

    async def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, CHUNK)
            except BlockingIOError:
                await self._wait()
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal that nobody holds open any more
                    raise
                return b""

    async def _wait(self) -> None:
        with anyio.CancelScope(deadline=self._deadline) as self._waiting:
            await anyio.wait_readable(self._fd)
        if self._waiting.cancelled_caught:
            self.drained.set()
            self._deadline = math.inf


async def _launch(command: Command, cwd: str, environment: dict[str, str], kills: Kills) -> Process:
    if command.terminal:
        return await _launch_in_terminal(command, command.terminal, cwd, environment, kills)
    with ExitStack() as ours, ExitStack() as theirs:
        stdout, stderr = (_pipe_from_child(ours, theirs) for _ in range(2))
        input_fd, stdin = None, subprocess.DEVNULL
        if command.stdin:
            stdin, input_fd = os.pipe()
            theirs.callback(os.close, stdin)
            ours.callback(os.close, input_fd)
            os.set_blocking(input_fd, False)
        child = await asyncio.create_subprocess_exec(
            command.program,
            *command.arguments,
            stdin=stdin,
            stdout=stdout[1],
            stderr=stderr[1],
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        ours.pop_all()
        outputs = [Output("stdout", stdout[0]), Output("stderr", stderr[0])]
        return Process(command, child, outputs, input_fd, kills)


def _pipe_from_child(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    ours.callback(os.close, reader)
    theirs.callback(os.close, writer)
    os.set_blocking(reader, False)
    with suppress(OSError):  # a user may have so much of all pipes together
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, CHUNK)
    return reader, writer


async def _launch_in_terminal(
    command: Command, size: TerminalSize, cwd: str, environment: dict[str, str], kills: Kills
) -> Process:
    with ExitStack() as ours, ExitStack() as theirs:
        master, terminal = pty.openpty()
        ours.callback(os.close, master)
        theirs.callback(os.close, terminal)
        _set_size(master, size)
        os.set_blocking(master, False)
        child = await asyncio.create_subprocess_exec(
            command.program,
            *command.arguments,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            # One system call between fork and exec: without it the shell has no job control.
            preexec_fn=partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
        )
        ours.pop_all()
        return Process(command, child, [Output("pty", master)], os.dup(master), kills)


def _set_size(fd: int, size: TerminalSize) -> None:
    packed = struct.pack("HHHH", size.rows, size.columns, 0, 0)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, packed)

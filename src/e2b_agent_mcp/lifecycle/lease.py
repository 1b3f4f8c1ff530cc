"""What a call may do with its session's sandbox.

Contract: code that may have reached a sandbox is never sent again. When the first call of a lease
finds that its sandbox had ended before, the session gets a new one and the call goes there.

A run that is cut short (its time is over, its caller went away, it printed without end) is stopped
before the session is handed on: the interpreter must answer, else it is started afresh, else the
sandbox is ended; the result says which, in words.
"""

import json
import logging
import mimetypes
import posixpath
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import anyio

from e2b_agent_mcp.errors import (
    AuthenticationError,
    E2BAgentError,
    InvalidArgumentError,
    RateLimitError,
    SandboxError,
    SandboxLostError,
    SandboxTimeoutError,
    SandboxUnavailableError,
    TooLargeError,
    sandbox_errors,
)
from e2b_agent_mcp.lifecycle.control import Control, bounded
from e2b_agent_mcp.lifecycle.transitions import Transitions
from e2b_agent_mcp.pool import (
    EXPLAIN_CRASH,
    EXPLAIN_STUCK,
    SandboxState,
    SessionKey,
    Slot,
    expired,
)
from e2b_agent_mcp.settings import Settings

if TYPE_CHECKING:
    from e2b import AsyncCommandHandle, CommandResult, EntryInfo
    from e2b_code_interpreter import Execution, ExecutionError, OutputMessage, Result
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox

logger = logging.getLogger(__name__)

T = TypeVar("T")
Output = Callable[[str], Awaitable[None]]
RunStatus = Literal["ok", "error", "timeout", "interrupted"]

HOME = "/home/user"
OUTPUT_LIMIT = 50_000_000  # characters; a run that prints more is stopped
KERNEL_GRACE = 6.0  # seconds; E2B's cloud interrupts within 5 s of losing the client
RESTART_LIMIT = 20.0  # seconds
COMMAND_GRACE = 10.0  # seconds after which E2B itself ends a command that we failed to stop
STOP_LIMIT = 5.0  # seconds
TRANSFER_RATE = 1_000_000  # bytes per second; a slower transfer of a whole file is given up
LISTING_LIMIT = 5.0  # seconds
LISTING_DEPTH = 4
MOST_CHANGED = 50  # files

KEPT = "The code was stopped. Variables and files from before it, and what it did so far, are kept."
RESTARTED = (
    "The code did not stop when interrupted, so the interpreter was restarted: "
    "variables are gone, files are kept."
)
ENDED = (
    "The code did not stop and the sandbox stopped answering, so it was ended: variables, files "
    "and installed packages are gone. The next call gets a new sandbox."
)
UNKNOWN = "The sandbox could not be reached to stop the code; the next call will."
FLOODED = f"The code printed over {OUTPUT_LIMIT:,} characters and was stopped."
KERNEL_DIED = (
    "The interpreter died (often: out of memory) and was started afresh: "
    "variables are gone, files are kept."
)

# How E2B reports in a result that the kernel died under the code.
_KERNEL_DEATHS = ("ContextRestarting", "UnexpectedEndOfExecution", "WebSocketError")

_NO_LIMIT = float("inf")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of code; `execution` holds what was received so far when it was cut short."""

    status: RunStatus
    execution: "Execution"
    duration: float  # seconds
    note: str = ""  # for the model: what became of variables and files, "" when nothing was lost


@dataclass(frozen=True, kw_only=True)
class CommandRun:
    """One shell command; `exit_code` is None when it was stopped before it ended."""

    status: RunStatus  # "error": it ended with an exit code other than 0
    exit_code: int | None
    stdout: str
    stderr: str
    duration: float  # seconds
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    path: str
    kind: Literal["file", "directory"]
    size: int  # bytes
    mime_type: str
    modified_at: datetime


class _Stamp(NamedTuple):
    size: int
    modified_at: datetime


@dataclass(eq=False, kw_only=True)
class Session:
    """One session of this process, shared by its leases one after the other."""

    key: SessionKey
    slot: Slot
    transitions: Transitions
    handle: "AsyncSandbox | None" = None
    # Serves the session's calls in the order of their arrival.
    turn: anyio.Lock = field(default_factory=anyio.Lock)
    unsettled: bool = False  # code may still be running from a call that is over
    executions: int = 0  # the interpreter's own count, when it last told us
    baseline: Mapping[str, _Stamp] | None = None  # files when we looked last
    installed: set[str] = field(default_factory=set)

    def lose(self, sandbox_id: str, why: str) -> None:
        self.transitions.tell("lost", sandbox_id, key=self.key)
        self.slot.lose(sandbox_id, why)
        self.clear()

    def clear(self) -> None:
        """Forgets what was true of the sandbox that is gone."""
        self.handle = None
        self.unsettled = False
        self.executions = 0
        self.baseline = None
        self.installed.clear()


class Lease:
    """Exclusive use of a session's sandbox, from `SandboxManager.lease`; ends with its block.

    `session` and `sandbox_id` say where; `state` (`created`, `reused`, `resumed`, `recreated`) and
    `lost` say what became of the session since its last lease, in words that a model can read.
    Each is one request to the sandbox, but the first run of a new sandbox, which waits for its
    interpreter. Errors: `SandboxLostError` when the sandbox is gone for good, `SandboxError` when
    E2B fails or refuses, `NotFoundError` and `TooLargeError` for files.
    """

    def __init__(
        self,
        session: Session,
        control: Control,
        settings: Settings,
        handle: "AsyncSandbox",
        *,
        state: SandboxState,
        lost: str,
        reopen: Callable[[], Awaitable["Lease"]],
    ) -> None:
        self.session = session.key.name
        self.state = state  # may change with the first call, as `lost` and the sandbox
        self.lost = lost  # for the model: what the session lost since its last lease
        self._session = session
        self._control = control
        self._settings = settings
        self._handle: AsyncSandbox | None = handle
        self._sandbox_id = handle.sandbox_id
        self._reopen = reopen
        self._answered = False  # this sandbox has done something for this lease

    @property
    def sandbox(self) -> "AsyncSandbox":
        """E2B's own object, for what this class does not offer; its calls are not bounded."""
        if self._handle is None:
            raise RuntimeError("This lease has ended; lease the session again.")
        return self._handle

    @property
    def sandbox_id(self) -> str:
        return self._sandbox_id

    def close(self) -> None:
        self._handle = None

    async def replace(self) -> None:
        """After `SandboxLostError`: goes on with a new sandbox, without giving up its turn.

        `state` and `lost` tell what became of the session.
        """
        self._session.slot.doubted = True
        fresh = await self._reopen()
        self._handle, self._sandbox_id = fresh.sandbox, fresh.sandbox_id
        self.state, self.lost = fresh.state, fresh.lost

    async def confirm(self) -> None:
        """For a caller that must know `state` and `lost` before it does anything else."""
        await self.stat_file(HOME)

    async def run_code(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_stdout: Output | None = None,
        on_stderr: Output | None = None,
    ) -> Run:
        """Runs Python in the session's context; an exception of the code is a result, not ours.

        After `timeout` seconds (`runs.timeout`) the code is interrupted, and variables are kept if
        it gives way. Raises `SandboxLostError` when the sandbox ended under the code.
        """
        limit = self._limit(timeout)
        return await self._first(lambda: self._run_code(code, limit, on_stdout, on_stderr))

    def _limit(self, timeout: float | None) -> float:
        return self._settings.runs.timeout if timeout is None else timeout

    async def _first(self, call: Callable[[], Awaitable[T]]) -> T:
        """A lease does not ask whether its sandbox still exists; its first call finds out."""
        try:
            answer = await call()
        except SandboxError as exc:
            if exc.reached or self._answered:
                raise
            await self.replace()
            answer = await call()
        self._answered = True
        return answer

    async def _run_code(
        self, code: str, timeout: float, on_stdout: Output | None, on_stderr: Output | None
    ) -> Run:
        await self._look_before_running()
        await self._await_interpreter()
        received = _Received(on_stdout, on_stderr)
        with self._told_run() as told:
            self._session.unsettled = True
            try:
                status, execution, note = await self._run(code, timeout, received)
            except BaseException:
                if self._session.unsettled:
                    await self.settle()
                raise
            told.status = status
        return Run(status=status, execution=execution, duration=told.duration, note=note)

    @contextmanager
    def _told_run(self) -> Iterator["_ToldRun"]:
        """Tells that something runs, and how it ended; measures it meanwhile."""
        told = _ToldRun()
        tell = self._session.transitions.tell
        tell("run_started", self._sandbox_id, key=self._session.key)
        try:
            yield told
        except E2BAgentError as exc:
            told.status = exc.code
            raise
        except anyio.get_cancelled_exc_class():
            told.status = "cancelled"
            raise
        finally:
            told.duration = time.monotonic() - told.started
            tell(
                "run_ended",
                self._sandbox_id,
                key=self._session.key,
                outcome=told.status,
                took=told.duration,
            )

    async def _run(
        self, code: str, timeout: float, received: "_Received"
    ) -> tuple[RunStatus, "Execution", str]:
        try:
            with anyio.move_on_after(timeout) as limit, sandbox_errors("running code"):
                execution = await self.sandbox.run_code(
                    code,
                    on_stdout=received.stdout,
                    on_stderr=received.stderr,
                    on_result=received.result,
                    on_error=received.error,
                    timeout=0,
                )
                self._session.unsettled = False
                self._session.executions = execution.execution_count or 0
                return _outcome(execution)
        except _Flood:
            return "interrupted", received.execution, f"{FLOODED} {await self.settle()}"
        except SandboxError as exc:
            if not limit.cancel_called:
                self._session.unsettled = exc.reached
                raise await self._diagnose(exc) from exc
        return "timeout", received.execution, await self.settle()

    async def run_command(
        self,
        command: str,
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        on_stdout: Output | None = None,
        on_stderr: Output | None = None,
    ) -> CommandRun:
        """Runs a shell command, stopped after `timeout` seconds (`runs.timeout`); what it started
        in the background lives on. An exit code other than 0 is a result."""
        limit = self._limit(timeout)
        return await self._first(
            lambda: self._run_command(command, limit, cwd, _Received(on_stdout, on_stderr))
        )

    async def _run_command(
        self, command: str, timeout: float, cwd: str | None, received: "_Received"
    ) -> CommandRun:
        await self._look_before_running()
        with self._told_run() as told:
            status, exit_code, note = await self._command(command, timeout, cwd, received)
            told.status = status
        return CommandRun(
            status=status,
            exit_code=exit_code,
            stdout="".join(received.execution.logs.stdout),
            stderr="".join(received.execution.logs.stderr),
            duration=told.duration,
            note=note,
        )

    async def _command(
        self, command: str, timeout: float, cwd: str | None, received: "_Received"
    ) -> tuple[RunStatus, int | None, str]:
        handle: AsyncCommandHandle[None] | None = None
        exit_code: int | None = None
        try:
            with anyio.move_on_after(timeout) as limit, sandbox_errors("running a command"):
                handle = await self.sandbox.commands.run(
                    command,
                    background=True,
                    cwd=cwd,
                    on_stdout=received.text,
                    on_stderr=received.error_text,
                    timeout=timeout + COMMAND_GRACE,
                    request_timeout=self._settings.sandboxes.request_timeout,
                    retain_output=False,
                )
                exit_code = await _exit_code(handle)
                return ("error" if exit_code else "ok"), exit_code, ""
        except _Flood:
            return "interrupted", None, FLOODED
        except SandboxError as exc:
            if not limit.cancel_called:
                raise await self._diagnose(exc) from exc
        finally:
            if handle is not None and exit_code is None:
                await self._stop_command(handle)
        return "timeout", None, "The command was stopped. Variables and files are kept."

    async def _stop_command(self, handle: "AsyncCommandHandle[None]") -> None:
        with anyio.move_on_after(STOP_LIMIT, shield=True):
            try:
                with sandbox_errors("stopping a command"):
                    await handle.kill()
                    await handle.disconnect()
            except E2BAgentError as exc:
                logger.warning("command of sandbox=%s not stopped: %s", self._sandbox_id, exc)

    async def install(self, packages: Sequence[str], *, timeout: float) -> None:
        """Installs PyPI requirements for the running interpreter; once per sandbox and text.

        Raises `InvalidArgumentError` with pip's last lines when it refuses.
        """
        wanted = [text for item in packages if (text := item.strip())]
        for item in wanted:
            if item.startswith("-") or not item.isprintable():
                raise InvalidArgumentError(f"Not a PyPI requirement: {item!r}.")
        missing = [item for item in wanted if item not in self._session.installed]
        if not missing:
            return
        run = await self.run_code(_INSTALL.format(packages=json.dumps(missing)), timeout=timeout)
        if run.status == "ok":
            self._session.installed.update(missing)
            return
        names = ", ".join(missing)
        if run.status == "timeout":
            raise SandboxTimeoutError(
                f"Installing {names} took longer than {timeout:g} s. {run.note}",
                hint="Install fewer packages at once, or raise E2B_AGENT_MCP_RUNS_INSTALL_TIMEOUT.",
            )
        said = run.execution.error.value if run.execution.error else run.note
        raise InvalidArgumentError(
            f"Installing {names} failed:\n" + "\n".join(said.splitlines()[-8:]),
            hint="Check the names and versions on PyPI.",
        )

    async def restart(self) -> None:
        """A fresh interpreter: variables are gone, files and running commands stay."""
        await self._first(
            lambda: self._data("restarting the interpreter", self._restart_context, RESTART_LIMIT)
        )
        self._session.unsettled = False

    async def settle(self) -> str:
        """Makes sure that no code of an earlier run is still running; says what it took."""
        with anyio.CancelScope(shield=True):
            note = await self._settle()
        logger.info("settled sandbox=%s: %s", self._sandbox_id, note)
        return note

    async def _settle(self) -> str:
        try:
            before = self._session.executions
            if await self._answers(self._probe, KERNEL_GRACE):
                # The run and the probe count; fewer, and E2B has started it afresh by itself.
                return KEPT if self._session.executions >= before + 2 else RESTARTED
            if await self._answers(self._restart_context, RESTART_LIMIT):
                return RESTARTED
            found = await self._control.inspect(self._sandbox_id)
            if found is not None and found.paused:
                return UNKNOWN  # it answers nobody, and its state is to be kept
            await bounded("ending a sandbox", STOP_LIMIT, self._kill)
        except E2BAgentError as exc:
            logger.warning("not settled sandbox=%s: %s", self._sandbox_id, exc.message)
            return UNKNOWN
        self._session.lose(self._sandbox_id, EXPLAIN_STUCK)
        return ENDED

    async def _answers(self, action: Callable[[], Awaitable[object]], seconds: float) -> bool:
        """False when the sandbox is to blame; raises when E2B could not be asked."""
        try:
            await bounded("stopping code", seconds, action)
        except (AuthenticationError, RateLimitError, SandboxUnavailableError):
            raise
        except E2BAgentError as exc:
            logger.info("no answer of sandbox=%s: %s", self._sandbox_id, exc.message)
            return False
        self._session.unsettled = False
        return True

    async def _probe(self) -> None:
        # Waits for its turn behind whatever the context still runs.
        execution = await self.sandbox.run_code("pass", timeout=0)
        if execution.error is not None and execution.error.name == "KeyboardInterrupt":
            # Meant for the code before it, and late.
            execution = await self.sandbox.run_code("pass", timeout=0)
        if execution.error is not None:
            raise SandboxError(f"The interpreter answered {execution.error.name}.")
        self._session.executions = execution.execution_count or 0

    async def _restart_context(self) -> None:
        contexts = await self.sandbox.list_code_contexts()
        # E2B lists the default context of the language first.
        default = next((item for item in contexts if item.language == "python"), None)
        if default is None:
            raise SandboxError("The sandbox has no Python context.")
        await self.sandbox.restart_code_context(default)
        self._session.executions = 0

    async def _kill(self) -> None:
        await self._control.kill(self._sandbox_id)

    async def changed_files(self) -> list[FileInfo]:
        """Files below the home that are new or changed since this lease first ran something.

        Hidden ones are left out, and so are those deeper than four folders or beyond the fifty
        newest. One listing; empty when the folder is too large to list in 5 s.
        """
        before = self._session.baseline
        self._session.baseline = None
        entries = await self._home()
        if entries is None:
            return []
        self._session.baseline = {path: _stamp(entry) for path, entry in entries.items()}
        if before is None:
            return []
        changed = [info for path, info in entries.items() if before.get(path) != _stamp(info)]
        newest = sorted(changed, key=lambda info: info.modified_at)[-MOST_CHANGED:]
        return sorted(newest, key=lambda info: info.path)

    async def _await_interpreter(self) -> None:
        """The start of a new sandbox's interpreter does not count against the code's own limit."""
        if self._session.executions:
            return
        self._session.unsettled = True  # until it answers
        await self._data("starting the interpreter", self._probe)
        self._session.unsettled = False

    async def _look_before_running(self) -> None:
        if self._session.baseline is None:
            entries = await self._home()
            if entries is not None:
                self._session.baseline = {path: _stamp(info) for path, info in entries.items()}

    async def _home(self) -> dict[str, FileInfo] | None:
        try:
            entries = await bounded(
                "listing changed files",
                LISTING_LIMIT,
                lambda: self.sandbox.files.list(HOME, depth=LISTING_DEPTH),
            )
        except E2BAgentError as exc:
            logger.info("no listing of sandbox=%s: %s", self._sandbox_id, exc.message)
            return None
        shown = (_file_info(entry) for entry in entries if _is_shown(entry.path))
        return {info.path: info for info in shown if info.kind == "file"}

    async def list_files(self, path: str) -> list[FileInfo]:
        """One folder, hidden files included."""
        entries = await self._first(
            lambda: self._data("listing files", lambda: self.sandbox.files.list(path))
        )
        return [_file_info(entry) for entry in entries]

    async def stat_file(self, path: str) -> FileInfo:
        entry = await self._first(
            lambda: self._data("looking up a file", lambda: self.sandbox.files.get_info(path))
        )
        return _file_info(entry)

    async def read_file(self, path: str) -> bytes:
        """The whole file; `TooLargeError` over `files.size_limit`."""
        async with self.stream_file(path) as chunks:
            return b"".join([chunk async for chunk in chunks])

    @asynccontextmanager
    async def stream_file(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The file in pieces, each within `sandboxes.request_timeout`; bounded like `read_file`."""
        info = await self.stat_file(path)
        if info.kind == "directory":
            raise InvalidArgumentError(f"{path} is a folder, not a file.")
        limit = self._settings.files.size_limit
        if info.size > limit:
            raise _too_large(path, limit)
        reader = await self._data(
            "reading a file", lambda: self.sandbox.files.read(path, format="stream")
        )
        async with reader:
            yield self._pieces(reader, path)

    async def _pieces(self, reader: AsyncIterator[bytes], path: str) -> AsyncIterator[bytes]:
        limit = self._settings.files.size_limit
        size = 0
        while (
            piece := await self._data("reading a file", lambda: anext(reader, None))
        ) is not None:
            size += len(piece)
            if size > limit:  # it grew while it was read
                raise _too_large(path, limit)
            yield piece

    async def write_file(self, path: str, data: bytes | AsyncIterable[bytes]) -> None:
        """Writes the whole file and makes its folders; the caller bounds the size of a stream."""
        limit = self._settings.files.size_limit
        if isinstance(data, bytes) and len(data) > limit:
            raise _too_large(path, limit)
        seconds = self._settings.sandboxes.request_timeout + limit / TRANSFER_RATE
        self._session.baseline = None
        if not isinstance(data, bytes):
            # A stream can be read once only, so the sandbox has to be there.
            await self.confirm()
        await self._first(
            lambda: self._data(
                "writing a file",
                lambda: self.sandbox.files.write(path, data, request_timeout=seconds),
                seconds,
            )
        )

    async def _data(
        self, doing: str, call: Callable[[], Awaitable[T]], seconds: float | None = None
    ) -> T:
        try:
            return await bounded(doing, seconds or self._settings.sandboxes.request_timeout, call)
        except SandboxError as exc:
            raise await self._diagnose(exc) from exc

    async def _diagnose(self, error: SandboxError) -> SandboxError:
        """What a failed call means for the session: asks E2B whether the sandbox still exists."""
        self._session.slot.doubted = True
        if isinstance(error, (AuthenticationError, RateLimitError)):
            return error
        try:
            found = await self._control.inspect(self._sandbox_id)
        except E2BAgentError:
            return error
        if found is None:
            kept = self._settings.sandboxes.kept
            why = EXPLAIN_CRASH if error.reached else expired(kept)
            self._session.lose(self._sandbox_id, why)
            lost = SandboxLostError(
                "The session's sandbox ended during this call (killed, out of memory, or failed): "
                "variables, files and installed packages of the session are gone.",
                hint="Call again to get a new sandbox; what ran may have taken effect outside it.",
            )
            lost.reached = error.reached
            return lost
        if found.paused:
            paused = SandboxUnavailableError(
                f"{error.message} The sandbox was paused meanwhile; its state is kept.",
                hint="Call again: the sandbox is resumed.",
            )
            paused.reached = error.reached
            return paused
        return error


@dataclass(eq=False)
class _ToldRun:
    started: float = field(default_factory=time.monotonic)
    status: str = "failed"  # until it ends in another way
    duration: float = 0.0  # seconds


class _Flood(Exception):
    """More output than we are ready to hold."""


class _Received:
    """What a run has sent so far: the SDK hands over an execution only when it is complete."""

    def __init__(self, on_stdout: Output | None, on_stderr: Output | None) -> None:
        from e2b_code_interpreter import Execution

        self.execution = Execution()
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self._size = 0

    async def stdout(self, message: "OutputMessage") -> None:
        await self.text(message.line)

    async def stderr(self, message: "OutputMessage") -> None:
        await self.error_text(message.line)

    async def text(self, text: str) -> None:
        self.execution.logs.stdout.append(text)
        await self._pass_on(text, self._on_stdout)

    async def error_text(self, text: str) -> None:
        self.execution.logs.stderr.append(text)
        await self._pass_on(text, self._on_stderr)

    async def result(self, result: "Result") -> None:
        self.execution.results.append(result)

    async def error(self, error: "ExecutionError") -> None:
        self.execution.error = error

    async def _pass_on(self, text: str, output: Output | None) -> None:
        self._size += len(text)
        if self._size > OUTPUT_LIMIT:
            raise _Flood
        if output is not None:
            await output(text)


def _outcome(execution: "Execution") -> tuple[RunStatus, "Execution", str]:
    if execution.error is None:
        return "ok", execution, ""
    died = execution.error.name in _KERNEL_DEATHS
    return "error", execution, KERNEL_DIED if died else ""


async def _exit_code(handle: "AsyncCommandHandle[None]") -> int:
    from e2b import CommandExitException

    result: CommandResult[None]
    try:
        result = await handle.wait()
    except CommandExitException as exc:
        return exc.exit_code
    return result.exit_code


# Runs in the kernel's interpreter, whose packages it changes, without a name left in its namespace.
_INSTALL = """\
exec(compile('''
import importlib, subprocess, sys
done = subprocess.run(
    [sys.executable, "-m", "pip", "install", "--quiet", "--no-color",
     "--disable-pip-version-check", *packages],
    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
)
importlib.invalidate_caches()
if done.returncode:
    raise RuntimeError("pip: " + done.stdout)
''', "<install>", "exec"), {{"packages": {packages}}})
"""

# The standard library's own table: the host's files of MIME types differ between machines.
_MIME_TYPES = mimetypes.MimeTypes(filenames=())
for _type, _suffix in (
    ("application/vnd.apache.parquet", ".parquet"),
    ("application/x-ipynb+json", ".ipynb"),
    ("text/markdown", ".md"),
    ("image/webp", ".webp"),
    ("application/yaml", ".yaml"),
):
    _MIME_TYPES.add_type(_type, _suffix)


def _file_info(entry: "EntryInfo") -> FileInfo:
    is_folder = entry.type is not None and entry.type.value == "dir"
    guessed = _MIME_TYPES.guess_type(f"file:{entry.name}")[0]
    return FileInfo(
        path=entry.path,
        kind="directory" if is_folder else "file",
        size=entry.size,
        mime_type="inode/directory" if is_folder else guessed or "application/octet-stream",
        modified_at=entry.modified_time,
    )


def _stamp(info: FileInfo) -> _Stamp:
    return _Stamp(info.size, info.modified_at)


def _is_shown(path: str) -> bool:
    parts = posixpath.relpath(path, HOME).split("/")
    return not any(
        part.startswith(".") or part in ("__pycache__", "node_modules") for part in parts
    )


def _too_large(path: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"{path} is larger than {limit:,} bytes, the limit of files.size_limit.",
        hint="Move less, or raise E2B_AGENT_MCP_FILES_SIZE_LIMIT.",
    )

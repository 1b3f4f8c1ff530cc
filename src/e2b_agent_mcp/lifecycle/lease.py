"""What a call may do with its session's sandbox.

`access` says what happens when the sandbox is gone, `stopping` how a run is cut short, `files` what
passes in and out; here is what runs.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import anyio

from e2b_agent_mcp.errors import (
    E2BAgentError,
    InvalidArgumentError,
    SandboxError,
    SandboxTimeoutError,
    sandbox_errors,
)
from e2b_agent_mcp.lifecycle.files import Files
from e2b_agent_mcp.lifecycle.output import OUTPUT_LIMIT, Flood, Output, Received
from e2b_agent_mcp.lifecycle.stopping import RESTART_LIMIT, RESTARTED, Stopping, complete
from e2b_agent_mcp.lifecycle.usage import KILLED, Outcome, explain
from e2b_agent_mcp.pool import EXPLAIN_RESTARTED, EXPLAIN_RESTARTED_ELSEWHERE

if TYPE_CHECKING:
    from e2b import AsyncCommandHandle, CommandResult
    from e2b_code_interpreter import Execution

RunStatus = Literal["ok", "error", "timeout", "interrupted"]

COMMAND_GRACE = 10.0  # seconds after which E2B itself ends a command that we failed to stop

ERROR_WORDS = 2000  # characters of an error that are looked at

FLOODED = f"The code printed over {OUTPUT_LIMIT:,} characters and was stopped."
KERNEL_DIED = (
    "The interpreter died (often: out of memory) or was restarted from elsewhere: "
    "variables are gone, files are kept."
)

# How E2B reports in a result that the kernel died under the code.
_KERNEL_DEATHS = ("ContextRestarting", "UnexpectedEndOfExecution", "WebSocketError")


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


class Lease(Files, Stopping):
    """Exclusive use of a session's sandbox, from `SandboxManager.lease`; ends with its block.

    `session` and `sandbox_id` say where; `state` (`created`, `reused`, `resumed`, `recreated`) and
    `lost` say what became of the session since its last lease, in words that a model can read;
    `warning`, that a budget is nearly spent.
    Each is one request to the sandbox, but the first run of a new sandbox, which waits for its
    interpreter. Errors: `SandboxLostError` when the sandbox is gone for good, `SandboxError` when
    E2B fails or refuses, `NotFoundError` and `TooLargeError` for files.
    """

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

    async def _run_code(
        self, code: str, timeout: float, on_stdout: Output | None, on_stderr: Output | None
    ) -> Run:
        await self._look_before_running()
        await self._await_interpreter()
        received = Received(on_stdout, on_stderr)
        with self._told_run() as told:
            self._session.unsettled = True
            try:
                status, execution, note = await self._run(code, timeout, received)
            except BaseException:
                if self._session.unsettled and await self.settle() == RESTARTED:
                    self.tell_loss(EXPLAIN_RESTARTED)
                raise
            told.status = status
        note = await self._with_usage(note, _code_outcome(execution, told.duration))
        return Run(status=status, execution=execution, duration=told.duration, note=note)

    async def _with_usage(self, note: str, outcome: Outcome) -> str:
        """The note, and what there is to say of the sandbox's memory and disk."""
        if not outcome.raises_a_question or self._session.slot.sandbox_id != self._sandbox_id:
            return note
        usage = await self._control.usage(self._sandbox_id, last=outcome.duration)
        return f"{note} {explain(outcome, usage)}".strip()

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
        self, code: str, timeout: float, received: "Received"
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
                complete(execution)
                self._session.unsettled = False
                self._count(execution)
                return _outcome(execution)
        except Flood:
            return "interrupted", received.execution, f"{FLOODED} {await self.settle()}"
        except SandboxError as exc:
            if not limit.cancel_called:
                self._session.unsettled = exc.reached
                raise await self._diagnose(exc) from exc
        return "timeout", received.execution, await self.settle()

    def _count(self, execution: "Execution") -> None:
        """An interpreter that counts fewer than it did is another one."""
        counted = execution.execution_count or 0
        if 0 < counted <= self._session.executions:
            self.tell_loss(EXPLAIN_RESTARTED_ELSEWHERE)
        # One that died under the code starts over, which the run itself tells.
        self._session.executions = 0 if _died(execution) else counted

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
            lambda: self._run_command(command, limit, cwd, Received(on_stdout, on_stderr))
        )

    async def _run_command(
        self, command: str, timeout: float, cwd: str | None, received: "Received"
    ) -> CommandRun:
        await self._look_before_running()
        with self._told_run() as told:
            status, exit_code, note = await self._command(command, timeout, cwd, received)
            told.status = status
        stderr = "".join(received.execution.logs.stderr)
        outcome = Outcome(
            duration=told.duration,
            failed=bool(exit_code),
            words=stderr[-ERROR_WORDS:],
            died=exit_code in (KILLED, -1),
        )
        note = await self._with_usage(note, outcome)
        return CommandRun(
            status=status,
            exit_code=exit_code,
            stdout="".join(received.execution.logs.stdout),
            stderr=stderr,
            duration=told.duration,
            note=note,
        )

    async def _command(
        self, command: str, timeout: float, cwd: str | None, received: "Received"
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
        except Flood:
            return "interrupted", None, FLOODED
        except SandboxError as exc:
            if not limit.cancel_called:
                raise await self._diagnose(exc) from exc
        finally:
            if handle is not None and exit_code is None:
                await self._stop_command(handle)
        return "timeout", None, "The command was stopped. Variables and files are kept."

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


@dataclass(eq=False)
class _ToldRun:
    started: float = field(default_factory=time.monotonic)
    status: str = "failed"  # until it ends in another way
    duration: float = 0.0  # seconds


def _outcome(execution: "Execution") -> tuple[RunStatus, "Execution", str]:
    if execution.error is None:
        return "ok", execution, ""
    return "error", execution, KERNEL_DIED if _died(execution) else ""


def _died(execution: "Execution") -> bool:
    return execution.error is not None and execution.error.name in _KERNEL_DEATHS


def _code_outcome(execution: "Execution", duration: float) -> Outcome:
    error = execution.error
    if error is None:
        return Outcome(duration)
    return Outcome(
        duration,
        failed=True,
        words=f"{error.name} {error.value[-ERROR_WORDS:]}",
        died=_died(execution),
    )


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

"""A run that is cut short is stopped before its session is handed on.

Its time is over, its caller went away, or it printed without end: then the interpreter must answer,
else it is started afresh, else the sandbox is ended; the result says which, in words.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from e2b_agent_mcp.errors import (
    AuthenticationError,
    E2BAgentError,
    RateLimitError,
    SandboxError,
    SandboxUnavailableError,
    sandbox_errors,
)
from e2b_agent_mcp.lifecycle.access import Access
from e2b_agent_mcp.lifecycle.control import bounded
from e2b_agent_mcp.pool import EXPLAIN_REBOOTED, EXPLAIN_STUCK

if TYPE_CHECKING:
    from e2b import AsyncCommandHandle
    from e2b_code_interpreter import Execution

logger = logging.getLogger(__name__)

KERNEL_GRACE = 6.0  # seconds; E2B's cloud interrupts within 5 s of losing the client
RESTART_LIMIT = 20.0  # seconds
STOP_LIMIT = 5.0  # seconds

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


class Stopping(Access):
    """The part of a lease that stops what runs."""

    async def settle(self) -> str:
        """Makes sure that no code of an earlier run is still running; says what it took."""
        with anyio.CancelScope(shield=True):
            note = await self._settle()
        logger.info("settled sandbox=%s: %s", self._sandbox_id, note)
        return note

    async def _settle(self) -> str:
        try:
            before = self._session.executions
            # After a resume without memory the interpreter has to start first.
            grace = RESTART_LIMIT if self._session.resumed else KERNEL_GRACE
            if await self._answers(self._probe, grace):
                # The probe counts, and the run if it came there; one started afresh counts from 1.
                return KEPT if self._session.executions > before else RESTARTED
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
        if _was_swallowed(execution):
            execution = complete(await self.sandbox.run_code("pass", timeout=0))
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

    async def _await_interpreter(self) -> None:
        """The start of a new sandbox's interpreter does not count against the code's own limit.

        After a resume it shows whether the memory came back: an engine that crashed keeps files
        only, and its interpreter counts from 1 again.
        """
        if self._session.executions and not self._session.resumed:
            return
        self._session.unsettled = True  # until it answers
        limit = self._settings.sandboxes.create_timeout
        await self._data("starting the interpreter", self._probe, limit)
        self._session.unsettled = False
        if self._session.resumed and self._session.executions == 1:
            self.tell_loss(EXPLAIN_REBOOTED)
        self._session.resumed = False

    async def _stop_command(self, handle: "AsyncCommandHandle[None]") -> None:
        with anyio.move_on_after(STOP_LIMIT, shield=True):
            try:
                with sandbox_errors("stopping a command"):
                    await handle.kill()
                    await handle.disconnect()
            except E2BAgentError as exc:
                logger.warning("command of sandbox=%s not stopped: %s", self._sandbox_id, exc)


def _was_swallowed(execution: "Execution") -> bool:
    """By an interrupt that was meant for the code before it, and came late."""
    if execution.error is None:
        return execution.execution_count is None
    return execution.error.name == "KeyboardInterrupt"


def complete(execution: "Execution") -> "Execution":
    """The SDK takes an empty answer of a gateway for a run that did nothing."""
    if execution.execution_count is None and execution.error is None:
        raise SandboxUnavailableError(
            "E2B's answer was incomplete while running code: whether the code ran is not known.",
            hint="Look at what it did before running it again.",
        )
    return execution

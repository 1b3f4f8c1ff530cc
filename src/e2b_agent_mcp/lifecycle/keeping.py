"""Keeps a session's sandbox: extends it while it is used, and renews a run that a plan limits.

E2B ends or pauses a sandbox by itself, `sandboxes.idle_after` from when it was last extended. A use
extends it before, at intervals during and after, so a crash of ours costs no more than that time.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from e2b_agent_mcp.errors import E2BAgentError
from e2b_agent_mcp.lifecycle.control import Control
from e2b_agent_mcp.lifecycle.session import Session
from e2b_agent_mcp.pool import Pool, Slot

if TYPE_CHECKING:
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox

logger = logging.getLogger(__name__)


class Keeper:
    def __init__(self, control: Control, pool: Pool, clock: Callable[[], float]) -> None:
        self._control = control
        self._pool = pool
        self._clock = clock

    def hold(
        self,
        session: Session,
        handle: "AsyncSandbox",
        generation: int,
        *,
        ran: float = 0.0,
        age: float = 0.0,
    ) -> None:
        session.handle = handle
        now = self._clock()
        session.slot.hold(
            handle.sandbox_id,
            generation=generation,
            now=now,
            end_at=self._pool.end_at(now),
            ran=ran,
            age=age,
        )

    def doubt(self, session: Session, sandbox_id: str) -> None:
        """Keeps the place of a sandbox that may have been resumed or not."""
        now = self._clock()
        if session.slot.sandbox_id == sandbox_id:
            session.slot.extend(self._pool.end_at(now))
            session.slot.doubted = True
        else:
            self._pool.leave(session.key, sandbox_id, now)

    async def extend(self, session: Session, sandbox_id: str) -> bool:
        now = self._clock()
        extended = await self._control.extend(sandbox_id)
        if extended and session.slot.sandbox_id == sandbox_id:
            session.slot.extend(self._pool.end_at(now))
            await self._check_terms(session.slot)
        return extended

    async def _check_terms(self, slot: Slot) -> None:
        """E2B cuts an extension beyond its plan's longest run without a word."""
        if not self._pool.must_check(slot, self._clock()):
            return
        if (found := await self._control.inspect(slot.sandbox_id)) is not None:
            left = (found.end_at - datetime.now(UTC)).total_seconds()
            self._pool.terms.observe(ran=self._clock() - slot.running_since, left=left)

    async def keep_alive(
        self, session: Session, sandbox_id: Callable[[], str], beating: anyio.CancelScope
    ) -> None:
        with beating:
            while True:
                await anyio.sleep(self._pool.heartbeat)
                await self.try_to_extend(session, sandbox_id())

    async def try_to_extend(self, session: Session, sandbox_id: str) -> None:
        """What the call did is not lost because E2B did not answer afterwards."""
        try:
            await self.extend(session, sandbox_id)
        except E2BAgentError as exc:
            logger.warning("not extended sandbox=%s: %s", sandbox_id, exc.message)

    async def renew(self, session: Session) -> None:
        """Pauses and resumes the sandbox if its continuous run nears its longest."""
        slot, now = session.slot, self._clock()
        if not self._pool.must_renew(slot, now):
            return
        sandbox_id, age = slot.sandbox_id, now - slot.born_at
        slot.starting = slot.doubted = True
        try:
            if await self._control.pause(sandbox_id):
                handle = await self._control.open(sandbox_id, paused=True)
                self.hold(session, handle, slot.generation, age=age)
                session.resumed = True
        except E2BAgentError as exc:
            # The next lease finds out what became of it.
            logger.warning("not renewed sandbox=%s: %s", sandbox_id, exc.message)
        finally:
            slot.starting = False

"""Room for one more running sandbox.

Who wants one waits for its turn: first among the calls of its owner, then among all, each in the
order of arrival, so an owner at its own limit keeps nobody else waiting. With
`sandboxes.at_limit=pause` the session longest unused makes room: its sandbox is paused, its state
kept, whichever server of its owner made it. When all are in use the wait goes on, for
`sandboxes.create_timeout` at most.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

import anyio

from e2b_agent_mcp.connection import Progress
from e2b_agent_mcp.errors import E2BAgentError, SandboxLimitError
from e2b_agent_mcp.lifecycle.control import Control
from e2b_agent_mcp.lifecycle.session import Session
from e2b_agent_mcp.lifecycle.turns import Turns
from e2b_agent_mcp.lifecycle.warm import WarmPool
from e2b_agent_mcp.pool import WARM, Candidate, Pool, SessionKey, Shortage, Slot
from e2b_agent_mcp.settings import SandboxSettings

logger = logging.getLogger(__name__)

LONGEST_LOOK_AWAY = 1.0  # seconds; sandboxes also end without a word to us

T = TypeVar("T")


class Places:
    """The sandboxes that may run, given out one by one."""

    def __init__(
        self,
        settings: SandboxSettings,
        pool: Pool,
        control: Control,
        sessions: Mapping[SessionKey, Session],
        clock: Callable[[], float],
        warm: WarmPool,
        turns: Turns,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._control = control
        self._sessions = sessions
        self._clock = clock
        self._warm = warm
        self._turns = turns
        self._changed = anyio.Event()
        # Each keeps the order of those who wait for the same limit.
        self._owner_doors: dict[str, anyio.Lock] = {}
        self._door = anyio.Lock()

    def tell_change(self) -> None:
        """A session is no longer used, or a sandbox no longer runs."""
        self._changed.set()
        self._changed = anyio.Event()

    async def start(
        self, key: SessionKey, action: Callable[[], Awaitable[T]], on_progress: Progress | None
    ) -> T:
        """Does what makes one more sandbox run, once there is room; E2B may still say no.

        `action` finds the slot `starting` and says so when it no longer is.
        """
        until = anyio.current_time() + self._settings.create_timeout
        while True:
            await self._take(key, until, on_progress)
            try:
                return await action()
            except SandboxLimitError as exc:
                logger.info("the account is full: %s", exc.message)
                self._pool.learn_full(key, self._clock())
                if anyio.current_time() > until or self._settings.at_limit == "refuse":
                    raise

    async def _take(self, key: SessionKey, until: float, on_progress: Progress | None) -> None:
        shortage: Shortage | None = None
        told = False

        async def wait_for_room(*limits: Shortage) -> None:
            nonlocal shortage, told
            while (found := self._pool.shortage(key, self._clock())) in limits:
                shortage = found
                if await self._make_room(key, found):
                    continue
                if on_progress is not None and not told:
                    told = True
                    await on_progress("Waiting until one of the running sandboxes is free")
                with anyio.move_on_after(LONGEST_LOOK_AWAY):
                    await self._changed.wait()

        with anyio.move_on_at(until) as deadline:
            async with self._owner_door(key.owner):
                await wait_for_room("owner")
                async with self._door:
                    await wait_for_room("total", "account")
                    self._pool.slot(key).starting = True
        if deadline.cancelled_caught:
            raise self._pool.refusal(shortage or "total")

    @asynccontextmanager
    async def _owner_door(self, owner: str) -> AsyncIterator[None]:
        door = self._owner_doors.setdefault(owner, anyio.Lock())
        try:
            async with door:
                yield
        finally:
            if not door.locked() and self._owner_doors.get(owner) is door:
                del self._owner_doors[owner]

    async def _make_room(self, key: SessionKey, shortage: Shortage) -> bool:
        """False when nothing that runs can be spared."""
        try:
            if await self._warm.give_up(key.owner if shortage == "owner" else None):
                return True
        except E2BAgentError as exc:
            logger.warning("a warm sandbox was not ended: %s", exc.message)
        if self._settings.at_limit == "refuse":
            raise self._pool.refusal(shortage)
        busy = {other for other, session in self._sessions.items() if session.turn.locked()}
        idlest = self._pool.idlest(shortage, key, self._clock(), busy=busy)
        if idlest is None:
            return False
        if sandbox_id := self._pool.left(idlest, self._clock()):
            await self._stop_left(idlest, sandbox_id)
        else:
            return await self._pause(self._sessions[idlest])
        return True

    async def _pause(self, session: Session) -> bool:
        """False when another server is using it."""
        session.turn.acquire_nowait()
        try:
            with self._turns.if_free(session.key) as free:
                if free and await self._try_to_pause(session.slot):
                    # Also when it had ended: then its session's next lease finds that out.
                    session.slot.pause(self._clock())
                else:
                    session.slot.used_at = self._clock()  # another one is tried first
                return free
        finally:
            session.turn.release()

    async def _try_to_pause(self, slot: Slot) -> bool:
        slot.doubted = True
        try:
            await self._control.pause(slot.sandbox_id)
        except E2BAgentError as exc:
            logger.warning("not paused sandbox=%s: %s", slot.sandbox_id, exc.message)
            return False
        return True

    async def _stop_left(self, key: SessionKey, sandbox_id: str) -> None:
        """What is known of it may be old, so E2B is asked first. A warm one keeps no state."""
        stop = self._control.kill if key.name.startswith(WARM) else self._control.pause
        session = self._sessions.get(key)
        async with session.turn if session is not None else anyio.Lock():
            try:
                self._look(key, await self._control.inspect(sandbox_id))
                if self._pool.left(key, self._clock()) == sandbox_id:
                    await stop(sandbox_id)
                    self._look(key, None)
            except E2BAgentError as exc:
                logger.warning("not paused sandbox=%s: %s", sandbox_id, exc.message)
                self._pool.distrust(key)  # another one is tried first

    def _look(self, key: SessionKey, found: Candidate | None) -> None:
        self._pool.observe_one(key, found, now=self._clock(), today=datetime.now(UTC))

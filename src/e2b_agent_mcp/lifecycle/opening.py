"""How a session comes to its sandbox: known here, found at E2B, claimed warm, or created.

A session has one sandbox, whatever races. A creation belongs to its session, not to the call that
asked for it: a call that is cancelled meanwhile leaves the sandbox to the session's next call. It
is repeated under one idempotency key, and whoever created looks afterwards: when another process
was first, its sandbox serves both and the own one is ended, in the background if it takes long.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import anyio
from anyio.abc import TaskGroup

from e2b_agent_mcp.connection import Progress
from e2b_agent_mcp.errors import E2BAgentError, SandboxLostError, SandboxUnavailableError
from e2b_agent_mcp.lifecycle.claims import Claims
from e2b_agent_mcp.lifecycle.control import Control
from e2b_agent_mcp.lifecycle.keeping import Keeper
from e2b_agent_mcp.lifecycle.places import Places
from e2b_agent_mcp.lifecycle.session import Session
from e2b_agent_mcp.lifecycle.transitions import Transitions
from e2b_agent_mcp.lifecycle.warm import Warm, WarmPool
from e2b_agent_mcp.pool import (
    EXPLAIN_AGED,
    EXPLAIN_REPLACED,
    Candidate,
    Maker,
    Pool,
    SandboxState,
    SessionKey,
    choose,
    expired,
    owned_by,
)

logger = logging.getLogger(__name__)

RETRY_PAUSE = 10.0  # seconds


@dataclass(eq=False)
class Creation:
    """A creation under way, and what its waiters learn of it."""

    done: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None

    async def wait(self) -> None:
        await self.done.wait()
        if self.error is not None:
            raise self.error


@dataclass(eq=False, kw_only=True)
class Opener:
    """`tasks` gives the task group of the manager, `kept` is how long E2B keeps a session."""

    control: Control
    pool: Pool
    keeper: Keeper
    places: Places
    claims: Claims
    warm: WarmPool
    maker: Maker
    transitions: Transitions
    clock: Callable[[], float]
    tasks: Callable[[], TaskGroup]
    kept: float
    creations: dict[SessionKey, Creation] = field(default_factory=dict)

    async def open(self, session: Session, on_progress: Progress | None) -> SandboxState:
        """Leaves the session with a sandbox and its handle."""
        state = await self._reuse(session, on_progress) or await self._find(session, on_progress)
        if state is None and await self._claim(session) == "gave way":
            state = await self._find(session, on_progress)
        slot = session.slot
        if state is None and not slot.created:
            await self.places.start(
                session.key, partial(self._create, session, on_progress), on_progress
            )
        if slot.lost:
            return "recreated"
        return "created" if slot.created else state or "reused"

    async def _reuse(self, session: Session, on_progress: Progress | None) -> SandboxState | None:
        """The sandbox that this process knows, if E2B still has it."""
        if (creation := self.creations.get(session.key)) is not None:
            # Left by a call that was cancelled; if it failed, this call makes its own.
            await creation.done.wait()
        sandbox_id = session.slot.sandbox_id
        if not sandbox_id or session.slot.contested:
            return None
        if self.pool.is_too_old(self.clock() - session.slot.born_at):
            await self._end_aged(session, sandbox_id)
            return None
        if self._is_warm(session):
            return "reused"
        await self.keeper.renew(session)
        if await self.keeper.extend(session, sandbox_id):
            if session.handle is None or not self.control.serves(session.handle):
                session.handle = await self.control.open(sandbox_id)
            return "reused"
        found = await self.control.inspect(sandbox_id)
        state = await self._take(session, found, on_progress) if found is not None else None
        if state is None:
            session.lose(sandbox_id, expired(self.kept))
        return state

    def _is_warm(self, session: Session) -> bool:
        return (
            session.handle is not None
            and self.control.serves(session.handle)
            and not session.unsettled
            and not self.pool.must_extend(session.slot, self.clock())
            and not self.pool.must_renew(session.slot, self.clock())
        )

    async def _find(self, session: Session, on_progress: Progress | None) -> SandboxState | None:
        """The sandbox that another process, or this one before it was restarted, made."""
        owner, asked_at = session.key.owner, self.clock()
        listed = await self.claims.resolve(await self.control.find(owned_by(owner)))
        others = [item for item in listed.unclaimed if not self.warm.counts(item)]
        self.pool.observe(
            *(owner, listed.claimed + others),
            asked_at=asked_at,
            now=self.clock(),
            today=datetime.now(UTC),
        )
        found = choose(item for item in listed.claimed if item.key == session.key)
        await self._decide(session, found)
        if found is None:
            return None
        if self.pool.is_too_old(found.age(datetime.now(UTC))):
            session.slot.generation = max(session.slot.generation, found.generation)
            await self._end_aged(session, found.sandbox_id)
            return None
        if session.slot.lost and not session.slot.created:
            session.slot.lost = EXPLAIN_REPLACED
        return await self._take(session, found, on_progress)

    async def _decide(self, session: Session, found: Candidate | None) -> None:
        """Gives up a sandbox that this process made, and that is not the session's in the end."""
        slot, made = session.slot, session.slot.sandbox_id
        if slot.contested and (found is None or found.sandbox_id != made):
            await self.control.kill(made)
            slot.lose(made, slot.lost)

    async def find_all(self, owner: str) -> list[Candidate]:
        """All sandboxes of an owner that are some session's."""
        return (await self.claims.resolve(await self.control.find(owned_by(owner)))).claimed

    async def find_session(self, key: SessionKey) -> list[Candidate]:
        # Its warm ones do not carry its name, so they are found among all.
        return [item for item in await self.find_all(key.owner) if item.key == key]

    async def _claim(self, session: Session) -> Literal["none", "claimed", "gave way"]:
        """Makes a warm sandbox the session's, if one is ready."""
        warm = self.warm.take(session.key)
        if warm is None:
            return "none"
        outcome: Literal["none", "claimed", "gave way"] = "none"
        try:
            outcome = await self._write_claim(session, warm)
        except E2BAgentError as exc:
            logger.info("not claimed sandbox=%s: %s", warm.sandbox_id, exc.message)
        finally:
            if outcome != "claimed":
                await self.warm.end(session.key.owner, warm.sandbox_id)
            session.slot.starting = False
        return outcome

    async def _write_claim(self, session: Session, warm: Warm) -> Literal["claimed", "gave way"]:
        key, generation = session.key, session.slot.generation + 1
        await self.claims.write(warm.handle, key, generation)
        rivals = await self.find_session(key)
        if any(item.sandbox_id != warm.sandbox_id for item in rivals):
            return "gave way"
        age = self.clock() - warm.made_at
        self.keeper.hold(session, warm.handle, generation, ran=age, age=age)
        session.slot.created = True
        self.transitions.tell("adopted", warm.sandbox_id, key=key)
        return "claimed"

    async def _take(
        self, session: Session, found: Candidate, on_progress: Progress | None
    ) -> SandboxState | None:
        """Connects to a sandbox that E2B has; None when it ended in that moment."""
        open_it = partial(self._open_handle, session, found)
        if not found.paused:
            return "reused" if await open_it() else None
        resumed = await self.places.start(session.key, open_it, on_progress)
        return "resumed" if resumed else None

    async def _open_handle(self, session: Session, found: Candidate) -> bool:
        try:
            handle = await self.control.open(found.sandbox_id, paused=found.paused)
        except SandboxLostError:
            return False
        except BaseException:
            if found.paused:
                self.keeper.doubt(session, found.sandbox_id)
            raise
        finally:
            session.slot.starting = False
        if session.slot.sandbox_id != found.sandbox_id:
            self.transitions.tell("adopted", found.sandbox_id, key=session.key)
        today = datetime.now(UTC)
        ran = 0.0 if found.paused else max(0.0, (today - found.started_at).total_seconds())
        self.keeper.hold(session, handle, found.generation, ran=ran, age=found.age(today))
        session.resumed = found.paused
        return True

    async def _end_aged(self, session: Session, sandbox_id: str) -> None:
        await self.control.kill(sandbox_id)
        session.slot.sandbox_id = sandbox_id
        session.lose(sandbox_id, EXPLAIN_AGED)

    async def _create(self, session: Session, on_progress: Progress | None) -> None:
        """A call that is cancelled meanwhile leaves the sandbox to its session."""
        creation = self.creations[session.key] = Creation()
        self.tasks().start_soon(self._carry_out, session, creation)
        if on_progress is not None:
            await on_progress("Creating a sandbox")
        await creation.wait()

    async def _carry_out(self, session: Session, creation: "Creation") -> None:
        try:
            await self._create_or_join(session)
        # Carried to the call that waits for it, which raises it.
        except Exception as exc:
            creation.error = exc
            logger.info("no sandbox for owner=%s: %r", session.key.owner, exc)
        except BaseException:
            creation.error = SandboxUnavailableError("The server is stopping.")
            raise
        finally:
            session.slot.starting = False
            del self.creations[session.key]
            creation.done.set()
            self.places.tell_change()

    async def _create_or_join(self, session: Session) -> None:
        """Creates a sandbox; when another process created one first, that one serves both."""
        generation, asked_at = session.slot.generation + 1, self.clock()
        handle = await self.control.create(
            session.key,
            maker=self.maker,
            generation=generation,
            idempotency_key=uuid.uuid4().hex,
        )
        age = self.clock() - asked_at  # as its metadata say
        self.keeper.hold(session, handle, generation, age=age)
        session.slot.created = True
        session.slot.contested = True
        winner = choose(await self.find_session(session.key))
        session.slot.contested = False
        if winner is None or winner.sandbox_id == handle.sandbox_id:
            return
        if await self._open_handle(session, winner):
            session.slot.created = False
            if not await self._try_to_end(handle.sandbox_id):
                self.tasks().start_soon(self._keep_ending, handle.sandbox_id)

    async def _keep_ending(self, sandbox_id: str) -> None:
        """A sweep leaves it alone, as it runs; E2B ends or pauses it at the end of its life."""
        with anyio.move_on_after(self.pool.terms.life):
            while True:
                await anyio.sleep(RETRY_PAUSE)
                if await self._try_to_end(sandbox_id):
                    return

    async def _try_to_end(self, sandbox_id: str) -> bool:
        try:
            await self.control.kill(sandbox_id)
        except E2BAgentError as exc:
            logger.warning("not ended sandbox=%s: %s", sandbox_id, exc.message)
            return False
        return True

"""Sandboxes of sessions: created once, found again, extended, resumed, replaced.

    async with SandboxManager(settings) as manager:
        async with manager.lease("analysis") as lease:
            run = await lease.run_code("1 + 1")

Contract: a session has one sandbox, and one lease at a time, in the order of the calls, among all
servers of a user on one machine; sessions do not wait for each other. Leaving the manager ends no
sandbox: each lives `sandboxes.idle_after` on and the next process finds them by their metadata. At
their timeout E2B itself ends or pauses them (`sandboxes.idle_action`), so that holds when no
process of ours is left.

`opening` says how a session comes to its sandbox, `keeping` how it keeps it, `places` how many may
run, `warm` what is made ahead, `sweeping` what is ended.
"""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Literal, Self

import anyio
from anyio.abc import TaskGroup

from e2b_agent_mcp.connection import Connect, Progress, e2b_params, ledger_dir, turns_dir
from e2b_agent_mcp.costs import Spending, Spent, Verdict
from e2b_agent_mcp.errors import SandboxUnavailableError
from e2b_agent_mcp.lifecycle.accounts import Accounts
from e2b_agent_mcp.lifecycle.claims import Claims
from e2b_agent_mcp.lifecycle.control import Control
from e2b_agent_mcp.lifecycle.keeping import Keeper
from e2b_agent_mcp.lifecycle.lease import Lease
from e2b_agent_mcp.lifecycle.opening import Opener
from e2b_agent_mcp.lifecycle.places import Places
from e2b_agent_mcp.lifecycle.session import Session
from e2b_agent_mcp.lifecycle.stopping import RESTARTED
from e2b_agent_mcp.lifecycle.sweeping import Sweeper
from e2b_agent_mcp.lifecycle.telemetry import Telemetry
from e2b_agent_mcp.lifecycle.transitions import Transitions
from e2b_agent_mcp.lifecycle.turns import Turns
from e2b_agent_mcp.lifecycle.usage import Usage
from e2b_agent_mcp.lifecycle.warm import WarmPool
from e2b_agent_mcp.owned_tasks import owned_tasks
from e2b_agent_mcp.pool import (
    EXPLAIN_REBOOTED,
    EXPLAIN_RESTARTED,
    Candidate,
    Maker,
    Pool,
    SessionKey,
    Terms,
    by_session,
    check_key,
    choose,
)
from e2b_agent_mcp.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """A session's sandbox, and what the session has spent this month."""

    name: str
    sandbox_id: str
    state: Literal["running", "paused"]
    created_at: datetime
    started_at: datetime  # since then it runs: its creation, or its last resume
    end_at: datetime
    vcpus: int
    memory_mb: int
    spent: Spent = Spent()


class SandboxManager:
    """Leases sandboxes to sessions; use it with `async with`, on asyncio (not trio).

    A session is given by its name, and then belongs to this user on this machine, or by a
    `SessionKey`, which also says whose it is: a program that serves several people gives each an
    owner, and owners never see each other's sandboxes.

    The first lease of a process costs the start of the embedded engine (minutes when its template
    must be built) or a second for the import of E2B's SDK; of a session, the creation of its
    sandbox; every other lease asks E2B nothing. Every method raises only `E2BAgentError`s, whose
    tree is drawn in `errors.py`, or what your own callbacks raise. Several managers, in one process
    or many, may use the same sessions: they find each other's sandboxes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        connect: Connect | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._accounts = Accounts(
            settings, partial(ledger_dir, settings), lambda: self._control.is_billed
        )
        self._transitions = Transitions(
            self._accounts.observe, Telemetry().observe, settle=self._accounts.settle
        )
        connect = connect or partial(e2b_params, settings)
        terms = Terms(settings.sandboxes.idle_after)
        self._control = Control(settings, connect, self._transitions, terms)
        self._clock = clock
        self._maker = Maker(uuid.uuid4().hex, settings.local_owner)
        self._pool = Pool(settings.sandboxes, terms)
        self._sessions: dict[SessionKey, Session] = {}
        self._turns = Turns(partial(turns_dir, settings))
        self._claims = Claims(self._control, self._maker)
        self._warm = WarmPool(
            settings.sandboxes.warm,
            self._control,
            self._pool,
            self._maker,
            clock,
            self._may_spend,
        )
        self._places = Places(
            settings.sandboxes,
            self._pool,
            self._control,
            self._sessions,
            clock,
            self._warm,
            self._turns,
        )
        self._keeper = Keeper(self._control, self._pool, clock)
        self._opener = Opener(
            control=self._control,
            pool=self._pool,
            keeper=self._keeper,
            places=self._places,
            claims=self._claims,
            warm=self._warm,
            maker=self._maker,
            transitions=self._transitions,
            clock=clock,
            tasks=lambda: self._running,
            kept=settings.sandboxes.kept,
        )
        self._sweeper = Sweeper(settings, self._control, self._claims, self._sessions)
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._stack.push_async_callback(self._accounts.aclose)
        self._tasks = await self._stack.enter_async_context(owned_tasks())
        self._tasks.start_soon(self._accounts.keep_writing)
        self._tasks.start_soon(self._sweeper.sweep)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()
        self._tasks = None

    async def prepare(self, on_progress: Progress | None = None) -> None:
        """Does ahead of a lease what the first one would wait for: imports E2B's SDK, and starts
        the embedded engine if it is used. `on_progress` hears of what takes long, in words."""
        await self._control.connect(on_progress)
        self._sweeper.look_after(self._settings.local_owner)

    @asynccontextmanager
    async def lease(
        self,
        key: SessionKey | str,
        *,
        use: Literal["work", "read"] = "work",
        on_progress: Progress | None = None,
    ) -> AsyncIterator[Lease]:
        """Exclusive use of the session's sandbox; waits for the session's earlier leases, so one
        task must not lease a session twice. `lease.state` and `lease.lost` tell whether the sandbox
        is new, and what that cost the session.

        The sandbox does not end while it is leased, and lives `sandboxes.idle_after` afterwards.

        Raises `MonthlyBudgetError` when a budget of `costs.*` is spent; only a lease to `read`
        files is then still given, of a sandbox that runs anyway, and does not lengthen its life.
        `lease.warning` has words for the caller when a budget is nearly spent.
        """
        key = self._key(key)
        session = self._session(key)
        asked = time.monotonic()
        async with self._turn(session, on_progress):
            verdict = await self._accounts.verdict(key.owner)
            if use == "work":
                verdict.check()
            opened = (
                self._to_read(session, verdict)
                if verdict.refusal
                else self._to_work(session, on_progress)
            )
            async with opened as lease:
                lease.warning = verdict.warning
                with self._told(session, lease, asked):
                    yield lease

    @asynccontextmanager
    async def _to_work(
        self, session: Session, on_progress: Progress | None
    ) -> AsyncIterator[Lease]:
        """A lease whose sandbox lives on for as long as it lasts, and a whole life after it."""
        lease = await self._open(session, on_progress)
        self._warm.look_after(session.key.owner, self._running)
        beating = anyio.CancelScope()
        self._running.start_soon(
            self._keeper.keep_alive, session, lambda: lease.sandbox_id, beating
        )
        try:
            yield lease
        finally:
            beating.cancel()
        if session.slot.sandbox_id and self._pool.must_extend(session.slot, self._clock()):
            await self._keeper.try_to_extend(session, lease.sandbox_id)
        if self._pool.must_renew(session.slot, self._clock()):
            self._running.start_soon(self._renew_unused, session)

    async def _renew_unused(self, session: Session) -> None:
        async with session.turn, self._turns.turn(session.key):
            await self._keeper.renew(session)

    @asynccontextmanager
    async def _to_read(self, session: Session, verdict: Verdict) -> AsyncIterator[Lease]:
        yield await self._open_to_read(session, verdict)

    @contextmanager
    def _told(self, session: Session, lease: Lease, asked: float) -> Iterator[None]:
        """Says when the lease began and ended; what was lost is told again after a call that was
        not answered."""
        tell, leased = self._transitions.tell, time.monotonic()
        took = leased - asked
        tell("leased", lease.sandbox_id, key=session.key, outcome=lease.state, took=took)
        self._sweeper.look_after(session.key.owner)
        answered = False
        try:
            yield
            answered = True
        finally:
            if answered:
                session.untold = ""
            elif session.slot.sandbox_id == lease.sandbox_id:
                session.untold = lease.lost
            lease.close()
            took = time.monotonic() - leased
            tell("released", lease.sandbox_id, key=session.key, took=took)

    @asynccontextmanager
    async def _turn(self, session: Session, on_progress: Progress | None) -> AsyncIterator[None]:
        try:
            async with session.turn, self._turns.turn(session.key, on_progress):
                yield
                session.slot.used_at = self._clock()
        finally:
            self._places.tell_change()

    async def list_sessions(self, owner: str | None = None) -> list[SessionInfo]:
        """The owner's sessions that have a sandbox, by whichever process they were started.

        One request to E2B. Without an `owner`, those that are given by their name alone.
        """
        owner = owner or self._settings.local_owner
        found = await self._opener.find_all(owner)
        spent = (await self._accounts.spending(owner)).sessions
        return [
            replace(_session_info(item), spent=spent.get(item.session, Spent()))
            for item in by_session(found)
        ]

    async def usage(self, sandbox_ids: Iterable[str]) -> dict[str, Usage]:
        """CPU, memory and disk of running sandboxes, by their ids: one request for each, at once.

        Those for which E2B has no answer within two seconds are left out.
        """
        found: dict[str, Usage] = {}

        async def measure(sandbox_id: str) -> None:
            usage = await self._control.usage(sandbox_id, last=0.0)
            if usage is not None:
                found[sandbox_id] = usage

        async with anyio.create_task_group() as tasks:
            for sandbox_id in sandbox_ids:
                tasks.start_soon(measure, sandbox_id)
        return found

    async def spending(self, owner: str | None = None, *, month: str | None = None) -> Spending:
        """What the owner's sessions have spent in a calendar month ("2026-11", in UTC; without one
        in this one), as far as servers of this user on this machine know. Asks E2B nothing."""
        return await self._accounts.spending(owner or self._settings.local_owner, month)

    def account_model(self, key: SessionKey, *, usd: float, tokens: int) -> None:
        """Counts what a language model cost in the session; on disk moments later."""
        self._accounts.used_model(key, usd=usd, tokens=tokens)

    async def end_session(self, key: SessionKey | str) -> bool:
        """Ends the session's sandbox at once, under a running call too; False if it had none.

        Variables, files and packages are gone for good; the next lease gets a new sandbox.
        """
        key = self._key(key)
        check_key(key)
        await self._control.connect()
        if (creation := self._opener.creations.get(key)) is not None:
            await creation.done.wait()
        found = {item.sandbox_id for item in await self._opener.find_session(key)}
        sandboxes = set(found)
        if (session := self._sessions.get(key)) is not None:
            sandboxes.add(session.slot.sandbox_id)
            session.slot.drop()
            session.clear()
        killed = [await self._kill(key, item) for item in sorted(sandboxes) if item]
        self._pool.learn_room()
        self._places.tell_change()
        # Killed also where E2B knows nothing of it: the answer to an earlier attempt was lost.
        return bool(found) or any(killed)

    async def _kill(self, key: SessionKey, sandbox_id: str) -> bool:
        try:
            return await self._control.kill(sandbox_id)
        except BaseException:
            self._pool.leave(key, sandbox_id, self._clock())
            raise

    async def prune(self, owner: str | None = None, *, dry_run: bool = False) -> list[SessionInfo]:
        """Ends the paused sandboxes that nobody wants any more, and says which they are: those of
        an owner, or all that servers of this user on this machine made, for whomever.

        Both are done by themselves once E2B is used, and then once an hour.
        """
        ended = await self._sweeper.prune(owner, dry_run=dry_run)
        return [_session_info(item) for item in ended]

    @property
    def _running(self) -> TaskGroup:
        if self._tasks is None:
            raise RuntimeError("Use the manager with `async with`.")
        return self._tasks

    def _key(self, key: SessionKey | str) -> SessionKey:
        return SessionKey(self._settings.local_owner, key) if isinstance(key, str) else key

    def _session(self, key: SessionKey) -> Session:
        check_key(key)
        for old in self._pool.forgettable(self._clock()):
            if old not in self._sessions or not self._sessions[old].turn.locked():
                self._sessions.pop(old, None)
                self._pool.forget(old)
        if key not in self._sessions:
            self._sessions[key] = Session(
                key=key, slot=self._pool.slot(key), transitions=self._transitions
            )
        return self._sessions[key]

    async def _open(self, session: Session, on_progress: Progress | None) -> Lease:
        await self._control.connect(on_progress)
        lease = await self._acquire(session, on_progress)
        if session.unsettled:
            note = await lease.settle()
            if not session.slot.sandbox_id:
                lease = await self._acquire(session, on_progress)
            elif session.unsettled:
                raise SandboxUnavailableError(note, hint="Wait a moment and try again.")
            elif note == RESTARTED:
                rebooted = session.resumed and session.executions == 1
                lease.tell_loss(EXPLAIN_REBOOTED if rebooted else EXPLAIN_RESTARTED)
        return lease

    async def _open_to_read(self, session: Session, verdict: Verdict) -> Lease:
        """A lease that costs nothing: of a sandbox that runs anyway, which it does not extend."""
        found = choose(await self._opener.find_session(session.key))
        if found is None or found.paused:
            verdict.check()
        assert found is not None
        handle = await self._control.open(found.sandbox_id, extend=False)

        async def reopen() -> Lease:
            return await self._open_to_read(session, verdict)

        return Lease(
            session,
            self._control,
            self._settings,
            handle,
            state="reused",
            lost="",
            reopen=reopen,
        )

    async def _acquire(self, session: Session, on_progress: Progress | None) -> Lease:
        state = await self._opener.open(session, on_progress)
        assert session.handle is not None
        slot = session.slot
        lease = Lease(
            session,
            self._control,
            self._settings,
            session.handle,
            state=state,
            lost=slot.lost or session.untold,
            reopen=partial(self._open, session, None),
        )
        session.untold = lease.lost
        slot.lost, slot.created = "", False
        return lease

    async def _may_spend(self, owner: str) -> bool:
        return not (await self._accounts.verdict(owner)).refusal


def _session_info(candidate: Candidate) -> SessionInfo:
    return SessionInfo(
        name=candidate.session,
        sandbox_id=candidate.sandbox_id,
        state="paused" if candidate.paused else "running",
        created_at=candidate.created_at,
        started_at=candidate.started_at,
        end_at=candidate.end_at,
        vcpus=candidate.vcpus,
        memory_mb=candidate.memory_mb,
    )

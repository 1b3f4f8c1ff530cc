"""Keeps the ledger of what happens to sandboxes, and says whether new work may start.

Contract: a report is on disk moments after its transition, written by a thread of its own; nothing
waits for it but the creation of a sandbox, which a crash could otherwise hide. Trouble with the
disk costs no call: reports wait, and are written later.
"""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from e2b_agent_mcp.costs import (
    Account,
    Interval,
    Ledger,
    Month,
    Spending,
    Spent,
    Verdict,
    judge,
    month_of,
    named_month,
    price,
)
from e2b_agent_mcp.costs.budget import USUAL_MEMORY_MB, USUAL_VCPUS
from e2b_agent_mcp.lifecycle.transitions import Transition
from e2b_agent_mcp.pool import Candidate, SessionKey, creation_of
from e2b_agent_mcp.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Report = Callable[[], None]

VERDICT_AGE = 1.0  # seconds for which a look at the budgets holds
WRITE_LIMIT = 2.0  # seconds that a creation waits for its report
CLOSE_LIMIT = 0.5  # seconds
RETRY_DELAY = 1.0  # seconds
MOST_WAITING = 10_000  # reports; the oldest are given up

# Errors of a creation after which E2B may have made the sandbox all the same.
_UNCERTAIN = {"sandbox_timeout", "sandbox_unavailable"}


class Accounts:
    """The ledger of one manager; `is_billed` says whether E2B's prices apply there."""

    def __init__(
        self,
        settings: Settings,
        folder: Callable[[], Path],
        is_billed: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._costs = settings.costs
        self._create_timeout = settings.sandboxes.create_timeout
        self._ledger = Ledger(folder)
        self._is_billed = is_billed
        self._clock = clock
        # Protects the order of reports: a thread that was given up on may still be at work.
        self._turn = threading.Lock()
        self._waiting: deque[Report] = deque(maxlen=MOST_WAITING)
        self._reported: anyio.Event | None = None  # while somebody waits for the next report
        self._verdicts: dict[str, tuple[float, Verdict]] = {}

    # --- reports --------------------------------------------------------------------------------

    def observe(self, transition: Transition) -> None:
        """A transition's observer: notes what it means for the ledger."""
        report = _REPORTS.get(transition.kind)
        if report is not None:
            report(self, transition, self._clock())

    def used_model(self, key: SessionKey, *, usd: float, tokens: int) -> None:
        """What a language model cost in the session."""
        self._report(partial(self._ledger.used_model, key, usd, tokens, self._clock()))

    def _creating(self, told: Transition, now: float) -> None:
        if told.key is not None:
            self._report(partial(self._ledger.expect, self._interval(told, now)))

    def _not_created(self, told: Transition, now: float) -> None:
        if told.key is not None:
            certainly = told.outcome not in _UNCERTAIN
            failed = partial(self._ledger.failed, told.key, told.creation, certainly=certainly)
            self._report(failed)

    def _created(self, told: Transition, now: float) -> None:
        if told.key is not None:
            self._report(partial(self._ledger.ran, self._interval(told, now)))

    def _resumed(self, told: Transition, now: float) -> None:
        ends_at = now + (told.life or 0.0)
        self._report(partial(self._ledger.resumed, told.sandbox_id, now, ends_at))

    def _connected(self, told: Transition, now: float) -> None:
        ends_at = now + (told.life or 0.0)
        self._report(partial(self._ledger.connected, told.sandbox_id, ends_at))

    def _extended(self, told: Transition, now: float) -> None:
        ends_at = now + (told.life or 0.0)
        self._report(partial(self._ledger.extended, told.sandbox_id, ends_at))

    def _ended(self, told: Transition, now: float) -> None:
        self._report(partial(self._ledger.ended, told.sandbox_id, now))

    def _gone(self, told: Transition, now: float) -> None:
        asked_at = now - (told.took or 0.0)
        self._report(partial(self._ledger.gone, told.sandbox_id, asked_at, now))

    def _adopted(self, told: Transition, now: float) -> None:
        if told.key is not None:
            self._report(partial(self._ledger.passed_on, told.sandbox_id, told.key, now))

    def _seen(self, told: Transition, now: float) -> None:
        for candidate in told.candidates:
            interval = self._listed(candidate)
            if candidate.paused:
                at = min(interval.ends_at, now)
                self._report(partial(self._ledger.ended, candidate.sandbox_id, at))
            else:
                self._report(partial(self._ledger.seen, interval, now))
        if told.key is not None:
            creations = [creation_of(item.metadata) for item in told.candidates]
            asked_at = now - (told.took or 0.0)
            asked_before = asked_at - self._create_timeout
            self._report(partial(self._ledger.listed, told.key, creations, asked_before))
            if not told.key.name:  # a claimed one is not listed by its session's name
                listed = [item.sandbox_id for item in told.candidates]
                self._report(partial(self._ledger.rest_gone, told.key.owner, listed, asked_at, now))

    def _interval(self, told: Transition, now: float) -> Interval:
        assert told.key is not None
        return Interval(
            key=told.key,
            creation=told.creation,
            sandbox_id=told.sandbox_id,
            started_at=now,
            ends_at=now + (told.life or 0.0),
            usd_per_second=self._price(USUAL_VCPUS, USUAL_MEMORY_MB),
        )

    def _listed(self, candidate: Candidate) -> Interval:
        return Interval(
            key=candidate.key,
            creation=creation_of(candidate.metadata),
            sandbox_id=candidate.sandbox_id,
            started_at=candidate.started_at.timestamp(),
            ends_at=candidate.end_at.timestamp(),
            usd_per_second=self._price(candidate.vcpus, candidate.memory_mb),
        )

    def _price(self, vcpus: int, memory_mb: int) -> float:
        billed = self._is_billed()
        return price(self._costs, vcpus=vcpus, memory_mb=memory_mb, billed=billed)

    def _report(self, report: Report) -> None:
        self._waiting.append(report)
        if self._reported is not None:
            self._reported.set()

    # --- questions ------------------------------------------------------------------------------

    async def verdict(self, owner: str) -> Verdict:
        """Whether the owner may start new work; asks the disk once a second at most, and never
        without a budget."""
        costs = self._costs
        limits = (costs.owner_budget, costs.owner_warning, costs.budget, costs.warning)
        if all(limit is None for limit in limits):
            return Verdict()
        now = self._clock()
        looked_at, verdict = self._verdicts.get(owner, (0.0, Verdict()))
        if not 0.0 <= now - looked_at < VERDICT_AGE:
            verdict = await self._judge(owner, now)
            self._verdicts[owner] = now, verdict
        return verdict

    async def _judge(self, owner: str, now: float) -> Verdict:
        month = month_of(now)
        try:
            accounts = await self.accounts(month)
        except sqlite3.Error as exc:
            return Verdict(
                refusal=f"No new work: what was spent in {month.name} cannot be read ({exc}).",
                hint="Free or repair the disk of the state folder that `e2b-agent-mcp doctor` "
                "names, or unset the budgets of costs.*.",
            )
        return judge(
            self._costs,
            month,
            owner=sum((item.spent for item in accounts if item.key.owner == owner), Spent()),
            everyone=sum((item.spent for item in accounts), Spent()),
        )

    async def spending(self, owner: str, name: str | None = None) -> Spending:
        """What the owner has spent in the month of that name, or in the current one."""
        month = month_of(self._clock()) if name is None else named_month(name)
        try:
            accounts = await self.accounts(month)
        except sqlite3.Error as exc:
            logger.warning("spending of %s cannot be read: %s", month.name, exc)
            accounts = []
        sessions = {item.key.name: item.spent for item in accounts if item.key.owner == owner}
        return Spending(
            month=month.name,
            sessions=sessions,
            total=sum(sessions.values(), Spent()),
            verdict=await self.verdict(owner),
        )

    async def accounts(self, month: Month) -> list[Account]:
        """What each session of every owner has spent in the month."""
        return await self._in_thread(self._accounts, month)

    def _accounts(self, month: Month) -> list[Account]:
        with suppress(sqlite3.Error):  # another server writes for long; reading never waits for it
            self._write()
        return self._ledger.accounts(month, self._clock())

    # --- writing --------------------------------------------------------------------------------

    async def keep_writing(self) -> None:
        """Until it is cancelled."""
        while True:
            if not self._waiting:
                self._reported = anyio.Event()
                await self._reported.wait()
            if not await self._try_to_write():
                await anyio.sleep(RETRY_DELAY)

    async def settle(self) -> None:
        """Waits until all reports are on disk, unless that takes long."""
        with anyio.move_on_after(WRITE_LIMIT):
            await self._try_to_write()

    async def aclose(self) -> None:
        with anyio.move_on_after(CLOSE_LIMIT, shield=True):
            await self._try_to_write()
            await self._in_thread(self._ledger.close)

    async def _try_to_write(self) -> bool:
        try:
            await self._in_thread(self._write)
        except sqlite3.Error as exc:
            logger.warning("spending is not written yet: %s", exc)
            return False
        except Exception:
            # A defect of ours; it costs these reports, and no call.
            logger.exception("spending is not accounted")
        return True

    def _write(self) -> None:
        """All or nothing: what cannot be written now keeps its place."""
        with self._turn:
            reports = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                self._ledger.write(reports)
            except sqlite3.Error:
                self._waiting.extendleft(reversed(reports))
                raise

    async def _in_thread(self, action: Callable[..., T], *args: object) -> T:
        return await to_thread.run_sync(partial(action, *args), abandon_on_cancel=True)


_REPORTS: dict[str, Callable[[Accounts, Transition, float], None]] = {
    "creating": Accounts._creating,
    "created": Accounts._created,
    "not_created": Accounts._not_created,
    "resumed": Accounts._resumed,
    "connected": Accounts._connected,
    "extended": Accounts._extended,
    "paused": Accounts._ended,
    "gone": Accounts._gone,
    "lost": Accounts._ended,
    "killed": Accounts._ended,
    "adopted": Accounts._adopted,
    "seen": Accounts._seen,
}

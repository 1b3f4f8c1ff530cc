"""Sandboxes made ahead, so that a new session of an owner finds one ready.

Off unless `sandboxes.warm` is set: they cost what a used one costs. They are made in the background
once an owner uses sandboxes, within the limits and budgets, kept while the owner goes on, and left
to E2B's timeout when the owner stops or this process ends. A session that needs room comes first:
for it a warm one is given up before any session is paused.

What each belongs to while it waits is known to this process alone, so handing one out is a plain
pop; `claims` makes it known to everybody else. One that was handed out and not claimed is ended: it
may carry a session's note. A name that is itself a secret is never given a warm sandbox, as the
claim would show it to the code there.

Each has its place among those that run from before it is asked for until it is ended, or its
session's slot has that place; what could not be ended counts on, as one that runs elsewhere.
"""

import itertools
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio.abc import TaskGroup

from e2b_agent_mcp.errors import E2BAgentError
from e2b_agent_mcp.lifecycle.control import Control, bounded
from e2b_agent_mcp.pool import WARM, Candidate, Maker, Pool, SessionKey, is_secret

if TYPE_CHECKING:
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox

logger = logging.getLogger(__name__)

RETRY_PAUSE = 10.0  # seconds
END_LIMIT = 2.0  # seconds


class Warm(NamedTuple):
    """A sandbox that waits for a session."""

    handle: "AsyncSandbox"
    made_at: float

    @property
    def sandbox_id(self) -> str:
        return self.handle.sandbox_id


@dataclass(eq=False)
class _Shelf:
    """One owner's warm sandboxes, the oldest first."""

    ready: deque[Warm] = field(default_factory=deque)
    used_at: float = 0.0
    changed: anyio.Event = field(default_factory=anyio.Event)


class WarmPool:
    def __init__(
        self,
        count: int,
        control: Control,
        pool: Pool,
        maker: Maker,
        clock: Callable[[], float],
        may_spend: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._count = count
        self._control = control
        self._pool = pool
        self._maker = maker
        self._clock = clock
        self._may_spend = may_spend
        self._shelves: dict[str, _Shelf] = {}
        self._numbers = itertools.count()
        self._left: set[str] = set()  # those that could not be ended

    def look_after(self, owner: str, tasks: TaskGroup) -> None:
        """The owner uses sandboxes; a task keeps some ready from the first time on."""
        if not self._count:
            return
        if (shelf := self._shelves.get(owner)) is not None:
            shelf.used_at = self._clock()
            return
        shelf = self._shelves[owner] = _Shelf(used_at=self._clock())
        tasks.start_soon(self._keep, owner, shelf)

    def take(self, key: SessionKey) -> Warm | None:
        """A ready one for the session, whose slot takes over its place at once."""
        shelf = self._shelves.get(key.owner)
        if shelf is None or is_secret(key.name):
            return None
        while shelf.ready and not self._is_old(shelf.ready[-1]):
            warm = shelf.ready.pop()
            self._pool.warm[key.owner] -= 1
            shelf.changed.set()
            if self._control.serves(warm.handle):
                self._pool.slot(key).starting = True
                return warm
            self._left.add(warm.sandbox_id)
        return None

    async def end(self, owner: str, sandbox_id: str) -> None:
        """Ends one that was taken and not claimed, also when the call that took it went away."""
        try:
            with anyio.CancelScope(shield=True):
                await bounded(
                    "ending a warm sandbox", END_LIMIT, lambda: self._control.kill(sandbox_id)
                )
        except E2BAgentError as exc:
            logger.warning("not ended sandbox=%s: %s", sandbox_id, exc.message)
            self._left.add(sandbox_id)
            self._pool.leave(SessionKey(owner, WARM + sandbox_id), sandbox_id, self._clock())

    async def give_up(self, owner: str | None) -> bool:
        """Ends one, of this owner if given, to make room; False when there is none."""
        for name, shelf in self._shelves.items():
            if shelf.ready and owner in (None, name):
                await self._end_oldest(name, shelf)
                return True
        return False

    async def _end_oldest(self, owner: str, shelf: _Shelf) -> None:
        warm = shelf.ready.popleft()
        try:
            await self._control.kill(warm.sandbox_id)
        except BaseException:
            # If it has ended all the same, whoever takes it finds that out.
            shelf.ready.appendleft(warm)
            raise
        self._pool.warm[owner] -= 1

    def counts(self, item: Candidate) -> bool:
        """Whether one that no session has is counted here, and not among those elsewhere."""
        return self._maker.made(item) and item.sandbox_id not in self._left

    async def _keep(self, owner: str, shelf: _Shelf) -> None:
        while True:
            shelf.changed = anyio.Event()
            try:
                if self._clock() - shelf.used_at < self._pool.terms.life:
                    await self._extend(owner, shelf)
                    await self._fill(owner, shelf)
                pause = self._pool.heartbeat
            except E2BAgentError as exc:
                logger.warning("no warm sandbox for owner=%s: %s", owner, exc.message)
                pause = RETRY_PAUSE
            except Exception:
                # No call depends on it, and the next one may succeed.
                logger.warning("no warm sandbox for owner=%s", owner, exc_info=True)
                pause = RETRY_PAUSE
            with anyio.move_on_after(pause):
                await shelf.changed.wait()

    async def _extend(self, owner: str, shelf: _Shelf) -> None:
        while shelf.ready and self._is_old(shelf.ready[0]):
            await self._end_oldest(owner, shelf)
        for warm in tuple(shelf.ready):
            alive = await self._control.extend(warm.sandbox_id)
            if not alive and warm in shelf.ready:
                shelf.ready.remove(warm)
                self._pool.warm[owner] -= 1

    def _is_old(self, warm: Warm) -> bool:
        return self._pool.is_too_old(self._clock() - warm.made_at)

    async def _fill(self, owner: str, shelf: _Shelf) -> None:
        nobody = SessionKey(owner, "")
        while len(shelf.ready) < self._count and await self._may_spend(owner):
            # Nothing is awaited between this look and taking the place.
            if self._pool.shortage(nobody, self._clock()) is not None:
                return
            self._pool.warm[owner] += 1
            made_at = self._clock()
            try:
                handle = await self._create(nobody)
            except BaseException:
                self._pool.warm[owner] -= 1
                raise
            shelf.ready.append(Warm(handle, made_at))

    async def _create(self, nobody: SessionKey) -> "AsyncSandbox":
        number = next(self._numbers)
        maker = replace(self._maker, instance=f"{self._maker.instance}-w{number}")
        return await self._control.create(
            nobody, maker=maker, generation=0, idempotency_key=uuid.uuid4().hex
        )

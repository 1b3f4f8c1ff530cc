"""What one process knows of its sessions' sandboxes, and how many of them may run.

A `Slot` is a shortcut to what E2B knows, never more. The limits count sessions whose sandbox runs:
those that this process holds or starts, and those of the same owners that E2B lists as running, so
that a restarted server does not forget what its predecessor left. Paused ones do not count, as
E2B's own limit does not count them. That limit is learnt from its refusal, and tried again a while
later, as other programs of the account may have made room.

Room is made by pausing a session that nobody uses: one that we hold, or one of the same owners that
its end at E2B shows to be unused. Whoever uses a sandbox extends it at intervals, so one that was
not extended for longer was left, by a server that crashed or has nothing to do. (Servers of one
owner are taken to have the same `sandboxes.idle_after`; where they have not, a call may find its
sandbox paused, which loses nothing.)
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from e2b_agent_mcp.errors import SandboxLimitError
from e2b_agent_mcp.pool.registry import Candidate, SessionKey
from e2b_agent_mcp.pool.terms import SLACK, UNCHECKED_RUN, Terms
from e2b_agent_mcp.settings import SandboxSettings

Shortage = Literal["owner", "total", "account"]

FORGET_AFTER = 86_400.0  # seconds that the end of a session's sandbox is remembered
UNEXTENDED = 0.1  # of a life, in which a lease asks E2B nothing
FULL_FOR = 15.0  # seconds until a full account is asked again


@dataclass(kw_only=True)
class Slot:
    """What this process knows of one session's sandbox. Times are by our own clock."""

    sandbox_id: str = ""  # "" while it has none that we know of
    generation: int = 0  # of the newest sandbox seen
    end_at: float = -math.inf  # when E2B ends or pauses it unless extended
    held_at: float = -math.inf  # when we found or made it
    used_at: float = -math.inf  # when its last lease ended
    running_since: float = math.inf  # its start, or its last resume
    born_at: float = math.inf  # when it was created
    starting: bool = False  # being created or resumed: it has its place among those that run
    created: bool = False  # created, and no lease has told its caller yet
    contested: bool = False  # another server may have made one too: E2B's list decides
    doubted: bool = False  # a call failed since E2B last answered for the sandbox
    lost: str = ""  # what the next lease tells its caller

    def hold(
        self,
        sandbox_id: str,
        *,
        generation: int,
        now: float,
        end_at: float,
        ran: float = 0.0,
        age: float = 0.0,
    ) -> None:
        self.sandbox_id = sandbox_id
        self.generation = max(self.generation, generation)
        self.held_at = self.used_at = now
        self.running_since = now - ran
        self.born_at = now - age
        self.contested = False
        self.extend(end_at)

    def extend(self, end_at: float) -> None:
        self.end_at = end_at
        self.doubted = False

    def pause(self, now: float) -> None:
        """It no longer runs; the next lease asks E2B for it."""
        self.end_at = min(self.end_at, now)
        self.doubted = True

    def lose(self, sandbox_id: str, why: str) -> None:
        """Drops the sandbox if it is still the session's: one ended on purpose is not lost."""
        if sandbox_id == self.sandbox_id:
            self.sandbox_id = ""
            self.created = self.contested = False
            self.lost = why

    def drop(self) -> None:
        """Forgets a sandbox that was ended on purpose, without words for the next lease."""
        self.sandbox_id = self.lost = ""
        self.created = self.contested = False

    def runs(self, now: float) -> bool:
        return self.starting or (bool(self.sandbox_id) and self.end_at > now)


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A sandbox that runs and that we do not hold, as E2B told of it; by our clock."""

    sandbox_id: str
    end_at: float
    extended_at: float  # inf: not known


class Pool:
    """The sessions of one process."""

    def __init__(self, settings: SandboxSettings, terms: Terms | None = None) -> None:
        self._settings = settings
        self.terms = terms or Terms(settings.idle_after)
        self._slots: dict[SessionKey, Slot] = {}
        self._elsewhere: dict[SessionKey, Elsewhere] = {}
        self._full_at = 0  # how many of ours ran when the account was full
        self._full_until = -math.inf
        self.warm: Counter[str] = Counter()  # per owner, sandboxes that no session has yet

    def slot(self, key: SessionKey) -> Slot:
        return self._slots.setdefault(key, Slot())

    def end_at(self, now: float) -> float:
        """When a sandbox that is extended now will end."""
        return now + self.terms.life

    def must_extend(self, slot: Slot, now: float) -> bool:
        """True when a tenth of the sandbox's life has passed since it was last extended.

        Until then a lease asks E2B nothing: a call to a sandbox that ended meanwhile fails before
        it reached anything, and is then sent to a new one.
        """
        return slot.doubted or slot.end_at - now < (1 - UNEXTENDED) * self.terms.life

    @property
    def heartbeat(self) -> float:
        """Seconds between two extensions of a leased sandbox: two may fail without its loss."""
        return self.terms.life / 3

    @property
    def surely_unused(self) -> float:
        """Seconds since a sandbox was extended after which nobody can have it leased: a lease may
        begin a while after an extension, and makes the next one a heartbeat later."""
        return UNEXTENDED * self.terms.life + self.heartbeat + SLACK

    def must_check(self, slot: Slot, now: float) -> bool:
        """True when it is time to look whether E2B still extends the sandbox as asked."""
        return now - slot.running_since > UNCHECKED_RUN and self.terms.longest == math.inf

    def must_renew(self, slot: Slot, now: float) -> bool:
        """True when the continuous run of a sandbox is about to reach what E2B allows."""
        left = slot.running_since + self.terms.longest - now
        return slot.runs(now) and left < self.terms.margin

    def is_too_old(self, age: float) -> bool:
        return 0 < self._settings.max_age < age

    # The limits

    def observe(
        self,
        owner: str,
        found: Iterable[Candidate],
        *,
        asked_at: float,
        now: float,
        today: datetime,
    ) -> None:
        """Takes in what E2B lists of an owner, without the warm ones of this process: what runs
        elsewhere, what no longer runs here."""
        running = {item.place: self._seen(item, now, today) for item in found if not item.paused}
        for key, slot in self._slots.items():
            if key.owner == owner and slot.held_at < asked_at and key not in running:
                slot.pause(now)
        self._elsewhere = {
            key: seen for key, seen in self._elsewhere.items() if key.owner != owner
        } | running

    def observe_one(
        self, key: SessionKey, found: Candidate | None, *, now: float, today: datetime
    ) -> None:
        """Takes in what E2B says of a session's sandbox that runs elsewhere."""
        self._elsewhere.pop(key, None)
        if found is not None and not found.paused:
            self._elsewhere[key] = self._seen(found, now, today)

    def leave(self, place: SessionKey, sandbox_id: str, now: float) -> None:
        """This process could not end or resume a sandbox: it may run until its timeout."""
        self._elsewhere[place] = Elsewhere(
            sandbox_id=sandbox_id, end_at=self.end_at(now), extended_at=now
        )

    def distrust(self, key: SessionKey) -> None:
        """E2B did not answer for the session's sandbox, so it is not taken for unused."""
        if (seen := self._elsewhere.get(key)) is not None:
            self._elsewhere[key] = replace(seen, extended_at=math.inf)

    def _seen(self, item: Candidate, now: float, today: datetime) -> Elsewhere:
        started_at = now - (today - item.started_at).total_seconds()
        end_at = now + (item.end_at - today).total_seconds()
        return Elsewhere(
            sandbox_id=item.sandbox_id,
            end_at=max(now, end_at),
            extended_at=self.terms.extended_at(started_at, end_at),
        )

    def shortage(self, key: SessionKey, now: float) -> Shortage | None:
        """Which limit stands in the way of one more running sandbox, if any does."""
        others = self._running(now) - {key}
        owners = sum(other.owner == key.owner for other in others) + self.warm[key.owner]
        total = len(others) + self.warm.total()
        if 0 < self._settings.max_per_owner <= owners:
            return "owner"
        if total >= self._settings.max:
            return "total"
        if now < self._full_until and total >= self._full_at:
            return "account"
        return None

    def _running(self, now: float) -> set[SessionKey]:
        held = {key for key, slot in self._slots.items() if slot.runs(now)}
        return held | self._running_elsewhere(now).keys()

    def _running_elsewhere(self, now: float) -> dict[SessionKey, Elsewhere]:
        known = {key for key, slot in self._slots.items() if slot.sandbox_id}
        return {
            key: seen
            for key, seen in self._elsewhere.items()
            if seen.end_at > now and key not in known
        }

    def learn_full(self, key: SessionKey, now: float) -> None:
        """E2B refused to run one more for `key`."""
        self._full_at = len(self._running(now) - {key}) + self.warm.total()
        self._full_until = now + FULL_FOR

    def learn_room(self) -> None:
        """A sandbox of the account has ended."""
        self._full_until = -math.inf

    def idlest(
        self, shortage: Shortage, key: SessionKey, now: float, *, busy: Collection[SessionKey]
    ) -> SessionKey | None:
        """The session to pause for `key`: of those that nobody uses, the one longest unused."""
        idle = {
            other: slot.used_at
            for other, slot in self._slots.items()
            if slot.runs(now) and not slot.starting
        } | {other: seen.extended_at for other, seen in self._left(now).items()}
        fitting = [
            (used_at, other)
            for other, used_at in idle.items()
            if other not in {key, *busy} and (shortage != "owner" or other.owner == key.owner)
        ]
        return min(fitting)[1] if fitting else None

    def left(self, key: SessionKey, now: float) -> str:
        """The session's sandbox, if it is one that we do not hold and certainly nobody uses."""
        seen = self._left(now).get(key)
        return "" if seen is None else seen.sandbox_id

    def _left(self, now: float) -> dict[SessionKey, Elsewhere]:
        return {
            key: seen
            for key, seen in self._running_elsewhere(now).items()
            if now - seen.extended_at > self.surely_unused
        }

    def refusal(self, shortage: Shortage) -> SandboxLimitError:
        limit = {
            "owner": f"{self._settings.max_per_owner} sandboxes of this owner run already, "
            "the limit of sandboxes.max_per_owner.",
            "total": f"{self._settings.max} sandboxes run already, the limit of sandboxes.max.",
            "account": "E2B refuses to run more sandboxes: the account's own limit is reached.",
        }[shortage]
        option = {
            "owner": "raise E2B_AGENT_MCP_SANDBOXES_MAX_PER_OWNER",
            "total": "raise E2B_AGENT_MCP_SANDBOXES_MAX",
            "account": "end sandboxes of other programs, or take a larger E2B plan",
        }[shortage]
        why = (
            "Each of them is in use, or another server's; try again later"
            if self._settings.at_limit == "pause"
            else "Set E2B_AGENT_MCP_SANDBOXES_AT_LIMIT=pause to have an unused one paused"
        )
        return SandboxLimitError(
            f"{limit} Nothing was lost.",
            hint=f"{why}, end a session that is no longer needed, or {option}.",
        )

    # Forgetting

    def forgettable(self, now: float) -> list[SessionKey]:
        """Sessions whose sandbox ended so long ago that nobody needs to be told."""
        return [
            key
            for key, slot in self._slots.items()
            if not slot.starting and slot.end_at < now - FORGET_AFTER
        ]

    def forget(self, key: SessionKey) -> None:
        self._slots.pop(key, None)

"""Which sandbox serves which session. Pure: no I/O, the time is passed in.

The rule: E2B is the registry. What ties a sandbox to a session is the metadata it was created with,
so any process with the same E2B finds it again; what a `Pool` remembers is only a shortcut, and
what it counts against the limit.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from e2b_agent_mcp.errors import InvalidArgumentError, SandboxLimitError

SandboxState = Literal["created", "reused", "resumed", "recreated"]

LONGEST_NAME = 200  # characters of a session's name
FORGET_AFTER = 86_400.0  # seconds that the end of a session's sandbox is remembered
DUPLICATE_GRACE = 600.0  # seconds; creators that race have agreed long before
RETRY_DELAYS = (0.5, 1.5)  # seconds; E2B's SDK has retried three times before each

_TAG = "e2b_agent_mcp"


class SessionKey(NamedTuple):
    """A session: `owner` is who may use it, `name` is what the caller calls it."""

    owner: str
    name: str


def check_key(key: SessionKey) -> None:
    """Refuses a name that metadata cannot carry or nobody can read."""
    if not 0 < len(key.name) <= LONGEST_NAME or not key.name.isprintable():
        raise InvalidArgumentError(
            f"A session's name has 1 to {LONGEST_NAME} printable characters.",
            hint="Choose a short name such as 'analysis'.",
        )


def owned_by(owner: str) -> dict[str, str]:
    """The metadata that all of an owner's sandboxes carry."""
    return {_TAG: "1", "owner": owner}


def of_session(key: SessionKey) -> dict[str, str]:
    return {**owned_by(key.owner), "session": key.name}


def new_metadata(key: SessionKey, *, instance: str, generation: int) -> dict[str, str]:
    return {**of_session(key), "instance": instance, "generation": str(generation)}


def scope_of(metadata: Mapping[str, str]) -> SessionKey | None:
    """Whose sandboxes all carry this metadata: a session's, or an owner's (with an empty name);
    None for any other choice."""
    if "owner" not in metadata or not metadata.keys() <= {_TAG, "owner", "session"}:
        return None
    return SessionKey(metadata["owner"], metadata.get("session", ""))


def creation_of(metadata: Mapping[str, str]) -> str:
    """What tells one creation of a session's sandbox from every other."""
    return f"{metadata.get('instance', '')}-{metadata.get('generation', '')}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A sandbox as E2B lists it."""

    sandbox_id: str
    metadata: Mapping[str, str]
    paused: bool
    started_at: datetime
    end_at: datetime
    vcpus: int = 2
    memory_mb: int = 512

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.metadata.get("owner", ""), self.session)

    @property
    def session(self) -> str:
        return self.metadata.get("session", "")

    @property
    def generation(self) -> int:
        text = self.metadata.get("generation", "")
        return int(text) if text.isdecimal() else 0


def choose(candidates: Iterable[Candidate]) -> Candidate | None:
    """The one that serves a session that has several: every process chooses the same.

    A later generation replaced an earlier one. Within a generation two processes raced, and the
    older sandbox wins, because its creator may be using it already.
    """
    rank = sorted(candidates, key=lambda c: (-c.generation, c.started_at, c.sandbox_id))
    return rank[0] if rank else None


def by_session(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """The chosen sandbox of each session, in the order of their names."""
    sessions: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        sessions.setdefault(candidate.session, []).append(candidate)
    for name in sorted(sessions):
        if (chosen := choose(sessions[name])) is not None:
            yield chosen


def superfluous(
    candidates: Iterable[Candidate], now: datetime, *, retention: float
) -> list[Candidate]:
    """The paused sandboxes that nobody will want: a session's own one after `retention`, one that
    lost its session to another after `DUPLICATE_GRACE`.

    Running ones are left alone: each ends or pauses at its own timeout, and may be in use.
    """
    found = list(candidates)
    chosen = {candidate.sandbox_id for candidate in by_session(found)}
    return [
        item
        for item in found
        if item.paused
        and (now - item.end_at).total_seconds()
        > (retention if item.sandbox_id in chosen else DUPLICATE_GRACE)
    ]


@dataclass(kw_only=True)
class Slot:
    """What this process knows of one session's sandbox."""

    sandbox_id: str = ""  # "" while it has none that we know of
    generation: int = 0  # of the newest sandbox seen
    end_at: float = -math.inf  # when E2B ends it, by our clock, unless extended
    creating: bool = False
    created: bool = False  # created, and no lease has told its caller yet
    doubted: bool = False  # a call failed since E2B last answered for the sandbox
    lost: str = ""  # what the next lease tells its caller

    def hold(self, sandbox_id: str, *, generation: int, end_at: float) -> None:
        self.sandbox_id = sandbox_id
        self.generation = max(self.generation, generation)
        self.extend(end_at)

    def extend(self, end_at: float) -> None:
        self.end_at = end_at
        self.doubted = False

    def lose(self, sandbox_id: str, why: str) -> None:
        """Drops the sandbox if it is still the session's: one ended on purpose is not lost."""
        if sandbox_id == self.sandbox_id:
            self.sandbox_id = ""
            self.created = False
            self.lost = why

    def drop(self) -> None:
        """Forgets a sandbox that was ended on purpose, without words for the next lease."""
        self.sandbox_id = self.lost = ""
        self.created = False

    def occupies(self, now: float) -> bool:
        return self.creating or (bool(self.sandbox_id) and self.end_at > now)


class Pool:
    """The sessions of one process; `limit` is `sandboxes.max`, `life` is `sandboxes.idle_after`."""

    def __init__(self, *, limit: int, life: float) -> None:
        self._limit = limit
        self._life = life
        self._slots: dict[SessionKey, Slot] = {}

    def slot(self, key: SessionKey) -> Slot:
        return self._slots.setdefault(key, Slot())

    def end_at(self, now: float) -> float:
        """When a sandbox that is extended now will end."""
        return now + self._life

    def must_extend(self, slot: Slot, now: float) -> bool:
        """True when a tenth of the sandbox's life has passed since it was last extended.

        Until then a lease asks E2B nothing: a call to a sandbox that ended meanwhile fails before
        it reached anything, and is then sent to a new one.
        """
        return slot.doubted or slot.end_at - now < 0.9 * self._life

    @property
    def heartbeat(self) -> float:
        """Seconds between two extensions of a leased sandbox: two may fail without its loss."""
        return self._life / 3

    def reserve(self, key: SessionKey, now: float) -> None:
        """Counts a sandbox about to be created; `SandboxLimitError` when it would be too many."""
        others = [slot for other, slot in self._slots.items() if other != key]
        if sum(slot.occupies(now) for slot in others) >= self._limit:
            raise SandboxLimitError(
                f"This server already holds {self._limit} sandboxes, the limit of sandboxes.max.",
                hint="End a session that is no longer needed, or raise "
                "E2B_AGENT_MCP_SANDBOXES_MAX.",
            )
        self.slot(key).creating = True

    def forgettable(self, now: float) -> list[SessionKey]:
        """Sessions whose sandbox ended so long ago that nobody needs to be told."""
        return [
            key
            for key, slot in self._slots.items()
            if not slot.creating and slot.end_at < now - FORGET_AFTER
        ]

    def forget(self, key: SessionKey) -> None:
        self._slots.pop(key, None)


def expired(kept: float) -> str:
    """What is lost with a sandbox that E2B no longer has when its session comes back."""
    return (
        f"The session's earlier sandbox has ended (one is kept {kept:g} s after its last use, "
        "and may fail before). This is a new one: variables, files and installed packages of the "
        "session are gone."
    )


EXPLAIN_CRASH = (
    "The session's earlier sandbox ended while it was in use (killed, out of memory, or failed). "
    "This is a new one: variables, files and installed packages of the session are gone."
)
EXPLAIN_STUCK = (
    "The session's earlier sandbox stopped answering after a run was cut short, and was ended. "
    "This is a new one: variables, files and installed packages of the session are gone."
)
EXPLAIN_REPLACED = (
    "The session's earlier sandbox had ended and another server replaced it: "
    "earlier variables, files and installed packages of the session are gone."
)

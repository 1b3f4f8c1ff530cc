"""What E2B knows of our sandboxes, and which of them serves which session.

The rule: E2B is the registry. What ties a sandbox to a session is the metadata it was created with,
so any process with the same E2B finds it again.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from e2b_agent_mcp.errors import InvalidArgumentError

SandboxState = Literal["created", "reused", "resumed", "recreated"]

LONGEST_NAME = 200  # characters of a session's name
DUPLICATE_GRACE = 600.0  # seconds; creators that race have agreed long before
RACE = 300.0  # seconds; longer than a creation takes, whatever two servers' clocks say

WARM = "\n"

_TAG = "e2b_agent_mcp"
_SECRET_NAME = re.compile(r"s-[0-9a-f]{32}")  # 128 bits


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


def is_secret(name: str) -> bool:
    """Whether a server made the name for an anonymous caller: it is what gives access."""
    return _SECRET_NAME.fullmatch(name) is not None


def owned_by(owner: str) -> dict[str, str]:
    """The metadata that all of an owner's sandboxes carry."""
    return {_TAG: "1", "owner": owner}


def of_session(key: SessionKey) -> dict[str, str]:
    return {**owned_by(key.owner), "session": key.name}


def made_by(server: str) -> dict[str, str]:
    """The metadata of all that the servers of one user on one machine made, for any owner."""
    return {_TAG: "1", "server": server}


@dataclass(frozen=True)
class Maker:
    """Who creates a sandbox: this process, and whose server it is."""

    instance: str
    server: str

    def made(self, item: "Candidate") -> bool:
        return item.metadata.get("instance", "").startswith(self.instance)


def new_metadata(
    key: SessionKey, *, maker: Maker, generation: int, today: datetime
) -> dict[str, str]:
    """Without a name, of a warm sandbox, whose session is not known yet."""
    return {
        **(of_session(key) if key.name else {**owned_by(key.owner), "warm": "1"}),
        "server": maker.server,
        "instance": maker.instance,
        "generation": str(generation),
        "created": today.isoformat(timespec="seconds"),
    }


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
    def place(self) -> SessionKey:
        """Whose place it takes among those that run: its session's; a warm one that no session has
        takes its own, under a name that no session can have."""
        return self.key if self.session else SessionKey(self.key.owner, WARM + self.sandbox_id)

    @property
    def is_warm(self) -> bool:
        """Made before anybody asked for it; its session is not in its metadata."""
        return "warm" in self.metadata

    @property
    def generation(self) -> int:
        text = self.metadata.get("generation", "")
        return int(text) if text.isdecimal() else 0

    @property
    def created_at(self) -> datetime:
        """`started_at` tells of its last resume on E2B."""
        try:
            return datetime.fromisoformat(self.metadata.get("created", ""))
        except ValueError:
            return self.started_at

    @property
    def serves_since(self) -> datetime:
        """A warm one serves its session since it was claimed."""
        try:
            return datetime.fromisoformat(self.metadata.get("claimed", ""))
        except ValueError:
            return self.created_at

    def age(self, today: datetime) -> float:
        """Seconds since it was created."""
        return max(0.0, (today - self.created_at).total_seconds())


def choose(candidates: Iterable[Candidate]) -> Candidate | None:
    """The one that serves a session that has several: every process chooses the same.

    Of those that were made at about the same time the older wins, because its creator may have
    looked, seen no other, and be using it. (Their generations tell nothing: a process that knew of
    no earlier sandbox counts from one.) A later generation made long after replaced an earlier one.
    """
    found = list(candidates)
    standing = [item for item in found if not any(_replaced(item, by=other) for other in found)]
    return min(standing, key=lambda item: (item.started_at, item.sandbox_id), default=None)


def _replaced(item: Candidate, *, by: Candidate) -> bool:
    later = (by.serves_since - item.serves_since).total_seconds() > RACE
    return later and by.generation > item.generation


def by_session(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """The chosen sandbox of each session, in the order of their names."""
    sessions: dict[SessionKey, list[Candidate]] = {}
    for candidate in candidates:
        sessions.setdefault(candidate.key, []).append(candidate)
    for key in sorted(sessions):
        if (chosen := choose(sessions[key])) is not None:
            yield chosen


def is_stale(item: Candidate, today: datetime, after: float) -> bool:
    """Whether it has been paused for longer than `after`."""
    return item.paused and (today - item.end_at).total_seconds() > after


def superfluous(
    candidates: Iterable[Candidate], today: datetime, *, retention: float, max_age: float = 0
) -> list[Candidate]:
    """The paused sandboxes that nobody will want: a session's own one after `retention` or beyond
    `max_age`, one that lost its session to another after `DUPLICATE_GRACE`.

    Nobody has to judge whether the process that made a sandbox still lives. A running one is
    leased by somebody or ends or pauses at its own timeout, which E2B keeps, so it is left alone; a
    paused one that still is its session's is wanted, by whichever process the session's next call
    comes to.
    """
    found = list(candidates)
    chosen = {candidate.sandbox_id for candidate in by_session(found)}
    return [
        item
        for item in found
        if is_stale(item, today, retention if item.sandbox_id in chosen else DUPLICATE_GRACE)
        or (item.paused and 0 < max_age < item.age(today))
    ]

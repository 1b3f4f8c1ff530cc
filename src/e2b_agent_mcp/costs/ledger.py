"""When sandboxes ran, for whom and at what price: one sqlite file, shared by a user's servers.

The rule: what is kept is an interval, `started_at` to `ends_at`, and what was spent follows from
the time at which it is asked: an interval that is not over is spent up to now. So nothing has to
happen while a sandbox runs, and nothing is owed when its server is killed: `ends_at` is the moment
at which E2B ends or pauses the sandbox unless somebody extends it, and whoever extends it moves
`ends_at`. What a crash could hide is written before it can happen: a creation is an interval,
without a sandbox yet, before E2B is asked.

Several processes report the same sandbox, late or twice; each report may be applied again without
harm. Everything here blocks: call it in a thread.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from e2b_agent_mcp.costs.budget import Month, Spent, month_of
from e2b_agent_mcp.database import open_database
from e2b_agent_mcp.pool import SessionKey

logger = logging.getLogger(__name__)

FILE = "ledger-1.sqlite3"  # the number is the schema's: another schema is another file
KEPT_FOR = 400 * 86_400.0  # seconds
BUSY_TIMEOUT = 2.0  # seconds; another server may be writing

_SCHEMA = """
CREATE TABLE IF NOT EXISTS intervals (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, session TEXT NOT NULL,
    creation TEXT NOT NULL, sandbox_id TEXT, failed INTEGER NOT NULL DEFAULT 0,
    started_at REAL NOT NULL, ends_at REAL NOT NULL, usd_per_second REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_sandbox ON intervals (sandbox_id, id);
CREATE INDEX IF NOT EXISTS by_end ON intervals (ends_at);
CREATE TABLE IF NOT EXISTS models (
    owner TEXT NOT NULL, session TEXT NOT NULL, month TEXT NOT NULL,
    usd REAL NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (month, owner, session)
);
"""

# What an interval has been spent within a month, up to now: the later start to the earlier end.
_SPENT = """
SELECT owner, session, SUM(seconds), SUM(seconds * usd_per_second) FROM (
    SELECT *, MIN(ends_at, :until) - MAX(started_at, :since) AS seconds FROM intervals
    WHERE ends_at > :since AND started_at < :until
) GROUP BY owner, session
"""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A sandbox that runs, as far as somebody knows; times in seconds since the epoch."""

    key: SessionKey
    creation: str
    sandbox_id: str
    started_at: float
    ends_at: float
    usd_per_second: float


class Account(NamedTuple):
    """What one session has spent in a month."""

    key: SessionKey
    spent: Spent


class Ledger:
    """The spending of all owners; opened by the first call that needs it.

    Where its folder cannot be written, it is kept in memory and ends with the process.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._find_folder = folder
        self._database: sqlite3.Connection | None = None
        # Protects the connection: it serves one thread at a time.
        self._turn = threading.RLock()

    def close(self) -> None:
        """A later call opens it again."""
        with self._turn:
            if self._database is not None:
                self._database.close()
                self._database = None

    def write(self, reports: Sequence[Callable[[], None]]) -> None:
        """Makes one transaction of several reports: all are kept, or none."""
        with self._turn, self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            for report in reports:
                report()

    # --- reports --------------------------------------------------------------------------------

    def expect(self, interval: Interval) -> None:
        """A sandbox is about to be asked for; counted as if it ran, until `ran` or `failed`."""
        self._insert(interval, sandbox_id=None)

    def failed(self, key: SessionKey, creation: str, *, certainly: bool) -> None:
        """A creation came to nothing; unless that is certain, a listing has to confirm it."""
        if certainly:
            self._change("DELETE FROM intervals", _UNBORN, (creation, *key))
        else:
            self._change("UPDATE intervals SET failed=1", _UNBORN, (creation, *key))

    def ran(self, interval: Interval) -> None:
        """The sandbox runs: a new one, or one that is known, from its last end on."""
        last = self._last(interval.sandbox_id)
        if last is not None and last["ends_at"] >= interval.started_at:
            self._change(
                "UPDATE intervals SET ends_at=MAX(ends_at, ?), usd_per_second=?",
                "id=?",
                (interval.ends_at, interval.usd_per_second, last["id"]),
            )
            return
        born = self._change(
            "UPDATE intervals SET sandbox_id=?, failed=0, started_at=?, ends_at=?, "
            "usd_per_second=?",
            _UNBORN,
            (
                *(interval.sandbox_id, interval.started_at, interval.ends_at),
                *(interval.usd_per_second, interval.creation, *interval.key),
            ),
        )
        if not born:
            self._insert(interval, sandbox_id=interval.sandbox_id)

    def resumed(self, sandbox_id: str, at: float, ends_at: float) -> None:
        """It runs again, as what it was before."""
        last = self._last(sandbox_id)
        if last is not None:
            self.ran(_changed(last, started_at=at, ends_at=ends_at))

    def seen(self, interval: Interval, now: float) -> None:
        """E2B lists the sandbox as running. One that is not known at all was made by a server that
        could not write it down any more, so E2B's start counts; one that we took for ended was
        resumed or extended elsewhere, and counts here from now on."""
        last = self._last(interval.sandbox_id)
        if last is None:
            self.ran(interval)
            return
        start = last["started_at"] if last["ends_at"] >= now else now
        ends_at, usd = interval.ends_at, interval.usd_per_second
        # Whoever claimed it has it: its metadata cannot say so.
        self.ran(_changed(last, started_at=start, ends_at=ends_at, usd_per_second=usd))

    def connected(self, sandbox_id: str, ends_at: float) -> None:
        """Connecting lengthens a life, or leaves it as it is."""
        self._change("UPDATE intervals SET ends_at=MAX(ends_at, ?)", _LAST, (ends_at, sandbox_id))

    def extended(self, sandbox_id: str, ends_at: float) -> None:
        """E2B counts from the last extension, also when that makes a life shorter."""
        what = "UPDATE intervals SET ends_at=MAX(started_at, ?)"
        self._change(what, _LAST, (ends_at, sandbox_id))

    def ended(self, sandbox_id: str, at: float) -> None:
        """It was killed or paused, or is found to be gone, at that time or before."""
        self._change(
            "UPDATE intervals SET ends_at=MAX(started_at, ?)",
            "sandbox_id=? AND ends_at > ?",
            (at, sandbox_id, at),
        )

    def gone(self, sandbox_id: str, asked_at: float, now: float) -> None:
        """E2B, asked at that time, said that it does not run. Nobody knows since when; what began
        after the question, by a resumption elsewhere, is not meant."""
        self._change(_GONE, f"sandbox_id=? AND {_BEFORE}", (now, sandbox_id, now, asked_at))

    def rest_gone(self, owner: str, listed: Sequence[str], asked_at: float, now: float) -> None:
        """As `gone`, of all the owner's sandboxes that E2B did not list."""
        marks = ", ".join("?" * len(listed))
        self._change(
            _GONE,
            f"owner=? AND {_BEFORE} AND sandbox_id IS NOT NULL AND sandbox_id NOT IN ({marks})",
            (now, owner, now, asked_at, *listed),
        )

    def passed_on(self, sandbox_id: str, key: SessionKey, at: float) -> None:
        """From then on the sandbox runs for another session, or owner."""
        last = self._last(sandbox_id)
        if last is None or last["ends_at"] <= at or (last["owner"], last["session"]) == key:
            return
        self.ended(sandbox_id, at)
        start = max(at, last["started_at"])
        self._insert(_changed(last, key=key, started_at=start), sandbox_id=sandbox_id)

    def listed(self, scope: SessionKey, creations: Sequence[str], asked_before: float) -> None:
        """E2B has listed all sandboxes of the session (of the owner, without a session's name).
        What was asked for before that time and is not among them does not exist."""
        marks = ", ".join("?" * len(creations))
        self._change(
            "DELETE FROM intervals",
            "sandbox_id IS NULL AND owner=? AND ? IN ('', session) "
            f"AND (failed OR started_at < ?) AND creation NOT IN ({marks})",
            (*scope, asked_before, *creations),
        )

    def used_model(self, key: SessionKey, usd: float, tokens: int, now: float) -> None:
        self._open().execute(
            "INSERT INTO models VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "usd=usd+excluded.usd, tokens=tokens+excluded.tokens",
            (*key, month_of(now).name, usd, tokens),
        )

    # --- questions ------------------------------------------------------------------------------

    def accounts(self, month: Month, now: float) -> list[Account]:
        """What every session of every owner has spent in the month, until now."""
        bounds = {"since": month.start, "until": min(month.end, now)}
        with self._turn:
            database = self._open()
            sandboxes = database.execute(_SPENT, bounds).fetchall()
            models = database.execute(
                "SELECT owner, session, usd, tokens FROM models WHERE month=?", (month.name,)
            ).fetchall()
        found: dict[SessionKey, Spent] = {}
        for owner, session, seconds, usd in sandboxes:
            found[SessionKey(owner, session)] = Spent(sandbox_seconds=seconds, sandbox_usd=usd)
        for owner, session, usd, tokens in models:
            key = SessionKey(owner, session)
            found[key] = found.get(key, Spent()) + Spent(model_usd=usd, tokens=tokens)
        return [Account(key, found[key]) for key in sorted(found)]

    # --- the file -------------------------------------------------------------------------------

    def _last(self, sandbox_id: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = (
            self._open()
            .execute(
                "SELECT * FROM intervals WHERE sandbox_id=? ORDER BY id DESC LIMIT 1", (sandbox_id,)
            )
            .fetchone()
        )
        return row

    def _insert(self, interval: Interval, *, sandbox_id: str | None) -> None:
        self._open().execute(
            "INSERT INTO intervals (owner, session, creation, sandbox_id, started_at, ends_at, "
            "usd_per_second) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *interval.key,
                *(interval.creation, sandbox_id, interval.started_at, interval.ends_at),
                interval.usd_per_second,
            ),
        )

    def _change(self, what: str, where: str, values: Sequence[object]) -> int:
        return self._open().execute(f"{what} WHERE {where}", values).rowcount

    @cached_property
    def _folder(self) -> Path:
        return self._find_folder()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._database = _connect(self._folder / FILE)
            except (OSError, sqlite3.Error) as exc:
                if "locked" in str(exc):  # for now, by another server
                    raise
                logger.warning("spending is forgotten with this server: no %s (%s)", FILE, exc)
                self._database = _connect(Path(":memory:"))
        return self._database


_LAST = "id=(SELECT MAX(id) FROM intervals WHERE sandbox_id=?)"
_GONE = "UPDATE intervals SET ends_at=?"
_BEFORE = "ends_at > ? AND started_at <= ?"
# A creation that has no sandbox yet.
_UNBORN = "sandbox_id IS NULL AND creation=? AND owner=? AND session=?"


def _changed(row: sqlite3.Row, **changes: object) -> Interval:
    values = {name: row[name] for name in ("creation", "sandbox_id", "started_at", "ends_at")}
    key = SessionKey(row["owner"], row["session"])
    return Interval(**{"key": key, "usd_per_second": row["usd_per_second"], **values, **changes})


def _connect(path: Path) -> sqlite3.Connection:
    database = open_database(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    database.executescript(_SCHEMA)
    database.execute("DELETE FROM intervals WHERE ends_at < ?", (time.time() - KEPT_FOR,))
    return database

"""Tasks on disk: one sqlite file per state folder, shared by the servers of a user.

Rule: a task belongs to the process that runs it, which holds a lock file for as long as it lives.
A task that is `working` while nobody holds its lock was cut off by the end of its process, and
reads as `interrupted` from then on. Who wants it cancelled from another process leaves a word,
which its own process looks for.

Everything here blocks: `TaskStore` is called in threads, one at a time. Where the folder cannot be
written, tasks are kept in memory and end with the process.
"""

import fcntl
import json
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from e2b_agent_mcp.agent.events import Image, Step
from e2b_agent_mcp.database import open_database
from e2b_agent_mcp.errors import InvalidArgumentError, NotFoundError
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.tasks.record import (
    TaskRecord,
    from_json,
    step_from_json,
    step_to_json,
    to_json,
)

logger = logging.getLogger(__name__)

FILE = "tasks-1.sqlite3"  # the number is the schema's: another schema is another file
MOST_TASKS = 500
KEPT_FOR = 30 * 86_400.0  # seconds after a task's last change
LEAST_KEPT = 86_400.0  # seconds after it, however many tasks there are
MOST_IMAGE_BYTES = 20_000_000  # of one task
BUSY_TIMEOUT = 5.0  # seconds; another server may be writing

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    task_id TEXT PRIMARY KEY, owner TEXT NOT NULL, session TEXT NOT NULL, status TEXT NOT NULL,
    process TEXT NOT NULL, updated_at REAL NOT NULL, record TEXT NOT NULL, memory TEXT,
    session_ended INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_session ON tasks (owner, session, updated_at);
CREATE TABLE IF NOT EXISTS steps (
    task_id TEXT NOT NULL REFERENCES tasks ON DELETE CASCADE, number INTEGER NOT NULL,
    step TEXT NOT NULL, PRIMARY KEY (task_id, number)
);
CREATE TABLE IF NOT EXISTS images (
    task_id TEXT NOT NULL REFERENCES tasks ON DELETE CASCADE, step INTEGER NOT NULL,
    mime_type TEXT NOT NULL, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_task ON images (task_id);
CREATE TABLE IF NOT EXISTS cancels (task_id TEXT PRIMARY KEY REFERENCES tasks ON DELETE CASCADE);
"""


_ASKED = "json_extract(record, '$.asked')"
_MEMORY = "memory, json_extract(record, '$.sandbox_id')"


def still_at_work() -> InvalidArgumentError:
    return InvalidArgumentError(
        "task_id: the task is still at work.",
        hint="Wait for it with get_agent_task, or stop it with cancel_agent_task.",
    )


class Memory(NamedTuple):
    """An agent's conversation and where it took place; empty when there was none. Any: JSON."""

    turns: Sequence[dict[str, Any]] = ()
    sandbox_id: str = ""


class TaskStore:
    """The tasks of all owners; opened by the first call that needs it."""

    def __init__(
        self, folder: Callable[[], Path], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._find_folder = folder
        self._clock = clock
        self._process = uuid.uuid4().hex
        self._database: sqlite3.Connection | None = None
        self._lock: int | None = None

    def close(self) -> None:
        """Ends the claim on this process's tasks; a later call opens the store again."""
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock is not None:
            with suppress(FileNotFoundError):
                self._lock_path(self._process).unlink()
            os.close(self._lock)
            self._lock = None

    def begin(self, record: TaskRecord) -> str:
        """Makes the task this process's, unless another one is at work on the same: then its id.

        Raises `InvalidArgumentError` when another one goes on with the task in another way.
        """
        with self._writing() as database:
            database.execute("BEGIN IMMEDIATE")  # of two processes one is the first
            rows = database.execute(
                f"SELECT task_id, process, {_ASKED} AS asked FROM tasks WHERE status='working' "  # noqa: S608
                f"AND owner=? AND (task_id=? OR (session=? AND {_ASKED}=?))",
                (record.key.owner, record.task_id, record.key.name, record.asked),
            ).fetchall()
            for row in filter(self._is_elsewhere, rows):
                if row["asked"] != record.asked:
                    raise still_at_work()
                return str(row["task_id"])
            database.execute("DELETE FROM cancels WHERE task_id=?", (record.task_id,))
            self._save(database, record)
        return ""

    def save(self, record: TaskRecord) -> None:
        """Writes the task without its steps; it is this process's from now on."""
        with self._writing() as database:
            self._save(database, record)

    def _save(self, database: sqlite3.Connection, record: TaskRecord) -> None:
        database.execute(
            "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, NULL, 0) ON CONFLICT DO UPDATE SET "
            "status=excluded.status, process=excluded.process, "
            "updated_at=excluded.updated_at, record=excluded.record",
            (
                *(record.task_id, *record.key, record.status, self._process),
                *(self._clock(), json.dumps(to_json(record))),
            ),
        )
        self._prune(database)

    def add_steps(self, task_id: str, steps: Sequence[Step], memory: object) -> None:
        """Writes steps that are over, with what the agent needs to go on after them."""
        with self._writing() as database:
            for step in steps:
                self._add_step(database, task_id, step)
            database.execute(
                "UPDATE tasks SET memory=?, updated_at=? WHERE task_id=?",
                (json.dumps(memory) if memory else None, self._clock(), task_id),
            )

    def _add_step(self, database: sqlite3.Connection, task_id: str, step: Step) -> None:
        database.execute(
            "INSERT INTO steps VALUES (?, ?, ?)",
            (task_id, step.number, json.dumps(step_to_json(step))),
        )
        (size,) = database.execute(
            "SELECT COALESCE(SUM(LENGTH(data)), 0) FROM images WHERE task_id=?", (task_id,)
        ).fetchone()
        for image in step.images:
            size += len(image.data)
            if size <= MOST_IMAGE_BYTES:
                row = (task_id, step.number, image.mime_type, image.data)
                database.execute("INSERT INTO images VALUES (?, ?, ?, ?)", row)

    def load(self, owner: str, task_id: str) -> TaskRecord:
        """Raises `NotFoundError` for a task of another owner too."""
        with self._writing() as database:
            row = self._row(database, owner, task_id)
            if row["status"] == "working" and self._has_ended(row["process"]):
                database.execute(
                    "UPDATE tasks SET status='interrupted' WHERE process=? AND status='working'",
                    (row["process"],),
                )
                row = self._row(database, owner, task_id)
            return _record(database, row)

    def is_working(self, task_id: str) -> bool:
        """Whether its process is at work on it; a look costs little, however large the task is."""
        query = "SELECT status, process FROM tasks WHERE task_id=?"
        row = self._open().execute(query, (task_id,)).fetchone()
        return (
            row is not None and row["status"] == "working" and not self._has_ended(row["process"])
        )

    def working(self, key: SessionKey) -> list[str]:
        """Tasks of the session that another process is at work on."""
        if not self._exists:
            return []
        rows = self._open().execute(
            "SELECT task_id, process FROM tasks WHERE owner=? AND session=? AND status='working'",
            key,
        )
        return [row["task_id"] for row in filter(self._is_elsewhere, rows.fetchall())]

    def ask_to_cancel(self, task_id: str) -> None:
        with self._writing() as database:
            database.execute("INSERT OR IGNORE INTO cancels VALUES (?)", (task_id,))

    def to_cancel(self) -> list[str]:
        """This process's tasks that another one wants cancelled; each is named once."""
        query = "SELECT task_id FROM cancels JOIN tasks USING (task_id) WHERE process=?"
        found = [row[0] for row in self._open().execute(query, (self._process,)).fetchall()]
        if found:
            with self._writing() as database:
                database.executemany("DELETE FROM cancels WHERE task_id=?", [(id,) for id in found])
        return found

    def memory(self, task_id: str) -> Memory:
        """What the agent of a task knew after its last step."""
        query = f"SELECT {_MEMORY} FROM tasks WHERE task_id=?"  # noqa: S608  # constants
        return _memory(self._open().execute(query, (task_id,)).fetchone())

    def latest_memory(self, key: SessionKey) -> Memory:
        """Of the last task in the session, unless the session was ended since."""
        query = (
            f"SELECT {_MEMORY} FROM tasks WHERE owner=? AND session=? AND memory IS NOT NULL "  # noqa: S608
            "AND NOT session_ended ORDER BY updated_at DESC LIMIT 1"
        )
        return _memory(self._open().execute(query, key).fetchone())

    def end_session(self, key: SessionKey) -> None:
        """A later session of that name starts without what its tasks knew."""
        if not self._exists:
            return
        with self._writing() as database:
            database.execute("UPDATE tasks SET session_ended=1 WHERE owner=? AND session=?", key)

    def _row(self, database: sqlite3.Connection, owner: str, task_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = database.execute(
            "SELECT * FROM tasks WHERE task_id=? AND owner=?", (task_id, owner)
        ).fetchone()
        if row is None:
            raise NotFoundError(
                f"task_id: there is no task {task_id[:80]!r}.",
                hint="Tasks are kept for 30 days. Start one with run_agent_task.",
            )
        return row

    def _prune(self, database: sqlite3.Connection) -> None:
        database.execute(
            "DELETE FROM tasks WHERE status != 'working' AND (updated_at < ? OR (updated_at < ? "
            "AND task_id NOT IN (SELECT task_id FROM tasks ORDER BY updated_at DESC LIMIT ?)))",
            (self._clock() - KEPT_FOR, self._clock() - LEAST_KEPT, MOST_TASKS),
        )

    # --- the file -------------------------------------------------------------------------------

    @cached_property
    def _folder(self) -> Path:
        return self._find_folder()

    @property
    def _exists(self) -> bool:
        return self._database is not None or (self._folder / FILE).exists()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        database = self._open()
        with database:
            yield database

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._claim()
                self._database = _connect(self._folder / FILE)
            except (OSError, sqlite3.Error) as exc:
                logger.warning("tasks end with this server: %s cannot keep them (%s)", FILE, exc)
                self._database = _connect(Path(":memory:"))
        return self._database

    def _lock_path(self, process: str) -> Path:
        return self._folder / f"{process}.lock"

    def _claim(self) -> None:
        if self._lock is None:
            path = self._lock_path(self._process)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_elsewhere(self, row: sqlite3.Row) -> bool:
        return row["process"] != self._process and not self._has_ended(row["process"])

    def _has_ended(self, process: str) -> bool:
        """Whether nobody holds the lock of that process any more."""
        if process == self._process:
            return False
        path = self._lock_path(process)
        try:
            lock = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            path.unlink(missing_ok=True)
            return True
        finally:
            os.close(lock)


def _connect(path: Path) -> sqlite3.Connection:
    database = open_database(path, timeout=BUSY_TIMEOUT)
    database.execute("PRAGMA foreign_keys=ON")
    database.executescript(_SCHEMA)
    return database


def _record(database: sqlite3.Connection, row: sqlite3.Row) -> TaskRecord:
    record = from_json(
        json.loads(row["record"]),
        task_id=row["task_id"],
        key=SessionKey(row["owner"], row["session"]),
        status=row["status"],
        changed_at=row["updated_at"],
    )
    images: dict[int, list[Image]] = {}
    for number, mime_type, data in database.execute(
        "SELECT step, mime_type, data FROM images WHERE task_id=? ORDER BY rowid", (record.task_id,)
    ):
        images.setdefault(number, []).append(Image(data, mime_type))
    steps = database.execute(
        "SELECT number, step FROM steps WHERE task_id=? ORDER BY number", (record.task_id,)
    )
    return replace(
        record,
        steps=tuple(
            step_from_json(json.loads(step), tuple(images.get(number, ())))
            for number, step in steps
        ),
    )


def _memory(row: sqlite3.Row | None) -> Memory:
    return Memory(json.loads(row[0]), row[1]) if row is not None and row[0] else Memory()

"""SQLite files that the servers of a user share, and nobody else may read."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Literal


def open_database(
    path: Path, *, timeout: float, isolation_level: Literal["DEFERRED"] | None = "DEFERRED"
) -> sqlite3.Connection:
    """`:memory:` is no file. `timeout`: seconds to wait for another server that is writing."""
    if str(path) != ":memory:":
        # A file that is there stays closed: to close it would give up the locks of every
        # connection of this process to it.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    database = sqlite3.connect(
        path, timeout=timeout, check_same_thread=False, isolation_level=isolation_level
    )
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")  # outlives our own end; no wait for the disk
    return database

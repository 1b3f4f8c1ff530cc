"""Who builds when several processes need the same template at once: the first, alone.

The others wait and repeat what the builder reports in a file next to the lock.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from typing import IO

Progress = Callable[[str], None]

LOOK_AGAIN = 0.3  # seconds between two looks at a build of another process


@asynccontextmanager
async def sole_builder(place: Path, on_progress: Progress) -> AsyncIterator[Progress]:
    """Waits for its turn to make `place`; yields what the builder reports progress with."""
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _opened(place.parent / f".{place.name}.lock") as lock:
        seen = 0
        while not _take(lock):
            seen = _repeat(lock, seen, on_progress)
            await anyio.sleep(LOOK_AGAIN)
        _repeat(lock, seen, on_progress)
        lock.truncate(0)

        def report(message: str) -> None:
            lock.write(f"{message}\n")
            lock.flush()
            on_progress(message)

        yield report


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Appending, so that every process can open it and none can spoil what another wrote."""
    with path.open("a+", encoding="utf-8") as lock:
        yield lock


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _repeat(lock: IO[str], seen: int, on_progress: Progress) -> int:
    """Passes on what was written after the first `seen` lines."""
    lock.seek(0)
    lines = lock.read().splitlines()
    for line in lines[seen:]:
        on_progress(line)
    return len(lines)

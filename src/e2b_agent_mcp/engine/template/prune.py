"""Removing what nobody has used for a month: templates of earlier versions, 750 MB each.

Rules:
- Whoever uses a folder holds a shared lock on it and has set its time; a folder that is locked
  or young is never touched, whichever version of this program uses it.
- A folder is moved aside first and then removed, so it is whole or absent to everybody else.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

KEPT = 30 * 86_400  # seconds since the last use
PLACES = ("templates/*", "guest/*/*", "etc/*")  # in the cache folder
REMOVED = ".removed-"


@contextmanager
def in_use(folders: Iterable[Path]) -> Iterator[None]:
    """While open, nobody removes the folders."""
    with ExitStack() as held:
        for folder in folders:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
            os.utime(folder)
        yield


def prune(cache_dir: Path, *, kept: float = KEPT) -> list[Path]:
    """What was removed. May be called by several processes at once."""
    removed = []
    for place in PLACES:
        for left in cache_dir.glob(f"{place[:-1]}{REMOVED}*"):
            shutil.rmtree(left, ignore_errors=True)
        for folder in sorted(cache_dir.glob(place)):
            if not folder.name.startswith(".") and _take_away(folder, kept):
                logger.info("removed %s: unused for %d days", folder, kept // 86_400)
                removed.append(folder)
    return removed


def _take_away(folder: Path, kept: float) -> bool:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Asked with the lock held: who used it meanwhile has set its time.
        if os.fstat(fd).st_mtime > time.time() - kept:
            return False
        aside = tempfile.mkdtemp(prefix=REMOVED, dir=folder.parent)
        folder.rename(aside)
    except OSError:
        return False
    finally:
        os.close(fd)
    shutil.rmtree(aside, ignore_errors=True)
    return True

"""Limits that no kernel keeps here: looked after from outside, for one box.

- Disk: the bytes and files of the home, deleted files that are still open included.
- Memory, where there are no control groups.

Over a limit, processes of the sandbox are killed but its guest lives on, so that its user hears
of it and can delete files. What goes on growing to twice the limit ends with the sandbox.
A home is counted only when its file system has lost space since, or after `LONGEST`: counting
costs a look at each of its files.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread

from .errors import LaunchError
from .isolation.footprint import Footprint, measure_home
from .isolation.limits import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from .isolation import Box, Limits
    from .isolation.box import Launcher
    from .isolation.kills import Reason

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two looks
LONGEST = 20.0  # seconds until a home is counted in any case
PAUSE_FACTOR = 5  # counting takes at most a sixth of the time
SLACK = 0.01  # of a limit; smaller changes of the file system are of no interest
GRACE = 1.05  # of a limit; the kernel stops a single file at the limit itself


class Verdict(NamedTuple):
    """`fatal`: the sandbox has to end."""

    reason: Reason
    fatal: bool


class Ward:
    def __init__(self, box: Box, home: Path, limits: Limits, launcher: Launcher) -> None:
        self._box = box
        self._home = home
        self._limits = limits
        self._launcher = launcher
        self._watches_memory = launcher.cgroups is None or "memory" not in launcher.cgroups
        self._counted_at = -LONGEST
        self._took = 0.0
        self._free = Footprint(0, 0)
        self._punished: Footprint | None = None  # what it had when it was last over a limit

    async def check(self) -> Verdict | None:
        """Kills what has to be killed, and says why; None when all is well."""
        if self._watches_memory and (verdict := await self._check_memory()):
            return verdict
        if self._is_due():
            return await self._check_home()
        return None

    async def _check_memory(self) -> Verdict | None:
        limit = self._limits.memory_mb * MIB
        used = await anyio.to_thread.run_sync(self._box.memory_above, limit)
        if not used:
            return None
        self._note("oom_kill")
        if self._box.opaque:
            return Verdict("oom_kill", fatal=True)
        return Verdict("oom_kill", fatal=not self._box.kill_largest(used, limit))

    def _is_due(self) -> bool:
        since = anyio.current_time() - self._counted_at
        if since >= LONGEST:
            return True
        free = _free(self._home)
        lost = Footprint(self._free.octets - free.octets, self._free.files - free.files)
        return since >= self._took * PAUSE_FACTOR and _exceeds(lost, self._limits, SLACK)

    async def _check_home(self) -> Verdict | None:
        self._counted_at, self._free = anyio.current_time(), _free(self._home)
        most = Footprint(3 * self._limits.disk_mb * MIB, 3 * self._limits.max_files)
        try:
            found = await measure_home(self._home, self._launcher, most)
        except (LaunchError, OSError, ValueError) as exc:
            logger.warning("the disk of %s is not watched: %s", self._box.sandbox_id, exc)
            return None
        self._took = anyio.current_time() - self._counted_at
        hidden = await anyio.to_thread.run_sync(self._box.deleted_bytes, self._home)
        return await self._judge(Footprint(found.octets + hidden, found.files))

    async def _judge(self, found: Footprint) -> Verdict | None:
        if not _exceeds(found, self._limits, GRACE):
            self._punished = None
            return None
        reason: Reason = "disk_kill" if found.octets > self._limits.disk_mb * MIB else "files_kill"
        if self._box.opaque or _exceeds(found, self._limits, 2):
            self._note(reason)
            return Verdict(reason, fatal=True)
        before = self._punished
        if before is not None and not _exceeds(found.beyond(before), self._limits, SLACK):
            return None  # its user may be deleting what is too much
        self._punished = found
        self._note(reason)
        return Verdict(reason, fatal=not await self._box.kill_all_but_guest())

    def _note(self, reason: Reason) -> None:
        if self._box.restraints is not None:
            self._box.restraints.kills.count(reason)


def _exceeds(found: Footprint, limits: Limits, factor: float) -> bool:
    too_large = found.octets > factor * limits.disk_mb * MIB
    return too_large or found.files > factor * limits.max_files


def _free(home: Path) -> Footprint:
    """Of the whole file system."""
    found = os.statvfs(home)
    return Footprint(found.f_bfree * found.f_frsize, found.f_ffree)

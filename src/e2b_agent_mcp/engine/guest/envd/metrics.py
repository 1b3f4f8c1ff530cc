"""What the sandbox uses, as its own processes show it: a box sees no others.

Memory shared between processes counts once for each. The engine measures boxes from outside;
this is for programs that ask envd itself.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
UTIME, STIME, RSS = 11, 12, 21  # fields of /proc/<pid>/stat after the name, see proc(5)


class Metrics:
    """Each reading's CPU share is that since the reading before."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen = (time.monotonic(), self._cpu_seconds())

    def read(self) -> dict[str, float]:
        """The names and units of envd's own `/metrics`."""
        disk = os.statvfs(self._home)
        return {
            "ts": int(time.time()),
            "cpu_count": len(os.sched_getaffinity(0)),
            "cpu_used_pct": round(self._cpu_percent(), 2),
            "mem_total": os.sysconf("SC_PHYS_PAGES") * PAGE,
            "mem_used": sum(fields[RSS] for fields in _processes()) * PAGE,
            "disk_total": disk.f_blocks * disk.f_frsize,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        }

    def _cpu_percent(self) -> float:
        then, seconds_then = self._seen
        self._seen = now, seconds = time.monotonic(), self._cpu_seconds()
        used = max(seconds - seconds_then, 0)  # processes that ended take their share along
        return 100 * used / max(now - then, 1e-6)

    @staticmethod
    def _cpu_seconds() -> float:
        return sum(fields[UTIME] + fields[STIME] for fields in _processes()) / CLOCK_TICKS


def _processes() -> Iterator[list[int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            numbers = stat.read_text().rpartition(")")[2].split()[1:]
            yield [0, *map(int, numbers)]

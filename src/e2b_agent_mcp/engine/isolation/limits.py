"""What one box may use, and which part of it the kernel enforces on this host.

Without a delegated cgroup the kernel counts per process, not per box: `memory_mb` then
bounds the data of each process (RLIMIT_DATA: RLIMIT_AS would also count what V8 or BLAS
merely reserve), and a box of many processes can take a multiple of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MIB = 1024 * 1024

# Since Linux 5.14 RLIMIT_NPROC is counted per user namespace, so that it bounds one box.
# Before, it counts all processes of the host's user and would stop a box at once.
NPROC_PER_NAMESPACE = (5, 14)

# What only few programs use. The same holds for these: else all boxes would share one count.
_COUNTED_BY_USER = {
    "SIGPENDING": 2048,  # signals and timers
    "MSGQUEUE": 128 * 1024,  # bytes of POSIX message queues
    "MEMLOCK": MIB,  # bytes of locked memory
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`disk_mb` bounds each file too; /tmp and /dev/shm have a size of their own, in memory."""

    memory_mb: int = 2048
    cpu_count: int = 2
    disk_mb: int = 4096
    max_files: int = 250_000
    max_processes: int = 512
    tmp_mb: int = 512
    shm_mb: int = 256
    open_files: int = 4096

    def to_json(self, kernel: str) -> str:
        """What `guest.limits.apply_limits` takes; names are those of `resource.RLIMIT_*`."""
        limits = {
            "CORE": 0,
            "NOFILE": self.open_files,
            "FSIZE": self.disk_mb * MIB,
            "DATA": self.memory_mb * MIB,
        }
        if counts_processes_per_box(kernel):
            limits["NPROC"] = self.max_processes
            limits |= _COUNTED_BY_USER
        return json.dumps(limits)


def counts_processes_per_box(kernel: str) -> bool:
    """`kernel` as in `platform.release()`."""
    found = re.match(r"(\d+)\.(\d+)", kernel)
    return found is not None and (int(found[1]), int(found[2])) >= NPROC_PER_NAMESPACE

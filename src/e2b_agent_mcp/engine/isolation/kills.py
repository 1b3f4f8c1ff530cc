"""Why the engine or the kernel killed processes of a box, in words that its user will read.

The guest hears of it through files that only count: one the engine writes, one of the control
group's own. So whoever sees a process die can tell the reason at once, and nobody can be told
one that is not true.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from .cgroups import Cgroup
    from .limits import Limits

Reason = Literal["oom_kill", "disk_kill", "files_kill"]

_WIDTH = 10  # digits; the file never changes its size


def words(limits: Limits) -> dict[Reason, str]:
    return {
        "oom_kill": f"memory limit {limits.memory_mb} MiB",
        "disk_kill": f"disk limit {limits.disk_mb} MiB",
        "files_kill": f"limit of {limits.max_files} files",
    }


class Kills:
    """Counts what the engine has killed. `async with` not needed: `close` frees it."""

    def __init__(self, limits: Limits, cgroup: Cgroup | None) -> None:
        self.words = words(limits)
        self._counts = dict.fromkeys(self.words, 0)
        with ExitStack() as on_error:
            self._file = os.memfd_create("kills", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            on_error.callback(os.close, self._file)
            self._write()
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, seals)
            self.descriptors = [self._file]
            if cgroup is not None and (events := cgroup.memory_events) is not None:
                self.descriptors.append(os.open(events, os.O_RDONLY | os.O_CLOEXEC))
            on_error.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def count(self, reason: Reason) -> None:
        self._counts[reason] += 1
        self._write()

    def to_json(self, descriptors: list[int]) -> str:
        """What the guest is told; `descriptors` are its own."""
        return json.dumps({"descriptors": descriptors, "words": self.words})

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []

    def _write(self) -> None:
        lines = (f"{name} {count:0{_WIDTH}}\n" for name, count in self._counts.items())
        os.pwrite(self._file, "".join(lines).encode(), 0)

"""The processes of a box, read from the host's /proc: to count, to stop, to continue.

They are known by their pid namespace, not by descent: a process that joined the box later
is its process too.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_STANDING_STILL = frozenset("TtZX")  # stopped, traced, zombie, dead

# A process can end between two reads; its files then vanish or answer "no such process".
_Gone = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """`cpu_seconds` includes processes that ended; `memory_bytes` counts shared pages once."""

    cpu_seconds: float
    memory_bytes: int
    processes: int


def namespace_of(pid: int) -> int:
    """Identifies the pid namespace of a process."""
    return (_PROC / str(pid) / "ns/pid").stat().st_ino


def pids_in(namespace: int) -> Iterator[int]:
    for name in os.listdir(_PROC):
        if name.isdecimal():
            with suppress(*_Gone):
                if namespace_of(int(name)) == namespace:
                    yield int(name)


def measure(namespace: int) -> Usage:
    cpu, memory, count = 0.0, 0, 0
    for pid in pids_in(namespace):
        with suppress(*_Gone):
            cpu += _cpu_seconds(pid)
            memory += _memory_bytes(pid)
            count += 1
    return Usage(cpu_seconds=cpu, memory_bytes=memory, processes=count)


def stop_all(namespace: int, init: int, signalled: Collection[int]) -> set[int]:
    """One round of stopping what still runs; an empty answer means that all stands still.

    `signalled` are the processes of earlier rounds: one of them that waits in the kernel (for
    a child between vfork and exec, which may itself be stopped) stops before it runs again.
    `init` only waits for children and is left alone.
    """
    stopped: set[int] = set()
    for pid in pids_in(namespace):
        with suppress(*_Gone):
            state = _stat(pid)[0]
            waits = state == "D" and pid in signalled
            if pid != init and state not in _STANDING_STILL and not waits:
                _send(namespace, pid, signal.SIGSTOP)
                stopped.add(pid)
    return stopped


def continue_all(namespace: int, pids: set[int]) -> None:
    for pid in pids:
        with suppress(*_Gone):
            _send(namespace, pid, signal.SIGCONT)


def _send(namespace: int, pid: int, number: signal.Signals) -> None:
    """Through a pidfd, so that it cannot hit a stranger that got the same pid meanwhile."""
    fd = os.pidfd_open(pid)
    try:
        if namespace_of(pid) == namespace:
            signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before may hold anything."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    """Own time and that of children it has waited for."""
    return sum(map(int, _stat(pid)[11:15])) / _TICKS


def _memory_bytes(pid: int) -> int:
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0

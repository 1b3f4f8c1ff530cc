"""The processes of a box, read from the host's /proc: to count, to stop, to continue.

They are known by their pid namespace, not by descent: a process that joined the box later
is its process too.
"""

from __future__ import annotations

import os
import signal
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
SLACK = 1024 * 1024  # bytes; a box that rests moves less
BLOCK = 512  # bytes, the unit of `st_blocks`
_STANDING_STILL = frozenset("TtZX")  # stopped, traced, zombie, dead

# A process can end between two reads; its files then vanish or answer "no such process".
_Gone = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(kw_only=True)
class Usage:
    """`cpu_seconds` includes processes that ended; `memory_bytes` counts shared pages once,
    `resident_bytes` each time."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    resident_bytes: int = 0
    processes: int = 0


def namespace_of(pid: int) -> int:
    """Identifies the pid namespace of a process. Asked of every process of the host, so without
    `Path`, which takes twice as long as the kernel does."""
    return os.stat(f"{_PROC}/{pid}/ns/pid").st_ino


def pids_in(namespace: int) -> Iterator[int]:
    for name in os.listdir(_PROC):
        if name.isdecimal():
            with suppress(*_Gone):
                if namespace_of(int(name)) == namespace:
                    yield int(name)


def measure(
    namespaces: Collection[int], known: Mapping[int, Usage] | None = None
) -> dict[int, Usage]:
    """What each uses; one look at every process of the host, however many are asked for.

    Telling shared pages apart costs a walk over all of them: where what is resident is as `known`,
    so is that.
    """
    found = {namespace: Usage() for namespace in namespaces}
    pids: dict[int, list[int]] = {namespace: [] for namespace in namespaces}
    for name in filter(str.isdecimal, os.listdir(_PROC)):
        with suppress(*_Gone):
            pid = int(name)
            namespace = namespace_of(pid)
            if (usage := found.get(namespace)) is not None:
                fields = _stat(pid)
                usage.cpu_seconds += sum(map(int, fields[11:15])) / _TICKS  # waited for, too
                usage.resident_bytes += int(fields[21]) * _PAGE
                usage.processes += 1
                pids[namespace].append(pid)
    for namespace, usage in found.items():
        before = (known or {}).get(namespace)
        if before is not None and abs(usage.resident_bytes - before.resident_bytes) <= SLACK:
            # Both, so that many small steps are noticed together.
            usage.resident_bytes, usage.memory_bytes = before.resident_bytes, before.memory_bytes
        else:
            usage.memory_bytes = sum(_each(_memory_bytes, pids[namespace]).values())
    return found


class Round(NamedTuple):
    """`at_rest`: whether none can be running. `met`: every process of the host that there was."""

    at_rest: bool
    met: set[int]


def stop_all(namespace: int, init: int, signalled: set[int], known: Collection[int]) -> Round:
    """One round of stopping what still runs, which is added to `signalled`.

    Those of earlier rounds: one of them that waits in the kernel (for a child between vfork and
    exec, which may itself be stopped) stops before it runs again.
    `known` as in `_round`. `init` only waits for children and is left alone.
    """

    def is_still(pid: int, state: str) -> bool:
        return state in _STANDING_STILL or (state == "D" and pid in signalled)

    def stop(pid: int) -> None:
        _send(namespace, pid, signal.SIGSTOP)
        signalled.add(pid)

    return _round(namespace, known, lambda pid: pid == init, is_still, stop)


def kill_all(namespace: int, own: int, known: Collection[int]) -> Round:
    """One round of killing all but the first `own` processes of a box; `known` as in `_round`."""

    def is_still(pid: int, state: str) -> bool:
        return False

    def kill(pid: int) -> None:
        _send(namespace, pid, signal.SIGKILL)

    return _round(namespace, known, lambda pid: inner_pid(pid) <= own, is_still, kill)


def _round(
    namespace: int,
    known: Collection[int],
    is_spared: Callable[[int], bool],
    is_still: Callable[[int, str], bool],
    strike: Callable[[int], None],
) -> Round:
    """Strikes each process that is neither spared nor, by its state, still.

    `known` is what the round before has met: a process that is new since and has already ended may
    have left a child that is in no list yet.
    """
    met = {int(name) for name in os.listdir(_PROC) if name.isdecimal()}
    at_rest = True
    for pid in sorted(met, reverse=True):  # the newest first: they may be gone in a moment
        try:
            if namespace_of(pid) != namespace or is_spared(pid):
                continue
            state = _stat(pid)[0]
            if state in "ZX":
                at_rest = at_rest and pid in known
            elif not is_still(pid, state):
                at_rest = False
                strike(pid)
        except _Gone:
            at_rest = at_rest and pid in known
    return Round(at_rest, met)


def memory_above(namespace: int, limit: int) -> dict[int, int]:
    """Bytes by pid, if together they are above `limit`; empty otherwise.

    Pages that processes share are told apart only when the quick answer is too much.
    """
    pids = list(pids_in(namespace))
    if sum(_each(_resident_bytes, pids).values()) <= limit:
        return {}
    exact = _each(_memory_bytes, pids)
    return exact if sum(exact.values()) > limit else {}


def kill_largest(namespace: int, own: int, used: Mapping[int, int], limit: int) -> bool:
    """Until what is left is below `limit`; False if that cannot be."""
    total = sum(used.values())
    for pid in sorted(used, key=used.__getitem__, reverse=True):
        if total <= limit:
            break
        with suppress(*_Gone):
            if inner_pid(pid) > own:
                _send(namespace, pid, signal.SIGKILL)
                total -= used[pid]
    return total <= limit


def deleted_bytes(namespace: int, folder: Path) -> int:
    """Of files that have no name any more but are open or mapped; `folder` tells their file
    system. Who may not look at what is mapped knows only how much of a file is."""
    device = folder.stat().st_dev
    found: dict[int, int] = {}
    for pid in pids_in(namespace):
        for look in (_open_deleted, _mapped_deleted):
            with suppress(*_Gone):
                for inode, size in look(_PROC / str(pid), device):
                    found[inode] = max(size, found.get(inode, 0))
    return sum(found.values())


def _open_deleted(process: Path, device: int) -> Iterator[tuple[int, int]]:
    descriptors = process / "fd"
    for fd in os.listdir(descriptors):
        with suppress(*_Gone):
            info = os.stat(f"{descriptors}/{fd}")
            if info.st_nlink == 0 and info.st_dev == device and stat.S_ISREG(info.st_mode):
                yield info.st_ino, info.st_blocks * BLOCK


def _mapped_deleted(process: Path, device: int) -> Iterator[tuple[int, int]]:
    place = f"{os.major(device):02x}:{os.minor(device):02x}"
    for line in (process / "maps").read_bytes().splitlines():
        if line.endswith(b" (deleted)"):
            addresses, _, _, lies, inode, *_ = line.decode(errors="replace").split()
            if lies == place:
                start, end = (int(address, 16) for address in addresses.split("-"))
                try:
                    size = (process / "map_files" / addresses).stat().st_blocks * BLOCK
                except (PermissionError, FileNotFoundError):
                    size = end - start
                yield int(inode), size


def inner_pid(pid: int) -> int:
    """As the box itself counts."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise ProcessLookupError(pid)


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


def _each(measure: Callable[[int], int], pids: Iterable[int]) -> dict[int, int]:
    found = {}
    for pid in pids:
        with suppress(*_Gone):
            found[pid] = measure(pid)
    return found


def _resident_bytes(pid: int) -> int:
    return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE


def _memory_bytes(pid: int) -> int:
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0

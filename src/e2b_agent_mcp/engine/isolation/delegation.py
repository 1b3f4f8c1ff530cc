"""Which control groups this host leaves to the engine, and taking hold of them.

- Version 1: a process of root may make groups below its own.
- Version 2: the engine's own group, if it was delegated and holds no stranger's process; else a
  scope of its own that the user's systemd (or the system's, for root) makes when asked.

`survey` only looks. `claim` changes the host: the groups are there until it is left.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import signal
import subprocess
import time
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from .cgroups import CONTROLLERS, Cgroups, remove_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from .cgroups import Controller

logger = logging.getLogger(__name__)

SCOPE_TIMEOUT = 5.0  # seconds until systemd has moved the engine; usually 20 ms
PREFIX = "e2b-boxes-"
SWEPT_DEPTH = 4  # levels of groups
END_TIMEOUT = 1.0  # seconds for the processes of a group that was left
END_PAUSE = 0.01  # seconds
MAIN = "main"  # with version 2 a group that has groups holds no process itself


@dataclass(frozen=True)
class Delegation:
    """`folders` are the groups below which the engine may make its own."""

    version: int  # 0: none
    folders: Mapping[Controller, Path]
    by_systemd: bool = False
    reason: str = ""  # why there is none

    def describe(self) -> str:
        if not self.version:
            return f"none ({self.reason})"
        how = ", by a scope of systemd's" if self.by_systemd else ""
        missing = [name for name in CONTROLLERS if name not in self.folders]
        lacks = f"; not delegated: {', '.join(missing)}" if missing else ""
        return f"version {self.version}{how}{lacks}"


class _Mount(NamedTuple):
    root: str  # the group that is mounted
    place: Path
    kind: str  # "cgroup" or "cgroup2"
    options: tuple[str, ...]


def survey() -> Delegation:
    """What `claim` is going to try."""
    mounts = list(_mounts(Path("/proc/self/mountinfo").read_text()))
    own = _own_groups()
    old = {
        name: folder
        for name in CONTROLLERS
        for mount in mounts
        if mount.kind == "cgroup" and name in mount.options
        if (folder := _folder(mount, own.get(name))) and _is_ours(folder)
    }
    if old:
        return Delegation(1, old)
    for mount in mounts:
        folder = _folder(mount, own.get("")) if mount.kind == "cgroup2" else None
        if folder is not None:
            return _survey_unified(folder)
    return Delegation(0, {}, reason="no control groups that this user may write")


def _survey_unified(own: Path) -> Delegation:
    if _is_ours(own) and _strangers(own) == set() and (found := _controllers(own)):
        return Delegation(2, dict.fromkeys(found, own))
    manager = _manager()
    if manager is not None and (found := _controllers(manager)):
        return Delegation(2, dict.fromkeys(found, manager), by_systemd=True)
    if not _controllers(own):
        return Delegation(0, {}, reason="no controller is delegated")
    return Delegation(
        0, {}, reason="not delegated: see `systemd-run --user --scope -p Delegate=yes`"
    )


@asynccontextmanager
async def claim(delegation: Delegation) -> AsyncIterator[Cgroups | None]:
    """None, and a line in the log, when the host refuses what it seemed to allow."""
    with ExitStack() as leave:
        try:
            cgroups = await _claim(delegation, leave)
        except (OSError, TimeoutError, subprocess.SubprocessError) as exc:
            logger.warning("no control groups: %s", exc)
            cgroups = None
        yield cgroups


async def _claim(delegation: Delegation, leave: ExitStack) -> Cgroups | None:
    if delegation.version == 1:
        return _claim_old(delegation.folders, leave)
    if delegation.version == 2:
        return await _claim_unified(delegation, leave)
    return None


def _claim_old(folders: Mapping[Controller, Path], leave: ExitStack) -> Cgroups:
    made: dict[Controller, Path] = {}
    name = f"{PREFIX}{secrets.token_hex(6)}"
    for controller, folder in folders.items():
        _sweep(folder)
        made[controller] = folder / name
        leave.callback(remove_folder, made[controller])
        leave.callback(os.close, _make_held(made[controller]))
    return Cgroups(1, made)


def _make_held(group: Path) -> int:
    """The lock says that its engine lives, to whoever looks for groups that were left; before it
    is there, the group may be taken for one of those."""
    while True:
        group.mkdir(exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as on_error:
            fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            on_error.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if group.stat().st_ino == os.fstat(fd).st_ino:
                on_error.pop_all()
                return fd


def _sweep(own: Path) -> None:
    """Ends and removes what engines that were killed have left, in whatever group they were.

    A bubblewrap whose engine dies while it makes a box can wait forever for its parent's word.
    """
    root = own
    while (root.parent / "cgroup.procs").exists():
        root = root.parent
    for depth in range(SWEPT_DEPTH):
        for left in root.glob("*/" * depth + f"{PREFIX}*"):
            with suppress(OSError):  # locked: it is in use; gone: somebody else sweeps
                fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _end(left)
                finally:
                    os.close(fd)


def _end(group: Path) -> None:
    deadline = time.monotonic() + END_TIMEOUT
    while not remove_folder(group) and time.monotonic() < deadline:
        for members in group.rglob("cgroup.procs"):
            for pid in map(int, members.read_text().split()):
                if pid != 0:  # of a pid namespace that is not ours to see
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        time.sleep(END_PAUSE)


async def _claim_unified(delegation: Delegation, leave: ExitStack) -> Cgroups:
    if delegation.by_systemd:
        await _ask_systemd()
        delegation = survey()
        if delegation.version != 2 or delegation.by_systemd:
            raise OSError("systemd made a scope that is not delegated")
    own = next(iter(delegation.folders.values()))
    if (own / "cgroup.type").exists():  # all but the root group
        main = own / MAIN
        main.mkdir(exist_ok=True)
        leave.callback(_vacate, own)
        for pid in _pids(own):
            with suppress(ProcessLookupError):
                (main / "cgroup.procs").write_text(pid)
    enabled = " ".join(f"+{name}" for name in delegation.folders)
    (own / "cgroup.subtree_control").write_text(enabled)
    return Cgroups(2, delegation.folders)


def _vacate(folder: Path) -> None:
    """As it was found; a scope is systemd's to remove."""
    with suppress(OSError):
        names = (folder / "cgroup.subtree_control").read_text().split()
        (folder / "cgroup.subtree_control").write_text(" ".join(f"-{n}" for n in names))
        for pid in _pids(folder / MAIN):
            (folder / "cgroup.procs").write_text(pid)
    remove_folder(folder / MAIN)


async def _ask_systemd() -> None:
    """Moves this very process: what `systemd-run --scope -p Delegate=yes` does before it runs."""
    before = _own_groups()
    user = os.getuid() != 0
    with anyio.fail_after(SCOPE_TIMEOUT):
        await anyio.run_process(
            [
                *("busctl", "--quiet", "--user" if user else "--system", "call"),
                *("org.freedesktop.systemd1", "/org/freedesktop/systemd1"),
                *("org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"),
                *(f"{PREFIX}{os.getpid()}.scope", "fail", "2"),
                *("PIDs", "au", "1", str(os.getpid()), "Delegate", "b", "true", "0"),
            ],
            stderr=subprocess.PIPE,
            env=_bus_environment(),
        )
        while _own_groups() == before:  # noqa: ASYNC110 - the move has no event
            await anyio.sleep(0.01)


def _bus_environment() -> dict[str, str]:
    """An MCP client passes neither variable on to the servers that it starts."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"}


def _manager() -> Path | None:
    """The group of the systemd that could make a scope, if it runs."""
    uid = os.getuid()
    if uid == 0:
        return Path("/sys/fs/cgroup") if Path("/run/systemd/system").is_dir() else None
    manager = Path(f"/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service")
    return manager if Path(f"/run/user/{uid}/systemd").is_dir() else None


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        found = re.match(r"\d+ \d+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)", line)
        if found is not None:
            yield _Mount(found[1], Path(found[2]), found[3], tuple(found[4].split(",")))


def _own_groups() -> dict[str, str]:
    """By controller; "" is that of version 2."""
    groups: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def _folder(mount: _Mount, own: str | None) -> Path | None:
    """Where the own group lies; a container may see only its own part of the tree."""
    if own is None:
        return None
    below = os.path.relpath(own, mount.root)
    return mount.place if below.startswith("..") else mount.place / below


def _is_ours(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def _controllers(folder: Path) -> list[Controller]:
    try:
        found = (folder / "cgroup.controllers").read_text().split()
    except OSError:
        return []
    return [name for name in CONTROLLERS if name in found]


def _pids(folder: Path) -> list[str]:
    return (folder / "cgroup.procs").read_text().split()


def _strangers(folder: Path) -> set[int]:
    """Processes in the group that are neither this one nor started by it."""
    if not (folder / "cgroup.type").exists():
        return set()  # the root group: nobody has to leave it
    pids = {int(pid) for pid in _pids(folder)}
    return {pid for pid in pids if not _descends(pid)}


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return True  # it has ended
    return False

"""Control groups: they make a limit hold for all processes of a box together.

Rules:
- A box's group is made before the box and joined before its first program runs, so nothing in
  the box was ever outside of it. It is removed when the box has ended.
- Groups lie below the engine's own group: what limits the engine limits its boxes too.
- Where a limit was promised but cannot be set, the launch fails.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio

from ..errors import LaunchError
from .limits import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .limits import Limits

logger = logging.getLogger(__name__)

Controller = Literal["memory", "pids", "cpu"]

CONTROLLERS: tuple[Controller, ...] = ("memory", "pids", "cpu")
CPU_PERIOD = 100_000  # microseconds
REMOVAL_TIMEOUT = 5.0  # seconds until the kernel has let go of the last process
REMOVAL_PAUSE = 0.005  # seconds
OWN_PROCESSES = 8  # of bubblewrap and the guest, which do not count as the sandbox's


@dataclass(frozen=True)
class Cgroups:
    """Where groups of boxes can be made: a folder per controller, one for all with version 2."""

    version: Literal[1, 2]
    folders: Mapping[Controller, Path]

    def __contains__(self, controller: Controller) -> bool:
        return controller in self.folders

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Owned by the caller, who removes it. `name` need not be unique."""
        name = f"{name}-{secrets.token_hex(4)}"
        folders = {controller: folder / name for controller, folder in self.folders.items()}
        group = Cgroup(self.version, folders)
        try:
            for folder in group.places:
                folder.mkdir()
            for file, value, needed in _settings(self.version, folders, limits):
                if needed or file.exists():
                    file.write_text(value)
        except OSError as exc:
            group.remove_now()
            raise LaunchError(f"the limits of the sandbox cannot be set: {exc}") from exc
        return group


@dataclass(frozen=True)
class Cgroup:
    """The group of one box."""

    version: Literal[1, 2]
    folders: Mapping[Controller, Path]

    @property
    def places(self) -> list[Path]:
        return list(dict.fromkeys(self.folders.values()))

    def join(self, pid: int) -> None:
        for place in self.places:
            (place / "cgroup.procs").write_text(str(pid))

    @contextmanager
    def doors(self) -> Iterator[list[int]]:
        """Descriptors through which a process joins that cannot see the folders: it writes "0"."""
        with ExitStack() as stack:
            doors = []
            for place in self.places:
                doors.append(os.open(place / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
                stack.callback(os.close, doors[-1])
            yield doors

    @property
    def memory_events(self) -> Path | None:
        """The file whose `oom_kill` line counts processes that the memory limit has killed."""
        folder = self.folders.get("memory")
        if folder is None:
            return None
        return folder / ("memory.events" if self.version == 2 else "memory.oom_control")

    def oom_kills(self) -> int:
        path = self.memory_events
        if path is None:
            return 0
        found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    async def remove(self) -> None:
        """Once its processes have ended; what is left is logged, and removed by a later engine."""
        with anyio.move_on_after(REMOVAL_TIMEOUT):
            while not self.remove_now():  # noqa: ASYNC110 - the kernel tells nobody
                await anyio.sleep(REMOVAL_PAUSE)
            return
        logger.error("could not remove the control group %s", self.places[0])

    def remove_now(self) -> bool:
        left = [place for place in self.places if not remove_folder(place)]
        return not left


def remove_folder(folder: Path) -> bool:
    """Removes a group and those below it, if no process is in them."""
    try:
        for child in folder.iterdir():
            if child.is_dir():
                remove_folder(child)
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _settings(
    version: Literal[1, 2], folders: Mapping[Controller, Path], limits: Limits
) -> Iterator[tuple[Path, str, bool]]:
    """File, value and whether every kernel has it; the order matters to version 1."""
    memory, processes = str(limits.memory_mb * MIB), str(limits.max_processes + OWN_PROCESSES)
    quota = str(limits.cpu_count * CPU_PERIOD)
    if (folder := folders.get("memory")) is not None:
        if version == 2:
            yield folder / "memory.max", memory, True
            yield folder / "memory.swap.max", "0", False
        else:
            yield folder / "memory.limit_in_bytes", memory, True
            yield folder / "memory.memsw.limit_in_bytes", memory, False
    if (folder := folders.get("pids")) is not None:
        yield folder / "pids.max", processes, True
    if (folder := folders.get("cpu")) is not None:
        if version == 2:
            yield folder / "cpu.max", f"{quota} {CPU_PERIOD}", True
        else:
            yield folder / "cpu.cfs_period_us", str(CPU_PERIOD), True
            yield folder / "cpu.cfs_quota_us", quota, True

"""The folders that sandboxes write to, handled from outside: made, measured, copied and removed.

Rule: whatever a sandbox put there, nothing outside of the folder is read, changed or removed.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import anyio

from .errors import LaunchError
from .isolation import Bind, BoxSpec
from .options import make_folder

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from anyio.abc import TaskGroup

    from .host import Host
    from .isolation import Owner
    from .options import EngineOptions

logger = logging.getLogger(__name__)

DISK_TIMEOUT = 5.0  # seconds to count what a home holds
COPY_TIMEOUT = 600.0  # seconds
ERROR_TAIL = 500  # characters
REMOVALS = 4  # at once
REMOVAL_TIMEOUT = 30.0  # seconds at the end of the engine
RETRY_PAUSES = (0.2, 1.0, 5.0)  # seconds
ASIDE = ".removed-"

_SOURCE = "/run/source"  # in the box that copies


def make_home(folder: Path, owner: Owner) -> None:
    make_folder(folder, 0o700)
    owner.take(folder)


async def copy_home(source: Path, target: Path, host: Host) -> None:
    """The content of one home into another, by a program in a box that holds nothing else:
    whatever links and names a sandbox left, and whatever it does meanwhile.

    LaunchError with the reason when not all could be copied.
    """
    template = replace(host.template, binds=(*host.template.binds, Bind(source, _SOURCE)))
    spec = BoxSpec(
        sandbox_id="copy",
        home=target,
        template=template,
        command=("/bin/cp", "-a", "--reflink=auto", f"{_SOURCE}/.", "."),
    )
    with anyio.fail_after(COPY_TIMEOUT):
        async with await host.isolation.launch(spec) as box:
            if await box.wait() != 0:
                raise LaunchError(f"not all files could be copied: {box.log[-ERROR_TAIL:]}")


async def settle(folder: Path) -> None:
    """Until what was written there before is on the disk, with all that its file system holds."""
    await anyio.run_process(["sync", "-f", os.fspath(folder)], check=False)


async def disk_usage(folder: Path, owner: Owner) -> int:
    """Bytes allocated below a folder that a sandbox is writing to, seen with its own rights."""
    other = owner.uid if owner.is_other else None
    with anyio.move_on_after(DISK_TIMEOUT):
        done = await anyio.run_process(
            ["du", "-sx", "--block-size=1", os.fspath(folder)],
            check=False,
            stderr=subprocess.DEVNULL,
            user=other,
            group=other,
            extra_groups=[] if owner.is_other else None,
        )
        return int(done.stdout.split(b"\t")[0] or 0)
    return 0


class Removals:
    """Removes folders while nobody waits: whoever asks finds the place empty at once.

    `async with` it. Leaving waits for what is under way, for a while: what is left then, or by an
    engine that was killed, is for the next one to remove.
    """

    def __init__(self) -> None:
        self._at_once = anyio.CapacityLimiter(REMOVALS)
        self._under_way: set[anyio.CancelScope] = set()
        self._end_at = math.inf
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._end_at = anyio.current_time() + REMOVAL_TIMEOUT
        for scope in self._under_way:
            scope.deadline = self._end_at
        await self._tasks.__aexit__(None, None, None)

    def remove(self, folder: Path) -> None:
        aside = folder.with_name(f"{ASIDE}{secrets.token_hex(8)}")
        try:
            folder.rename(aside)
        except FileNotFoundError:
            return
        except OSError as exc:  # no space even for a name
            logger.warning("%s is removed in its place: %s", folder, exc)
            aside = folder
        self._tasks.start_soon(self._remove, aside)

    async def _remove(self, folder: Path) -> None:
        with anyio.CancelScope(shield=True, deadline=self._end_at) as scope:
            self._under_way.add(scope)
            async with self._at_once:
                await remove_tree(folder)
        self._under_way.remove(scope)
        if scope.cancelled_caught:
            logger.warning("%s is for the next engine to remove", folder)


async def remove_tree(folder: Path) -> None:
    """Any depth, any mode; what a failure leaves is logged, not raised.

    Done by programs, which need few descriptors however deep it is. Again if need be: the boxes of
    an engine that was killed may write until the kernel has ended them, and the host may have no
    process or descriptor left for a moment.
    """
    for pause in (0.0, *RETRY_PAUSES):
        await anyio.sleep(pause)
        try:
            await _try_to_remove(folder)
        except OSError as exc:
            logger.warning("%s is removed later: %s", folder, exc)
        if _is_gone(folder):
            return
    logger.error("could not remove %s", folder)


async def _try_to_remove(folder: Path) -> None:
    for argv in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        if _is_gone(folder):
            return
        await anyio.run_process(
            [*argv, os.fspath(folder)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _is_gone(folder: Path) -> bool:
    return not os.path.lexists(folder)


def wipe_leftovers(options: EngineOptions, kept: Collection[str], removals: Removals) -> None:
    """Removes what an engine that was killed left, but for the homes of these sandboxes.

    Only the lock's holder may call it.
    """
    for path in list(options.homes_dir.iterdir()):
        if path.name not in kept:
            removals.remove(path)
    for path in options.engine_dir.glob("*.sock"):
        path.unlink()
    for path in options.engine_dir.glob("*.net"):
        shutil.rmtree(path)  # no sandbox can write to it

"""The folders that sandboxes write to, handled from outside: made, measured, copied and removed.

Rule: whatever a sandbox put there, nothing outside of the folder is read, changed or removed.
"""

from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from .errors import LaunchError
from .isolation import Bind, BoxSpec
from .options import make_folder

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from .host import Host
    from .isolation import Owner
    from .options import EngineOptions

logger = logging.getLogger(__name__)

DISK_TIMEOUT = 5.0  # seconds to count what a home holds
COPY_TIMEOUT = 600.0  # seconds
ERROR_TAIL = 500  # characters

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


def remove_tree(folder: Path) -> None:
    """Any depth, any mode; what a failure leaves is logged, not raised.

    Done by programs, which need few descriptors however deep it is, and no time of the engine's.
    """
    for argv in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        if not os.path.lexists(folder):
            return
        subprocess.run(
            [*argv, os.fspath(folder)],
            check=False,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    if os.path.lexists(folder):
        logger.error("could not remove %s", folder)


def wipe_leftovers(options: EngineOptions, kept: Collection[str]) -> None:
    """Removes what an engine that was killed left, but for the homes of these sandboxes.

    Only the lock's holder may call it.
    """
    for path in options.homes_dir.iterdir():
        if path.name not in kept:
            remove_tree(path)
    for path in options.engine_dir.glob("*.sock"):
        path.unlink()
    for path in options.engine_dir.glob("*.net"):
        remove_tree(path)

"""What a home holds, counted by a program in a box of its own.

In there it may look into every folder, also one that the sandbox has shut to everybody, and can do
nothing else. It is stopped as soon as more than enough was found: a sandbox can make more files
than anybody wants to count.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..errors import LaunchError
from .bubblewrap import build_counter_arguments

if TYPE_CHECKING:
    from .box import Launcher

BLOCK = 512  # bytes, the unit of `find`
CHUNK = 64 * 1024  # bytes
COUNT_TIMEOUT = 60.0  # seconds
FIND = Path("/usr/bin/find")


class Footprint(NamedTuple):
    octets: int
    files: int

    def beyond(self, other: Footprint) -> Footprint:
        return Footprint(self.octets - other.octets, self.files - other.files)


async def measure_home(home: Path, launcher: Launcher, most: Footprint) -> Footprint:
    """At least `most`, if there is more. LaunchError when it cannot be counted."""
    owner = launcher.owner
    counting = subprocess.Popen(  # noqa: ASYNC220 - it is waited for by its output
        [launcher.bubblewrap, *build_counter_arguments(home, launcher.tree), *_FIND],
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        user=owner.uid if owner.is_other else None,
        group=owner.gid if owner.is_other else None,
        extra_groups=[] if owner.is_other else None,
    )
    with counting:
        assert counting.stdout is not None
        try:
            with anyio.fail_after(COUNT_TIMEOUT):
                found = await _count(counting.stdout.fileno(), most)
        except TimeoutError:
            raise LaunchError("counting its files takes too long") from None
        finally:
            counting.kill()  # bubblewrap's box dies with it, so leaving does not wait for long
    if not found.files:
        raise LaunchError("its files cannot be counted")
    return found


_FIND = (str(FIND), "/home", "-xdev", "-printf", "%b %n %i\\n")


async def _count(lines: int, most: Footprint) -> Footprint:
    """A file with several names counts once."""
    octets, files, rest = 0, 0, b""
    linked: set[bytes] = set()
    while octets <= most.octets and files <= most.files:
        await anyio.wait_readable(lines)
        data = os.read(lines, CHUNK)
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            blocks, names, inode = line.split()
            if int(names) > 1 and not _is_new(inode, linked):
                continue
            octets += int(blocks) * BLOCK
            files += 1
    return Footprint(octets, files)


def _is_new(inode: bytes, seen: set[bytes]) -> bool:
    """Folders have several names too, but each is met once."""
    if inode in seen:
        return False
    seen.add(inode)
    return True

"""Who the processes of a box are on the host: this user, or, for root, nobody else's user.

A box must never run as root of the host, not even inside a user namespace: files that only
root can read would be readable as soon as one is bound.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Not allotted to anyone by the usual conventions: systemd's table calls 65520-65533 unused.
DEDICATED_ID = 65521


@dataclass(frozen=True)
class Owner:
    uid: int
    gid: int
    is_other: bool  # not the user of this process

    def take(self, path: Path) -> None:
        """Gives a folder that this process made to the box's user."""
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_read(self, path: Path) -> bool:
        """Whether a box can be shown `path`; for another user by what everybody may do."""
        if not self.is_other:
            return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
        try:
            return all(_is_open(part) for part in (path, *path.resolve().parents, *path.parents))
        except OSError:
            return False


def box_owner() -> Owner:
    if os.geteuid() == 0:
        return Owner(DEDICATED_ID, DEDICATED_ID, is_other=True)
    return Owner(os.getuid(), os.getgid(), is_other=False)


def _is_open(path: Path) -> bool:
    mode = path.stat().st_mode
    return bool(mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH))

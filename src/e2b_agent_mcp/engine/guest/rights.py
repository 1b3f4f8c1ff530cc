"""What the first process of a box does with its rights, before it gives them up."""

import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

SHARE = 8  # a box gets an eighth of what the kernel counts by host user

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
CAPABILITIES = 64  # numbers that a kernel can know

_HOST = Path("/proc/sys/fs/inotify")
_BOX = Path("/proc/sys/user")
_USERS_OF_THE_HOST = ["0", "0", "4294967295"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def take_share() -> None:
    """All boxes are one user of the host: one that watches all it may leaves others their share."""
    if Path("/proc/self/uid_map").read_text().split() == _USERS_OF_THE_HOST:
        return  # not in a box: this would be everybody's share
    for what in ("instances", "watches"):
        with suppress(OSError):  # gVisor counts for itself, an old bubblewrap gives no right to it
            most = int((_HOST / f"max_user_{what}").read_text())
            (_BOX / f"max_inotify_{what}").write_text(str(max(1, most // SHARE)))


def give_up() -> None:
    """For good, also for all that this process starts."""
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(CAPABILITIES):
        _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # fails from the first unknown number on
    check(_libc.capset(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24)))
    # A process that has changed its rights counts as secret, and could not read its own /proc.
    check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
    check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

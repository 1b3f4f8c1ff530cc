"""How a forked process gets into a box: bubblewrap makes it, one `setns` joins it, and all that
the joining needed is given up again.

The box exists as long as `cat` waits in it for the end of a pipe whose other end the nursery
keeps; that its other processes end with the nursery is the engine's affair.
"""

import ctypes
import json
import os
import select
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from .. import rights

if TYPE_CHECKING:
    from .server import Request

BOX_TIMEOUT = 10_000  # ms until bubblewrap has made a box; usually 10

NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
HOLDER = ("/bin/cat",)

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
INSTRUCTION = 8  # bytes, of a seccomp program

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def enter(request: "Request") -> int:
    """Returns in a process of the new box, with no rights, and what must stay open for its life."""
    given = request.descriptors
    for group in given.groups:
        os.write(group, b"0")  # this very process
        os.close(group)
    program = os.pread(given.seccomp, 1 << 20, 0)
    hold, init = _make_box(request)
    init_fd = os.pidfd_open(init)
    rights.check(_libc.setns(init_fd, _differing_namespaces(init)))
    child = os.fork()  # only a child is in another pid namespace
    if child != 0:
        with socket.socket(fileno=given.reply) as reply:
            socket.send_fds(reply, [b"box"], [init_fd, os.pidfd_open(child)])
        os._exit(0)
    os.setsid()
    rights.take_share()  # joining a user namespace gives all of its capabilities
    rights.give_up()
    _filter_calls(program)
    return hold


def _make_box(request: "Request") -> tuple[int, int]:
    """The end of a pipe that keeps the box, and the pid of its init."""
    given = request.descriptors
    input_end, hold = os.pipe()
    output, output_end = os.pipe()
    info, info_end = os.pipe()
    os.set_inheritable(info_end, True)
    os.set_inheritable(given.seccomp, True)
    bubblewrap = os.posix_spawn(
        request.bubblewrap[0],
        [*request.bubblewrap, "--seccomp", str(given.seccomp), "--info-fd", str(info_end), *HOLDER],
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, input_end, 0),
            (os.POSIX_SPAWN_DUP2, output_end, 1),
            (os.POSIX_SPAWN_DUP2, given.log, 2),
        ],
    )
    for fd in (input_end, output_end, info_end):
        os.close(fd)
    os.write(hold, b"\n")
    if _read(output) != b"\n":  # what `cat` repeats: everything is mounted by then
        raise OSError("bubblewrap made no box")
    init: int = json.loads(_read(info))["child-pid"]
    if _parent_of(init) != bubblewrap:
        raise OSError("the box has ended")
    return hold, init


def _read(pipe: int) -> bytes:
    ready, _, _ = select.select([pipe], [], [], BOX_TIMEOUT / 1000)
    return os.read(pipe, 4096) if ready else b""


def _parent_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


def _differing_namespaces(pid: int) -> int:
    """As flags; joining one that is already ours would need rights that we do not have."""
    flags = 0
    for name, flag in NAMESPACES.items():
        if os.stat(f"/proc/self/ns/{name}").st_ino != os.stat(f"/proc/{pid}/ns/{name}").st_ino:
            flags |= flag
    return flags


def _filter_calls(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("@HP", len(program) // INSTRUCTION, ctypes.addressof(buffer))
    described = ctypes.create_string_buffer(filters, len(filters))
    rights.check(
        _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(described), 0, 0)
    )

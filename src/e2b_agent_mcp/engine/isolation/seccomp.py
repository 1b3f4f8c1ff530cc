"""The system calls that a box may not make, as a BPF program for the kernel.

A denylist: what a Python program has no use for but an escape has (other namespaces, mounts,
tracing, keyrings, io_uring, BPF, …) answers EPERM. What is newer than this file answers
ENOSYS, as on an older kernel, and so does clone3, whose flags lie in memory where a filter
cannot look. A call of a foreign architecture, whose numbers mean other things, kills.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# ---------------------------------------------------------------- the kernel's constants

LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS: accumulator = 32 bits of seccomp_data
IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

ALLOW = 0x7FFF0000
KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS
DENY = 0x00050000 | errno.EPERM
NO_SUCH_CALL = 0x00050000 | errno.ENOSYS

NUMBER = 0  # offsets in struct seccomp_data, little endian
ARCHITECTURE = 4


def _argument(index: int) -> int:
    """The lower half of an argument; the kernel takes all that we compare as 32 bits."""
    return 16 + 8 * index


X32_BIT = 0x40000000

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0  # the one netlink protocol that libc uses (names of interfaces)

TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # type into the terminal, paste into the console

# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
CLONE_NAMESPACES = 0x7E020000

NEWEST_KNOWN = 469  # file_setattr, Linux 6.17; the same number on both architectures

# ---------------------------------------------------------------- what is denied

# From 424 on, numbers are common to all architectures.
_COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "set_mempolicy_home_node": 450,
    "statmount": 457,
    "listmount": 458,
    "lsm_set_self_attr": 460,
    "open_tree_attr": 467,
}

_X86_64 = {
    "ptrace": 101,
    "syslog": 103,
    "uselib": 134,
    "ustat": 136,
    "sysfs": 139,
    "vhangup": 153,
    "modify_ldt": 154,
    "pivot_root": 155,
    "_sysctl": 156,
    "adjtimex": 159,
    "chroot": 161,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "sethostname": 170,
    "setdomainname": 171,
    "iopl": 172,
    "ioperm": 173,
    "create_module": 174,
    "init_module": 175,
    "delete_module": 176,
    "get_kernel_syms": 177,
    "query_module": 178,
    "quotactl": 179,
    "nfsservctl": 180,
    "lookup_dcookie": 212,
    "clock_settime": 227,
    "mbind": 237,
    "set_mempolicy": 238,
    "get_mempolicy": 239,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "migrate_pages": 256,
    "unshare": 272,
    "move_pages": 279,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "fanotify_mark": 301,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "clock_adjtime": 305,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
}

_AARCH64 = {
    "lookup_dcookie": 18,
    "umount2": 39,
    "mount": 40,
    "pivot_root": 41,
    "nfsservctl": 42,
    "chroot": 51,
    "vhangup": 58,
    "quotactl": 60,
    "acct": 89,
    "unshare": 97,
    "kexec_load": 104,
    "init_module": 105,
    "delete_module": 106,
    "clock_settime": 112,
    "syslog": 116,
    "ptrace": 117,
    "reboot": 142,
    "sethostname": 161,
    "setdomainname": 162,
    "settimeofday": 170,
    "adjtimex": 171,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "swapon": 224,
    "swapoff": 225,
    "mbind": 235,
    "get_mempolicy": 236,
    "set_mempolicy": 237,
    "migrate_pages": 238,
    "move_pages": 239,
    "perf_event_open": 241,
    "fanotify_init": 262,
    "fanotify_mark": 263,
    "name_to_handle_at": 264,
    "open_by_handle_at": 265,
    "clock_adjtime": 266,
    "setns": 268,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "kcmp": 272,
    "finit_module": 273,
    "bpf": 280,
    "userfaultfd": 282,
    "kexec_file_load": 294,
}

CLONE3: Final = 435


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`denied` by name, so that a reader can check it; the rest need a look at arguments."""

    audit_arch: int
    denied: Mapping[str, int]
    clone: int
    ioctl: int
    socket: int
    personality: int
    has_x32: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "x86_64": Architecture(
        audit_arch=0xC000003E,
        denied={**_X86_64, **_COMMON},
        clone=56,
        ioctl=16,
        socket=41,
        personality=135,
        has_x32=True,
    ),
    "aarch64": Architecture(
        audit_arch=0xC00000B7,
        denied={**_AARCH64, **_COMMON},
        clone=220,
        ioctl=29,
        socket=198,
        personality=92,
    ),
}

# ---------------------------------------------------------------- the program


def build_filter(machine: str) -> bytes:
    """The program for `platform.machine()`; KeyError for one that is not known."""
    arch = ARCHITECTURES[machine]
    return b"".join(_instructions(arch))


def _instructions(arch: Architecture) -> Iterable[bytes]:
    yield _load(ARCHITECTURE)
    yield _jump(IF_EQUAL, arch.audit_arch, yes=1)
    yield _return(KILL)
    yield _load(NUMBER)
    if arch.has_x32:
        yield from _when(IF_AT_LEAST, X32_BIT, KILL)
    yield from _when(IF_GREATER, NEWEST_KNOWN, NO_SUCH_CALL)
    yield from _when(IF_EQUAL, CLONE3, NO_SUCH_CALL)
    for number in sorted(arch.denied.values()):
        yield from _when(IF_EQUAL, number, DENY)
    yield from _for_call(
        arch.clone, [_load(_argument(0)), *_when(IF_ANY_BIT, CLONE_NAMESPACES, DENY)]
    )
    yield from _for_call(arch.ioctl, _terminal_input())
    yield from _for_call(arch.socket, _socket_families())
    yield from _for_call(arch.personality, _personalities())
    yield _return(ALLOW)


def _terminal_input() -> list[bytes]:
    return [
        _load(_argument(1)),
        *_when(IF_EQUAL, TIOCSTI, DENY),
        *_when(IF_EQUAL, TIOCLINUX, DENY),
    ]


def _socket_families() -> list[bytes]:
    """Not vsock, for one: it reaches the hypervisor from any network namespace."""
    families = (AF_UNIX, AF_INET, AF_INET6)
    return [
        _load(_argument(0)),
        *(part for family in families for part in _when(IF_EQUAL, family, ALLOW)),
        _jump(IF_EQUAL, AF_NETLINK, yes=1),
        _return(DENY),
        _load(_argument(2)),
        *_when(IF_EQUAL, NETLINK_ROUTE, ALLOW),
        _return(DENY),
    ]


def _personalities() -> list[bytes]:
    """Linux as it is, 32-bit `uname`, and the question which one is set."""
    return [
        _load(_argument(0)),
        *(part for value in (0, 8, 0xFFFFFFFF) for part in _when(IF_EQUAL, value, ALLOW)),
        _return(DENY),
    ]


# ---------------------------------------------------------------- the assembler


def _instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _load(offset: int) -> bytes:
    return _instruction(LOAD, 0, 0, offset)


def _return(action: int) -> bytes:
    return _instruction(RETURN, 0, 0, action)


def _jump(condition: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """Skips `yes` or `no` instructions, up to 255."""
    return _instruction(condition, yes, no, value)


def _when(condition: int, value: int, action: int) -> list[bytes]:
    return [_jump(condition, value, no=1), _return(action)]


def _for_call(number: int, body: list[bytes]) -> list[bytes]:
    """`body` may load arguments: it always ends the program, by ALLOW if by nothing else."""
    return [_jump(IF_EQUAL, number, no=len(body) + 1), *body, _return(ALLOW)]

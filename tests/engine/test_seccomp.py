"""The system call filter, run by an interpreter of the few instructions it is made of."""

from __future__ import annotations

import errno
import struct

import pytest

from e2b_agent_mcp.engine.isolation.seccomp import (
    ALLOW,
    ARCHITECTURES,
    DENY,
    IF_ANY_BIT,
    IF_AT_LEAST,
    IF_EQUAL,
    IF_GREATER,
    KILL,
    LOAD,
    NEWEST_KNOWN,
    NO_SUCH_CALL,
    RETURN,
    build_filter,
)

LONGEST = 4096  # instructions that the kernel takes
CONDITIONS = {
    IF_EQUAL: lambda a, k: a == k,
    IF_GREATER: lambda a, k: a > k,
    IF_AT_LEAST: lambda a, k: a >= k,
    IF_ANY_BIT: lambda a, k: a & k != 0,
}

machines = pytest.mark.parametrize("machine", sorted(ARCHITECTURES))


def run(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the kernel would do with a call."""
    words = (*arguments, *[0] * (6 - len(arguments)))
    arch = ARCHITECTURES[machine].audit_arch if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, *words)
    program = list(struct.iter_unpack("<HBBI", build_filter(machine)))
    accumulator = at = 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == RETURN:
            return value
        if code == LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
        else:
            at += yes if CONDITIONS[code](accumulator, value) else no


@machines
def test_the_program_is_one_the_kernel_takes(machine: str) -> None:
    program = list(struct.iter_unpack("<HBBI", build_filter(machine)))

    assert len(program) < LONGEST
    assert program[-1] == (RETURN, 0, 0, ALLOW)
    for at, (code, yes, no, _) in enumerate(program):
        assert code in {LOAD, RETURN, *CONDITIONS}
        assert at + 1 + max(yes, no) < len(program) or code == RETURN


@machines
def test_what_programs_need_is_allowed(machine: str) -> None:
    read, write = {"x86_64": (0, 1), "aarch64": (63, 64)}[machine]
    arch = ARCHITECTURES[machine]

    assert run(machine, read) == run(machine, write) == ALLOW
    assert run(machine, arch.clone, 0x3D0F00) == ALLOW  # a thread
    assert run(machine, arch.clone, 17) == ALLOW  # fork: SIGCHLD
    assert run(machine, arch.ioctl, 0, 0x5401) == ALLOW  # isatty
    assert run(machine, arch.personality, 0xFFFFFFFF) == ALLOW
    assert run(machine, 424) == run(machine, 434) == ALLOW  # pidfds


@machines
def test_each_denied_call_is_denied(machine: str) -> None:
    for name, number in ARCHITECTURES[machine].denied.items():
        assert run(machine, number) == DENY, name


@machines
def test_no_number_is_denied_under_two_names(machine: str) -> None:
    arch = ARCHITECTURES[machine]
    numbers = list(arch.denied.values())

    assert len(set(numbers)) == len(numbers)
    assert not {arch.clone, arch.ioctl, arch.socket, arch.personality} & set(numbers)


@machines
@pytest.mark.parametrize("flag", [1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)])
def test_clone_makes_no_namespace(machine: str, flag: int) -> None:
    assert run(machine, ARCHITECTURES[machine].clone, flag | 17) == DENY


@machines
def test_what_this_file_does_not_know_does_not_exist(machine: str) -> None:
    assert run(machine, 435) == NO_SUCH_CALL == 0x50000 | errno.ENOSYS
    assert run(machine, NEWEST_KNOWN + 1) == NO_SUCH_CALL


@machines
def test_a_foreign_architecture_kills(machine: str) -> None:
    assert run(machine, 0, arch=0x40000003) == KILL  # i386


def test_the_x32_numbers_of_x86_64_kill() -> None:
    assert run("x86_64", 0x40000000) == KILL
    assert run("x86_64", 0xFFFFFFFF) == KILL


@machines
@pytest.mark.parametrize(
    ("family", "protocol", "answer"),
    [
        pytest.param(1, 0, ALLOW, id="unix"),
        pytest.param(2, 6, ALLOW, id="inet"),
        pytest.param(10, 6, ALLOW, id="inet6"),
        pytest.param(16, 0, ALLOW, id="netlink route"),
        pytest.param(16, 12, DENY, id="netlink netfilter"),
        pytest.param(17, 0, DENY, id="packet"),
        pytest.param(38, 0, DENY, id="alg"),
        pytest.param(40, 0, DENY, id="vsock"),
    ],
)
def test_only_some_socket_families_exist(
    machine: str, family: int, protocol: int, answer: int
) -> None:
    assert run(machine, ARCHITECTURES[machine].socket, family, 1, protocol) == answer


@machines
@pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x1_0000_5412])
def test_nobody_types_into_a_terminal(machine: str, request_: int) -> None:
    """The kernel takes the request as 32 bits, so the upper half must not hide it."""
    assert run(machine, ARCHITECTURES[machine].ioctl, 0, request_) == DENY


def test_another_machine_has_no_filter() -> None:
    with pytest.raises(KeyError):
        build_filter("riscv64")

"""What hostile code tries from inside a box, of both kinds: each attack fails by a protection that
`test_isolation.py` does not already take apart.
"""

from __future__ import annotations

import os
import socket
import subprocess
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from boxes import Boxes, gone, is_alive, pids_of, said
from e2b_agent_mcp.engine.errors import LaunchError
from e2b_agent_mcp.engine.isolation import Limits
from e2b_agent_mcp.engine.isolation.box import FREEZE_TIMEOUT
from e2b_agent_mcp.engine.isolation.processes import inner_pid, pids_in

if TYPE_CHECKING:
    from pathlib import Path

    from e2b_code_interpreter import E2B, AsyncSandbox

    from e2b_agent_mcp.engine import EngineAddress, EngineOptions
    from e2b_agent_mcp.engine.isolation import Box

TRY = """
import errno, os, sys
def attempt(action):
    try:
        return action()
    except OSError as exc:
        return errno.errorcode[exc.errno]
"""


async def attempt(boxes: Boxes, action: str) -> str:
    """What came of an expression, evaluated in a box."""
    return await boxes.run(f"{TRY}print(attempt(lambda: {action}))")


# ---------------------------------------------------------------- files of the host


FILE_ATTACKS = {
    "hard link to a system file": "os.link('/usr/bin/env', 'stolen')",
    "hard link to the guest": "os.link('/opt/e2b/boot.py', 'stolen')",
    "moving the guest away": "os.rename('/opt/e2b', '/tmp/e2b')",
    "appending to a program": "open('/usr/bin/env', 'ab')",
    "changing the guest": "open('/opt/e2b/boot.py', 'r+')",
    "core pattern": "open('/proc/sys/kernel/core_pattern', 'w')",
    "next pid": "os.write(os.open('/proc/sys/kernel/ns_last_pid', 1), b'9')",
    "sysrq": "open('/proc/sysrq-trigger', 'w')",
    "kernel memory": "open('/proc/kcore', 'rb')",
    "kernel log": "open('/proc/kmsg', 'rb').read(1)",
    "making a disk": "os.mknod('disk', 0o60666, os.makedev(254, 0))",
    "making /dev/mem": "os.mknod('mem', 0o20666, os.makedev(1, 1))",
    "chroot": "os.chroot('/tmp')",
    "becoming root by a file": "os.chown('.', 0, 0)",
    "becoming root by a group": "os.setgroups([0])",
}


async def test_attacks_on_files_are_refused(boxes: Boxes) -> None:
    attempts = "".join(f"    {n!r}: attempt(lambda: {a}),\n" for n, a in FILE_ATTACKS.items())
    came = eval(await boxes.run(f"{TRY}print({{\n{attempts}}})"))

    refused = {"EROFS", "EACCES", "EPERM", "EXDEV", "ENOENT", "EINVAL"}
    assert came.keys() == FILE_ATTACKS.keys()
    assert {name: answer for name, answer in came.items() if answer not in refused} == {}


async def test_the_interpreter_cannot_be_overwritten_through_proc(boxes: Boxes) -> None:
    """CVE-2019-5736: the running program is a file of the host."""
    said = await boxes.run(f"""{TRY}
fd = os.open("/proc/self/exe", os.O_RDONLY)
paths = [f"/proc/self/fd/{{fd}}", "/proc/self/exe", *(f"/proc/{{p}}/exe" for p in (1, 2, 3))]
print({{attempt(lambda: os.open(path, os.O_WRONLY)) for path in paths}})
""")

    assert eval(said) <= {"EROFS", "EACCES", "ENOENT"}  # EACCES: the file is another user's


async def test_no_way_leads_out_of_the_root(boxes: Boxes, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("x")
    said = await boxes.run(f"""{TRY}
way = {str(canary)!r}
starts = ["/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/proc/self/cwd", "/..", "/home/user"]
starts += [f"/proc/1/fd/{{n}}" for n in range(20)] + [f"/proc/2/fd/{{n}}" for n in range(20)]
up = "/.." * 30
os.symlink(way, "link")
print([s for s in starts if os.path.exists(s + up + way)], os.path.exists("link"))
""")

    assert said == "[] False"


async def test_all_that_is_mounted_is_read_only_but_what_is_the_boxs_own(boxes: Boxes) -> None:
    """Also what the rights of its files would protect: they may be the box's user's."""
    said = await boxes.run("""
        for line in open("/proc/self/mountinfo"):
            fields = line.split()
            if "ro" not in fields[5].split(","):
                print(fields[4])
    """)

    own = {"/home/user", "/tmp", "/dev/shm", "/dev/pts", "/proc"}
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    assert set(said.splitlines()) <= own | devices | {"/dev/console"}


async def test_devices_are_the_harmless_ones(boxes: Boxes) -> None:
    said = await boxes.run("""
        import os
        print(*sorted(os.listdir("/dev")))
    """)

    harmless = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm"}
    harmless |= {"stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert set(said.split()) <= harmless


# ---------------------------------------------------------------- processes of the host


async def test_signals_end_at_the_box(boxes: Boxes) -> None:
    """Neither by the number that a process has on the host nor by all that there is."""
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        try:
            code = f"""{TRY}
import signal
pids = [{bystander.pid}, {os.getpid()}, -{bystander.pid}]
print([attempt(lambda: os.kill(pid, signal.SIGKILL)) for pid in pids], flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("sent", attempt(lambda: os.kill(-1, signal.SIGTERM)), flush=True)
sys.stdin.read()
"""
            async with boxes.open(code) as box:
                with anyio.fail_after(20):
                    while "sent" not in box.log and not box.ended:  # it may end its own box
                        await anyio.sleep(0.01)
                assert box.log.startswith("['ESRCH', 'ESRCH', 'ESRCH']")
            assert bystander.poll() is None
        finally:
            bystander.kill()


async def test_a_box_that_kills_its_own_init_ends_alone(boxes: Boxes) -> None:
    async with boxes.open("import sys\nprint('up', flush=True)\nsys.stdin.read()") as neighbour:
        await said(neighbour, "up")
        code = (
            "import os, time\nprint('up', flush=True)\nos.kill(1, 9)\nos.kill(2, 9)\ntime.sleep(9)"
        )
        async with boxes.open(code) as box:
            with anyio.fail_after(20):
                while box.log.strip() != "up":
                    await anyio.sleep(0.01)  # what a box prints comes without an event
        assert not neighbour.ended
        assert is_alive(neighbour.pid)


# ---------------------------------------------------------------- the kernel

SYSTEM_CALLS = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *words) < 0 else "done"
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
async def test_a_system_call_that_can_lead_out_is_refused(boxes: Boxes) -> None:
    """The ones that `test_isolation.py` does not name; in one box, as there are many."""
    calls = {
        "umount2": "166, b'/tmp', 2",
        "pivot_root": "155, b'/tmp', b'/tmp'",
        "move_mount": "429, -1, b'', -1, b'/tmp', 4",
        "mount_setattr": "442, -100, b'/', 0, 0, 0",
        "add_key": "248, b'user', b'x', b'y', 1, -3",
        "request_key": "249, b'user', b'x', 0, -3",
        "io_uring_enter": "426, 0, 0, 0, 0, 0, 0",
        "io_uring_register": "427, 0, 0, 0, 0",
        "process_vm_writev": "311, 1, 0, 0, 0, 0, 0",
        "pidfd_getfd": "438, 0, 0, 0",
        "kcmp": "312, 1, 1, 0, 0, 0",
        "open_by_handle_at": "304, -100, 0, 0",
        "name_to_handle_at": "303, -100, b'/', 0, 0, 0",
        "unshare(NEWNS)": "272, 0x20000",
        "unshare(NEWNET)": "272, 0x40000000",
        "unshare(NEWPID)": "272, 0x20000000",
        "kexec_load": "246, 0, 0, 0, 0",
        "init_module": "175, 0, 0, b''",
        "swapon": "167, b'/tmp/x', 0",
        "acct": "163, b'/tmp/x'",
        "syslog": "103, 3, 0, 0",
        "fanotify_init": "300, 0, 0",
        "quotactl": "179, 0, 0, 0, 0",
        "settimeofday": "164, 0, 0",
        "sethostname": "170, b'x', 1",
        "reboot": "169, 0xfee1dead, 672274793, 0x1234567, 0",
        "memfd_secret": "447, 0",
    }
    lines = "".join(f"print({name!r}, call({what}))\n" for name, what in calls.items())
    said = await boxes.run(SYSTEM_CALLS + lines)

    answers = dict(line.rsplit(" ", 1) for line in said.splitlines())
    assert answers == dict.fromkeys(calls, "EPERM")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86_64")
async def test_calls_of_the_32_bit_kernel_interface_kill(boxes: Boxes) -> None:
    """Their numbers mean other calls: 26, ptrace here, is msync there."""
    said = await boxes.run("""
        import ctypes, mmap, os
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        if (child := os.fork()) == 0:
            ctypes.CFUNCTYPE(ctypes.c_int)(address)()
            os._exit(0)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]))
    """)

    assert said == "31"  # SIGSYS


async def test_only_sockets_of_the_box_itself_can_be_made(boxes: Boxes) -> None:
    families = ["AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_TIPC"]
    action = f"[attempt(lambda: socket.socket(getattr(socket, f), 1)) for f in {families}]"
    said = await boxes.run(f"{TRY}import socket\nprint({action})")

    assert eval(said) == ["EPERM"] * len(families)


async def test_a_raw_socket_is_refused(boxes: Boxes) -> None:
    assert await attempt(boxes, "__import__('socket').socket(2, 3, 1)") == "EPERM"


# ---------------------------------------------------------------- descriptors


async def test_no_descriptor_in_a_sandbox_leads_to_the_host(sandbox: AsyncSandbox) -> None:
    """Of guest, nursery and kernel: no folder, no file of the host, nothing of the zygote."""
    run = await sandbox.run_code("""
import os, stat
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    for fd in os.listdir(f"/proc/{pid}/fd") if os.access(f"/proc/{pid}/fd", os.R_OK) else []:
        try:
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            mode = os.stat(f"/proc/{pid}/fd/{fd}").st_mode
        except OSError:
            continue
        own = path.startswith(("/dev/", "/tmp/", "/home/user", "/proc/")) or ":" in path
        if not own or (stat.S_ISDIR(mode) and not path.startswith("/proc/")):
            found.append((pid, path))
found
""")

    allowed = {"/memfd:kills (deleted)", "/memory.events", "/memory.oom_control"}
    found = eval(run.text or "None")
    assert all(any(path.endswith(name) for name in allowed) for _, path in found), found


async def test_what_counts_the_kills_cannot_be_written_from_a_box(sandbox: AsyncSandbox) -> None:
    """The group's own file; the other is the engine's to lose, and of a fixed size."""
    run = await sandbox.run_code("""
import glob, os
answers = set()
for path in glob.glob("/proc/[0-9]*/fd/*"):
    try:
        name = os.readlink(path)
    except OSError:
        continue
    if "memory." in name:
        for flags in (os.O_WRONLY, os.O_RDWR):
            try:
                os.close(os.open(path, flags))
                answers.add("opened")
            except OSError as exc:
                answers.add(type(exc).__name__)
    if "memfd:kills" in name:
        try:
            os.truncate(path, 1 << 30)
            answers.add("grown")
        except OSError as exc:
            answers.add(type(exc).__name__)
sorted(answers)
""")

    assert run.error is None
    assert eval(run.text or "") == ["PermissionError"]


# ---------------------------------------------------------------- other sandboxes and the engine


async def test_sandboxes_see_nothing_of_each_other(e2b: E2B) -> None:
    mine = await e2b.AsyncSandbox.create(timeout=120)
    other = await e2b.AsyncSandbox.create(timeout=120)
    try:
        await mine.run_code("""
import os, socket, subprocess
for folder in ("/home/user", "/tmp", "/dev/shm"):
    open(f"{folder}/canary", "w").write("x")
tcp = socket.create_server(("0.0.0.0", 8765))
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0canary"); abstract.listen()
sleeper = subprocess.Popen(["sleep", "4321"])
""")
        run = await other.run_code("""
import glob, os, socket
seen = [p for p in ("/home/user/canary", "/tmp/canary", "/dev/shm/canary") if os.path.exists(p)]
for family, address in ((socket.AF_INET, ("127.0.0.1", 8765)), (socket.AF_UNIX, "\\0canary")):
    try:
        socket.socket(family).connect(address)
        seen.append(address)
    except OSError:
        pass
for path in glob.glob("/proc/[0-9]*/cmdline"):
    if b"4321" in open(path, "rb").read():
        seen.append(path)
seen += [name for name in os.listdir("/run") if name not in ("egress",)]
seen
""")
        assert run.text == "[]"
    finally:
        await mine.kill()
        await other.kill()


async def test_the_engine_itself_is_out_of_reach(
    sandbox: AsyncSandbox, engine: EngineAddress, engine_options: EngineOptions
) -> None:
    """Neither its port, directly or through the proxy, nor a socket of another sandbox."""
    port = int(engine.api_url.rpartition(":")[2])
    sockets = str(engine_options.engine_dir)
    run = await sandbox.run_code(f"""
import glob, os, socket
answers = []
for host in ("127.0.0.1", "0.0.0.0", "::1"):
    try:
        socket.create_connection((host, {port}), timeout=5).close()
        answers.append(host)
    except OSError:
        pass
hosts = "127.0.0.1 localhost [::1] 0.0.0.0 2130706433 0x7f.1 [::ffff:7f00:1] 169.254.169.254"
hosts += " 10.0.0.1 192.168.0.1 100.64.0.1 [fd00::1] [fe80::1]"
for host in hosts.split():
    health = f"GET http://{{host}}:{port}/health"
    for way in (f"CONNECT {{host}}:{port}", health, f"CONNECT {{host}}:80"):
        proxy = socket.socket(socket.AF_UNIX)
        proxy.connect("/run/egress/proxy.sock")
        proxy.sendall(f"{{way}} HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n".encode())
        answer = proxy.recv(100).decode()
        if answer.split()[1][0] == "2":
            answers.append(way)
answers += glob.glob({sockets!r}) + glob.glob("/run/*")
answers
""")

    assert run.error is None, run.error
    assert eval(run.text or "") == ["/run/egress"]


# ---------------------------------------------------------------- bombs


async def test_a_fork_bomb_ends_with_its_box(boxes: Boxes) -> None:
    code = """
        import os, time
        print("up", flush=True)
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
    """
    async with boxes.open(code, limits=Limits(max_processes=60)) as box:
        await said(box, "up")
        with anyio.fail_after(30):
            while len(pids_of(box)) < 50:
                await anyio.sleep(0.05)  # nobody tells when a bomb is full
        pids = pids_of(box)
        assert len(pids) <= 70
        box.kill()
        await gone(pids)


# Each process lives for a moment only: whoever looks at them sees others than there are.
MOVING = """
    import os, signal, time
    for number in range(1, 65):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_IGN)
    def fork():
        while True:
            try:
                return os.fork()
            except OSError:  # too many, for a moment
                pass
    for _ in range(20):
        if fork() == 0:
            os.setsid()
            while True:
                try:
                    if os.fork():
                        os._exit(0)
                    os.posix_spawn("/bin/true", ["true"], {})
                except OSError:
                    pass
    print("up", flush=True)
    time.sleep(1000)
"""


async def test_processes_that_never_stay_stand_still_in_a_pause_and_end_with_a_kill(
    boxes: Boxes,
) -> None:
    async with boxes.open(MOVING, limits=Limits(max_processes=60)) as box:
        await said(box, "up")
        rests = 0
        for _ in range(3):
            with anyio.fail_after(FREEZE_TIMEOUT + 5), suppress(LaunchError):  # it may be refused
                await box.freeze()
                before = pids_of(box)
                await anyio.sleep(0.2)  # in which they would move
                assert pids_of(box) <= before  # what has ended may be reaped
                rests += 1
            box.thaw()
        assert rests
        namespace = box.namespace
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.freeze)
            await anyio.lowlevel.checkpoint()
            box.kill()
        with anyio.fail_after(10):
            while list(pids_in(namespace)):
                await anyio.sleep(0.01)  # the kernel tells nobody


def inner_pids(box: Box) -> set[int]:
    found = set()
    for pid in pids_of(box):
        with suppress(ProcessLookupError, FileNotFoundError):  # it has just been reaped
            found.add(inner_pid(pid))
    return found


async def test_processes_that_never_stay_are_all_killed_while_their_guest_lives_on(
    boxes: Boxes,
) -> None:
    for _ in range(3):
        async with boxes.open(MOVING, limits=Limits(max_processes=60)) as box:
            await said(box, "up")
            with anyio.fail_after(2 * FREEZE_TIMEOUT):
                while not await box.kill_all_but_guest():
                    pass  # it may be refused
            with anyio.fail_after(10):
                while not inner_pids(box) <= set(range(1, box._own + 1)):
                    await anyio.sleep(0.01)  # the dead are still to be reaped
            assert not box.ended


async def test_nothing_stays_alive_after_the_deadline(e2b: E2B) -> None:
    """Double forks in sessions of their own, ignored signals, and always in the middle of a
    fork or an exec."""
    sandbox = await e2b.AsyncSandbox.create(timeout=60)
    await sandbox.files.write("moving.py", textwrap.dedent(MOVING))
    up = anyio.Event()
    await sandbox.commands.run(
        "python3 moving.py", background=True, timeout=0, on_stdout=lambda _: up.set()
    )
    with anyio.fail_after(20):
        await up.wait()
    inside = await sandbox.commands.run("readlink /proc/self/ns/pid")
    namespace = int(inside.stdout.strip().strip("pid:[]"))
    assert list(pids_in(namespace))
    await sandbox.set_timeout(1)
    with anyio.fail_after(20):
        while list(pids_in(namespace)):
            await anyio.sleep(0.05)  # the kernel tells nobody


async def test_a_bomb_of_threads_stops_at_the_limit_of_processes(boxes: Boxes) -> None:
    said = await boxes.run(
        """
        import threading, time
        started = 0
        try:
            while started < 300:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                started += 1
        except RuntimeError:
            pass
        print(started, flush=True)
        import os
        os._exit(0)
        """,
        limits=Limits(max_processes=50),
    )

    assert 30 <= int(said) < 50


async def test_open_files_stop_at_their_limit(boxes: Boxes) -> None:
    said = await boxes.run(
        """
        import os, resource
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        except (OSError, ValueError) as exc:
            print(type(exc).__name__)
        fds = []
        try:
            while len(fds) < 1000:
                fds.append(os.dup(0))
        except OSError as exc:
            print(exc.errno, len(fds) < 200)
        """,
        limits=Limits(open_files=200),
    )

    assert said.splitlines() == ["ValueError", "24 True"]


async def test_a_listening_socket_of_the_host_is_not_in_a_box(boxes: Boxes) -> None:
    """By name in /proc/net, which shows the box's own network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f"{server.getsockname()[1]:04X}"
        said = await boxes.run(f"print({port!r} in open('/proc/net/tcp').read())")

    assert said == "False"

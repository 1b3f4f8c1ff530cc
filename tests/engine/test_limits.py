"""What a sandbox may use, as a whole: bombs of every kind stop at their limit, and say so."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from e2b import SandboxException
from e2b_code_interpreter import CommandExitException

from boxes import Boxes, said
from conftest import Connector, client, running_engine, temporary_options
from e2b_agent_mcp.engine.isolation import Isolation, Limits
from e2b_agent_mcp.engine.isolation.cgroups import CONTROLLERS, Cgroups, remove_folder
from e2b_agent_mcp.engine.isolation.delegation import _folder, _mounts, _sweep, claim, survey
from e2b_agent_mcp.engine.isolation.footprint import Footprint, measure_home
from e2b_agent_mcp.engine.ward import Ward
from e2b_agent_mcp.errors import SandboxLostError
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import Settings
from rounds import rounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from e2b_code_interpreter import E2B, AsyncSandbox

    from e2b_agent_mcp.engine import EngineAddress, EngineOptions
    from e2b_agent_mcp.engine.isolation import Box
    from e2b_agent_mcp.engine.isolation.cgroups import Cgroup
    from e2b_agent_mcp.engine.template import Template

needs_memory = pytest.mark.skipif(
    "memory" not in survey().folders, reason=f"control groups: {survey().describe()}"
)
long = pytest.mark.skipif(rounds(few=0, many=1) == 0, reason="with LONG_TESTS=1")
needs_cpu = pytest.mark.skipif(
    "cpu" not in survey().folders, reason=f"control groups: {survey().describe()}"
)


@pytest.fixture(scope="module")
def options() -> Iterator[EngineOptions]:
    """Of an engine whose sandboxes may use little."""
    with temporary_options(memory_mb=400, disk_mb=64, max_files=2000, max_processes=64) as options:
        yield options


@pytest.fixture(scope="module")
def small_engine(options: EngineOptions) -> Iterator[EngineAddress]:
    """Started with as few descriptors as programs have on most hosts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        with running_engine(options) as address:
            yield address
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def small(small_engine: EngineAddress) -> E2B:
    return client(small_engine)


@pytest.fixture
async def little(small: E2B) -> AsyncIterator[AsyncSandbox]:
    sandbox = await small.AsyncSandbox.create(timeout=300)
    yield sandbox
    await sandbox.kill()


# ---------------------------------------------------------------- memory


# Shared memory counts against no limit of a process, only against that of the whole box.
SHARED = """
import mmap, os, signal
def take(mib):
    memory = mmap.mmap(-1, mib << 20)
    for page in range(0, mib << 20, 4096):
        memory[page] = 1
    return memory
"""


@needs_memory
async def test_the_memory_of_many_processes_counts_together(boxes: Boxes) -> None:
    ends = await boxes.run(
        SHARED
        + """
ready, go = os.pipe(), os.pipe()
children = []
for _ in range(8):
    if (child := os.fork()) == 0:
        open("/proc/self/oom_score_adj", "w").write("1000")
        held = take(50)
        os.write(ready[1], b"x")
        signal.pause()
    children.append(child)
ends = []
while len(ends) < 3:
    child, status = os.wait()
    children.remove(child)
    ends.append(os.WTERMSIG(status))
for child in children:
    os.kill(child, signal.SIGKILL)
print(ends)
""",
        limits=Limits(memory_mb=256),
    )

    assert ends == "[9, 9, 9]"  # of 8 * 50 MiB, at least three had to go


@needs_memory
async def test_memory_filesystems_count_as_memory(boxes: Boxes) -> None:
    """Else /tmp and /dev/shm would be had on top."""
    said = await boxes.run(
        '''
import os, subprocess
fill = """
open('/proc/self/oom_score_adj', 'w').write('1000')
for path in ('/tmp/f', '/dev/shm/f'):
    with open(path, 'wb') as f:
        for _ in range(90):
            f.write(bytes(1 << 20))
"""
print(subprocess.run([sys.executable, "-I", "-S", "-c", fill]).returncode)
''',
        limits=Limits(memory_mb=128),
    )

    assert said == "-9"


@needs_memory
async def test_code_over_the_memory_limit_is_told_so(little: AsyncSandbox) -> None:
    run = await little.run_code(SHARED + "held = take(600)")

    assert run.error is not None
    assert "killed: memory limit 400 MiB" in run.error.value
    assert (await little.run_code("1 + 1")).text == "2"


@needs_memory
async def test_a_command_over_the_memory_limit_is_told_so(little: AsyncSandbox) -> None:
    await little.files.write("bomb.py", SHARED + "held = take(600)")
    process = await little.commands.run("exec python bomb.py", background=True)
    with pytest.raises(CommandExitException) as ended:
        await process.wait()

    assert ended.value.error == "signal: killed: memory limit 400 MiB"


async def test_a_kernel_that_kills_itself_is_no_matter_of_limits(little: AsyncSandbox) -> None:
    run = await little.run_code("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert run.error is not None
    assert "was killed by code in the sandbox" in run.error.value
    assert "limit" not in run.error.value


# ---------------------------------------------------------------- processor time


@needs_cpu
async def test_a_box_gets_the_processors_that_it_may_have(boxes: Boxes) -> None:
    code = """
        import os
        for _ in range(3):
            os.fork()
        print("spinning", flush=True)
        while True:
            pass
    """
    async with boxes.open(code, limits=Limits(cpu_count=1)) as box:
        await said(box, "spinning")
        before, start = box.usage().cpu_seconds, anyio.current_time()
        await anyio.sleep(1.5)  # time in which eight processes would use more than one processor
        used, passed = box.usage().cpu_seconds - before, anyio.current_time() - start

    assert used < 1.3 * passed


# ---------------------------------------------------------------- control groups


def group_of(box: Box) -> Cgroup:
    assert box.restraints is not None
    assert box.restraints.cgroup is not None
    return box.restraints.cgroup


@needs_memory
async def test_every_process_of_a_box_is_in_its_group(boxes: Boxes) -> None:
    """Seen from the host, where a process that had joined late would still be elsewhere."""
    async with boxes.open("import time; print('ready', flush=True); time.sleep(1000)") as box:
        await said(box, "ready")
        group = group_of(box)
        members = [set(map(int, (p / "cgroup.procs").read_text().split())) for p in group.places]
        init = {box.pid}
        guests = {int(pid) for pid in _children(box.pid)}

    assert all(init | guests <= found for found in members)
    assert not any(place.exists() for place in group.places)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@needs_memory
async def test_a_box_cannot_leave_its_group(boxes: Boxes) -> None:
    said = await boxes.run("""
        import glob, os
        print(glob.glob("/sys/fs/cgroup/*"), [m for m in open("/proc/mounts") if "cgroup" in m])
        print({line.split(":")[2].strip() for line in open("/proc/self/cgroup")} - {"/"} and "seen")
    """)

    assert said.splitlines()[0] == "[] []"


@needs_memory
@pytest.mark.skipif(survey().version != 1, reason="those of version 2 are systemd's to remove")
async def test_groups_of_an_engine_that_was_killed_are_removed() -> None:
    """Wherever it ran; those of an engine that lives are not."""
    own = survey().folders["memory"]
    root = next(p for p in own.parents if not (p.parent / "cgroup.procs").exists())
    elsewhere = root / f"e2b-test-{secrets.token_hex(4)}"
    left = [own / "e2b-boxes-x", elsewhere / "e2b-boxes-x"]
    try:
        for folder in left:
            (folder / "box").mkdir(parents=True)
        with subprocess.Popen(["sleep", "1000"]) as orphan:
            (left[1] / "box/cgroup.procs").write_text(str(orphan.pid))
            async with claim(survey()):
                assert orphan.wait(10) == -signal.SIGKILL
        async with claim(survey()) as living, claim(survey()) as cgroups:
            assert not any(folder.exists() for folder in left)
            assert living is not None
            assert cgroups is not None
            assert living.folders["memory"].exists()
            mine = cgroups.folders["memory"]
        assert not mine.exists()
    finally:
        for folder in (*left, elsewhere):
            remove_folder(folder)


@needs_memory
@pytest.mark.skipif(survey().version != 1, reason="those of version 2 are systemd's to remove")
async def test_engines_that_start_at_once_do_not_remove_each_others_groups() -> None:
    """Between the making of a group and its lock, it looks like one that was left."""
    own, ended = survey().folders["memory"], threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            _sweep(own)

    with ThreadPoolExecutor() as others:
        others.submit(sweep)
        try:
            for _ in range(rounds(few=40, many=2000)):
                async with claim(survey()) as cgroups:
                    assert cgroups is not None
                    assert all(folder.exists() for folder in cgroups.folders.values())
        finally:
            ended.set()


@pytest.mark.parametrize(
    ("mountinfo", "own", "expected"),
    [
        pytest.param(
            "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
            "/a/b",
            "/sys/fs/cgroup/memory/a/b",
            id="version 1",
        ),
        pytest.param(
            "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            "/user.slice/x.scope",
            "/sys/fs/cgroup/user.slice/x.scope",
            id="version 2",
        ),
        pytest.param(
            "30 24 0:26 /docker/1f /sys/fs/cgroup ro,nosuid - cgroup cgroup rw,memory",
            "/docker/1f",
            "/sys/fs/cgroup",
            id="a container that sees its own part alone",
        ),
        pytest.param(
            "30 24 0:26 /docker/1f /sys/fs/cgroup ro,nosuid - cgroup cgroup rw,memory",
            "/docker/2e",
            "/sys/fs/cgroup",
            id="a container that sees another part",
        ),
    ],
)
def test_the_own_group_is_found_where_it_is_mounted(
    mountinfo: str, own: str, expected: str
) -> None:
    [mount] = _mounts(mountinfo)
    assert _folder(mount, own) == Path(expected)


def test_what_version_2_is_told(tmp_path: Path) -> None:
    """This machine may have version 1 alone: the names and values, not what the kernel does."""
    cgroups = Cgroups(2, dict.fromkeys(CONTROLLERS, tmp_path))
    limits = Limits(memory_mb=512, cpu_count=2, max_processes=100)
    group = cgroups.create("box", limits)

    [place] = group.places
    told = {path.name: path.read_text() for path in place.iterdir()}
    assert told == {"memory.max": "536870912", "pids.max": "108", "cpu.max": "200000 100000"}
    (place / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n")
    assert group.oom_kills() == 1


# ---------------------------------------------------------------- disk


async def test_code_that_fills_the_disk_is_stopped_and_told_so(little: AsyncSandbox) -> None:
    run = await little.run_code("""
import time
for number in range(9):
    with open(f"f{number}", "wb") as f:
        f.write(bytes(8 << 20))
time.sleep(60)
""")

    assert run.error is not None
    assert "killed: disk limit 64 MiB" in run.error.value
    freed = await little.run_code(
        "import glob, os; print(len([os.remove(f) for f in glob.glob('f?')]))"
    )
    assert freed.logs.stdout == ["9\n"]


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(
            "open(f'{time.time()}', 'wb').write(bytes(4 << 20))", id="many files", marks=long
        ),
        pytest.param(
            "kept.append(open('f', 'wb', 0)); os.unlink('f'); kept[-1].write(bytes(4 << 20))",
            id="deleted files",
        ),
        pytest.param(
            "d = f'd{time.time()}'; os.mkdir(d); os.chdir(d); os.chmod('.', 0o300); "
            "open('f', 'wb').write(bytes(4 << 20))",
            id="folders that nobody may list",
        ),
        pytest.param(
            "[open(f'{time.time_ns()}', 'w').close() for _ in range(120)]", id="empty files"
        ),
        pytest.param(
            "[os.mkdir(f'{time.time_ns()}') for _ in range(120)]", id="folders", marks=long
        ),
    ],
)
async def test_a_sandbox_that_goes_on_filling_the_disk_ends(
    small: E2B, options: EngineOptions, attack: str
) -> None:
    """The attack ignores that its processes are killed: each cell starts it anew."""
    sandbox = await small.AsyncSandbox.create(timeout=300)
    code = f"import os, time\nkept = []\nfor n in range(40):\n    {attack}\ntime.sleep(60)"
    with anyio.fail_after(60), pytest.raises(SandboxException, match=r"was (not found|killed)"):
        await _repeat(lambda: sandbox.run_code(code))
    with pytest.raises(SandboxException, match=r"killed: (disk limit 64 MiB|limit of 2000 files)"):
        await sandbox.files.list("/")
    with anyio.fail_after(60):
        while (options.homes_dir / sandbox.sandbox_id).exists():
            await anyio.sleep(0.05)  # removing what it left has no event for others


async def test_a_session_that_lost_its_sandbox_to_a_limit_is_told_which(
    small_engine: EngineAddress,
) -> None:
    settings, key = Settings(), SessionKey("test_limits", "analysis")
    code = "open('f', 'wb').write(bytes(60 << 20)); open('g', 'wb').write(bytes(60 << 20)); "
    code += "open('h', 'wb').write(bytes(60 << 20))\nimport time; time.sleep(60)"
    async with SandboxManager(settings, connect=Connector(small_engine)) as manager:
        with pytest.raises(SandboxLostError, match=r"\(killed: disk limit 64 MiB\)"):
            async with manager.lease(key) as lease:
                await _repeat(lambda: lease.run_code(code, timeout=60))
        async with manager.lease(key) as lease:
            assert "ended while it was in use (killed: disk limit 64 MiB)" in lease.lost
        await manager.end_session(key)


async def _repeat(attack: Callable[[], Awaitable[object]]) -> None:
    while True:
        await attack()


async def test_a_home_is_counted_whole_and_nothing_else(isolation: Isolation, home: Path) -> None:
    """Links lead nowhere and count once, shut folders are opened, and counting ends when enough
    was found."""
    (home / "shut").mkdir()
    (home / "shut/f").write_bytes(bytes(1 << 20))
    os.link(home / "shut/f", home / "again")
    (home / "out").symlink_to("/usr")
    for number in range(100):
        (home / f"name\n{number} 99999999 1 1").touch()
    for path in (home / "shut", *home.iterdir()):
        os.chown(path, isolation.owner.uid, isolation.owner.gid, follow_symlinks=False)
    (home / "shut").chmod(0)

    found = await measure_home(home, isolation.launcher, Footprint(1 << 40, 1 << 20))
    assert found.files == 1 + 1 + 1 + 1 + 100  # the home itself, folder, file, link, empty files
    assert 1 << 20 <= found.octets < 2 << 20
    some = await measure_home(home, isolation.launcher, Footprint(1 << 40, 10))
    assert some.files > 10


async def test_what_deleted_files_hold_is_counted(started: Boxes) -> None:
    """Open, or only mapped, and then the whole file however little of it is mapped."""
    async with started.open("""
        import ctypes, os, sys
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        def write(name):
            fd = os.open(name, os.O_RDWR | os.O_CREAT)
            os.write(fd, bytes(1 << 20))
            os.unlink(name)
            return fd
        opened = write("opened")
        mapped = write("mapped")
        libc.mmap(None, ctypes.c_size_t(4096), 1, 2, mapped, ctypes.c_long(0))
        os.close(mapped)
        print("ready", flush=True)
        sys.stdin.read()
    """) as box:
        await said(box, "ready")
        hidden = box.deleted_bytes(started.home)

    assert 2 << 20 <= hidden < 3 << 20


async def test_one_file_stops_at_the_limit_and_nothing_is_killed(little: AsyncSandbox) -> None:
    run = await little.run_code("open('f', 'wb').write(bytes(65 << 20))")

    assert run.error is not None
    assert run.error.name == "OSError"
    assert "File too large" in run.error.value


# ---------------------------------------------------------------- descriptors


async def test_descriptors_that_a_sandbox_sends_to_nobody_cost_others_no_fork(small: E2B) -> None:
    """The kernel counts what lies in the queues of sockets by user, and all boxes are one user's:
    the zygote could answer nobody."""

    async def is_forked() -> bool:
        async with await small.AsyncSandbox.create(timeout=300) as sandbox:
            first = await sandbox.commands.run("cat /proc/2/cmdline")
            return first.stdout.startswith("/bin/cat")

    with anyio.fail_after(60):
        while not await is_forked():
            pass  # the zygote is not ready yet
    hostile = await small.AsyncSandbox.create(timeout=300)
    run = await hostile.run_code("""
import os, socket
kept, sent = [], 0
try:
    while sent < 8000:
        kept.append(socket.socketpair())
        for _ in range(20):
            socket.send_fds(kept[-1][0], [b"x"], [1] * 250)
            sent += 250
except OSError:
    pass
sent
""")
    assert int(run.text or 0) > 1024
    assert all([await is_forked() for _ in range(4)])
    await hostile.kill()


# ---------------------------------------------------------------- what is counted by host user


HOARD = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)

def most(take):
    taken = 0
    while take() >= 0:
        taken += 1
    return taken

def watch_folders():
    return most(lambda: libc.inotify_init1(0))

def watch_files():
    os.mkdir("many")
    notes, made = libc.inotify_init1(0), iter(range(10**6))
    def another():
        open(path := f"many/{next(made)}", "w").close()
        added = libc.inotify_add_watch(notes, path.encode(), 2)
        os.unlink(path) if added < 0 else None
        return added
    return most(another)

def queue_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    return most(lambda: libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None))

def open_queues():
    class Attributes(ctypes.Structure):
        _fields_ = [("words", ctypes.c_long * 8)]
    sized = Attributes((ctypes.c_long * 8)(0, 10, 1024))
    made = iter(range(10**6))
    return most(
        lambda: libc.mq_open(f"/q{next(made)}".encode(), os.O_CREAT | os.O_RDWR, 0o600,
                             ctypes.byref(sized))
    )

def lock_memory():
    import mmap
    def lock():
        page = mmap.mmap(-1, 1 << 16)
        kept.append(page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(1 << 16))
    kept = []
    return most(lock)

print(globals()[sys.argv[1]]())
"""


@pytest.fixture(params=["forked", "started"])
async def pair(
    request: pytest.FixtureRequest, small: E2B, e2b: E2B
) -> AsyncIterator[tuple[AsyncSandbox, AsyncSandbox]]:
    if request.param == "forked":
        async with await e2b.AsyncSandbox.create() as one, await e2b.AsyncSandbox.create() as other:
            yield one, other
        return
    with temporary_options(zygote=False) as options, running_engine(options) as address:
        create = client(address).AsyncSandbox.create
        async with await create(timeout=300) as one, await create(timeout=300) as other:
            yield one, other


async def test_a_sandbox_that_takes_all_it_may_leaves_others_theirs(
    pair: tuple[AsyncSandbox, AsyncSandbox],
) -> None:
    """The kernel counts these by host user, and all boxes are one."""
    hostile, other = pair
    instances, watches = (
        int(Path(f"/proc/sys/fs/inotify/max_user_{what}").read_text())
        for what in ("instances", "watches")
    )
    bounds = {
        "watch_folders": instances // 8,
        "queue_signals": 2048,
        "open_queues": 128 // 11,
        "lock_memory": 16,
    }
    if watches < 400_000:
        bounds["watch_files"] = watches // 8
    await hostile.files.write("hoard.py", HOARD)
    for attack, bound in bounds.items():
        run = await hostile.commands.run(f"python3 hoard.py {attack}", timeout=120)
        assert bound // 2 < int(run.stdout) <= bound, attack

    watcher = await other.files.watch_dir(".", lambda _: None)
    await watcher.stop()


# ---------------------------------------------------------------- without control groups


@pytest.fixture
def bare(isolation: Isolation) -> Isolation:
    return replace(isolation, launcher=replace(isolation.launcher, cgroups=None))


async def test_without_control_groups_a_memory_bomb_of_many_processes_is_stopped(
    bare: Isolation, template: Template, home: Path
) -> None:
    code = (
        SHARED
        + """
import time
children = []
for _ in range(8):
    if (child := os.fork()) == 0:
        held = take(50)
        time.sleep(1000)
    children.append(child)
ended = [os.WTERMSIG(os.wait()[1]) for _ in range(3)]
print("ended", ended, flush=True)
time.sleep(1000)
"""
    )
    limits = Limits(memory_mb=256)
    async with Boxes(bare, template, home).open(code, limits=limits) as box:
        ward = Ward(box, home, limits, bare.launcher)
        with anyio.fail_after(60):
            while "ended" not in box.log or box.usage().memory_bytes > 256 << 20:
                await ward.check()
                await anyio.sleep(0.1)  # what a watch does
        assert "ended [9, 9, 9]" in box.log
        assert not box.ended

"""The orchestrator with real boxes and a clock that the test moves."""

from __future__ import annotations

import logging
import os
import resource
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from e2b_agent_mcp.engine.egress import NetworkPolicy
from e2b_agent_mcp.engine.errors import (
    LaunchRefused,
    SandboxNotFound,
    SnapshotNotFound,
    TooManySandboxes,
)
from e2b_agent_mcp.engine.history import SAMPLE_INTERVAL
from e2b_agent_mcp.engine.homes import ASIDE, remove_tree
from e2b_agent_mcp.engine.host import Host, prepare_host
from e2b_agent_mcp.engine.orchestrator import Orchestrator
from e2b_agent_mcp.engine.sandbox import Lifecycle, PauseMode, Sandbox, SandboxSpec, State
from e2b_agent_mcp.engine.ward import Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from e2b_agent_mcp.engine import EngineOptions

SPEC = SandboxSpec(template="base", timeout=100, network=NetworkPolicy())


class MovedClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self._now = 1_800_000_000.0
        self._moved = anyio.Event()

    def now(self) -> float:
        return self._now

    def move(self, seconds: float) -> None:
        self._now += seconds
        self._moved.set()
        self._moved = anyio.Event()

    async def wait(self, event: anyio.Event, until: float) -> None:
        async with anyio.create_task_group() as tasks:

            async def first() -> None:
                await event.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(first)
            while self._now < until:
                await self._moved.wait()
            tasks.cancel_scope.cancel()


@pytest.fixture
async def host(fresh_options: EngineOptions) -> Host:
    return await prepare_host(fresh_options, print)


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def orchestrator(
    fresh_options: EngineOptions, host: Host, clock: MovedClock
) -> AsyncIterator[Orchestrator]:
    async with running(fresh_options, host, clock) as orchestrator:
        yield orchestrator


@asynccontextmanager
async def running(
    options: EngineOptions, host: Host, clock: MovedClock | None = None
) -> AsyncIterator[Orchestrator]:
    options.make_dirs()
    async with Orchestrator(options, host, clock=clock) as orchestrator:
        yield orchestrator
    assert leftovers(options) == []


async def cleared(options: EngineOptions) -> None:
    """Returns when nothing of any sandbox is left; nobody is told when a home is removed."""
    with anyio.fail_after(10):
        while leftovers(options):
            await anyio.sleep(0.005)


def leftovers(options: EngineOptions) -> list[Path]:
    folders = (options.homes_dir, options.records_dir, options.engine_dir)
    return [path for folder in folders for path in folder.iterdir()]


async def gone(sandbox: Sandbox, options: EngineOptions) -> None:
    """Returns when nothing of the sandbox is left."""
    machine = sandbox.machine
    if machine is not None:
        with anyio.fail_after(10):
            await machine.stopped.wait()
    await cleared(options)


async def test_a_sandbox_ends_at_its_deadline(
    orchestrator: Orchestrator, clock: MovedClock
) -> None:
    sandbox = await orchestrator.create(SPEC)
    clock.move(99)
    await anyio.lowlevel.checkpoint()
    assert orchestrator.find(sandbox.id) is sandbox
    clock.move(2)
    await gone(sandbox, orchestrator.options)
    with pytest.raises(SandboxNotFound):
        orchestrator.find(sandbox.id)


async def test_a_deadline_can_be_moved_in_both_directions(
    orchestrator: Orchestrator, clock: MovedClock
) -> None:
    later, sooner = await orchestrator.create(SPEC), await orchestrator.create(SPEC)
    orchestrator.set_timeout(later.id, 500)
    orchestrator.set_timeout(sooner.id, 10)
    clock.move(11)
    assert sooner.machine is not None
    await sooner.machine.stopped.wait()
    clock.move(400)
    assert orchestrator.find(later.id).state is State.RUNNING
    assert [s.id for s in orchestrator.sandboxes()] == [later.id]


async def test_a_sandbox_that_pauses_on_timeout_is_kept(
    orchestrator: Orchestrator, clock: MovedClock
) -> None:
    lifecycle = Lifecycle(on_timeout="pause", pause_mode=PauseMode.FILESYSTEM)
    sandbox = await orchestrator.create(replace(SPEC, lifecycle=lifecycle))
    assert sandbox.machine is not None
    stopped = sandbox.machine.stopped
    clock.move(101)
    await stopped.wait()
    clock.move(100_000)
    assert orchestrator.find(sandbox.id).state is State.PAUSED
    assert sandbox.home.is_dir()
    resumed, _ = await orchestrator.resume(sandbox.id, 50)
    assert (resumed.state, resumed.end_at) == (State.RUNNING, clock.now() + 50)
    await orchestrator.kill(sandbox.id)


async def test_a_pause_for_which_no_descriptor_is_left_changes_nothing(
    orchestrator: Orchestrator,
) -> None:
    sandbox = await orchestrator.create(SPEC)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(LaunchRefused, match="could not be paused"):
            await orchestrator.pause(sandbox.id, PauseMode.FULL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sandbox.state is State.RUNNING
    await orchestrator.pause(sandbox.id, PauseMode.FULL, strict=True)
    await orchestrator.kill(sandbox.id)


async def test_a_deadline_that_passes_during_a_snapshot_holds_after_it(
    orchestrator: Orchestrator, clock: MovedClock
) -> None:
    sandbox = await orchestrator.create(SPEC)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(orchestrator.snapshot, sandbox.id, None)
        with anyio.fail_after(10):
            while not sandbox.changing.locked():
                await anyio.lowlevel.checkpoint()
        clock.move(101)
    await gone(sandbox, orchestrator.options)


async def test_a_connect_at_the_deadline_is_never_taken_back(
    orchestrator: Orchestrator, clock: MovedClock
) -> None:
    sandbox = await orchestrator.create(replace(SPEC, lifecycle=Lifecycle(on_timeout="pause")))
    for steps in range(12):  # of the reaper, before the connect
        clock.move(101)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        await orchestrator.resume(sandbox.id, 100)
        await anyio.wait_all_tasks_blocked()
        async with sandbox.changing:
            assert sandbox.state is State.RUNNING
    await orchestrator.kill(sandbox.id)


async def test_a_box_that_dies_takes_its_sandbox_along(orchestrator: Orchestrator) -> None:
    sandbox = await orchestrator.create(SPEC)
    assert sandbox.machine is not None
    sandbox.machine.box.kill()
    await gone(sandbox, orchestrator.options)
    with pytest.raises(SandboxNotFound):
        orchestrator.find(sandbox.id)


async def test_a_guest_that_does_not_come_up_leaves_nothing(
    fresh_options: EngineOptions, host: Host
) -> None:
    broken = host._replace(template=replace(host.template, command=("/bin/false",)))
    async with running(fresh_options, broken) as orchestrator:
        with pytest.raises(LaunchRefused, match="ended before it answered"):
            await orchestrator.create(SPEC)
        await cleared(fresh_options)
        assert not orchestrator.busy


async def test_a_cancelled_create_leaves_nothing(orchestrator: Orchestrator) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(orchestrator.create, SPEC)
        with anyio.fail_after(10):
            while not list(orchestrator.options.homes_dir.iterdir()):
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await cleared(orchestrator.options)
    assert not orchestrator.busy


async def test_a_failed_resume_keeps_the_files(orchestrator: Orchestrator) -> None:
    sandbox = await orchestrator.create(SPEC)
    await orchestrator.pause(sandbox.id, PauseMode.FILESYSTEM)
    away = sandbox.home.rename(sandbox.home.with_name("away"))
    sandbox.home.touch()  # a home that no box can be made on
    with pytest.raises(LaunchRefused):
        await orchestrator.resume(sandbox.id, 10)
    assert orchestrator.find(sandbox.id).state is State.PAUSED
    sandbox.home.unlink()
    away.rename(sandbox.home)
    resumed, _ = await orchestrator.resume(sandbox.id, 10)
    assert resumed.state is State.RUNNING


async def test_a_paused_sandbox_whose_box_dies_keeps_its_files(orchestrator: Orchestrator) -> None:
    sandbox = await orchestrator.create(SPEC)
    await orchestrator.pause(sandbox.id, PauseMode.FULL)
    assert sandbox.machine is not None
    machine = sandbox.machine
    machine.box.kill()
    await machine.stopped.wait()
    assert orchestrator.find(sandbox.id).pause_mode is PauseMode.FILESYSTEM
    assert sandbox.home.is_dir()
    await orchestrator.kill(sandbox.id)


async def test_a_paused_sandbox_is_removed_after_its_retention(
    orchestrator: Orchestrator, clock: MovedClock
) -> None:
    sandbox = await orchestrator.create(SPEC)
    await orchestrator.pause(sandbox.id, PauseMode.FILESYSTEM)
    clock.move(orchestrator.options.retention - 1)
    await anyio.lowlevel.checkpoint()
    assert orchestrator.find(sandbox.id).state is State.PAUSED
    clock.move(2)
    with anyio.fail_after(10):
        while sandbox.home.exists():
            await anyio.lowlevel.checkpoint()
    assert not orchestrator.sandboxes()


async def test_the_end_of_an_engine_is_the_deadline_of_its_sandboxes(
    fresh_options: EngineOptions, host: Host, clock: MovedClock
) -> None:
    pausing = replace(SPEC, lifecycle=Lifecycle(on_timeout="pause"), env_vars={"A": "b"})
    fresh_options.make_dirs()
    async with Orchestrator(fresh_options, host, clock=clock) as orchestrator:
        killed = await orchestrator.create(SPEC)
        kept = await orchestrator.create(pausing, idempotency_key="kept")
        frozen = await orchestrator.create(SPEC)
        await orchestrator.pause(frozen.id, PauseMode.FULL)
    assert not killed.home.exists()
    async with running(fresh_options, host, clock) as orchestrator:
        found = {s.id: s for s in orchestrator.sandboxes()}
        assert found.keys() == {kept.id, frozen.id}
        assert not orchestrator.busy
        for sandbox in found.values():
            assert (sandbox.state, sandbox.pause_mode) == (State.PAUSED, PauseMode.FILESYSTEM)
        assert found[kept.id].spec == pausing
        assert found[kept.id].envd_token == kept.envd_token
        again = await orchestrator.create(pausing, idempotency_key="kept")
        assert again.id == kept.id
        resumed, _ = await orchestrator.resume(frozen.id, 50)
        assert resumed.state is State.RUNNING
        for sandbox_id in found:
            await orchestrator.kill(sandbox_id)


async def test_a_record_that_is_torn_costs_only_its_own_sandbox(
    fresh_options: EngineOptions, host: Host
) -> None:
    fresh_options.make_dirs()
    async with Orchestrator(fresh_options, host) as orchestrator:
        whole, torn = [await orchestrator.create(SPEC) for _ in range(2)]
        for sandbox in (whole, torn):
            await orchestrator.pause(sandbox.id, PauseMode.FILESYSTEM)
    (fresh_options.records_dir / f"{torn.id}.json").write_text('{"spec"')
    async with running(fresh_options, host) as orchestrator:
        assert [s.id for s in orchestrator.sandboxes()] == [whole.id]
        assert not torn.home.exists()
        await orchestrator.kill(whole.id)


async def test_a_snapshots_record_that_is_not_understood_keeps_no_engine_from_starting(
    fresh_options: EngineOptions, host: Host
) -> None:
    fresh_options.make_dirs()
    (fresh_options.snapshots_dir / "sodd").mkdir()
    (fresh_options.snapshot_records_dir / "sodd.json").write_text('{"of": "a later engine"}')
    async with running(fresh_options, host) as orchestrator:
        assert not orchestrator.snapshots.all()
    assert not list(fresh_options.snapshots_dir.iterdir())


async def test_a_snapshot_that_is_deleted_while_it_is_copied_makes_no_sandbox(
    orchestrator: Orchestrator,
) -> None:
    sandbox = await orchestrator.create(SPEC)
    (sandbox.home / "file").write_text("kept")
    snapshot = await orchestrator.snapshot(sandbox.id, None)
    await orchestrator.kill(sandbox.id)
    await cleared(orchestrator.options)

    async def create() -> None:
        with pytest.raises(SnapshotNotFound):
            await orchestrator.create(replace(SPEC, snapshot=snapshot.id))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        with anyio.fail_after(10):
            while not list(orchestrator.options.homes_dir.iterdir()):
                await anyio.lowlevel.checkpoint()
        orchestrator.snapshots.delete(snapshot)
    await cleared(orchestrator.options)


async def test_a_network_that_is_closed_while_its_sandbox_starts_is_closed(
    orchestrator: Orchestrator,
) -> None:
    sandbox = await orchestrator.create(SPEC)
    await orchestrator.pause(sandbox.id, PauseMode.FILESYSTEM)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(orchestrator.resume, sandbox.id, 50)
        with anyio.fail_after(10):
            while not list(orchestrator.options.engine_dir.glob("*.net/proxy.sock")):
                await anyio.lowlevel.checkpoint()
        assert sandbox.machine is None
        orchestrator.set_network(sandbox.id, NetworkPolicy(internet=False))
    assert sandbox.machine is not None
    assert not sandbox.machine.egress.policy.internet


async def test_sandboxes_on_disk_alone_leave_room_for_others(
    fresh_options: EngineOptions, host: Host
) -> None:
    async with running(replace(fresh_options, max_sandboxes=1), host) as orchestrator:
        first = await orchestrator.create(SPEC)
        await orchestrator.pause(first.id, PauseMode.FILESYSTEM)
        second = await orchestrator.create(SPEC)
        with pytest.raises(TooManySandboxes):
            await orchestrator.resume(first.id, 10)
        await orchestrator.kill(second.id)
        await orchestrator.resume(first.id, 10)
        await orchestrator.kill(first.id)


async def test_what_a_sandbox_uses_is_kept_every_few_seconds(
    orchestrator: Orchestrator, clock: MovedClock
) -> None:
    used, paused = [await orchestrator.create(SPEC) for _ in range(2)]
    await orchestrator.pause(paused.id, PauseMode.FULL)
    for number in (1, 2):
        clock.move(SAMPLE_INTERVAL)
        with anyio.fail_after(20):
            while len(used.samples) < number:
                await anyio.sleep(0.01)
    assert [s.at for s in used.samples] == [clock.now() - SAMPLE_INTERVAL, clock.now()]
    for sample in used.samples:
        assert sample.memory_bytes > 0
        assert sample.disk_bytes > 0
        assert 0 <= sample.cpu_percent <= 100 * (os.cpu_count() or 1)
    await orchestrator.history.sample_now(used)
    assert len(used.samples) == 2
    assert not paused.samples
    await orchestrator.kill(paused.id)


async def test_there_is_a_most_of_sandboxes(fresh_options: EngineOptions, host: Host) -> None:
    async with running(replace(fresh_options, max_sandboxes=1), host) as orchestrator:
        sandbox = await orchestrator.create(SPEC)
        with pytest.raises(TooManySandboxes, match="max_sandboxes"):
            await orchestrator.create(SPEC)
        await orchestrator.kill(sandbox.id)
        await orchestrator.create(SPEC)


async def test_creates_under_one_key_at_the_same_time_make_one_sandbox(
    orchestrator: Orchestrator,
) -> None:
    made: list[Sandbox] = []

    async def create() -> None:
        made.append(await orchestrator.create(SPEC, idempotency_key="k"))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(create)
    assert len(made) == 3
    assert len(orchestrator.sandboxes()) == 1


async def test_what_a_killed_engine_left_is_removed(
    fresh_options: EngineOptions, host: Host
) -> None:
    fresh_options.make_dirs()
    (fresh_options.homes_dir / "iold" / "folder").mkdir(parents=True)
    (fresh_options.homes_dir / f"{ASIDE}half").mkdir()
    (fresh_options.engine_dir / "iold.sock").touch()
    (fresh_options.engine_dir / "iold.net").mkdir()
    async with running(fresh_options, host):
        await cleared(fresh_options)


async def test_a_kill_does_not_wait_until_the_files_are_removed(
    orchestrator: Orchestrator,
) -> None:
    sandbox = await orchestrator.create(SPEC)
    for number in range(2000):
        (sandbox.home / str(number)).touch()
    await orchestrator.kill(sandbox.id)
    assert not sandbox.home.exists()
    assert leftovers(orchestrator.options)
    await cleared(orchestrator.options)


async def test_a_kill_does_not_wait_for_a_snapshot(orchestrator: Orchestrator) -> None:
    sandbox = await orchestrator.create(SPEC)
    for number in range(2000):
        (sandbox.home / str(number)).touch()
    await orchestrator.pause(sandbox.id, PauseMode.FILESYSTEM)

    async def snapshot() -> None:
        with pytest.raises(SandboxNotFound):
            await orchestrator.snapshot(sandbox.id, None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(snapshot)
        with anyio.fail_after(10):
            while not list(orchestrator.options.snapshots_dir.iterdir()):
                await anyio.lowlevel.checkpoint()
        await orchestrator.kill(sandbox.id)
    assert not orchestrator.snapshots.all()
    await cleared(orchestrator.options)


async def test_a_sandbox_that_is_ended_while_it_is_paused_leaves_no_record(
    orchestrator: Orchestrator,
) -> None:
    sandbox = await orchestrator.create(SPEC)
    machine = sandbox.machine
    assert machine is not None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(orchestrator.pause, sandbox.id, PauseMode.FILESYSTEM)
        while sandbox.state is State.RUNNING:
            await anyio.lowlevel.checkpoint()
        orchestrator._punish(sandbox, machine, Verdict("disk_kill", fatal=True))
    await cleared(orchestrator.options)


async def test_any_tree_can_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    make_deep(tree, 1100)
    (tree / "closed").mkdir()
    (tree / "closed" / "file").touch()
    (tree / "closed").chmod(0)
    with caplog.at_level(logging.ERROR):
        await remove_tree(tree)
    assert not tree.exists()
    assert (outside / "file").exists()
    assert not caplog.records


def make_deep(folder: Path, depth: int) -> None:
    """Deeper than a path may be long and than Python recurses, as a hostile sandbox can."""
    at = os.open(folder, os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=at)
        below = os.open("deep", os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)

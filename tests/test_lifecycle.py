"""The manager over a real engine, with E2B's own SDK and real interpreters."""

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from e2b import SandboxQuery, SandboxState
from e2b_code_interpreter import E2B

import e2b_agent_mcp
from conftest import Connector, running_engine, temporary_options
from e2b_agent_mcp.connection import engine_options
from e2b_agent_mcp.engine import EngineAddress, EngineOptions, find, stop
from e2b_agent_mcp.errors import (
    AuthenticationError,
    InvalidArgumentError,
    NotFoundError,
    SandboxError,
    SandboxLimitError,
    SandboxLostError,
    SandboxUnavailableError,
    TooLargeError,
)
from e2b_agent_mcp.lifecycle import (
    E2BParams,
    Lease,
    Run,
    SandboxManager,
    control,
    opening,
    output,
    places,
    stopping,
)
from e2b_agent_mcp.lifecycle import lease as lease_module
from e2b_agent_mcp.lifecycle.claims import NOTE
from e2b_agent_mcp.lifecycle.control import Control
from e2b_agent_mcp.lifecycle.transitions import Transitions
from e2b_agent_mcp.lifecycle.warm import WarmPool
from e2b_agent_mcp.pool import EXPLAIN_REBOOTED, Maker, Pool, SessionKey, Terms, owned_by
from e2b_agent_mcp.settings import (
    E2BSettings,
    EngineSettings,
    FileSettings,
    RunSettings,
    SandboxSettings,
    Secret,
    Settings,
)
from faults import (
    CONTROL,
    Always,
    FaultProxy,
    Gate,
    Script,
    answer,
    hang_after,
    no_faults,
    not_json,
    reset_after,
)

SETTINGS = Settings(sandboxes=SandboxSettings(idle_after=120))


@pytest.fixture
async def manager(engine: EngineAddress) -> AsyncIterator[SandboxManager]:
    async with SandboxManager(SETTINGS, connect=Connector(engine)) as manager:
        yield manager


@pytest.fixture
async def key(engine: EngineAddress) -> AsyncIterator[SessionKey]:
    """A session of an owner that no other test has; its sandboxes are ended afterwards."""
    owner = uuid.uuid4().hex
    yield SessionKey(owner, "analysis")
    async with SandboxManager(SETTINGS, connect=Connector(engine)) as manager:
        for session in await manager.list_sessions(owner):
            await manager.end_session(SessionKey(owner, session.name))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Settings:
    """Of a server on another machine: the two do not take turns."""
    return replace(SETTINGS, engine=EngineSettings(state_dir=tmp_path))


async def text(lease: Lease, code: str) -> str | None:
    """The main result of code that must succeed."""
    run = await lease.run_code(code, timeout=30)
    assert run.status == "ok", run
    return run.execution.text


@asynccontextmanager
async def started(lease: Lease, code: str) -> AsyncIterator[list[Run]]:
    """Runs code in the background from the moment it printed something; then waits for it."""
    printed = anyio.Event()
    runs: list[Run] = []

    async def on_stdout(_: str) -> None:
        printed.set()

    async def run() -> None:
        runs.append(await lease.run_code(code, timeout=30, on_stdout=on_stdout))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(30):
            await printed.wait()
        yield runs


async def use_once(manager: SandboxManager, key: SessionKey) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "1")


# One sandbox per session


async def test_the_first_use_creates_and_later_ones_reuse(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as first:
        assert (first.session, first.state, first.lost) == ("analysis", "created", "")
        await text(first, "x = 42")
    async with manager.lease(key) as second:
        assert (second.state, second.sandbox_id) == ("reused", first.sandbox_id)
        assert await text(second, "x") == "42"


async def test_sessions_and_owners_have_sandboxes_of_their_own(
    manager: SandboxManager, key: SessionKey
) -> None:
    other = SessionKey(key.owner, "other")
    stranger = SessionKey(uuid.uuid4().hex, key.name)
    async with (
        manager.lease(key) as one,
        manager.lease(other) as two,
        manager.lease(stranger) as three,
    ):
        assert len({one.sandbox_id, two.sandbox_id, three.sandbox_id}) == 3
        listed = await manager.list_sessions(key.owner)
        assert [(s.name, s.sandbox_id, s.state) for s in listed] == [
            ("analysis", one.sandbox_id, "running"),
            ("other", two.sandbox_id, "running"),
        ]
    await manager.end_session(stranger)


LEASE_AND_DIE = """
import anyio, os, signal, sys
from e2b_agent_mcp.lifecycle import E2BParams, SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import Secret, Settings

async def connect(*, on_progress):
    return E2BParams(api_key=Secret(sys.argv[1]), api_url=sys.argv[2], sandbox_url=sys.argv[2])

async def main():
    async with SandboxManager(Settings(), connect=connect) as manager:
        async with manager.lease(SessionKey(sys.argv[3], sys.argv[4])) as lease:
            await lease.run_code("x = 'still here'", timeout=30)
            print(lease.sandbox_id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


async def test_a_server_that_was_killed_finds_its_sandbox_again(
    manager: SandboxManager, key: SessionKey, engine: EngineAddress
) -> None:
    arguments = [engine.api_key, engine.api_url, *key]
    died = await anyio.run_process([sys.executable, "-c", LEASE_AND_DIE, *arguments], check=False)
    assert died.returncode == -signal.SIGKILL
    async with manager.lease(key) as lease:
        assert (lease.state, lease.sandbox_id) == ("reused", died.stdout.decode().strip())
        assert await text(lease, "x") == "still here"


async def test_two_servers_that_create_at_once_end_with_one_sandbox(
    engine: EngineAddress, key: SessionKey, elsewhere: Settings
) -> None:
    used: list[str] = []

    async def use(manager: SandboxManager) -> None:
        async with manager.lease(key) as lease:
            used.append(lease.sandbox_id)

    async with (
        SandboxManager(SETTINGS, connect=Connector(engine)) as one,
        SandboxManager(elsewhere, connect=Connector(engine)) as two,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, one)
            tasks.start_soon(use, two)
        assert len(used) == 2
        assert len(set(used)) == 1
        assert len(await one._control.find({"owner": key.owner})) == 1


async def test_a_server_that_could_not_look_for_another_looks_again(
    engine: EngineAddress, key: SessionKey, monkeypatch: pytest.MonkeyPatch, elsewhere: Settings
) -> None:
    """Another one created first; this one's listing fails just when it would have told."""
    monkeypatch.setattr(control, "RETRY_DELAYS", ())
    gate = Gate("before")

    async def fail(manager: SandboxManager) -> None:
        with pytest.raises(SandboxUnavailableError):
            async with manager.lease(key):
                pytest.fail("nobody has looked")

    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(SETTINGS, connect=Connector(engine)) as one,
        SandboxManager(elsewhere, connect=Connector(proxy.address)) as two,
    ):
        proxy.program = Script(create=[gate])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail, two)
            await gate.reached.wait()
            async with one.lease(key) as first:
                await text(first, "x = 42")
            proxy.program = Always(answer(500), "list")
            gate.opened.set()
        proxy.program = no_faults
        async with two.lease(key) as second:
            assert second.sandbox_id == first.sandbox_id
            assert await text(second, "x") == "42"
        assert len(await one._control.find({"owner": key.owner})) == 1


async def test_the_time_of_code_does_not_pass_while_another_server_runs_its_own(
    engine: EngineAddress, key: SessionKey
) -> None:
    code = "import time; print('running', flush=True); time.sleep(1); x = 42; x"

    async def run_shortly(manager: SandboxManager) -> None:
        async with manager.lease(key) as lease:
            run = await lease.run_code("x", timeout=0.5)
            assert (run.status, run.execution.text) == ("ok", "42")

    async with (
        SandboxManager(SETTINGS, connect=Connector(engine)) as one,
        SandboxManager(SETTINGS, connect=Connector(engine)) as two,
        anyio.create_task_group() as tasks,
    ):
        async with one.lease(key) as first, started(first, code) as runs:
            tasks.start_soon(run_shortly, two)
        assert [run.execution.text for run in runs] == ["42"]


async def test_a_session_that_another_server_is_using_is_not_paused_to_make_room(
    engine: EngineAddress, key: SessionKey
) -> None:
    new = SessionKey(key.owner, "new")
    hasty = limited(max=1, create_timeout=2)
    code = "import time; print('running', flush=True); time.sleep(2); x = 42; x"
    async with (
        SandboxManager(hasty, connect=Connector(engine)) as one,
        SandboxManager(SETTINGS, connect=Connector(engine)) as two,
    ):
        await use_once(one, key)
        async with two.lease(key) as lease, started(lease, code) as runs:
            with pytest.raises(SandboxLimitError):
                await use_once(one, new)
        assert [run.execution.text for run in runs] == ["42"]
        await use_once(one, new)
        listed = {session.name: session.state for session in await one.list_sessions(key.owner)}
        assert listed == {"analysis": "paused", "new": "running"}


async def test_servers_that_cannot_take_turns_do_without(
    engine: EngineAddress, key: SessionKey, tmp_path: Path
) -> None:
    (tmp_path / "turns").touch()  # no folder
    settings = replace(SETTINGS, engine=EngineSettings(state_dir=tmp_path))
    async with SandboxManager(settings, connect=Connector(engine)) as manager:
        await use_once(manager, key)
        await use_once(manager, key)


async def test_a_turn_that_is_over_leaves_nothing(
    engine: EngineAddress, key: SessionKey, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, engine=EngineSettings(state_dir=tmp_path))
    async with SandboxManager(settings, connect=Connector(engine)) as manager:
        async with manager.lease(key):
            assert len([*(tmp_path / "turns").iterdir()]) == 1
        assert [*(tmp_path / "turns").iterdir()] == []


async def test_a_sandbox_that_lost_its_session_is_ended_once_e2b_can(
    engine: EngineAddress, key: SessionKey, monkeypatch: pytest.MonkeyPatch, elsewhere: Settings
) -> None:
    """The call that made it goes on with the other server's, whatever becomes of its own."""
    monkeypatch.setattr(control, "RETRY_DELAYS", ())
    monkeypatch.setattr(opening, "RETRY_PAUSE", 0.05)
    gate = Gate("before")
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(SETTINGS, connect=Connector(engine)) as one,
        SandboxManager(elsewhere, connect=Connector(proxy.address)) as two,
    ):
        proxy.program = Script(create=[gate])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use_once, two, key)
            await gate.reached.wait()
            async with one.lease(key) as first:
                await text(first, "x = 42")
            proxy.program = Always(answer(500), "kill")
            gate.opened.set()
        assert len(await one._control.find(owned_by(key.owner))) == 2
        proxy.program = no_faults
        with anyio.fail_after(30):
            while len(await one._control.find(owned_by(key.owner))) > 1:
                await anyio.sleep(0.02)
        async with two.lease(key) as second:
            assert second.sandbox_id == first.sandbox_id
            assert await text(second, "x") == "42"


async def test_a_server_that_ended_a_session_gives_way_like_any_other(
    engine: EngineAddress, key: SessionKey, elsewhere: Settings
) -> None:
    """It counts the session's sandboxes from the one that was ended, the other one does not."""
    gate = Gate("before")
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(SETTINGS, connect=Connector(proxy.address)) as one,
        SandboxManager(elsewhere, connect=Connector(engine)) as two,
    ):
        await use_once(one, key)
        await one.end_session(key)
        proxy.program = Script(create=[gate])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use_once, one, key)
            await gate.reached.wait()
            async with two.lease(key) as first:
                await text(first, "x = 42")
            gate.opened.set()
        async with one.lease(key) as second:
            assert second.sandbox_id == first.sandbox_id
            assert await text(second, "x") == "42"


async def test_a_call_cancelled_while_creating_leaves_the_sandbox_to_the_next(
    manager: SandboxManager, key: SessionKey
) -> None:
    creating = anyio.Event()

    async def on_progress(_: str) -> None:
        creating.set()

    async def call() -> None:
        async with manager.lease(key, on_progress=on_progress):
            pytest.fail("cancelled before")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await creating.wait()
        tasks.cancel_scope.cancel()
    async with manager.lease(key) as lease:
        assert lease.state == "created"
        assert [s.sandbox_id for s in await manager.list_sessions(key.owner)] == [lease.sandbox_id]


async def test_a_busy_e2b_is_asked_until_it_is_not(
    engine: EngineAddress, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More refusals than the SDK's own attempts, and than those that a failure gets."""
    monkeypatch.setattr(control, "BUSY_DELAY", 0.1)
    monkeypatch.setattr(control, "RETRY_DELAYS", (0.1, 0.1))
    async with FaultProxy.serve(engine) as proxy:
        proxy.program = Script(create=[answer(429)] * 4 + [answer(503, retry_after=0)] * 8)
        async with SandboxManager(SETTINGS, connect=Connector(proxy.address)) as manager:
            with anyio.fail_after(60):
                async with manager.lease(key) as lease:
                    assert lease.state == "created"
            assert [s.sandbox_id for s in await manager.list_sessions(key.owner)] == [
                lease.sandbox_id
            ]
        keys = {dict(e.request.headers)[b"idempotency-key"] for e in proxy.asked("create")}
        assert (len(proxy.asked("create")), len(keys)) == (13, 1)


async def test_e2bs_word_on_when_to_come_back_is_kept(
    engine: EngineAddress, key: SessionKey
) -> None:
    async with FaultProxy.serve(engine) as proxy:
        proxy.program = Script(create=[answer(429, retry_after=2)])
        async with SandboxManager(SETTINGS, connect=Connector(proxy.address)) as manager:
            started = time.monotonic()
            async with manager.lease(key):
                assert time.monotonic() - started >= 2
        assert len(proxy.asked("create")) == 2


async def test_a_busy_e2b_is_waited_for_no_longer_than_a_creation_may_take(
    engine: EngineAddress, key: SessionKey
) -> None:
    async with FaultProxy.serve(engine) as proxy:
        proxy.program = Always(answer(503), "create")
        hasty = limited(create_timeout=2)
        async with SandboxManager(hasty, connect=Connector(proxy.address)) as manager:
            with pytest.raises(SandboxUnavailableError, match="busy"), anyio.fail_after(20):
                async with manager.lease(key):
                    pass


async def test_what_e2b_refuses_is_an_error_at_once(engine: EngineAddress, key: SessionKey) -> None:
    settings = replace(SETTINGS, e2b=E2BSettings(template="none-such"))
    async with FaultProxy.serve(engine) as proxy:
        async with SandboxManager(settings, connect=Connector(proxy.address)) as manager:
            with pytest.raises(SandboxError, match="none-such"):
                async with manager.lease(key):
                    pass
        assert len(proxy.asked("create")) == 1


async def test_a_creation_whose_answer_is_lost_makes_one_sandbox(
    engine: EngineAddress, key: SessionKey
) -> None:
    async with FaultProxy.serve(engine) as proxy:
        proxy.program = Script(create=[reset_after])
        async with (
            SandboxManager(SETTINGS, connect=Connector(proxy.address)) as manager,
            manager.lease(key) as lease,
        ):
            found = await manager._control.find({"owner": key.owner})
            assert [item.sandbox_id for item in found] == [lease.sandbox_id]


async def test_calls_of_a_session_are_served_in_the_order_they_came(
    manager: SandboxManager, key: SessionKey
) -> None:
    served: list[int] = []

    async def call(number: int) -> None:
        async with manager.lease(key) as lease:
            served.append(number)
            await text(lease, f"x = {number}")

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(call, number)
    assert served == list(range(8))


async def test_a_session_does_not_wait_for_another(
    manager: SandboxManager, key: SessionKey
) -> None:
    other = SessionKey(key.owner, "other")
    async with manager.lease(key) as busy, manager.lease(other) as free:
        code = """if True:
            import pathlib, time
            print('on', flush=True)
            while not pathlib.Path('stop').exists():
                time.sleep(0.01)
        """
        async with started(busy, code) as runs:
            assert await text(free, "1 + 1") == "2"
            assert runs == []
            await busy.write_file("stop", b"")
        assert runs[0].status == "ok"


# Limits


def limited(**settings: Any) -> Settings:
    return replace(SETTINGS, sandboxes=replace(SETTINGS.sandboxes, **settings))


async def test_the_limit_is_refused_by_the_option_that_sets_it(
    engine: EngineAddress, key: SessionKey
) -> None:
    few = limited(max=1, at_limit="refuse")
    async with SandboxManager(few, connect=Connector(engine)) as manager:
        async with manager.lease(key):
            pass
        with pytest.raises(SandboxLimitError, match="E2B_AGENT_MCP_SANDBOXES_MAX"):
            async with manager.lease(SessionKey(key.owner, "other")):
                pass
        await manager.end_session(key)
        async with manager.lease(SessionKey(key.owner, "other")) as lease:
            assert lease.state == "created"


async def test_at_the_limit_the_session_longest_unused_pauses_and_loses_nothing(
    engine: EngineAddress, key: SessionKey
) -> None:
    names = ["first", "second", "third"]
    async with SandboxManager(limited(max=2), connect=Connector(engine)) as manager:
        for name in names:
            async with manager.lease(SessionKey(key.owner, name)) as lease:
                await text(lease, f"x = {name!r}")
        listed = await manager.list_sessions(key.owner)
        assert {s.name: s.state for s in listed} == {
            "first": "paused",
            "second": "running",
            "third": "running",
        }
        for name in names:
            async with manager.lease(SessionKey(key.owner, name)) as lease:
                assert (await text(lease, "x"), lease.state) == (name, "resumed")
        states = [s.state for s in await manager.list_sessions(key.owner)]
        assert sorted(states) == ["paused", "running", "running"]


async def test_an_owner_at_its_own_limit_pauses_its_own_and_keeps_nobody_waiting(
    engine: EngineAddress, key: SessionKey
) -> None:
    other = SessionKey(uuid.uuid4().hex, "analysis")
    async with SandboxManager(limited(max_per_owner=1), connect=Connector(engine)) as manager:
        async with manager.lease(other):
            pass
        async with manager.lease(key), anyio.create_task_group() as tasks:
            waiting = anyio.Event()

            async def on_progress(_: str) -> None:
                waiting.set()

            async def wait() -> None:
                async with manager.lease(SessionKey(key.owner, "b"), on_progress=on_progress):
                    pytest.fail("its owner's only place is taken")

            tasks.start_soon(wait)
            await waiting.wait()
            async with manager.lease(SessionKey(other.owner, "b")) as lease:
                assert lease.state == "created"
            assert {s.name: s.state for s in await manager.list_sessions(other.owner)} == {
                "analysis": "paused",
                "b": "running",
            }
            tasks.cancel_scope.cancel()
        for name in ("analysis", "b"):
            await manager.end_session(SessionKey(other.owner, name))


async def test_who_waits_for_a_place_is_served_in_the_order_of_arrival(
    engine: EngineAddress, key: SessionKey
) -> None:
    served: list[str] = []
    names = ["one", "two", "three"]
    async with SandboxManager(limited(max=1), connect=Connector(engine)) as manager:

        async def use(name: str) -> None:
            async with manager.lease(SessionKey(key.owner, name)):
                served.append(name)

        def waiting() -> int:
            doors = [*manager._places._owner_doors.values(), manager._places._door]
            return sum(d.statistics().tasks_waiting + d.locked() for d in doors)

        async with anyio.create_task_group() as tasks, manager.lease(key):
            for name in names:
                before = waiting()
                tasks.start_soon(use, name)
                with anyio.fail_after(30):
                    while waiting() == before:
                        await anyio.sleep(0.01)
        assert served == names


async def test_the_wait_for_a_place_is_told_once_and_has_an_end(
    engine: EngineAddress, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = limited(max=1, create_timeout=1)
    heard: list[str] = []

    async def on_progress(message: str) -> None:
        heard.append(message)

    monkeypatch.setattr(places, "LONGEST_LOOK_AWAY", 0.1)
    async with SandboxManager(few, connect=Connector(engine)) as manager, manager.lease(key):
        with (
            pytest.raises(SandboxLimitError, match="Each of them is in use"),
            anyio.fail_after(20),
        ):
            async with manager.lease(SessionKey(key.owner, "other"), on_progress=on_progress):
                pass
    assert heard == ["Waiting until one of the running sandboxes is free"]


async def test_a_new_server_counts_what_its_predecessor_left_running(
    engine: EngineAddress, key: SessionKey
) -> None:
    few = limited(max=1, at_limit="refuse")
    async with SandboxManager(few, connect=Connector(engine)) as manager, manager.lease(key):
        pass
    async with SandboxManager(few, connect=Connector(engine)) as manager:
        with pytest.raises(SandboxLimitError):
            async with manager.lease(SessionKey(key.owner, "other")):
                pass
        async with manager.lease(key) as lease:
            assert lease.state == "reused"


async def test_what_a_crashed_server_left_makes_room_once_nobody_can_be_using_it(
    engine: EngineAddress, e2b: E2B, key: SessionKey
) -> None:
    few = limited(max=1, create_timeout=4)
    async with (
        SandboxManager(few, connect=Connector(engine)) as crashed,
        crashed.lease(key) as lease,
    ):
        await text(lease, "x = 42")
        sandbox_id = lease.sandbox_id
    async with SandboxManager(few, connect=Connector(engine)) as manager:
        other = SessionKey(key.owner, "other")
        with pytest.raises(SandboxLimitError):
            async with manager.lease(other):
                pytest.fail("a sandbox was paused that may be in use")
        # As if its last extension were so long ago.
        left = crashed._pool.end_at(0) - crashed._pool.surely_unused - 1
        await e2b.AsyncSandbox.set_timeout(sandbox_id, int(left))
        async with manager.lease(other) as lease:
            assert lease.state == "created"
        async with manager.lease(key) as lease:
            assert (lease.state, await text(lease, "x")) == ("resumed", "42")


async def test_a_warm_sandbox_that_a_crashed_server_left_counts_and_is_the_first_to_go(
    engine: EngineAddress, e2b: E2B, key: SessionKey
) -> None:
    two = limited(max=2, warm=1)
    async with SandboxManager(two, connect=Connector(engine)) as crashed:
        async with crashed.lease(key):
            pass
        (warm_id,) = await warm_ones(e2b, key.owner, 1)
        left = crashed._pool.end_at(0) - crashed._pool.surely_unused - 1

    two = limited(max=2, create_timeout=4)
    async with SandboxManager(two, connect=Connector(engine)) as manager:
        other = SessionKey(key.owner, "other")
        with pytest.raises(SandboxLimitError):
            async with manager.lease(other):
                pytest.fail("three run")
        await e2b.AsyncSandbox.set_timeout(warm_id, int(left))
        async with manager.lease(other) as lease:
            assert lease.state == "created"
        assert await warm_ones(e2b, key.owner, 0) == set()
        assert {item.state for item in await manager.list_sessions(key.owner)} == {"running"}


async def test_what_another_server_went_on_using_is_not_paused_by_old_knowledge(
    engine: EngineAddress, e2b: E2B, key: SessionKey
) -> None:
    few = limited(max=1)
    async with (
        SandboxManager(few, connect=Connector(engine)) as using,
        SandboxManager(few, connect=Connector(engine)) as manager,
    ):
        other = SessionKey(key.owner, "other")
        async with using.lease(key) as lease:
            left = using._pool.end_at(0) - using._pool.surely_unused - 1
            await e2b.AsyncSandbox.set_timeout(lease.sandbox_id, int(left))
            listed = await manager._opener.find_all(key.owner)
            now, today = time.monotonic(), datetime.now(UTC)
            manager._pool.observe(key.owner, listed, asked_at=now, now=now, today=today)
            assert manager._pool.left(key, now) == lease.sandbox_id
            await using._keeper.try_to_extend(using._session(key), lease.sandbox_id)
            await manager._places._make_room(other, "total")
            assert manager._pool.left(key, time.monotonic()) == ""
            assert await text(lease, "1 + 1") == "2"


async def test_the_accounts_own_limit_is_learnt_and_room_is_made(
    fresh_options: EngineOptions,
) -> None:
    with running_engine(replace(fresh_options, max_sandboxes=2)) as small:
        async with SandboxManager(limited(), connect=Connector(small)) as manager:
            key = SessionKey(uuid.uuid4().hex, "three")
            async with (
                manager.lease(SessionKey(key.owner, "one")),
                manager.lease(SessionKey(key.owner, "two")),
            ):
                pass
            refused = limited(at_limit="refuse")
            async with SandboxManager(refused, connect=Connector(small)) as other:
                with pytest.raises(SandboxLimitError, match="max_sandboxes"), anyio.fail_after(30):
                    async with other.lease(key):
                        pass

            # The engine counts paused ones too, so room comes from an ended session here.
            async with anyio.create_task_group() as tasks:
                waiting = anyio.Event()

                async def use() -> None:
                    async with manager.lease(key, on_progress=on_progress) as lease:
                        assert lease.state == "created"

                async def on_progress(message: str) -> None:
                    if message.startswith("Waiting"):
                        waiting.set()

                tasks.start_soon(use)
                with anyio.fail_after(60):
                    await waiting.wait()
                await manager.end_session(SessionKey(key.owner, "two"))
            for session in await manager.list_sessions(key.owner):
                await manager.end_session(SessionKey(key.owner, session.name))


# The end of a session


async def test_an_ended_session_starts_anew_and_has_lost_nothing(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as first:
        pass
    assert await manager.end_session(key)
    assert not await manager.end_session(key)
    async with manager.lease(key) as second:
        assert (second.state, second.lost) == ("created", "")
        assert second.sandbox_id != first.sandbox_id


async def test_ending_a_session_ends_the_call_that_uses_it(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        with pytest.RaisesGroup(SandboxLostError):
            async with started(lease, "import time\nprint('on', flush=True)\ntime.sleep(60)"):
                assert await manager.end_session(key)
    async with manager.lease(key) as lease:
        assert (lease.state, lease.lost) == ("created", "")


# Loss


async def test_a_sandbox_lost_between_calls_is_replaced_and_the_loss_told(
    manager: SandboxManager, key: SessionKey, e2b: E2B
) -> None:
    async with manager.lease(key) as first:
        await text(first, "x = 1")
    await e2b.AsyncSandbox.kill(first.sandbox_id)
    async with manager.lease(key) as second:
        run = await second.run_code("x", timeout=30)
        assert run.execution.error is not None
        assert run.execution.error.name == "NameError"
        assert second.state == "recreated"
        assert "variables, files and installed packages of the session are gone" in second.lost
    async with manager.lease(key) as third:
        assert (third.state, third.lost) == ("reused", "")


async def stream() -> AsyncIterator[bytes]:
    yield b"streamed"


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda lease: lease.confirm(), id="confirm"),
        pytest.param(lambda lease: lease.run_command("true", timeout=30), id="command"),
        pytest.param(lambda lease: lease.list_files("/home/user"), id="list"),
        pytest.param(lambda lease: lease.write_file("a", b"whole"), id="write"),
        pytest.param(lambda lease: lease.write_file("a", stream()), id="write a stream"),
        pytest.param(lambda lease: lease.restart(), id="restart"),
    ],
)
async def test_whatever_a_lease_does_first_goes_to_a_new_sandbox_if_its_own_ended(
    manager: SandboxManager,
    key: SessionKey,
    e2b: E2B,
    use: Callable[[Lease], Awaitable[object]],
) -> None:
    async with manager.lease(key) as first:
        pass
    await e2b.AsyncSandbox.kill(first.sandbox_id)
    async with manager.lease(key) as second:
        await use(second)
        assert (second.state, second.sandbox_id == first.sandbox_id) == ("recreated", False)


async def test_a_sandbox_lost_within_a_lease_is_not_replaced_behind_its_back(
    manager: SandboxManager, key: SessionKey, e2b: E2B
) -> None:
    async with manager.lease(key) as lease:
        await lease.write_file("input.csv", b"a\n1\n")
        await e2b.AsyncSandbox.kill(lease.sandbox_id)
        with pytest.raises(SandboxLostError):
            await lease.run_code("open('input.csv')", timeout=30)


async def test_a_lease_soon_after_another_asks_e2b_nothing(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    passed = 0.0

    async def end_at() -> datetime:
        async with manager.lease(key) as lease:
            pass
        return (await e2b.AsyncSandbox.get_info(lease.sandbox_id)).end_at

    async with SandboxManager(
        SETTINGS, connect=Connector(engine), clock=lambda: time.monotonic() + passed
    ) as manager:
        created = await end_at()
        assert await end_at() == created
        passed = SETTINGS.sandboxes.idle_after / 9
        assert await end_at() > created


async def test_code_is_not_run_again_when_its_sandbox_is_lost(
    manager: SandboxManager, key: SessionKey, e2b: E2B
) -> None:
    async with manager.lease(key) as lease:
        with pytest.RaisesGroup(SandboxLostError):
            async with started(lease, "import time\nprint('on', flush=True)\ntime.sleep(60)"):
                await e2b.AsyncSandbox.kill(lease.sandbox_id)
    async with manager.lease(key) as lease:
        assert lease.state == "recreated"
        assert "ended while it was in use" in lease.lost


async def test_a_run_that_never_reached_its_sandbox_costs_nothing(
    engine: EngineAddress, key: SessionKey
) -> None:
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(SETTINGS, connect=Connector(proxy.address)) as manager,
    ):
        async with manager.lease(key) as lease:
            await text(lease, "x = 42")
        proxy.program = Script(execute=[answer(502, as_json=False)])
        with pytest.raises(SandboxError):
            async with manager.lease(key) as lease:
                await lease.run_code("x += 1", timeout=30)
        async with manager.lease(key) as lease:
            assert (await text(lease, "x"), lease.state, lease.lost) == ("42", "reused", "")


async def test_a_paused_sandbox_is_resumed_with_its_variables(
    manager: SandboxManager, key: SessionKey, e2b: E2B
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
    assert await e2b.AsyncSandbox.pause(lease.sandbox_id)
    assert [s.state for s in await manager.list_sessions(key.owner)] == ["paused"]
    async with manager.lease(key) as lease:
        assert await text(lease, "x") == "42"
        assert (lease.state, lease.lost) == ("resumed", "")


async def test_a_sandbox_paused_under_a_run_keeps_its_variables(
    manager: SandboxManager, key: SessionKey, e2b: E2B
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
        with pytest.RaisesGroup(pytest.RaisesExc(SandboxUnavailableError, match="paused")):
            async with started(lease, "import time\nprint('on', flush=True)\ntime.sleep(60)"):
                assert await e2b.AsyncSandbox.pause(lease.sandbox_id)
    async with manager.lease(key) as lease:
        assert (lease.state, lease.lost) == ("resumed", "")
        assert await text(lease, "x") == "42"


async def test_an_unused_sandbox_pauses_resumes_and_is_pruned_after_its_retention(
    engine: EngineAddress, key: SessionKey
) -> None:
    pausing = SandboxSettings(idle_after=1, idle_action="pause")

    async def paused(manager: SandboxManager) -> list[str]:
        with anyio.fail_after(10):
            while [s.state for s in await manager.list_sessions(key.owner)] != ["paused"]:
                pass
        return [s.sandbox_id for s in await manager.list_sessions(key.owner)]

    settings = replace(SETTINGS, sandboxes=pausing)
    async with SandboxManager(settings, connect=Connector(engine)) as manager:
        async with manager.lease(key) as first:
            await text(first, "x = 42")
        assert await paused(manager) == [first.sandbox_id]
        async with manager.lease(key) as second:
            assert await text(second, "x") == "42"
            assert (second.state, second.sandbox_id) == ("resumed", first.sandbox_id)
        assert await paused(manager) == [first.sandbox_id]
        assert await manager.prune(key.owner) == []

    brief = replace(SETTINGS, sandboxes=replace(pausing, retention=0))
    async with SandboxManager(brief, connect=Connector(engine)) as manager:
        assert [s.name for s in await manager.prune("another owner")] == []
        for dry_run in (True, False):
            pruned = await manager.prune(key.owner, dry_run=dry_run)
            assert [s.sandbox_id for s in pruned] == [first.sandbox_id]
        assert await manager.list_sessions(key.owner) == []


async def test_a_leased_sandbox_outlives_its_timeout(
    engine: EngineAddress, key: SessionKey
) -> None:
    short = replace(SETTINGS, sandboxes=SandboxSettings(idle_after=2))
    async with SandboxManager(short, connect=Connector(engine)) as manager:
        async with manager.lease(key) as lease:
            assert await text(lease, "import time; time.sleep(3); 'alive'") == "alive"
        async with manager.lease(key) as lease:
            assert lease.state == "reused"


# The plan's longest run, and a sandbox's age


@pytest.fixture(scope="module")
def short_runs() -> Iterator[EngineAddress]:
    """An engine whose plan lets a sandbox run for a minute."""
    with temporary_options(longest_run=60) as options, running_engine(options) as address:
        yield address


class MovedClock:
    """The time, and what a test has let pass besides."""

    passed = 0.0  # seconds

    def __call__(self) -> float:
        return time.monotonic() + self.passed


@dataclass
class ShortRun:
    """A session there, whose sandbox may run for an hour as far as its manager knows."""

    manager: SandboxManager
    clock: MovedClock
    key: SessionKey

    async def end_at(self) -> datetime:
        (session,) = await self.manager.list_sessions(self.key.owner)
        return session.end_at


@pytest.fixture
async def short_run(short_runs: EngineAddress) -> AsyncIterator[ShortRun]:
    key, clock = SessionKey(uuid.uuid4().hex, "analysis"), MovedClock()
    async with SandboxManager(
        limited(idle_after=3600), connect=Connector(short_runs), clock=clock
    ) as manager:
        yield ShortRun(manager, clock, key)
        await manager.end_session(key)


async def test_a_plans_longest_run_is_learnt_and_a_session_outlives_it(
    short_run: ShortRun,
) -> None:
    async with short_run.manager.lease(short_run.key) as first:
        assert first.state == "created"
        await text(first, "x = 42")
    before = await short_run.end_at()
    assert before.timestamp() <= time.time() + 60
    short_run.clock.passed = 31
    async with short_run.manager.lease(short_run.key) as second:
        assert await text(second, "x") == "42"
        assert (second.sandbox_id, second.lost) == (first.sandbox_id, "")
    assert await short_run.end_at() > before


async def test_a_run_that_nears_its_longest_in_a_lease_is_renewed_afterwards(
    short_run: ShortRun,
) -> None:
    async with short_run.manager.lease(short_run.key):
        short_run.clock.passed = 31
    before = await short_run.end_at()
    with anyio.fail_after(60):
        while await short_run.end_at() <= before:
            pass


async def test_a_sandbox_beyond_its_age_is_replaced_between_two_calls(
    engine: EngineAddress, key: SessionKey
) -> None:
    passed = 0.0
    async with SandboxManager(
        limited(max_age=1000), connect=Connector(engine), clock=lambda: time.monotonic() + passed
    ) as manager:
        async with manager.lease(key) as first:
            passed = 1001
            await text(first, "x = 42")
        async with manager.lease(key) as second:
            assert (second.state, second.sandbox_id == first.sandbox_id) == ("recreated", False)
            assert "max_age" in second.lost
        listed = await manager.list_sessions(key.owner)
        assert [s.sandbox_id for s in listed] == [second.sandbox_id]


# Warm sandboxes


async def warm_ones(e2b: E2B, owner: str, count: int) -> set[str]:
    """Their ids, once there are so many."""
    query = SandboxQuery(metadata={**owned_by(owner), "warm": "1"})
    with anyio.fail_after(60):
        while True:
            listed = await e2b.AsyncSandbox.list(query=query).next_items()
            if len(listed) == count:
                return {item.sandbox_id for item in listed}


async def test_a_new_session_gets_a_warm_sandbox_and_keeps_it_across_servers(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    new = SessionKey(key.owner, "new")
    async with SandboxManager(limited(warm=1), connect=Connector(engine)) as manager:
        async with manager.lease(key):
            pass
        (warm,) = await warm_ones(e2b, key.owner, 1)
        assert [s.name for s in await manager.list_sessions(key.owner)] == ["analysis"]
        async with manager.lease(new) as lease:
            assert (lease.state, lease.lost, lease.sandbox_id) == ("created", "", warm)
            await text(lease, "x = 42")
            assert await lease.changed_files() == []
        await warm_ones(e2b, key.owner, 2)  # another took its place
    async with SandboxManager(limited(), connect=Connector(engine)) as other:
        assert {s.name for s in await other.list_sessions(key.owner)} == {"analysis", "new"}
        async with other.lease(new) as lease:
            assert (lease.state, lease.sandbox_id) == ("reused", warm)
            assert await text(lease, "x") == "42"
        assert await other.end_session(new)
        for left in await warm_ones(e2b, key.owner, 1):
            await e2b.AsyncSandbox.kill(left)


async def test_a_gateways_page_is_not_taken_for_what_a_claim_says(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    new = SessionKey(key.owner, "new")
    async with SandboxManager(limited(warm=1), connect=Connector(engine)) as manager:
        await use_once(manager, key)
        await warm_ones(e2b, key.owner, 1)
        async with manager.lease(new) as claimed:
            await text(claimed, "x = 42")
        left = await warm_ones(e2b, key.owner, 2) - {claimed.sandbox_id}
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(limited(), connect=Connector(proxy.address)) as other,
    ):
        proxy.program = Always(not_json, "files")
        with pytest.raises(SandboxUnavailableError):
            await use_once(other, new)
        proxy.program = no_faults
        async with other.lease(new) as lease:
            assert lease.sandbox_id == claimed.sandbox_id
            assert await text(lease, "x") == "42"
    for sandbox_id in left:
        await e2b.AsyncSandbox.kill(sandbox_id)


async def test_a_sandbox_that_paused_while_its_claim_was_looked_for_lives_on(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    """To connect resumes it, which an extension of a second would have ended."""
    new = SessionKey(key.owner, "new")
    connecting = Gate("before")
    async with SandboxManager(limited(warm=1), connect=Connector(engine)) as manager:
        await use_once(manager, key)
        await warm_ones(e2b, key.owner, 1)
        async with manager.lease(new) as claimed:
            pass
        left = await warm_ones(e2b, key.owner, 2) - {claimed.sandbox_id}
    for sandbox_id in left:
        await e2b.AsyncSandbox.kill(sandbox_id)
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(limited(), connect=Connector(proxy.address)) as other,
    ):
        proxy.program = Script(connect=[connecting])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.list_sessions, key.owner)
            await connecting.reached.wait()
            await e2b.AsyncSandbox.pause(claimed.sandbox_id)
            connecting.opened.set()
        info = await e2b.AsyncSandbox.get_info(claimed.sandbox_id)
        assert (info.end_at - datetime.now(UTC)).total_seconds() > 60
        assert await other.end_session(new)


async def test_a_claimed_sandbox_that_paused_is_found_by_another_server(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    new = SessionKey(key.owner, "new")
    async with SandboxManager(limited(warm=1), connect=Connector(engine)) as manager:
        async with manager.lease(key):
            pass
        await warm_ones(e2b, key.owner, 1)
        async with manager.lease(new) as claimed:
            await text(claimed, "x = 42")
        left = await warm_ones(e2b, key.owner, 2)
    for sandbox_id in left:
        await e2b.AsyncSandbox.pause(sandbox_id)
    async with SandboxManager(limited(), connect=Connector(engine)) as other:
        listed = {s.name: s.state for s in await other.list_sessions(key.owner)}
        assert listed == {"analysis": "running", "new": "paused"}
        for sandbox_id in left:  # looking into them changed nothing
            info = await e2b.AsyncSandbox.get_info(sandbox_id)
            assert info.state.value == "paused"
        async with other.lease(new) as lease:
            assert (lease.sandbox_id, lease.state) == (claimed.sandbox_id, "resumed")
            assert await text(lease, "x") == "42"
        # The other is nobody's, which a sweep finds by itself.
        assert await warm_ones(e2b, key.owner, 1) == {lease.sandbox_id}


async def test_code_cannot_forge_or_carry_off_a_claim(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    """A sandbox that copies its note elsewhere, or writes one for another session, gets nothing."""
    async with SandboxManager(limited(warm=2), connect=Connector(engine)) as manager:
        async with manager.lease(key):
            pass
        await warm_ones(e2b, key.owner, 2)
        async with manager.lease(SessionKey(key.owner, "attacker")) as attacker:
            note = json.loads(await attacker.read_file(NOTE))
            forged = {**note, "session": "victim"}
            await attacker.write_file(NOTE, json.dumps(forged).encode())
        async with manager.lease(SessionKey(key.owner, "accomplice")) as accomplice:
            await accomplice.write_file(NOTE, json.dumps(note).encode())
    async with SandboxManager(limited(), connect=Connector(engine)) as other:
        names = {s.name for s in await other.list_sessions(key.owner)}
        assert names == {"analysis"}
        async with other.lease(SessionKey(key.owner, "victim")) as victim:
            assert victim.sandbox_id not in {attacker.sandbox_id, accomplice.sandbox_id}
    query = SandboxQuery(metadata={**owned_by(key.owner), "warm": "1"})
    for item in await e2b.AsyncSandbox.list(query=query).next_items():
        await e2b.AsyncSandbox.kill(item.sandbox_id)


async def test_code_that_spoils_its_note_harms_no_other_session(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    spoilt = [
        *(f"mkdir {NOTE}", f"mkfifo {NOTE}", f"ln -s /dev/zero {NOTE}"),
        *(f"ln -s {NOTE} {NOTE}", f"touch {NOTE} && chmod 0 {NOTE}", f"truncate -s 3G {NOTE}"),
    ]
    async with SandboxManager(limited(warm=1), connect=Connector(engine)) as manager:
        async with manager.lease(key):
            pass
        await warm_ones(e2b, key.owner, 1)
        async with manager.lease(SessionKey(key.owner, "attacker")) as attacker:
            for command in spoilt:
                run = await attacker.run_command(f"rm -rf {NOTE} && {command}")
                assert run.status == "ok", run
                async with SandboxManager(limited(), connect=Connector(engine)) as other:
                    with anyio.fail_after(30):
                        listed = await other.list_sessions(key.owner)
                assert [s.name for s in listed] == ["analysis"], command
        left = await warm_ones(e2b, key.owner, 2)
    for sandbox_id in left:
        await e2b.AsyncSandbox.kill(sandbox_id)


async def test_a_warm_sandbox_takes_no_place_that_was_taken_while_its_price_was_looked_up(
    key: SessionKey,
) -> None:
    pool = Pool(SandboxSettings(max=1))

    async def may_spend(_: str) -> bool:
        pool.slot(key).starting = True
        return True

    async def connect(*, on_progress: object) -> E2BParams:
        await anyio.sleep_forever()
        raise AssertionError

    control = Control(SETTINGS, connect, Transitions(), Terms(60))
    maker = Maker("instance", "server")
    warm = WarmPool(1, control, pool, maker, time.monotonic, may_spend)
    async with anyio.create_task_group() as tasks:
        warm.look_after(key.owner, tasks)
        await anyio.wait_all_tasks_blocked()
        assert pool.warm.total() == 0
        tasks.cancel_scope.cancel()


async def test_two_servers_that_claim_at_once_end_with_one_sandbox(
    engine: EngineAddress, key: SessionKey, e2b: E2B, elsewhere: Settings
) -> None:
    new = SessionKey(key.owner, "new")
    used: list[str] = []
    warm_elsewhere = replace(elsewhere, sandboxes=limited(warm=1).sandboxes)

    async def use(manager: SandboxManager) -> None:
        async with manager.lease(new) as lease:
            await text(lease, "1")
            used.append(lease.sandbox_id)

    async with (
        SandboxManager(limited(warm=1), connect=Connector(engine)) as one,
        SandboxManager(warm_elsewhere, connect=Connector(engine)) as two,
    ):
        for manager in (one, two):
            async with manager.lease(key):
                pass
        await warm_ones(e2b, key.owner, 2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, one)
            tasks.start_soon(use, two)
        assert len(used) == 2
        assert len(set(used)) == 1
        listed = [s for s in await one.list_sessions(key.owner) if s.name == "new"]
        assert [s.sandbox_id for s in listed] == used[:1]
    query = SandboxQuery(metadata={**owned_by(key.owner), "warm": "1"})
    for item in await e2b.AsyncSandbox.list(query=query).next_items():
        await e2b.AsyncSandbox.kill(item.sandbox_id)


async def test_a_warm_sandbox_makes_room_before_any_session_is_paused(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    secret = SessionKey(key.owner, f"s-{uuid.uuid4().hex}")  # never given a warm one
    async with SandboxManager(limited(max=2, warm=1), connect=Connector(engine)) as manager:
        async with manager.lease(key):
            pass
        (warm,) = await warm_ones(e2b, key.owner, 1)
        async with manager.lease(secret) as lease:
            assert lease.sandbox_id != warm
        assert [s.state for s in await manager.list_sessions(key.owner)] == ["running"] * 2
        assert await warm_ones(e2b, key.owner, 0) == set()


async def running(e2b: E2B, owner: str) -> set[str]:
    query = SandboxQuery(metadata=owned_by(owner), state=[SandboxState.RUNNING])
    return {item.sandbox_id for item in await e2b.AsyncSandbox.list(query=query).next_items()}


@pytest.mark.parametrize("why", ["it failed", "its caller went away"])
async def test_a_warm_sandbox_that_was_not_claimed_is_ended_at_once(
    engine: EngineAddress, key: SessionKey, e2b: E2B, why: str
) -> None:
    writing = Gate("after")
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(limited(max=2, warm=1), connect=Connector(proxy.address)) as manager,
    ):
        async with manager.lease(key):
            pass
        (warm,) = await warm_ones(e2b, key.owner, 1)
        async with anyio.create_task_group() as tasks:
            proxy.program = Script(files=[answer(500) if why == "it failed" else writing])
            tasks.start_soon(use_once, manager, SessionKey(key.owner, "new"))
            if why == "its caller went away":
                await writing.reached.wait()
                tasks.cancel_scope.cancel()
        await manager.list_sessions(key.owner)
        assert warm not in await running(e2b, key.owner)


async def test_a_warm_sandbox_that_could_not_be_ended_keeps_its_place(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    new = SessionKey(key.owner, "new")
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(limited(max=2, warm=1), connect=Connector(proxy.address)) as manager,
    ):
        async with manager.lease(key):
            pass
        (warm,) = await warm_ones(e2b, key.owner, 1)
        proxy.program = Always(answer(500), "files", "kill")
        await use_once(manager, new)
        listed = {s.name: s.state for s in await manager.list_sessions(key.owner)}
        assert listed == {"analysis": "paused", "new": "running"}
        assert len(await running(e2b, key.owner)) == 2
    await e2b.AsyncSandbox.kill(warm)


async def test_a_warm_sandbox_that_could_not_be_ended_leaves_making_room_to_a_session(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    secret = SessionKey(key.owner, f"s-{uuid.uuid4().hex}")  # never given a warm one
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(limited(max=2, warm=1), connect=Connector(proxy.address)) as manager,
    ):
        async with manager.lease(key):
            pass
        (warm,) = await warm_ones(e2b, key.owner, 1)
        proxy.program = Always(answer(500), "kill")
        await use_once(manager, secret)
        assert len(await running(e2b, key.owner)) == 2
    await e2b.AsyncSandbox.kill(warm)


async def test_a_warm_sandbox_that_grew_too_old_is_not_handed_out(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    clock = MovedClock()
    aging = limited(warm=1, max_age=1000)
    async with SandboxManager(aging, connect=Connector(engine), clock=clock) as manager:
        await use_once(manager, key)
        (warm,) = await warm_ones(e2b, key.owner, 1)
        clock.passed = 1001
        async with manager.lease(SessionKey(key.owner, "new")) as lease:
            assert lease.sandbox_id != warm
        with anyio.fail_after(60):
            while warm in (left := await warm_ones(e2b, key.owner, 1)):
                pass
    for sandbox_id in left:
        await e2b.AsyncSandbox.kill(sandbox_id)


# Clean-up


async def test_a_server_prunes_what_its_user_left_paused_for_any_owner_and_nothing_else(
    engine: EngineAddress, e2b: E2B
) -> None:
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    owners = [uuid.uuid4().hex for _ in range(2)]

    def server(user: str, **settings: Any) -> SandboxManager:
        own = replace(limited(**settings), owner=user)
        return SandboxManager(own, connect=Connector(engine))

    async with server(mine) as left, server(other) as foreign:
        for manager, owner in zip((left, foreign), owners, strict=True):
            async with manager.lease(SessionKey(owner, "analysis")) as lease:
                pass
            await e2b.AsyncSandbox.pause(lease.sandbox_id)
    stranger = await e2b.AsyncSandbox.create(metadata={"owner": owners[0], "session": "analysis"})
    await stranger.pause()
    async with server(mine, retention=0) as manager:
        assert len(await manager.prune(dry_run=True)) == 1
        assert len(await manager.prune()) == 1
        assert await manager.list_sessions(owners[0]) == []
        assert len(await manager.list_sessions(owners[1])) == 1
        assert (await stranger.get_info()).state.value == "paused"
        await manager.end_session(SessionKey(owners[1], "analysis"))
    await stranger.kill()


async def test_what_is_resumed_while_a_sweep_looks_is_left_alone(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    async with (
        SandboxManager(limited(), connect=Connector(engine)) as manager,
        manager.lease(key) as lease,
    ):
        await lease.run_code("x = 42")
    await e2b.AsyncSandbox.pause(lease.sandbox_id)
    gate = Gate("after")
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(limited(retention=0), connect=Connector(proxy.address)) as sweeping,
    ):
        proxy.program = Script(list=[gate])

        async def sweep() -> None:
            assert await sweeping.prune(key.owner) == []

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sweep)
            await gate.reached.wait()
            resumed = await e2b.AsyncSandbox.connect(lease.sandbox_id, timeout=60)
            gate.opened.set()
    assert (await resumed.run_code("x")).text == "42"


async def test_a_new_owner_costs_one_look(engine: EngineAddress) -> None:
    owners = [uuid.uuid4().hex for _ in range(3)]
    async with (
        FaultProxy.serve(engine) as proxy,
        SandboxManager(limited(), connect=Connector(proxy.address)) as manager,
    ):

        def looks(word: str) -> int:
            return sum(word in e.request.target.decode() for e in proxy.asked("list"))

        for owner in owners:
            async with manager.lease(SessionKey(owner, "analysis")):
                pass
            with anyio.fail_after(30):
                while looks(owner) < 3:  # two of the lease
                    await anyio.sleep(0.01)
        assert ([looks(owner) for owner in owners], looks("server")) == ([3, 3, 3], 1)
        for owner in owners:
            await manager.end_session(SessionKey(owner, "analysis"))


async def test_leaving_the_manager_is_bounded_whatever_hangs(
    engine: EngineAddress, key: SessionKey
) -> None:
    """A lease, a sweep and a heartbeat without an answer."""

    async def call(manager: SandboxManager, name: str) -> None:
        with suppress(SandboxError):
            async with manager.lease(SessionKey(key.owner, name)):
                pass

    async with FaultProxy.serve(engine) as proxy:
        with anyio.CancelScope() as server:
            async with (
                SandboxManager(limited(idle_after=3), connect=Connector(proxy.address)) as manager,
                manager.lease(key),
                anyio.create_task_group() as tasks,
            ):
                proxy.program = Always(hang_after, *CONTROL)
                tasks.start_soon(call, manager, "other")
                with anyio.fail_after(30):
                    while {"list", "extend"} - {e.route for e in proxy.log if e.fault}:
                        await anyio.sleep(0.01)
                started = time.monotonic()
                server.cancel()
        assert time.monotonic() - started < 2


async def test_an_engine_that_ended_is_started_again_and_the_loss_told(
    fresh_options: EngineOptions, key: SessionKey
) -> None:
    folders = EngineSettings(
        state_dir=fresh_options.state_dir, runtime_dir=fresh_options.runtime_dir
    )
    settings = replace(SETTINGS, engine=folders)
    heard: list[str] = []

    async def on_progress(message: str) -> None:
        heard.append(message)

    async with SandboxManager(settings) as manager:
        async with manager.lease(key, on_progress=on_progress) as first:
            assert first.state == "created"
        assert heard == ["Starting the engine", "Creating a sandbox"]
        assert await stop(engine_options(settings))
        async with manager.lease(key) as second:
            assert await text(second, "1 + 1") == "2"
            assert second.state == "recreated"
    assert await stop(engine_options(settings))


async def test_an_engine_killed_under_a_run_costs_the_variables_and_says_so(
    fresh_options: EngineOptions, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that has to start again may take longer than one that has to stop."""
    monkeypatch.setattr(stopping, "KERNEL_GRACE", 0.001)
    folders = EngineSettings(
        state_dir=fresh_options.state_dir, runtime_dir=fresh_options.runtime_dir
    )
    settings = replace(SETTINGS, engine=folders)
    options = engine_options(settings)
    async with SandboxManager(settings) as manager:
        async with manager.lease(key) as lease:
            await text(lease, "x = 42; open('kept.txt', 'w').write('kept')")
            address = await find(options)
            assert address is not None
            with pytest.RaisesGroup(SandboxUnavailableError):
                async with started(lease, "import time\nprint('on', flush=True)\ntime.sleep(60)"):
                    os.kill(address.pid, signal.SIGKILL)
        async with manager.lease(key) as lease:
            left = await text(lease, "'x' in globals(), open('kept.txt').read()")
            assert (lease.state, left) == ("resumed", "(False, 'kept')")
            assert lease.lost == EXPLAIN_REBOOTED
        async with manager.lease(key) as lease:
            assert (lease.state, lease.lost) == ("reused", "")
        await manager.end_session(key)
    assert await stop(options)


async def test_an_address_where_nobody_listens_is_an_error_with_words(
    key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "RETRY_DELAYS", ())  # the SDK itself tries for seconds
    nowhere = EngineAddress("http://127.0.0.1:9", "http://127.0.0.1:9", "e2b_key", 0)
    async with SandboxManager(SETTINGS, connect=Connector(nowhere)) as manager:
        with pytest.raises(SandboxUnavailableError, match="HTTPS_PROXY"), anyio.fail_after(30):
            async with manager.lease(key):
                pass


async def test_a_rejected_key_is_an_error_at_once(engine: EngineAddress, key: SessionKey) -> None:
    stranger = Connector(replace(engine, api_key="e2b_wrong"))
    async with SandboxManager(SETTINGS, connect=stranger) as manager:
        with pytest.raises(AuthenticationError, match="E2B_API_KEY"):
            async with manager.lease(key):
                pass


async def test_leaving_the_manager_ends_the_wait_for_a_sandbox(
    engine: EngineAddress, key: SessionKey
) -> None:
    creating = anyio.Event()
    refused = anyio.Event()

    async def on_progress(_: str) -> None:
        creating.set()

    async def call(manager: SandboxManager) -> None:
        with pytest.raises(SandboxUnavailableError, match="stopping"):
            async with manager.lease(key, on_progress=on_progress):
                pass
        refused.set()

    async with anyio.create_task_group() as tasks:
        async with SandboxManager(SETTINGS, connect=Connector(engine)) as manager:
            tasks.start_soon(call, manager)
            await creating.wait()
        with anyio.fail_after(2):
            await refused.wait()


async def test_leaving_the_manager_ends_no_sandbox(
    engine: EngineAddress, key: SessionKey, e2b: E2B
) -> None:
    manager = SandboxManager(SETTINGS, connect=Connector(engine))
    async with manager, manager.lease(key) as lease:
        pass
    info = await e2b.AsyncSandbox.get_info(lease.sandbox_id)
    assert info.state.value == "running"


# Runs


async def test_an_exception_in_the_code_is_a_result(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        run = await lease.run_code("print('before')\n1 / 0", timeout=30)
    assert run.status == "error"
    assert run.execution.error is not None
    assert run.execution.error.name == "ZeroDivisionError"
    assert "".join(run.execution.logs.stdout) == "before\n"
    assert run.note == ""


async def test_the_start_of_the_interpreter_does_not_count_as_the_codes_time(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        run = await lease.run_code("6 * 7", timeout=0.2)
    assert (lease.state, run.status, run.execution.text) == ("created", "ok", "42")


async def test_a_run_over_its_time_is_stopped_and_keeps_variables(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
        with anyio.fail_after(10):
            run = await lease.run_code(
                "import time\nprint('on', flush=True)\nx += 1\ntime.sleep(60)", timeout=1
            )
        assert run.status == "timeout"
        assert 1 <= run.duration < 5
        assert "".join(run.execution.logs.stdout) == "on\n"
        assert run.note == stopping.KEPT
        assert await text(lease, "x") == "43"


async def test_code_that_ignores_interrupts_costs_the_variables_not_the_files(
    manager: SandboxManager, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "KERNEL_GRACE", 1.0)
    stubborn = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
open('kept.txt', 'w').write('kept')
time.sleep(60)
"""
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
        run = await lease.run_code(stubborn, timeout=1)
        assert (run.status, run.note) == ("timeout", stopping.RESTARTED)
        assert await text(lease, "'x' in globals(), open('kept.txt').read()") == "(False, 'kept')"


async def test_a_sandbox_whose_services_stop_answering_is_ended_and_replaced(
    manager: SandboxManager, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code stops every process it may signal, so nobody is left to restart its interpreter."""
    monkeypatch.setattr(stopping, "KERNEL_GRACE", 1.0)
    monkeypatch.setattr(stopping, "RESTART_LIMIT", 2.0)
    freeze = """
import os, signal
for pid in [int(name) for name in os.listdir('/proc') if name.isdecimal()]:
    if pid != os.getpid():
        try:
            os.kill(pid, signal.SIGSTOP)
        except OSError:
            pass
os.kill(os.getpid(), signal.SIGSTOP)
"""
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
        with anyio.fail_after(60):
            run = await lease.run_code(freeze, timeout=1)
        assert (run.status, run.note) == ("timeout", stopping.ENDED)
    async with manager.lease(key) as again:
        assert (again.state, again.sandbox_id == lease.sandbox_id) == ("recreated", False)
        assert "stopped answering" in again.lost


async def test_an_interpreter_that_dies_is_told_and_replaced(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "x = 42; open('kept.txt', 'w').write('kept')")
        run = await lease.run_code("import os; os.kill(os.getpid(), 9)", timeout=30)
        assert (run.status, run.note) == ("error", lease_module.KERNEL_DIED)
        assert await text(lease, "'x' in globals(), open('kept.txt').read()") == "(False, 'kept')"


async def test_a_cancelled_call_stops_its_code_and_keeps_variables(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
    async with (
        anyio.create_task_group() as tasks,
        manager.lease(key) as lease,
        started(lease, "import time\nprint('on', flush=True)\ntime.sleep(60)"),
    ):
        tasks.cancel_scope.cancel()
    with anyio.fail_after(10):
        async with manager.lease(key) as lease:
            assert lease.state == "reused"
            assert await text(lease, "x") == "42"


async def test_what_a_cancelled_call_cost_is_told_by_the_next_that_is_answered(
    manager: SandboxManager, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "KERNEL_GRACE", 1.0)
    stubborn = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('on', flush=True)
time.sleep(60)
"""
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
    async with (
        anyio.create_task_group() as tasks,
        manager.lease(key) as lease,
        started(lease, stubborn),
    ):
        tasks.cancel_scope.cancel()
    with pytest.raises(TimeoutError), anyio.fail_after(0):
        async with manager.lease(key) as lease:
            await anyio.sleep_forever()
    async with manager.lease(key) as lease:
        assert await text(lease, "'x' in globals()") == "False"
        assert lease.state == "reused"
        assert "variables of the session are gone" in lease.lost
    async with manager.lease(key) as lease:
        assert lease.lost == ""


async def test_an_interpreter_restarted_by_another_server_is_told(
    manager: SandboxManager, key: SessionKey, engine: EngineAddress
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
    async with (
        SandboxManager(SETTINGS, connect=Connector(engine)) as other,
        other.lease(key) as lease,
    ):
        assert await text(lease, "x") == "42"
        await lease.restart()
    async with manager.lease(key) as lease:
        assert await text(lease, "'x' in globals()") == "False"
        assert "variables from before are gone" in lease.lost
    async with manager.lease(key) as lease:
        await text(lease, "'x' in globals()")
        assert lease.lost == ""


async def test_output_is_heard_while_the_code_runs(
    manager: SandboxManager, key: SessionKey
) -> None:
    heard: list[str] = []

    async def hear(printed: str) -> None:
        heard.append(printed)

    async with manager.lease(key) as lease:
        run = await lease.run_code(
            "import sys\nprint('out')\nprint('err', file=sys.stderr)",
            timeout=30,
            on_stdout=hear,
            on_stderr=hear,
        )
    assert sorted("".join(heard).split()) == ["err", "out"]
    assert "".join(run.execution.logs.stdout) == "out\n"
    assert "".join(run.execution.logs.stderr) == "err\n"


async def test_code_that_prints_without_end_is_stopped(
    manager: SandboxManager, key: SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "OUTPUT_LIMIT", 100_000)
    async with manager.lease(key) as lease:
        await text(lease, "x = 42")
        run = await lease.run_code("while True: print('x' * 1000)", timeout=30)
        assert run.status == "interrupted"
        assert await text(lease, "x") == "42"


async def test_a_fresh_interpreter_has_the_files_and_no_variables(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "x = 42; open('kept.txt', 'w').write('kept')")
        await lease.restart()
        assert await text(lease, "'x' in globals(), open('kept.txt').read()") == "(False, 'kept')"


async def test_a_requirement_that_pip_refuses_is_told_with_its_words(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        with pytest.raises(InvalidArgumentError, match="no-such-package"):
            await lease.install(["./no-such-package"], timeout=60)
        with pytest.raises(InvalidArgumentError, match="--index-url"):
            await lease.install(["--index-url=http://127.0.0.1"], timeout=60)


async def test_an_installed_package_is_there_at_once(
    manager: SandboxManager, key: SessionKey
) -> None:
    files = {
        "packed/pyproject.toml": b"[project]\nname = 'packed'\nversion = '1'\n",
        "packed/packed.py": b"ANSWER = 42\n",
    }
    async with manager.lease(key) as lease:
        for path, data in files.items():
            await lease.write_file(path, data)
        await lease.install(["./packed"], timeout=120)
        assert await text(lease, "import packed; packed.ANSWER") == "42"


# Commands


async def test_a_command_gives_its_output_and_exit_code(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        done = await lease.run_command("echo out; echo err >&2; exit 3", timeout=30)
        assert (done.status, done.exit_code) == ("error", 3)
        assert (done.stdout, done.stderr) == ("out\n", "err\n")
        there = await lease.run_command("pwd", timeout=30, cwd="/tmp")
        assert (there.status, there.exit_code, there.stdout) == ("ok", 0, "/tmp\n")


async def test_a_command_in_a_missing_folder_is_refused(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        with pytest.raises(InvalidArgumentError, match="/none"):
            await lease.run_command("pwd", timeout=30, cwd="/none")


async def test_a_command_over_its_time_is_killed(manager: SandboxManager, key: SessionKey) -> None:
    async with manager.lease(key) as lease:
        with anyio.fail_after(10):
            cut = await lease.run_command("echo on; exec sleep 1234", timeout=1)
        assert (cut.status, cut.exit_code, cut.stdout) == ("timeout", None, "on\n")
        left = await lease.run_command("pgrep -f '[s]leep 1234'", timeout=30)
        assert left.stdout == ""


async def test_a_cancelled_command_is_killed(manager: SandboxManager, key: SessionKey) -> None:
    started = anyio.Event()

    async def on_stdout(_: str) -> None:
        started.set()

    async def run(lease: Lease) -> None:
        await lease.run_command("echo on; exec sleep 1234", timeout=60, on_stdout=on_stdout)

    async with manager.lease(key) as lease:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, lease)
            await started.wait()
            tasks.cancel_scope.cancel()
        left = await lease.run_command("pgrep -f '[s]leep 1234'", timeout=30)
        assert left.stdout == ""


# Files


async def test_files_pass_in_and_out(manager: SandboxManager, key: SessionKey) -> None:
    data = bytes(range(256)) * 1000
    async with manager.lease(key) as lease:
        await lease.write_file("data/in.bin", data)
        assert await lease.read_file("/home/user/data/in.bin") == data
        info = await lease.stat_file("data/in.bin")
        assert (info.path, info.kind, info.size) == ("/home/user/data/in.bin", "file", len(data))
        listed = await lease.list_files("data")
        assert [(item.path, item.mime_type) for item in listed] == [
            ("/home/user/data/in.bin", "application/octet-stream")
        ]


async def test_a_file_passes_in_pieces(manager: SandboxManager, key: SessionKey) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number

    async with manager.lease(key) as lease:
        await lease.write_file("pieces", pieces())
        async with lease.stream_file("pieces") as chunks:
            assert b"".join([chunk async for chunk in chunks]) == b"012"


async def test_what_is_not_a_file_cannot_be_read(manager: SandboxManager, key: SessionKey) -> None:
    async with manager.lease(key) as lease:
        with pytest.raises(NotFoundError, match=r"none\.txt"):
            await lease.read_file("none.txt")
        with pytest.raises(NotFoundError):
            await lease.list_files("none")
        with pytest.raises(InvalidArgumentError, match="folder"):
            await lease.read_file("/tmp")


async def test_a_file_over_the_limit_is_not_moved(engine: EngineAddress, key: SessionKey) -> None:
    small = replace(SETTINGS, files=FileSettings(size_limit=10))
    async with (
        SandboxManager(small, connect=Connector(engine)) as manager,
        manager.lease(key) as lease,
    ):
        await text(lease, "open('big', 'w').write('x' * 11)")
        with pytest.raises(TooLargeError, match="E2B_AGENT_MCP_FILES_SIZE_LIMIT"):
            await lease.read_file("big")
        with pytest.raises(TooLargeError):
            await lease.write_file("big", b"x" * 11)


async def test_a_run_names_the_files_it_made_or_changed(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        await lease.write_file("given.csv", b"a\n1\n")
        await text(lease, "pass")
        assert await lease.changed_files() == []
        await text(
            lease,
            "import os\nos.makedirs('out/.cache')\n"
            "open('out/plot.png', 'w').write('p')\nopen('given.csv', 'a').write('2\\n')\n"
            "open('.hidden', 'w').write('h')\nopen('out/.cache/x', 'w').write('x')",
        )
        changed = await lease.changed_files()
        assert [(item.path, item.size, item.mime_type) for item in changed] == [
            ("/home/user/given.csv", 6, "text/csv"),
            ("/home/user/out/plot.png", 1, "image/png"),
        ]
        assert await lease.changed_files() == []


async def test_a_file_given_between_two_runs_is_not_named_as_the_runs(
    manager: SandboxManager, key: SessionKey
) -> None:
    async with manager.lease(key) as lease:
        await text(lease, "open('one.txt', 'w').write('1')")
        assert [item.path for item in await lease.changed_files()] == ["/home/user/one.txt"]
    async with manager.lease(key) as lease:
        await lease.write_file("given.txt", b"g")
    async with manager.lease(key) as lease:
        await text(lease, "open('two.txt', 'w').write('2')")
        assert [item.path for item in await lease.changed_files()] == ["/home/user/two.txt"]


async def test_a_lease_ends_with_its_block(manager: SandboxManager, key: SessionKey) -> None:
    async with manager.lease(key) as lease:
        pass
    with pytest.raises(RuntimeError, match="lease the session again"):
        await lease.run_code("1", timeout=1)


# From a program of one's own


async def test_a_name_alone_is_a_session_of_this_user(engine: EngineAddress) -> None:
    owner = uuid.uuid4().hex
    e2b = E2BSettings(
        api_key=Secret(engine.api_key), api_url=engine.api_url, sandbox_url=engine.sandbox_url
    )
    settings = Settings(e2b=e2b, owner=owner)
    async with e2b_agent_mcp.SandboxManager(settings) as manager:
        async with manager.lease("analysis") as lease:
            await lease.run_code("x = 6 * 7")
            run = await lease.run_code("x")
            assert run.execution.text == "42"
            assert (await lease.run_command("echo $((6 * 7))")).stdout == "42\n"
        (listed,) = await manager.list_sessions()
        assert (listed.name, listed.sandbox_id) == ("analysis", lease.sandbox_id)
        key = e2b_agent_mcp.SessionKey(f"local:{owner}", "analysis")
        async with manager.lease(key) as again:
            assert again.sandbox_id == lease.sandbox_id
        assert await manager.end_session("analysis")
        assert not await manager.end_session(key)


async def test_code_without_a_limit_of_its_own_has_that_of_the_settings(
    engine: EngineAddress, key: SessionKey
) -> None:
    settings = replace(SETTINGS, runs=RunSettings(timeout=0.2))
    async with (
        SandboxManager(settings, connect=Connector(engine)) as manager,
        manager.lease(key) as lease,
    ):
        run = await lease.run_code("while True: pass")
        command = await lease.run_command("sleep 100")
    assert (run.status, command.status) == ("timeout", "timeout")

"""What is told of sandboxes: once each, in the order it happens, without a word of the callers'."""

import logging
import re
import uuid
from collections.abc import AsyncIterator

import anyio
import pytest

from conftest import Connector
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.lifecycle.transitions import Transition, write_log
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import SandboxSettings, Settings

LOGGER = "e2b_agent_mcp.lifecycle.transitions"


@pytest.fixture
async def manager(engine: EngineAddress) -> AsyncIterator[SandboxManager]:
    settings = Settings(sandboxes=SandboxSettings(idle_after=120))
    async with SandboxManager(settings, connect=Connector(engine)) as manager:
        yield manager


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, without what differs from run to run."""
    found = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    return [re.sub(r"(sandbox|creation|owner|took)=\S+", r"\1=…", line) for line in found]


async def test_each_transition_is_one_line_of_the_log(
    manager: SandboxManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    key = SessionKey(uuid.uuid4().hex, "analysis")
    async with manager.lease(key) as lease:
        await lease.run_code("secret = 'swordfish'; secret", timeout=30)
    async with manager.lease(key) as lease:
        await lease.run_command("exit 3", timeout=30)
    await manager.end_session(key)
    session = "sandbox=… owner=… session=analysis"
    assert lines(caplog) == [
        "creating owner=… session=analysis creation=… life=120",
        f"created {session} creation=… life=120 took=…",
        f"leased {session} outcome=created took=…",
        f"run_started {session}",
        f"run_ended {session} outcome=ok took=…",
        f"released {session} took=…",
        f"leased {session} outcome=reused took=…",
        f"run_started {session}",
        f"run_ended {session} outcome=error took=…",
        f"released {session} took=…",
        "killed sandbox=…",
    ]
    assert "swordfish" not in caplog.text


async def test_a_sandbox_of_another_server_is_adopted(
    manager: SandboxManager, engine: EngineAddress, caplog: pytest.LogCaptureFixture
) -> None:
    key = SessionKey(uuid.uuid4().hex, "analysis")
    async with manager.lease(key):
        pass
    caplog.set_level(logging.INFO, LOGGER)
    async with SandboxManager(manager._settings, connect=manager._control._connect) as another:
        async with another.lease(key):
            pass
        assert await another.end_session(key)
    assert [line.split()[0] for line in lines(caplog)] == [
        *("connected", "extended", "adopted", "leased", "released", "killed"),
    ]


async def test_a_loss_a_limit_and_a_cancellation_are_told(
    manager: SandboxManager, caplog: pytest.LogCaptureFixture
) -> None:
    key = SessionKey(uuid.uuid4().hex, "analysis")
    async with manager.lease(key) as lease:
        await lease.run_code("1", timeout=30)
        caplog.set_level(logging.INFO, LOGGER)
        await lease.run_code("while True: pass", timeout=0.2)
        running = anyio.Event()

        async def run() -> None:
            async def printed(_: str) -> None:
                running.set()

            code = "print(1)\nwhile True: pass"
            await lease.run_code(code, timeout=30, on_stdout=printed)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            with anyio.fail_after(30):
                await running.wait()
            tasks.cancel_scope.cancel()
        await lease.sandbox.kill()
    async with manager.lease(key) as lease:
        await lease.run_code("1", timeout=30)
    await manager.end_session(key)
    told = [line.split()[0] + outcome(line) for line in lines(caplog)]
    assert told == [
        *("run_started", "run_ended timeout", "run_started", "run_ended cancelled", "released"),
        *("leased reused", "run_started", "lost", "run_ended sandbox_lost"),
        *("creating", "created"),
        *("run_started", "run_ended ok", "released", "killed"),
    ]


def outcome(line: str) -> str:
    found = re.search(r" outcome=(\S+)", line)
    return f" {found[1]}" if found else ""


@pytest.mark.parametrize(
    ("name", "logged"),
    [
        pytest.param("analysis", "session=analysis", id="plain"),
        pytest.param("my data", 'session="my data"', id="with-a-space"),
        pytest.param('a"\n', 'session="a\\"\\n"', id="breaks-out"),
        pytest.param("s-" + "0123456789abcdef" * 2, 'session="s-0123456789abcd', id="gives-access"),
    ],
)
def test_a_session_cannot_forge_a_line_nor_is_a_name_that_gives_access_logged_whole(
    name: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    write_log(Transition(kind="leased", key=SessionKey("me", name), outcome="reused"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert logged in line
    assert "\n" not in line
    assert len(name) <= 16 or name not in line

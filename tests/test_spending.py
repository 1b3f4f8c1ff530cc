"""What a manager writes down of what its sandboxes cost, and what a spent budget refuses."""

import signal
import sqlite3
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from e2b_code_interpreter import E2B
from mcp import Client

from e2b_agent_mcp import SandboxManager, SessionKey, create_server
from e2b_agent_mcp.costs import Spent
from e2b_agent_mcp.costs.ledger import FILE
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.errors import E2BAgentError, MonthlyBudgetError
from e2b_agent_mcp.pool import Maker
from e2b_agent_mcp.settings import (
    AgentSettings,
    CostSettings,
    E2BSettings,
    EngineSettings,
    SandboxSettings,
    Secret,
    Settings,
)
from faults import Always, Exchange, FaultProxy, Script, hang_before

PRICE = CostSettings(vcpu_second=1.0, gib_second=0.0)  # a dollar per vCPU and second

MakeSettings = Callable[..., Settings]


@pytest.fixture
async def make_settings(engine: EngineAddress, tmp_path: Path) -> AsyncIterator[MakeSettings]:
    """Settings of an owner and a ledger that no other test has."""
    e2b = E2BSettings(
        api_key=Secret(engine.api_key), api_url=engine.api_url, sandbox_url=engine.sandbox_url
    )
    owner = uuid.uuid4().hex

    def make(costs: CostSettings = PRICE, **changes: object) -> Settings:
        return Settings(
            e2b=e2b,
            owner=owner,
            costs=costs,
            engine=EngineSettings(state_dir=tmp_path),
            **changes,  # type: ignore[arg-type]
        )

    yield make
    async with SandboxManager(make()) as manager:
        for session in await manager.list_sessions():
            await manager.end_session(session.name)


async def spent(manager: SandboxManager, session: str = "analysis") -> Spent:
    return (await manager.spending()).sessions.get(session, Spent())


async def test_a_sandbox_is_spent_from_its_creation_to_its_end(make_settings: MakeSettings) -> None:
    before = time.time()
    async with SandboxManager(make_settings()) as manager:
        async with manager.lease("analysis"):
            (listed,) = await manager.list_sessions()
        await manager.end_session("analysis")
        after = time.time()
        found = await spent(manager)
        assert 0 < found.sandbox_seconds <= after - before
        assert found.sandbox_usd == pytest.approx(listed.vcpus * found.sandbox_seconds)
        assert await spent(manager) == found
        assert (await manager.spending()).total == found
        assert (await manager.spending(month="2020-01")).sessions == {}


async def test_on_this_machine_seconds_are_counted_and_cost_nothing(
    make_settings: MakeSettings,
) -> None:
    async with SandboxManager(make_settings(CostSettings())) as manager:
        async with manager.lease("analysis"):
            pass
        await manager.end_session("analysis")
        found = await spent(manager)
        assert found.sandbox_seconds > 0
        assert found.usd == 0


async def test_models_are_spent_too(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with SandboxManager(settings) as manager:
        manager.account_model(SessionKey(settings.local_owner, "analysis"), usd=0.25, tokens=100)
    async with SandboxManager(settings) as manager:
        assert await spent(manager) == Spent(model_usd=0.25, tokens=100)


LEASE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import anyio
from e2b_agent_mcp import SandboxManager, Settings

async def main():
    async with SandboxManager(Settings.load(os.environ)) as manager:
        async with manager.lease("analysis") as lease:
            print(lease.sandbox_id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


def environment(settings: Settings) -> dict[str, str]:
    assert settings.e2b.api_key is not None
    return {
        "E2B_API_KEY": settings.e2b.api_key.reveal(),
        "E2B_API_URL": str(settings.e2b.api_url),
        "E2B_SANDBOX_URL": str(settings.e2b.sandbox_url),
        "E2B_AGENT_MCP_OWNER": settings.owner,
        "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(settings.engine.state_dir),
        "E2B_AGENT_MCP_COSTS_VCPU_SECOND": "1",
    }


@pytest.mark.parametrize("ledger_lost", [False, True], ids=["ledger kept", "ledger lost"])
async def test_what_a_killed_server_spends_is_accounted_by_the_next(
    make_settings: MakeSettings, ledger_lost: bool, tmp_path: Path
) -> None:
    settings = make_settings()
    before = time.time()
    died = await anyio.run_process(
        [sys.executable, "-c", LEASE_AND_DIE], env=environment(settings), check=False
    )
    assert died.returncode == -signal.SIGKILL
    killed = time.time()
    await anyio.sleep(0.5)  # nobody looks, and E2B bills
    if ledger_lost:  # as if it had been killed before it could write
        for file in (tmp_path / "ledger").iterdir():
            file.unlink()
    async with SandboxManager(settings) as manager:
        if not ledger_lost:
            # Nobody has asked E2B anything since, and nobody needs to.
            assert 0.5 <= (await spent(manager)).sandbox_seconds <= time.time() - before
        async with manager.lease("analysis") as lease:
            assert lease.sandbox_id == died.stdout.decode().strip()
        (info,) = await manager.list_sessions()
        now = time.time()
        found = await spent(manager)
    assert found.sandbox_seconds >= now - killed
    assert found.sandbox_seconds == pytest.approx(now - info.started_at.timestamp(), abs=2)


async def test_a_server_killed_before_it_heard_of_its_sandbox_pays_for_it_once(
    engine: EngineAddress, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    async with FaultProxy.serve(engine) as proxy:
        created = anyio.Event()

        async def withhold(exchange: Exchange) -> None:
            await exchange.forward()
            created.set()
            await anyio.sleep_forever()

        proxy.program = Script(create=[withhold])
        through_proxy = {"E2B_API_URL": proxy.address.api_url}
        server = await anyio.open_process(
            [sys.executable, "-c", LEASE_AND_DIE],
            env={**environment(settings), **through_proxy},
        )
        with anyio.fail_after(60):
            await created.wait()
        server.kill()
        await server.aclose()
    killed = time.time()
    async with SandboxManager(settings) as manager:
        before = await spent(manager)  # E2B was not asked
        assert before.sandbox_seconds > 0
        async with manager.lease("analysis") as lease:
            (info,) = await manager.list_sessions()
            assert info.sandbox_id == lease.sandbox_id
        now = time.time()
        after = await spent(manager)
    assert after.sandbox_seconds > now - killed
    assert after.sandbox_seconds == pytest.approx(now - info.started_at.timestamp(), abs=2)


async def test_a_creation_that_failed_is_not_spent(
    engine: EngineAddress, make_settings: MakeSettings
) -> None:
    settings = make_settings(sandboxes=SandboxSettings(create_timeout=1.0))
    async with FaultProxy.serve(engine) as proxy:
        e2b = replace(settings.e2b, api_url=proxy.address.api_url)
        async with SandboxManager(replace(settings, e2b=e2b)) as manager:
            proxy.program = Always(hang_before, "create")
            with pytest.raises(E2BAgentError):
                async with manager.lease("analysis"):
                    pytest.fail("leased")
            assert (await spent(manager)).sandbox_seconds > 0  # it may exist
            assert await manager.list_sessions() == []
            assert (await spent(manager)).sandbox_seconds == 0  # it does not


async def test_a_pause_is_not_spent(make_settings: MakeSettings) -> None:
    settings = make_settings(sandboxes=SandboxSettings(idle_after=1, idle_action="pause"))
    async with SandboxManager(settings) as manager:
        async with manager.lease("analysis"):
            pass
        with anyio.fail_after(30):
            while (await manager.list_sessions())[0].state != "paused":
                await anyio.sleep(0.1)
        paused = await spent(manager)
        assert 0.5 <= paused.sandbox_seconds < 4
        await anyio.sleep(0.3)
        assert await spent(manager) == paused
        async with manager.lease("analysis") as lease:
            assert lease.state == "resumed"
        await manager.end_session("analysis")
        assert paused.sandbox_seconds < (await spent(manager)).sandbox_seconds


Look = Callable[[SandboxManager, str], Awaitable[object]]


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(lambda manager, _: manager.list_sessions(), id="listed"),
        pytest.param(lambda manager, _: manager.end_session("analysis"), id="ended"),
        pytest.param(lambda manager, gone: manager._control.kill(gone), id="killed"),
        pytest.param(lambda manager, gone: manager._control.inspect(gone), id="inspected"),
        pytest.param(lambda manager, gone: manager._control.extend(gone), id="extended"),
        pytest.param(lambda manager, gone: manager._control.pause(gone), id="paused"),
    ],
)
async def test_a_sandbox_that_others_killed_is_spent_until_somebody_looks(
    make_settings: MakeSettings, e2b: E2B, look: Look
) -> None:
    settings = make_settings()
    key, maker = SessionKey(settings.local_owner, "analysis"), Maker("i", "s")
    async with SandboxManager(settings) as manager:
        # Without a lease, as that starts a sweep, which looks too.
        handle = await manager._control.create(
            key, maker=maker, generation=1, idempotency_key=uuid.uuid4().hex
        )
        assert await e2b.AsyncSandbox.kill(handle.sandbox_id)
        before = (await spent(manager)).sandbox_seconds
        await look(manager, handle.sandbox_id)
        found = await spent(manager)
        assert found.sandbox_seconds > before  # nobody knows when it ended
        assert await spent(manager) == found


async def test_a_warm_sandbox_is_spent_by_its_session_from_its_claim_on(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings(sandboxes=SandboxSettings(warm=1))
    async with SandboxManager(settings) as manager:
        async with manager.lease("first"):
            pass
        with anyio.fail_after(60):
            while not (ready := manager._warm._shelves[settings.local_owner].ready):
                await anyio.sleep(0.05)
        warm_id = ready[0].sandbox_id
        async with manager.lease("second") as lease:
            assert lease.sandbox_id == warm_id
            before = await spent(manager, "second")
        async with manager.lease("second"):
            await manager.list_sessions()
        after = await spent(manager, "second")
        assert before.sandbox_seconds < after.sandbox_seconds
        assert (await spent(manager, "")).sandbox_seconds > 0
        for session in ("first", "second"):
            await manager.end_session(session)


async def test_a_ledger_that_cannot_be_written_costs_no_call_and_is_made_up_for_later(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(CostSettings(vcpu_second=1.0, owner_budget=1e6))
    async with SandboxManager(settings) as manager:
        assert (await manager.spending()).sessions == {}
        other = sqlite3.connect(tmp_path / "ledger" / FILE)
        other.execute("BEGIN IMMEDIATE")  # as a server that hangs while it writes
        try:
            with anyio.fail_after(60):
                async with manager.lease("analysis") as lease:
                    assert (await lease.run_code("6 * 7")).execution.text == "42"
        finally:
            other.close()
        assert (await spent(manager)).sandbox_seconds > 0


async def test_two_servers_with_one_session_count_it_once(make_settings: MakeSettings) -> None:
    before = time.time()
    async with SandboxManager(make_settings()) as one, SandboxManager(make_settings()) as two:
        for manager in (one, two, one, two):
            async with manager.lease("analysis"):
                pass
        await two.end_session("analysis")
        assert (await spent(one)).sandbox_seconds <= time.time() - before
        assert await spent(one) == await spent(two)


# Budgets


async def test_a_spent_budget_refuses_work_and_keeps_what_runs_readable(
    make_settings: MakeSettings,
) -> None:
    costs = CostSettings(vcpu_second=1.0, owner_budget=0.001)
    async with SandboxManager(make_settings()) as manager, manager.lease("analysis") as lease:
        await lease.write_file("kept.txt", b"kept")
    async with SandboxManager(make_settings(costs)) as manager:
        before = (await manager.list_sessions())[0]
        with pytest.raises(MonthlyBudgetError, match=r"costs\.owner_budget") as caught:
            async with manager.lease("analysis"):
                pytest.fail("leased")
        assert "E2B_AGENT_MCP_COSTS_OWNER_BUDGET" in caught.value.hint
        with pytest.raises(MonthlyBudgetError):
            async with manager.lease("another", use="read"):
                pytest.fail("leased")
        async with manager.lease("analysis", use="read") as lease:
            assert await lease.read_file("kept.txt") == b"kept"
        # Nothing was ended or lengthened, and no sandbox came to be.
        (after,) = await manager.list_sessions()
        assert (after.sandbox_id, after.end_at) == (before.sandbox_id, before.end_at)
        assert await manager.end_session("analysis")


async def test_another_owner_has_a_budget_of_his_own(make_settings: MakeSettings) -> None:
    costs = CostSettings(vcpu_second=1.0, owner_budget=1.0)
    settings = make_settings(costs)
    bob = SessionKey(uuid.uuid4().hex, "analysis")
    async with SandboxManager(settings) as manager:
        ann = SessionKey(settings.local_owner, "analysis")
        manager.account_model(ann, usd=1.0, tokens=1)
        with pytest.raises(MonthlyBudgetError):
            async with manager.lease(ann):
                pytest.fail("leased")
        async with manager.lease(bob) as lease:
            assert lease.state == "created"
        await manager.end_session(bob)


async def test_a_soft_budget_warns_and_goes_on(make_settings: MakeSettings) -> None:
    settings = make_settings(CostSettings(owner_warning=1.0))
    async with SandboxManager(settings) as manager:
        manager.account_model(SessionKey(settings.local_owner, "report"), usd=1.5, tokens=1)
        async with manager.lease("analysis") as lease:
            assert "which costs.owner_warning warns of" in lease.warning
            assert (await lease.run_code("6 * 7")).execution.text == "42"


async def test_over_mcp_a_spent_budget_is_an_error_that_names_the_option(
    make_settings: MakeSettings,
) -> None:
    # A model that nobody reaches: a task is refused before it is asked.
    agent = AgentSettings(model="openai/none", base_url="http://127.0.0.1:9", api_key=Secret("k"))
    settings = make_settings(CostSettings(owner_budget=1.0), agent=agent)
    key = SessionKey(settings.local_owner, settings.session)
    async with (
        SandboxManager(make_settings()) as another,
        Client(create_server(settings)) as client,
    ):
        first = await client.call_tool("run_python", {"code": "open('kept', 'w').write('kept')"})
        assert not first.is_error
        another.account_model(key, usd=1.0, tokens=1)
        await another.spending()  # it is on disk now
        with anyio.fail_after(30):
            while not (refused := await client.call_tool("run_python", {"code": "1"})).is_error:
                pass  # a look at the budgets holds for a second
        assert refused.structured_content is not None
        assert refused.structured_content["error"]["code"] == "monthly_budget"
        assert "costs.owner_budget" in refused.structured_content["error"]["message"]
        task = await client.call_tool("run_agent_task", {"task": "Count to three."})
        assert task.structured_content is not None
        assert task.structured_content["error"]["code"] == "monthly_budget"
        assert "E2B_AGENT_MCP_COSTS_OWNER_BUDGET" in task.structured_content["error"]["hint"]
        kept = await client.call_tool("download_file", {"path": "kept"})
        assert kept.structured_content is not None
        assert kept.structured_content["text"] == "kept"
        listed = await client.call_tool("list_sessions", {})
        assert listed.structured_content is not None
        assert listed.structured_content["spent"]["model_usd"] == 1.0
        assert "No new work" in listed.structured_content["warning"]
        ended = await client.call_tool("end_session", {})
        assert ended.structured_content == {"session": settings.session, "ended": True}


async def test_over_mcp_a_soft_budget_is_a_note_in_the_result(make_settings: MakeSettings) -> None:
    async with Client(create_server(make_settings(CostSettings(owner_warning=0.0)))) as client:
        result = await client.call_tool("run_python", {"code": "6 * 7"})
        assert result.structured_content is not None
        assert result.structured_content["text"] == "42"
        assert "which costs.owner_warning warns of" in result.structured_content["note"]

"""Two servers of one user share the tasks: each sees, waits for and cancels those of the other.

In memory they are two registries with two connections to the store, as two processes are; where a
process is killed, it is one.
"""

import json
import random
import re
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import to_thread
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

from e2b_agent_mcp import Settings, create_server
from e2b_agent_mcp.engine import EngineAddress
from rounds import rounds
from scripted_llm import FOREVER, KEY, Reply, ScriptedLLM, code
from test_agent_stdio import LOADS, asked
from test_agent_stdio import call as call_stdio
from test_agent_tools import call, llm, settings, text_of  # noqa: F401  # fixtures
from test_stdio import Server, environment

pytestmark = pytest.mark.anyio

# ruff: noqa: F811  # the fixtures' own names, below


@pytest.fixture
async def servers(settings: Settings) -> AsyncIterator[tuple[Client, Client]]:
    async with (
        Client(create_server(settings)) as one,
        Client(create_server(settings)) as other,
    ):
        yield one, other
        await one.call_tool("end_session", {})


Servers = tuple[Client, Client]


async def test_a_task_is_waited_for_from_the_other_server(
    servers: Servers, llm: ScriptedLLM
) -> None:
    one, other = servers
    llm.script(code("x = 6"), Reply(text=code("final_answer(x * 7)"), delay=1.0))
    task_id = (await call(one, "run_agent_task", task="Multiply.", wait=0))["task_id"]
    await llm.asked(2)
    seen = await call(other, "get_agent_task", task_id=task_id, wait=0)
    assert (seen["status"], [step["code"] for step in seen["steps"]]) == ("working", ["x = 6"])
    seen = await call(other, "get_agent_task", task_id=task_id)
    assert (seen["status"], seen["answer"], len(seen["steps"])) == ("completed", 42, 2)


async def test_a_task_is_cancelled_from_the_other_server(
    servers: Servers, llm: ScriptedLLM
) -> None:
    one, other = servers
    llm.script(code("kept = 41"), code("import time; time.sleep(3600)"))
    task_id = (await call(one, "run_agent_task", task="Endless.", wait=0))["task_id"]
    await llm.asked(2)
    with anyio.fail_after(20):
        cancelled = await call(other, "cancel_agent_task", task_id=task_id)
    assert (cancelled["status"], cancelled["steps"][0]["code"]) == ("cancelled", "kept = 41")
    assert (await call(one, "run_python", code="kept + 1"))["text"] == "42"
    llm.script(code("final_answer(kept)"))  # that it was cancelled once does not stick
    again = await call(other, "run_agent_task", task_id=task_id)
    assert (again["status"], again["answer"]) == ("completed", 41)


async def test_the_same_call_of_the_other_server_joins_the_task(
    servers: Servers, llm: ScriptedLLM
) -> None:
    one, other = servers
    llm.script(code("x = 1"), Reply(text=code("final_answer(x)"), delay=1.0))
    first = await call(one, "run_agent_task", task="Once.", wait=0)
    await llm.asked(2)
    second = await call(other, "run_agent_task", task="Once.")
    assert (second["task_id"], second["answer"]) == (first["task_id"], 1)
    llm.script(code("final_answer(2)"))
    third = await call(other, "run_agent_task", task="Once.")
    assert (third["task_id"] != first["task_id"], third["answer"]) == (True, 2)


async def test_the_same_call_at_the_same_moment_is_one_task(
    servers: Servers, llm: ScriptedLLM
) -> None:
    llm.script(Reply(text=code("final_answer(1)"), delay=0.5))
    ids: list[str] = []

    async def ask(server: Client) -> None:
        ids.append((await call(server, "run_agent_task", task="Once."))["task_id"])

    async with anyio.create_task_group() as calls:
        for server in servers:
            calls.start_soon(ask, server)
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert len(llm.requests) == 1


async def test_a_task_at_work_is_not_gone_on_with_by_the_other_server(
    servers: Servers, llm: ScriptedLLM
) -> None:
    one, other = servers
    llm.script(Reply(text="never", delay=FOREVER))
    task_id = (await call(one, "run_agent_task", task="Endless.", wait=0))["task_id"]
    await llm.asked()
    result = await other.call_tool("run_agent_task", {"task_id": task_id, "task": "And more."})
    assert "still at work" in text_of(result)
    await call(other, "end_session")  # ends the task there too
    seen = await call(one, "get_agent_task", task_id=task_id, wait=0)
    assert seen["status"] == "cancelled"
    await llm.left()


@pytest.fixture
def env(engine: EngineAddress, settings: Settings, llm: ScriptedLLM) -> dict[str, str]:
    """Of a server that is a process, with the same tasks and session."""
    return {
        **environment(engine.api_url, engine.api_key),
        "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(settings.engine.state_dir),
        "E2B_AGENT_MCP_SESSION": settings.session or "",
        "E2B_AGENT_MCP_AGENT_MODEL": "openai/scripted",
        "E2B_AGENT_MCP_AGENT_BASE_URL": llm.url,
        "E2B_AGENT_MCP_AGENT_API_KEY": KEY,
    }


@asynccontextmanager
async def process(env: dict[str, str]) -> AsyncIterator[Client]:
    command = StdioServerParameters(command=sys.executable, args=["-m", "e2b_agent_mcp"], env=env)
    async with Client(command) as client:
        yield client


@pytest.mark.timeout(LOADS)
async def test_calls_and_tasks_of_the_other_server_wait_for_a_task_of_their_session(
    env: dict[str, str], llm: ScriptedLLM
) -> None:
    waiting, go_on = anyio.Event(), threading.Event()

    def held(request: dict[str, Any]) -> str:
        go_on.wait(LOADS)
        return code("order.append('end'); final_answer(order)")

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        if "another server" in (message or ""):
            waiting.set()

    async with process(env) as one, process(env) as other:
        await call(other, "run_python", code="order = []")
        llm.script(code("order.append('begin')"), held, code("final_answer(order)"))
        first = await call(one, "run_agent_task", task="Do it.", wait=0)
        await llm.asked(2)
        async with anyio.create_task_group() as calls:

            async def run_python() -> None:
                arguments = {"code": "order.append('call')"}
                result = await other.call_tool("run_python", arguments, progress_callback=hear)
                assert not result.is_error
                waiting.set()  # or it has not waited at all, and the order shows it

            calls.start_soon(run_python)
            await waiting.wait()
            second = await call(other, "run_agent_task", task="Look.", wait=0)
            go_on.set()
        second = await call(other, "get_agent_task", task_id=second["task_id"], wait=100)
        assert second["answer"] == ["begin", "end", "call"]
        first = await call(one, "get_agent_task", task_id=first["task_id"])
        assert first["answer"] == ["begin", "end"]
        await other.call_tool("end_session", {})


@pytest.mark.timeout(LOADS)
async def test_a_killed_servers_task_is_interrupted_and_the_other_goes_on_with_it(
    env: dict[str, str], settings: Settings, llm: ScriptedLLM
) -> None:
    llm.script(code("x = 20"), Reply(text="never", delay=FOREVER))

    async with Client(create_server(settings)) as other:
        with Server.start(env) as server:
            count = partial(call_stdio, server, "run_agent_task", task="Count the PELICANS.")
            task_id = (await to_thread.run_sync(partial(count, wait=0)))["task_id"]
            await to_thread.run_sync(asked, llm, 2)
            task = await call(other, "get_agent_task", task_id=task_id, wait=0)
            assert task["status"] == "working"
            await to_thread.run_sync(server.end, signal.SIGKILL)
        task = await call(other, "get_agent_task", task_id=task_id)
        assert (task["status"], task["steps"][0]["code"]) == ("interrupted", "x = 20")
        llm.script(code("final_answer(x + 22)"))
        task = await call(other, "run_agent_task", task_id=task_id)
        assert (task["status"], task["answer"]) == ("completed", 42)
        assert "PELICANS" in json.dumps(llm.requests[-1]["messages"])
        await other.call_tool("end_session", {})


async def test_many_tasks_of_both_at_once_are_each_their_own(
    servers: Servers, llm: ScriptedLLM
) -> None:
    """Each is looked after from the other server; some hang and are cancelled from there."""
    at_once = 3  # tasks of one server
    dice = random.Random(7)

    def reply(request: dict[str, Any]) -> Reply:
        messages = json.dumps(request["messages"])
        number = re.findall(r"NUMBER-(\d+)", messages)[-1]
        if "assistant" not in messages:
            return Reply(text=code(f"x = {number}"))
        return Reply(text=code("final_answer(x)"), delay=FOREVER if "HANG" in messages else 0.0)

    async def one_task(number: int, here: Client, there: Client) -> None:
        hangs, session = dice.random() < 0.5, f"p-{uuid.uuid4().hex[:8]}"
        task = f"NUMBER-{number}{' HANG' if hangs else ''}"
        record = await call(here, "run_agent_task", task=task, session=session, wait=0)
        look = partial(call, there, "get_agent_task", task_id=record["task_id"])
        if hangs:
            while not (await look(wait=0))["steps"]:
                await anyio.sleep(0.05)
            await call(there, "cancel_agent_task", task_id=record["task_id"])
            record = await look(wait=100)  # on a busy machine it may take longer than the call
            assert (record["status"], record["steps"][0]["code"]) == ("cancelled", f"x = {number}")
        else:
            record = await look(wait=100)
            assert (record["status"], record["answer"]) == ("completed", number)
        await call(dice.choice((here, there)), "end_session", session=session)

    for round in range(rounds(few=1, many=20)):
        llm.script(*[reply] * 4 * at_once)
        with anyio.fail_after(110):
            async with anyio.create_task_group() as tasks:
                for number in range(at_once):
                    for here, there in (servers, servers[::-1]):
                        own = number + 10 * (here is servers[0]) + 1000 * round
                        tasks.start_soon(one_task, own, here, there)
        llm.forget()

"""Tasks of a server process on stdio: however it ends, the next one has them and goes on."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from e2b_agent_mcp import Settings, create_server
from e2b_agent_mcp.engine import EngineAddress
from scripted_llm import FOREVER, KEY, Reply, ScriptedLLM, code
from test_agent_tools import call as call_in_memory
from test_agent_tools import settings  # noqa: F401  # a fixture
from test_stdio import END_LIMIT, Server, environment

pytestmark = pytest.mark.anyio

# ruff: noqa: F811  # the fixture's own name, below


LOADS = 300  # seconds; a server loads smolagents and litellm, on a busy machine for minutes


@pytest.fixture
def llm() -> Iterator[ScriptedLLM]:
    with ScriptedLLM() as llm:
        yield llm


@pytest.fixture
def env(engine: EngineAddress, settings: Settings, llm: ScriptedLLM) -> dict[str, str]:
    """What a process needs for the same settings."""
    return {
        **environment(engine.api_url, engine.api_key),
        "E2B_AGENT_MCP_SESSION": settings.session,
        "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(settings.engine.state_dir),
        "E2B_AGENT_MCP_AGENT_MODEL": "openai/scripted",
        "E2B_AGENT_MCP_AGENT_BASE_URL": llm.url,
        "E2B_AGENT_MCP_AGENT_API_KEY": KEY,
    }


def call(server: Server, tool: str, **arguments: object) -> dict[str, Any]:
    result = server.request("tools/call", {"name": tool, "arguments": arguments})["result"]
    structured: dict[str, Any] = result["structuredContent"]
    return structured


# Killed, a server does the same whether a call waits or not: test_two_servers has that.
@pytest.mark.timeout(LOADS)
@pytest.mark.usefixtures("agent_libraries")
@pytest.mark.parametrize(
    ("how", "wait"),
    [
        pytest.param(None, 0, id="stdin closed, handed back"),
        pytest.param(None, LOADS, id="stdin closed, waited for"),
        pytest.param(signal.SIGTERM, LOADS, id="SIGTERM, waited for"),
        pytest.param(signal.SIGINT, 0, id="SIGINT, handed back"),
    ],
)
async def test_a_task_whose_server_ends_is_interrupted_and_the_next_server_goes_on_with_it(
    env: dict[str, str],
    settings: Settings,
    llm: ScriptedLLM,
    how: signal.Signals | None,
    wait: float,
) -> None:
    llm.script(code("x = 20"), Reply(text="never", delay=FOREVER))
    await to_thread.run_sync(work_and_end, env, llm, how, wait)
    assert settings.engine.state_dir is not None
    [task_id] = stored_tasks(settings.engine.state_dir)
    async with Client(create_server(settings)) as client:
        task = await call_in_memory(client, "get_agent_task", task_id=task_id)
        assert task["status"] == "interrupted"
        assert [step["code"] for step in task["steps"]][:1] == ["x = 20"]
        llm.script(code("final_answer(x + 22)"))
        task = await call_in_memory(client, "run_agent_task", task_id=task_id)
        assert (task["status"], task["answer"]) == ("completed", 42)
        assert "PELICANS" in json.dumps(llm.requests[-1]["messages"])
        await client.call_tool("end_session", {})


def work_and_end(
    env: dict[str, str], llm: ScriptedLLM, how: signal.Signals | None, wait: float
) -> None:
    """A server process that is ended while its task waits for the model."""
    with Server.start(env) as server:
        arguments = {"task": "Count the PELICANS.", "wait": wait}
        if wait:
            params = {"name": "run_agent_task", "arguments": arguments}
            server.send({"id": 99, "method": "tools/call", "params": params})
        else:
            call(server, "run_agent_task", **arguments)
        asked(llm, 2)
        _, seconds = server.end(how)
        assert seconds < END_LIMIT


@pytest.mark.timeout(LOADS)
async def test_an_sdk_client_gets_a_whole_task_and_nothing_else_on_stdout(
    env: dict[str, str], llm: ScriptedLLM
) -> None:
    llm.script(code("import sys\nprint('to stdout')\nprint('to stderr', file=sys.stderr)"))
    llm.script(code("final_answer([1, 2])"))
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "e2b_agent_mcp"], env=env
    )
    async with Client(stdio_client(parameters)) as client:
        result = await client.call_tool("run_agent_task", {"task": "Print.", "wait": LOADS})
        assert (result.structured_content or {})["answer"] == [1, 2]
        await client.call_tool("end_session", {})


def test_a_server_starts_without_the_agents_libraries(env: dict[str, str]) -> None:
    with Server.start(env) as server:
        server.request("tools/list", {})
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "pydantic_core" in maps
    assert "tiktoken" not in maps  # litellm's


def asked(llm: ScriptedLLM, times: int) -> None:
    with llm._changed:
        assert llm._changed.wait_for(lambda: len(llm.requests) >= times, timeout=LOADS)


def stored_tasks(state: Path) -> list[str]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(state / "tasks" / "tasks-1.sqlite3")) as database:
        return [task_id for (task_id,) in database.execute("SELECT task_id FROM tasks")]

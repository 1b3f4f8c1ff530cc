"""Tasks of a server process on stdio: however it ends, the next one has them and goes on."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from e2b_agent_mcp.engine import EngineAddress
from scripted_llm import FOREVER, KEY, Reply, ScriptedLLM, code
from test_stdio import END_LIMIT, Server, environment


@pytest.fixture
def llm() -> Iterator[ScriptedLLM]:
    with ScriptedLLM() as llm:
        yield llm


@pytest.fixture
def env(engine: EngineAddress, llm: ScriptedLLM, tmp_path: Path) -> dict[str, str]:
    return {
        **environment(engine.api_url, engine.api_key),
        "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(tmp_path),
        "E2B_AGENT_MCP_AGENT_MODEL": "openai/scripted",
        "E2B_AGENT_MCP_AGENT_BASE_URL": llm.url,
        "E2B_AGENT_MCP_AGENT_API_KEY": KEY,
    }


def call(server: Server, tool: str, **arguments: object) -> dict[str, Any]:
    result = server.request("tools/call", {"name": tool, "arguments": arguments})["result"]
    structured: dict[str, Any] = result["structuredContent"]
    return structured


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(None, id="stdin closed"),
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="SIGINT"),
        pytest.param(signal.SIGKILL, id="SIGKILL"),
    ],
)
@pytest.mark.parametrize("wait", [0, 60], ids=["handed back", "waited for"])
def test_a_task_whose_server_ends_is_interrupted_and_the_next_server_goes_on_with_it(
    env: dict[str, str], llm: ScriptedLLM, how: signal.Signals | None, wait: float
) -> None:
    llm.script(code("x = 20"), Reply(text="never", delay=FOREVER))
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
    [task_id] = stored_tasks(Path(env["E2B_AGENT_MCP_ENGINE_STATE_DIR"]))
    with Server.start(env) as server:
        task = call(server, "get_agent_task", task_id=task_id)
        assert task["status"] == "interrupted"
        assert [step["code"] for step in task["steps"]][:1] == ["x = 20"]
        llm.script(code("final_answer(x + 22)"))
        task = call(server, "run_agent_task", task_id=task_id)
        assert (task["status"], task["answer"]) == ("completed", 42)
        assert "PELICANS" in json.dumps(llm.requests[-1]["messages"])
        call(server, "end_session")


@pytest.mark.anyio
async def test_an_sdk_client_gets_a_whole_task_and_nothing_else_on_stdout(
    env: dict[str, str], llm: ScriptedLLM
) -> None:
    llm.script(code("import sys\nprint('to stdout')\nprint('to stderr', file=sys.stderr)"))
    llm.script(code("final_answer([1, 2])"))
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "e2b_agent_mcp"], env=env
    )
    async with Client(stdio_client(parameters)) as client:
        result = await client.call_tool("run_agent_task", {"task": "Print."})
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
        assert llm._changed.wait_for(lambda: len(llm.requests) >= times, timeout=60)


def stored_tasks(state: Path) -> list[str]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(state / "tasks" / "tasks-1.sqlite3")) as database:
        return [task_id for (task_id,) in database.execute("SELECT task_id FROM tasks")]

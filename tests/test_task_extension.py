"""The tasks extension as a client that declares it sees it, and as one without it does not."""

import json
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
)

from e2b_agent_mcp import Settings, create_server
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.server.background import BackgroundCalls
from e2b_agent_mcp.server.sessions import TASKS
from scripted_llm import FOREVER, KEY, Reply, ScriptedLLM, code
from tasks_client import TasksClient, ask, create
from test_agent_tools import ERAS, call, llm, settings  # noqa: F401  # fixtures
from test_http import start

pytestmark = pytest.mark.anyio

# The fixtures' own names, below.
# ruff: noqa: F811


async def refused(client: Client, method: str, **params: Any) -> int:
    with pytest.raises(MCPError) as error:
        await ask(client.session, method, **params)
    return error.value.error.code


# --- an agent's task ----------------------------------------------------------------------------


async def test_a_client_that_declares_tasks_gets_one_and_then_the_same_result(
    settings: Settings, llm: ScriptedLLM
) -> None:
    llm.script(code("x = 6", "I begin."), Reply(text=code("final_answer(x * 7)"), stall=1.0))
    async with Client(create_server(settings), extensions=[TasksClient()]) as client:
        created = await create(client, "run_agent_task", task="Multiply.")
        assert created["status"] == "working"
        assert not {"result", "inputRequests", "requestState"} & set(created)
        await llm.asked(2)
        working = await ask(client.session, "tasks/get", taskId=created["taskId"])
        assert (working["status"], working["statusMessage"]) == ("working", "step 2: thinking")
        last = await TasksClient().follow(client.session, created["taskId"])
        again = await client.call_tool("get_agent_task", {"task_id": created["taskId"]})
        assert last["result"]["structuredContent"] == again.structured_content
        assert last["result"]["structuredContent"]["answer"] == 42
        assert last["createdAt"] == created["createdAt"] < last["lastUpdatedAt"]
        await client.call_tool("end_session", {})


async def test_a_client_that_follows_tasks_has_its_result_from_the_call_itself(
    settings: Settings, llm: ScriptedLLM
) -> None:
    llm.script(code("final_answer(1)"), code("final_answer(2)"))
    tasks = TasksClient()
    async with Client(create_server(settings), extensions=[tasks]) as client:
        first = await call(client, "run_agent_task", task="One.")
        waited = await call(client, "run_agent_task", task="Two.", wait=60)
        await client.call_tool("end_session", {})
    assert (first["answer"], waited["answer"]) == (1, 2)
    assert tasks.created == [first["task_id"]]  # the other call said itself how long it waits


@ERAS
async def test_without_the_declaration_nothing_is_a_task(
    settings: Settings, llm: ScriptedLLM, mode: str
) -> None:
    llm.script(code("final_answer(1)"))
    async with Client(create_server(settings), mode=mode) as client:
        result = await client.session.call_tool("run_agent_task", {"task": "x"}, allow_claimed=True)
        task = (result.model_dump())["structured_content"]
        assert task["status"] == "completed"
        missing = METHOD_NOT_FOUND if mode == "legacy" else MISSING_REQUIRED_CLIENT_CAPABILITY
        for method in ("tasks/get", "tasks/cancel"):
            assert await refused(client, method, taskId=task["task_id"]) == missing
        await client.call_tool("end_session", {})


async def test_cancelling_stops_the_model_and_keeps_the_session(
    settings: Settings, llm: ScriptedLLM
) -> None:
    llm.script(code("kept = 41"), Reply(text="never", stall=FOREVER))
    async with Client(create_server(settings), extensions=[TasksClient()]) as client:
        task_id = (await create(client, "run_agent_task", task="Endless."))["taskId"]
        await llm.asked(2)
        assert set(await ask(client.session, "tasks/cancel", taskId=task_id)) <= {
            "resultType",
            "_meta",
        }
        await llm.left()
        for _ in range(2):  # it stays so
            task = await ask(client.session, "tasks/get", taskId=task_id)
            assert task["status"] == "cancelled"
            await ask(client.session, "tasks/cancel", taskId=task_id)
        assert (await call(client, "run_python", code="kept + 1"))["text"] == "42"
        await client.call_tool("end_session", {})


async def test_a_task_outlives_its_server(settings: Settings, llm: ScriptedLLM) -> None:
    llm.script(code("x = 20"), Reply(text="never", delay=FOREVER))
    async with Client(create_server(settings), extensions=[TasksClient()]) as client:
        task_id = (await create(client, "run_agent_task", task="Count."))["taskId"]
        await llm.asked(2)
    async with Client(create_server(settings), extensions=[TasksClient()]) as client:
        task = await ask(client.session, "tasks/get", taskId=task_id)
        assert task["status"] == "completed"
        assert task["result"]["structuredContent"]["status"] == "interrupted"
        llm.script(code("final_answer(x + 22)"))
        assert (await call(client, "run_agent_task", task_id=task_id))["answer"] == 42
        await client.call_tool("end_session", {})


async def test_an_unknown_task_is_an_invalid_parameter(settings: Settings) -> None:
    async with Client(create_server(settings), extensions=[TasksClient()]) as client:
        for task_id in ("t-0", "c-0", ""):
            for method in ("tasks/get", "tasks/cancel"):
                assert await refused(client, method, taskId=task_id) == INVALID_PARAMS
            update = {"taskId": task_id, "inputResponses": {}}
            assert await refused(client, "tasks/update", **update) == INVALID_PARAMS


async def test_over_http_a_task_is_its_owners_and_its_header_must_name_it(
    engine: EngineAddress, llm: ScriptedLLM, tmp_path: Path
) -> None:
    llm.script(Reply(text="never", delay=FOREVER))
    environ = {
        "E2B_AGENT_MCP_HTTP_TOKENS": "ann=token-of-ann,bob=token-of-bob",
        "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(tmp_path),
        "E2B_AGENT_MCP_AGENT_MODEL": "openai/scripted",
        "E2B_AGENT_MCP_AGENT_BASE_URL": llm.url,
        "E2B_AGENT_MCP_AGENT_API_KEY": KEY,
    }
    with start(engine, **environ) as server:
        async with server.client(token="token-of-ann", extensions=[TasksClient()]) as ann:
            task_id = (await create(ann, "run_agent_task", task="Mine."))["taskId"]
            async with server.client(token="token-of-bob", extensions=[TasksClient()]) as bob:
                for method in ("tasks/get", "tasks/cancel"):
                    assert await refused(bob, method, taskId=task_id) == INVALID_PARAMS
            for name in ({"mcp-name": "t-1"}, {}):
                found = await _get(server.url, "token-of-ann", task_id, name)
                assert found["error"]["code"] == HEADER_MISMATCH
            found = await _get(server.url, "token-of-ann", task_id, {"mcp-name": task_id})
            assert found["result"]["status"] == "working"
            await ask(ann.session, "tasks/cancel", taskId=task_id)
            await ann.call_tool("end_session", {})


# Any: JSON.
async def _get(url: str, token: str, task_id: str, headers: dict[str, str]) -> dict[str, Any]:
    """tasks/get by hand, as no SDK sends a wrong header."""
    version = "2026-07-28"
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "0"},
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get"}
    async with httpx2.AsyncClient(timeout=60) as http:
        response = await http.post(
            url,
            json={**body, "params": {"taskId": task_id, "_meta": meta}},
            headers={
                "authorization": f"Bearer {token}",
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": version,
                "mcp-method": "tasks/get",
                **headers,
            },
        )
    text = response.text
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    return found


# --- other calls --------------------------------------------------------------------------------


async def test_a_long_call_becomes_a_task_and_a_short_one_does_not(settings: Settings) -> None:
    background = BackgroundCalls()
    server = create_server(settings, background=background)
    tasks = TasksClient()
    async with Client(server, extensions=[tasks]) as client:
        await call(client, "run_python", code="from time import sleep")
        background.after["run_python"] = 0.5
        slow = "print('begun')\nsleep(2)\n1"
        assert (await call(client, "run_python", code=slow))["text"] == "1"
        assert len(tasks.created) == 1
        assert {"begun"} <= {task.get("statusMessage") for task in tasks.seen}
        background.after["run_python"] = 30.0
        assert (await call(client, "run_python", code="sleep(0.6)\n2"))["text"] == "2"
        assert len(tasks.created) == 1
        await client.call_tool("end_session", {})


async def test_cancelling_a_call_that_became_a_task_interrupts_it_and_keeps_variables(
    settings: Settings,
) -> None:
    background = BackgroundCalls()
    server = create_server(settings, background=background)
    async with Client(server, extensions=[TasksClient()]) as client:
        await call(client, "run_python", code="x = 41")
        background.after["run_python"] = 0.0
        endless = "x += 1\nprint('begun')\nimport time\ntime.sleep(3600)"
        created = await create(client, "run_python", code=endless)
        task = created
        with anyio.fail_after(30):
            while task.get("statusMessage") != "begun":
                task = await ask(client.session, "tasks/get", taskId=created["taskId"])
        await ask(client.session, "tasks/cancel", taskId=created["taskId"])
        background.after["run_python"] = 30.0
        task = await TasksClient().follow(client.session, created["taskId"])
        assert task["status"] == "cancelled"
        assert (await call(client, "run_python", code="x"))["text"] == "42"
        await client.call_tool("end_session", {})


async def test_a_failed_call_is_a_completed_task_that_says_so(settings: Settings) -> None:
    background = BackgroundCalls()
    server = create_server(settings, background=background)
    async with Client(server, extensions=[TasksClient()]) as client:
        background.after["run_python"] = 0.0
        created = await create(client, "run_python", code=" ")
        task = await TasksClient().follow(client.session, created["taskId"])
    assert (task["status"], task["result"]["isError"]) == ("completed", True)


async def test_a_client_that_gives_up_its_call_before_it_is_a_task_interrupts_it(
    settings: Settings,
) -> None:
    server = create_server(settings)
    async with Client(server, extensions=[TasksClient()]) as client:
        await call(client, "run_python", code="x = 41")
        begun = anyio.Event()

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            if "begun" in (message or ""):
                begun.set()

        async with anyio.create_task_group() as calls:

            async def run() -> None:
                endless = "x += 1\nprint('begun')\nimport time\ntime.sleep(3600)"
                await client.call_tool("run_python", {"code": endless}, progress_callback=hear)

            calls.start_soon(run)
            with anyio.fail_after(30):
                await begun.wait()
            calls.cancel_scope.cancel()
        with anyio.fail_after(30):
            assert (await call(client, "run_python", code="x"))["text"] == "42"
        await client.call_tool("end_session", {})

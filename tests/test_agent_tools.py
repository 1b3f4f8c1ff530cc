"""Tasks as an MCP client sees them: the real engine, real sandboxes, a scripted model."""

import json
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.types import CallToolResult, ImageContent, ResourceLink, TextContent

from e2b_agent_mcp import Settings, create_server
from e2b_agent_mcp.agent import StepFinished
from e2b_agent_mcp.commands.task import opened
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import AgentSettings, E2BSettings, EngineSettings, FileSettings, Secret
from e2b_agent_mcp.tasks import TaskEvent, TaskRequest
from e2b_agent_mcp.tasks.store import FILE
from scripted_llm import FOREVER, KEY, Reply, ScriptedLLM, code

pytestmark = pytest.mark.anyio

ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"], ids=["2026-07-28", "2025-11-25"])


@pytest.fixture
def llm(agent_libraries: None) -> Iterator[ScriptedLLM]:
    with ScriptedLLM() as llm:
        yield llm


@pytest.fixture
def settings(engine: EngineAddress, llm: ScriptedLLM, tmp_path: Path) -> Settings:
    return Settings(
        e2b=E2BSettings(
            api_key=Secret(engine.api_key),
            api_url=engine.api_url,
            sandbox_url=engine.sandbox_url,
        ),
        engine=EngineSettings(state_dir=tmp_path / "state"),
        files=FileSettings(roots=(tmp_path,)),
        agent=llm.settings(),
        session=f"t-{uuid.uuid4().hex[:8]}",
    )


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with Client(create_server(settings)) as client:
        yield client
        await client.call_tool("end_session", {})


async def test_what_a_task_spends_on_its_model_is_counted_in_the_month(
    settings: Settings, llm: ScriptedLLM
) -> None:
    agent = llm.settings(model="openai/gpt-6-luna", max_tokens=10**9, max_cost_usd=100.0)
    llm.script(
        Reply(text=code("x = 6 * 7"), usage=(1_000_000, 1_000)),
        Reply(text=code("final_answer(x)"), usage=(2_000_000, 1_000)),
    )
    async with Client(create_server(replace(settings, agent=agent))) as client:
        task = await call(client, "run_agent_task", task="6 times 7?", wait=100)
        assert task["status"] == "completed"
        listed = await call(client, "list_sessions")
        assert listed["spent"]["model_usd"] == pytest.approx(task["usage"]["cost_usd"])
        assert listed["spent"]["model_usd"] > 0.1
        await call(client, "end_session")


async def call(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert result.structured_content is not None, result.content
    structured: dict[str, Any] = result.structured_content
    return structured


def text_of(result: CallToolResult) -> str:
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


# --- a whole task -------------------------------------------------------------------------------


async def test_a_task_works_with_what_run_python_made_and_leaves_what_it_made(
    client: Client, llm: ScriptedLLM
) -> None:
    await call(client, "run_python", code="prices = [1, 2, 4]")
    llm.script(
        code("total = sum(prices)\nprint('total', total)"),
        code("open('total.txt', 'w').write(str(total))\nfinal_answer({'total': total})"),
    )
    result = await client.call_tool("run_agent_task", {"task": "Add up the prices."})
    task = result.structured_content
    assert task is not None, result.content
    assert (task["status"], task["answer"], task["sandbox_state"]) == (
        "completed",
        {"total": 7},
        "reused",
    )
    assert [step["number"] for step in task["steps"]] == [1, 2]
    assert "total 7" in task["steps"][0]["output"]
    assert task["usage"]["llm_calls"] == 2
    assert task["usage"]["cost_usd"] is None
    assert [file["path"] for file in task["files"]] == ["/home/user/total.txt"]
    [link] = [block for block in result.content if isinstance(block, ResourceLink)]
    [read] = (await client.read_resource(str(link.uri))).contents
    assert read.text == "7"  # type: ignore[union-attr]
    assert (await call(client, "run_python", code="total"))["text"] == "7"


async def test_plots_of_a_task_come_as_images(client: Client, llm: ScriptedLLM) -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    llm.script(code(plot), code("final_answer('done')"))
    result = await client.call_tool("run_agent_task", {"task": "Plot it."})
    assert [type(block) for block in result.content[1:]] == [ImageContent]


@ERAS
async def test_progress_tells_of_each_thought_each_code_and_each_result(
    settings: Settings, llm: ScriptedLLM, mode: str
) -> None:
    llm.script(code("print('row 4')", "I look at the rows."), code("final_answer(1 / 1)"))
    told: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    async with Client(create_server(settings), mode=mode) as client:
        await client.call_tool("run_agent_task", {"task": "Look."}, progress_callback=hear)
        await client.call_tool("end_session", {})
    lines = "\n".join(told).splitlines()
    wanted = ["step 1: thinking", "step 1: I look at the rows.", "step 1: running 1 line"]
    assert [line for line in lines if line in wanted] == wanted
    assert any("row 4" in line for line in lines)


async def test_what_a_step_prints_at_once_hides_neither_its_thought_nor_its_result(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(
        code("for row in range(2000):\n    print('row', row)\n6 * 7", "I look at all rows."),
        code("{'key': 1}['missing']"),
        code("final_answer(1)"),
    )
    told: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    await client.call_tool("run_agent_task", {"task": "Look."}, progress_callback=hear)
    lines = "\n".join(told).splitlines()
    assert "step 1: I look at all rows." in lines
    assert "step 1: running 3 lines" in lines
    [first, second] = [line for line in lines if re.match(r"step [12]: (done|failed) in", line)]
    assert first.endswith("42")
    assert second.endswith("KeyError: 'missing'")
    assert max(map(len, told)) < 4000


async def test_tasks_of_one_session_queue_and_one_that_waits_can_be_cancelled(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(Reply(text=code("x = 1\nfinal_answer(x)"), delay=1.0))
    first = await call(client, "run_agent_task", task="First.", wait=0)
    await llm.asked()
    second = await call(client, "run_agent_task", task="Second.", wait=0)
    third = await call(client, "run_agent_task", task="Third.", wait=0)
    cancelled = await call(client, "cancel_agent_task", task_id=second["task_id"])
    assert (cancelled["status"], cancelled["steps"]) == ("cancelled", [])
    llm.script(code("final_answer(x + 1)"))
    told: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    result = await client.call_tool(
        "get_agent_task", {"task_id": third["task_id"]}, progress_callback=hear
    )
    assert (result.structured_content or {})["answer"] == 2
    assert "Waiting for an earlier task" in "\n".join(told)
    assert (await call(client, "get_agent_task", task_id=first["task_id"]))["answer"] == 1


async def test_packages_and_files_are_there_before_the_task_begins(
    client: Client, llm: ScriptedLLM, tmp_path: Path
) -> None:
    await call(client, "upload_file", path="inside.csv", text="a\n1\n")
    (tmp_path / "outside.csv").write_text("b\n2\n")
    llm.script(code("final_answer(open('outside.csv').read() + open('inside.csv').read())"))
    task = await call(
        client,
        "run_agent_task",
        task="Read both.",
        files=["inside.csv", str(tmp_path / "outside.csv")],
    )
    assert task["answer"] == "b\n2\na\n1\n"
    [request] = llm.requests
    assert "/home/user/inside.csv, /home/user/outside.csv" in json.dumps(request["messages"])


async def test_a_file_that_is_nowhere_ends_the_task_before_the_model_is_asked(
    client: Client, llm: ScriptedLLM
) -> None:
    task = await call(client, "run_agent_task", task="Read.", files=["missing.csv"])
    assert (task["status"], task["error"]["code"]) == ("failed", "not_found")
    task = await call(client, "run_agent_task", task="Read.", files=["/missing/on/the/host.csv"])
    assert (task["status"], task["error"]["code"]) == ("failed", "path_not_allowed")
    assert task["error"]["message"].startswith("files: ")
    assert llm.requests == []


async def test_without_a_model_the_call_says_what_to_set(settings: Settings) -> None:
    server = create_server(replace(settings, agent=AgentSettings()))
    async with Client(server) as client:
        result = await client.call_tool("run_agent_task", {"task": "Add."})
    assert result.is_error
    for words in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DEEPSEEK_API_KEY", "run_python"):
        assert words in text_of(result)


async def test_a_model_that_refuses_the_key_is_a_failed_task(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(Reply(status=401, error=f"Incorrect API key provided: {KEY}"))
    result = await client.call_tool("run_agent_task", {"task": "Add."})
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["status"] == "failed"
    assert KEY not in result.model_dump_json()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"task": " "}, "task: is empty", id="no task"),
        pytest.param({"task": "x", "max_steps": 0}, "max_steps", id="no steps"),
        pytest.param({"task": "x", "max_cost_usd": 99}, "99 is more than the 1", id="cost"),
        pytest.param({"task": "x", "task_id": "t-0"}, "there is no task 't-0'", id="unknown task"),
    ],
)
async def test_arguments_that_make_no_sense_are_refused(
    client: Client, arguments: dict[str, object], words: str
) -> None:
    result = await client.call_tool("run_agent_task", arguments)
    assert result.is_error
    assert words in text_of(result)


# --- longer than a call -------------------------------------------------------------------------


async def test_a_task_that_outlasts_its_call_is_handed_back_and_goes_on(
    client: Client, llm: ScriptedLLM
) -> None:
    released = anyio.Event()
    llm.script(code("x = 1"), Reply(text=code("final_answer(x)"), delay=1.0))
    first = await call(client, "run_agent_task", task="Slowly.", wait=0)
    assert (first["status"], first["answer"]) == ("working", None)
    released.set()
    last = await call(client, "get_agent_task", task_id=first["task_id"])
    assert (last["task_id"], last["status"], last["answer"]) == (first["task_id"], "completed", 1)
    again = await call(client, "get_agent_task", task_id=first["task_id"], wait=0)
    assert again == last


async def test_the_same_call_again_waits_for_the_same_task(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(Reply(text=code("final_answer(1)"), delay=0.5))
    ids: list[str] = []

    async def ask() -> None:
        ids.append((await call(client, "run_agent_task", task="Once."))["task_id"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
    assert len(ids) == 2
    assert len(set(ids)) == 1
    llm.script(code("final_answer(2)"))
    assert (await call(client, "run_agent_task", task="Once."))["task_id"] not in ids


async def test_the_same_call_after_one_that_was_cancelled_is_a_new_task(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(Reply(text="never", delay=FOREVER), code("final_answer(1)"))
    async with anyio.create_task_group() as calls:
        calls.start_soon(call_task, client, "Once.")
        await llm.asked()
        calls.cancel_scope.cancel()
    task = await call_task(client, "Once.")
    assert (task["status"], task["answer"]) == ("completed", 1)


async def test_a_caller_who_gives_up_before_the_task_is_stored_leaves_it_to_the_other(
    client: Client, settings: Settings, llm: ScriptedLLM
) -> None:
    await client.call_tool("get_agent_task", {"task_id": "t-none"})  # makes the file
    llm.script(code("final_answer(1)"))
    found: list[dict[str, Any]] = []

    async def ask() -> None:
        found.append(await call_task(client, "Once."))

    assert settings.engine.state_dir is not None
    file = settings.engine.state_dir / "tasks" / FILE
    async with anyio.create_task_group() as calls:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            calls.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as first:
                first.start_soon(call_task, client, "Once.")
                await anyio.wait_all_tasks_blocked()
                first.cancel_scope.cancel()
            await anyio.wait_all_tasks_blocked()
            other.execute("ROLLBACK")
    assert [(task["status"], task["answer"]) for task in found] == [("completed", 1)]


async def call_task(client: Client, task: str) -> dict[str, Any]:
    return await call(client, "run_agent_task", task=task)


async def test_cancelling_a_task_stops_model_and_keeps_the_session(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(code("kept = 41"), Reply(text="never", stall=FOREVER))
    task = await call(client, "run_agent_task", task="Endless.", wait=0)
    await llm.asked(2)
    with anyio.fail_after(2):
        cancelled = await call(client, "cancel_agent_task", task_id=task["task_id"])
    await llm.left()
    assert cancelled["status"] == "cancelled"
    assert [step["code"] for step in cancelled["steps"]][:1] == ["kept = 41"]
    assert (await call(client, "run_python", code="kept + 1"))["text"] == "42"
    assert (await call(client, "cancel_agent_task", task_id=task["task_id"])) == cancelled


async def test_a_task_that_is_cancelled_after_its_answer_keeps_it(
    settings: Settings, llm: ScriptedLLM
) -> None:
    llm.script(code("final_answer(42)"))
    request = TaskRequest(key=SessionKey(settings.local_owner, settings.session or ""), task="?")
    async with opened(settings) as (manager, tasks), anyio.create_task_group() as group:

        async def hear(event: TaskEvent) -> None:
            if isinstance(event, StepFinished):
                group.start_soon(tasks.stop, request)
                await anyio.sleep_forever()

        record = await tasks.run(request, wait=100, listener=hear)
        assert (record.status, record.answer) == ("completed", 42)
        assert (await tasks.get(request.key.owner, record.task_id)).status == "completed"
        await manager.end_session(request.key)


@ERAS
async def test_a_client_that_cancels_its_call_cancels_the_task(
    settings: Settings, llm: ScriptedLLM, mode: str
) -> None:
    llm.script(code("kept = 41"), code("import time; time.sleep(3600)"))
    async with Client(create_server(settings), mode=mode) as client:
        started = anyio.Event()

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            if "sleep" in (message or "") or "step 2: running" in (message or ""):
                started.set()

        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                await client.call_tool("run_agent_task", {"task": "x"}, progress_callback=hear)

            tasks.start_soon(ask)
            with anyio.fail_after(60):
                await started.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            assert (await call(client, "run_python", code="kept"))["text"] == "41"
        await client.call_tool("end_session", {})


async def test_run_python_waits_for_the_task_in_its_session_and_is_told(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(Reply(text=code("x = 1\nfinal_answer(x)"), delay=1.0))
    task = await call(client, "run_agent_task", task="First.", wait=0)
    told: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    result = await client.call_tool("run_python", {"code": "x"}, progress_callback=hear)
    assert (result.structured_content or {})["text"] == "1"
    assert any(task["task_id"] in words for words in told)


async def test_tasks_of_different_sessions_work_at_the_same_time(
    client: Client, llm: ScriptedLLM
) -> None:
    def reply(_: object) -> Reply:
        return Reply(text=code("final_answer(1)"), delay=FOREVER)

    llm.script(reply, reply)
    names = [f"p-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    tasks = [await call(client, "run_agent_task", task="x", session=name, wait=0) for name in names]
    await llm.asked(2)
    for task, name in zip(tasks, names, strict=True):
        await call(client, "cancel_agent_task", task_id=task["task_id"])
        await call(client, "end_session", session=name)


async def test_ending_a_session_ends_its_task(client: Client, llm: ScriptedLLM) -> None:
    llm.script(Reply(text="never", delay=FOREVER))
    task = await call(client, "run_agent_task", task="x", wait=0)
    await llm.asked()
    await call(client, "end_session")
    assert (await call(client, "get_agent_task", task_id=task["task_id"]))["status"] == "cancelled"


# --- going on -----------------------------------------------------------------------------------


def said(request: dict[str, Any]) -> str:
    return json.dumps(request["messages"])


async def test_a_second_task_knows_the_first_unless_it_starts_afresh(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(*[code("final_answer(1)")] * 3)
    await call(client, "run_agent_task", task="Count the PELICANS.")
    await call(client, "run_agent_task", task="And now?")
    await call(client, "run_agent_task", task="Something else.", new=True)
    assert ["PELICANS" in said(request) for request in llm.requests] == [True, True, False]


async def test_a_session_that_was_ended_takes_what_its_tasks_knew_with_it(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(*[code("final_answer(1)")] * 2)
    await call(client, "run_agent_task", task="Count the PELICANS.")
    await call(client, "end_session")
    await call(client, "run_agent_task", task="And now?")
    assert "PELICANS" not in said(llm.requests[1])


async def test_a_task_goes_on_after_its_budget_with_its_steps(
    client: Client, llm: ScriptedLLM
) -> None:
    llm.script(code("x = 20"), "Not done yet.")
    task = await call(client, "run_agent_task", task="Count the PELICANS.", max_steps=1)
    assert task["status"] == "budget_exceeded"
    llm.script(code("final_answer(x + 22)"))
    task = await call(client, "run_agent_task", task_id=task["task_id"])
    assert (task["status"], task["answer"], task["error"]) == ("completed", 42, None)
    assert [step["number"] for step in task["steps"]] == list(range(1, len(task["steps"]) + 1))
    assert "PELICANS" in said(llm.requests[-1])
    assert task["usage"]["llm_calls"] == 3


async def test_a_server_that_ends_leaves_an_interrupted_task_that_the_next_goes_on_with(
    settings: Settings, llm: ScriptedLLM
) -> None:
    llm.script(code("x = 20"), Reply(text="never", delay=FOREVER))
    async with Client(create_server(settings)) as client:
        task = await call(client, "run_agent_task", task="Count the PELICANS.", wait=0)
        await llm.asked(2)
        started = anyio.current_time()
    assert anyio.current_time() - started < 2
    await llm.left()
    async with Client(create_server(settings)) as client:
        found = await call(client, "get_agent_task", task_id=task["task_id"])
        assert (found["status"], found["steps"][0]["code"]) == ("interrupted", "x = 20")
        llm.script(code("final_answer(x + 22)"))
        found = await call(client, "run_agent_task", task_id=task["task_id"])
        assert (found["status"], found["answer"]) == ("completed", 42)
        assert "PELICANS" in said(llm.requests[-1])
        await call(client, "end_session")

"""The model of the caller's client: real clients that answer sampling requests, of both eras and
with the tasks extension; in memory, over stdio and over HTTP.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.client.context import ClientRequestContext
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    CreateMessageRequestParams,
    CreateMessageResult,
    ErrorData,
    TextContent,
)

from e2b_agent_mcp import Settings, create_server
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.server.sampling import ROUNDS
from e2b_agent_mcp.settings import AgentSettings
from scripted_llm import ScriptedLLM, code
from tasks_client import TasksClient, ask, create
from test_agent_tools import ERAS, call, llm, settings, text_of  # noqa: F401  # fixtures
from test_http import Server, start
from test_stdio import environment
from test_task_extension import refused

pytestmark = pytest.mark.anyio

# ruff: noqa: F811  # the fixtures' own names, below


class Model:
    """A client's model that says what it is told; beyond that it does not answer."""

    def __init__(self, *replies: str) -> None:
        self.asked: list[CreateMessageRequestParams] = []
        self.waiting = anyio.Event()  # it was asked, and has nothing to say
        self.gone = anyio.Event()  # and was told that nobody listens any more
        self._replies = list(replies)

    async def __call__(
        self, ctx: ClientRequestContext, params: CreateMessageRequestParams
    ) -> CreateMessageResult | ErrorData:
        return await self.sample(params)

    async def sample(self, params: CreateMessageRequestParams) -> CreateMessageResult:
        self.asked.append(params)
        if not self._replies:
            self.waiting.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.gone.set()
        text = TextContent(text=self._replies.pop(0))
        return CreateMessageResult(role="assistant", content=text, model="llama")

    @property
    def said(self) -> str:
        """All that the last request holds."""
        return "\n".join(str(message.content) for message in self.asked[-1].messages)


@pytest.fixture
def keyless(settings: Settings) -> Settings:
    return replace(settings, agent=AgentSettings())


STEPS = (code("x = 40", "I begin."), code("x += 2\nprint('x is', x)"), code("final_answer(x)"))


@ERAS
async def test_without_a_key_the_clients_model_does_the_task(keyless: Settings, mode: str) -> None:
    model = Model(*STEPS)
    server = create_server(keyless)
    async with Client(server, mode=mode, sampling_callback=model) as client:
        task = await call(client, "run_agent_task", task="Count the PELICANS.")
        await client.call_tool("end_session", {})
    assert (task["status"], task["answer"], task["model"]) == ("completed", 42, "client/llama")
    assert task["steps"][0]["code"] == "x = 40"
    assert task["usage"]["llm_calls"] == 3
    assert task["usage"]["input_tokens"] > 0
    assert task["usage"]["cost_usd"] is None
    assert "x is 42" in model.said
    first = model.asked[0]
    assert "final_answer" in (first.system_prompt or "")
    assert "PELICANS" in str(first.messages[0].content)


@ERAS
async def test_it_is_asked_only_when_asked_for_while_a_key_is_set(
    settings: Settings, llm: ScriptedLLM, mode: str
) -> None:
    model = Model(code("final_answer('the client')"), code("final_answer('by setting')"))
    llm.script(code("final_answer('the key')"))
    server = create_server(settings)
    async with Client(server, mode=mode, sampling_callback=model) as client:
        assert (await call(client, "run_agent_task", task="x"))["answer"] == "the key"
        task = await call(client, "run_agent_task", task="x", model="client")
        assert task["answer"] == "the client"
    chosen = replace(settings, agent=replace(settings.agent, model="client"))
    async with Client(create_server(chosen), mode=mode, sampling_callback=model) as client:
        assert (await call(client, "run_agent_task", task="x"))["answer"] == "by setting"
        await client.call_tool("end_session", {})


@ERAS
@pytest.mark.parametrize("asked", [None, "client"], ids=["no key", "asked for"])
async def test_a_client_that_does_not_lend_it_is_told_what_to_set(
    keyless: Settings, mode: str, asked: str | None
) -> None:
    async with Client(create_server(keyless), mode=mode) as client:
        arguments = {"task": "x", **({"model": asked} if asked else {})}
        result = await client.call_tool("run_agent_task", arguments)
    assert result.is_error
    assert (result.structured_content or {})["error"]["code"] == "no_model"
    for words in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DEEPSEEK_API_KEY", "run_python"):
        assert words in text_of(result)


def steps(count: int) -> list[str]:
    return [*[code(f"x = {number}") for number in range(count - 1)], code("final_answer(x)")]


async def test_after_nine_rounds_the_task_is_handed_back_and_goes_on_with_the_next_call(
    keyless: Settings,
) -> None:
    model = Model(*steps(ROUNDS + 3))
    async with Client(create_server(keyless), sampling_callback=model) as client:
        result = await client.call_tool("run_agent_task", {"task": "Count."})
        task = result.structured_content or {}
        assert (task["status"], len(model.asked)) == ("working", ROUNDS)
        assert "get_agent_task" in task["note"]
        assert "9 times" in text_of(result)
        task = await call(client, "get_agent_task", task_id=task["task_id"])
        assert (task["status"], task["answer"], len(model.asked)) == ("completed", 10, ROUNDS + 3)
        await client.call_tool("end_session", {})


async def test_a_client_of_before_is_asked_as_often_as_it_takes(keyless: Settings) -> None:
    model = Model(*steps(ROUNDS + 3))
    async with Client(create_server(keyless), mode="legacy", sampling_callback=model) as client:
        task = await call(client, "run_agent_task", task="Count.")
        assert (task["answer"], len(model.asked)) == (10, ROUNDS + 3)
        await client.call_tool("end_session", {})


async def test_in_a_task_of_the_extension_there_is_no_limit_of_rounds(keyless: Settings) -> None:
    model = Model(*steps(ROUNDS + 3))
    tasks = TasksClient(model.sample)
    server = create_server(keyless)
    async with Client(server, extensions=[tasks], sampling_callback=model) as client:
        task = await call(client, "run_agent_task", task="Count.")
        await client.call_tool("end_session", {})
    assert (task["answer"], len(model.asked)) == (10, ROUNDS + 3)
    assert "input_required" in [seen["status"] for seen in tasks.seen]
    keys = [key for seen in tasks.seen for key in seen.get("inputRequests", {})]
    assert len(set(keys)) == ROUNDS + 3


async def given_up(client: Client, model: Model, **arguments: object) -> None:
    """A call of run_agent_task that the client cancels while its model is asked."""
    async with anyio.create_task_group() as calls:
        calls.start_soon(client.call_tool, "run_agent_task", {"task": "x", **arguments})
        with anyio.fail_after(60):
            await model.waiting.wait()
        calls.cancel_scope.cancel()


async def test_cancelling_the_call_takes_the_question_back_and_keeps_the_session(
    keyless: Settings,
) -> None:
    model = Model(code("kept = 41"))
    async with Client(create_server(keyless), mode="legacy", sampling_callback=model) as client:
        await given_up(client, model)
        with anyio.fail_after(30):
            await model.gone.wait()
            assert (await call(client, "run_python", code="kept + 1"))["text"] == "42"
        await client.call_tool("end_session", {})


async def test_a_client_that_goes_away_between_two_rounds_ends_its_task_by_its_silence(
    keyless: Settings,
) -> None:
    model = Model(code("kept = 41"))
    impatient = replace(keyless, agent=AgentSettings(request_timeout=2.0))
    async with Client(create_server(impatient), sampling_callback=model) as client:
        await given_up(client, model)
        with anyio.fail_after(60):
            assert (await call(client, "run_python", code="kept + 1"))["text"] == "42"
        await client.call_tool("end_session", {})


async def test_cancel_agent_task_takes_the_question_back(keyless: Settings) -> None:
    model = Model(code("kept = 41"))
    async with Client(create_server(keyless), mode="legacy", sampling_callback=model) as client:
        task = await call(client, "run_agent_task", task="x", wait=0)
        task_id = task["task_id"]
        async with anyio.create_task_group() as calls:
            calls.start_soon(client.call_tool, "get_agent_task", {"task_id": task_id})
            with anyio.fail_after(60):
                await model.waiting.wait()
            cancelled = await call(client, "cancel_agent_task", task_id=task_id)
            assert (cancelled["status"], len(cancelled["steps"])) == ("cancelled", 1)
            with anyio.fail_after(30):
                await model.gone.wait()
        assert (await call(client, "run_python", code="kept + 1"))["text"] == "42"
        await client.call_tool("end_session", {})


async def test_tasks_cancel_ends_a_task_that_waits_for_its_clients_model(
    keyless: Settings,
) -> None:
    tasks = TasksClient()
    server = create_server(keyless)
    async with Client(server, extensions=[tasks], sampling_callback=Model()) as client:
        task_id = (await create(client, "run_agent_task", task="x"))["taskId"]
        task: dict[str, Any] = {}
        with anyio.fail_after(60):
            while task.get("status") != "input_required":
                task = await ask(client.session, "tasks/get", taskId=task_id)
        late = {key: {"role": "assistant"} for key in task["inputRequests"]}
        update = {"taskId": task_id, "inputResponses": late}
        assert await refused(client, "tasks/update", **update) == INVALID_PARAMS
        await ask(client.session, "tasks/cancel", taskId=task_id)
        task = await ask(client.session, "tasks/get", taskId=task_id)
        assert task["status"] == "cancelled"
        assert not set(await ask(client.session, "tasks/update", **update)) - {
            "resultType",
            "_meta",
        }  # an answer to what is no longer asked is ignored
        await client.call_tool("end_session", {})


@pytest.mark.parametrize("tool", ["run_agent_task", "get_agent_task"])
async def test_a_later_round_that_is_cancelled_means_what_the_first_would(
    keyless: Settings, tool: str
) -> None:
    """run_agent_task cancels its task, get_agent_task only looks."""
    model = Model(code("print('begun')\nimport time\ntime.sleep(3600)"))
    async with Client(create_server(keyless), sampling_callback=model) as client:
        begun, arguments = anyio.Event(), {"task": "x"}
        if tool == "get_agent_task":
            task = await call(client, "run_agent_task", task="x", wait=0)
            arguments = {"task_id": task["task_id"]}

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            if "begun" in (message or ""):
                begun.set()

        async with anyio.create_task_group() as calls:

            async def wait() -> None:
                await client.call_tool(tool, arguments, progress_callback=hear)

            calls.start_soon(wait)
            with anyio.fail_after(60):
                await begun.wait()
            calls.cancel_scope.cancel()
        if tool == "get_agent_task":
            task = await call(client, tool, **arguments, wait=1)
            assert task["status"] == "working"
            await client.call_tool("cancel_agent_task", arguments)
        with anyio.fail_after(30):
            assert (await call(client, "run_python", code="'free'"))["text"] == "free"
        await client.call_tool("end_session", {})


@ERAS
async def test_a_client_that_refuses_to_ask_its_model_ends_the_task_with_its_words(
    keyless: Settings, mode: str
) -> None:
    async def refuse(ctx: ClientRequestContext, params: CreateMessageRequestParams) -> ErrorData:
        return ErrorData(code=INVALID_REQUEST, message="User rejected sampling request")

    server = create_server(keyless)
    async with Client(server, mode=mode, sampling_callback=refuse) as client:
        if mode == "legacy":
            task = await call(client, "run_agent_task", task="x")
            assert (task["status"], task["error"]["code"]) == ("failed", "model_error")
            assert "User rejected" in task["error"]["message"]
        else:  # this client ends the call itself, and never tells the server
            with pytest.raises(MCPError, match="User rejected"):
                await client.call_tool("run_agent_task", {"task": "x"})
        await client.call_tool("end_session", {})


@ERAS
async def test_a_handed_back_task_waits_for_the_client_and_says_so(
    keyless: Settings, mode: str
) -> None:
    model = Model(code("final_answer(1)"))
    server = create_server(keyless)
    async with Client(server, mode=mode, sampling_callback=model) as client:
        task_id = (await call(client, "run_agent_task", task="x", wait=0))["task_id"]
        note = ""
        with anyio.fail_after(60):
            while not note:
                note = (await call(client, "get_agent_task", task_id=task_id, wait=0))["note"]
        assert "get_agent_task" in note
        assert model.asked == []
        assert (await call(client, "get_agent_task", task_id=task_id))["answer"] == 1
        await client.call_tool("end_session", {})


async def test_over_stdio(engine: EngineAddress, tmp_path: Path) -> None:
    env = environment(engine.api_url, engine.api_key)
    env["E2B_AGENT_MCP_ENGINE_STATE_DIR"] = str(tmp_path)
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "e2b_agent_mcp"], env=env
    )
    model = Model(*STEPS)
    async with Client(stdio_client(parameters), mode="legacy", sampling_callback=model) as client:
        task = await call(client, "run_agent_task", task="Count.", wait=300)
        assert task["answer"] == 42
        await client.call_tool("end_session", {})


@pytest.fixture(scope="module")
def http(engine: EngineAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = str(tmp_path_factory.mktemp("state"))
    with start(engine, E2B_AGENT_MCP_ENGINE_STATE_DIR=folder) as server:
        yield server


@pytest.mark.parametrize("kind", ["2025-11-25", "2026-07-28", "tasks"])
async def test_over_http(http: Server, kind: str) -> None:
    model = Model(*STEPS)
    mode = "legacy" if kind == "2025-11-25" else "auto"
    tasks = [TasksClient(model.sample)] if kind == "tasks" else []
    async with http.client(mode, sampling_callback=model, extensions=tasks) as client:
        limit = {} if kind == "tasks" else {"wait": 300}
        task = await call(client, "run_agent_task", task="Count.", **limit)
        assert task["answer"] == 42
        await client.call_tool("end_session", {"session": task["session"]})
    maps = Path(f"/proc/{http.process.pid}/maps").read_text()
    assert "tiktoken" not in maps  # litellm's: nothing that takes ten seconds is loaded

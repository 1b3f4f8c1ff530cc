"""The tools as an MCP client sees them: a client in memory, the real engine, real sandboxes."""

import base64
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from e2b_code_interpreter import E2B
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import (
    BlobResourceContents,
    CallToolResult,
    ImageContent,
    PromptReference,
    ResourceLink,
    ResourceTemplateReference,
    TextContent,
    TextResourceContents,
)

from e2b_agent_mcp import SandboxManager, Settings, create_server
from e2b_agent_mcp.connection import e2b_params
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.lifecycle import E2BParams, Progress
from e2b_agent_mcp.settings import E2BSettings, FileSettings, Secret

pytestmark = pytest.mark.anyio

ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"], ids=["2026-07-28", "2025-11-25"])
TOOLS = [
    "run_python",
    "run_command",
    "list_sessions",
    "restart_session",
    "end_session",
    "run_agent_task",
    "get_agent_task",
    "cancel_agent_task",
    "upload_file",
    "download_file",
    "list_files",
]


@pytest.fixture
def settings(engine: EngineAddress, tmp_path: Path) -> Settings:
    """A default session of the test's own, as all tests share the engine."""
    return Settings(
        e2b=E2BSettings(
            api_key=Secret(engine.api_key),
            api_url=engine.api_url,
            sandbox_url=engine.sandbox_url,
        ),
        files=FileSettings(roots=(tmp_path,), inline_limit=1000, size_limit=5_000_000),
        session=f"t-{uuid.uuid4().hex[:8]}",
    )


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with Client(create_server(settings)) as client:
        yield client
        await client.call_tool("end_session", {})


async def data(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    """The structured result of a call that does not fail."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    structured: dict[str, Any] = result.structured_content
    return structured


async def failure(client: Client, tool: str, **arguments: object) -> dict[str, str]:
    """The error of a call that fails, in a result that the tool's schema admits."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.content
    schemas = {item.name: item.output_schema for item in (await client.list_tools()).tools}
    jsonschema.validate(result.structured_content, schemas.get(tool, {}))
    error: dict[str, str] = result.structured_content["error"]
    assert text_of(result) == f"{error['message']}\n{error['hint']}".strip()
    return error


def text_of(result: CallToolResult) -> str:
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


# --- what a client may call ---------------------------------------------------------------------


@ERAS
async def test_every_tool_is_described_for_a_model(settings: Settings, mode: str) -> None:
    async with Client(create_server(settings), mode=mode) as client:
        tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == TOOLS
    for tool in tools:
        assert tool.title
        assert tool.annotations is not None
        assert tool.output_schema is not None
        assert "{" not in (tool.description or "{")
        properties = tool.input_schema["properties"].values()
        assert all(argument["description"] for argument in properties)
    assert "may run 60 s (`timeout`: at most 3600)" in (tools[0].description or "")


@ERAS
async def test_the_server_says_what_it_is_for(settings: Settings, mode: str) -> None:
    async with Client(create_server(settings), mode=mode) as client:
        assert "run_python" in (client.instructions or "")
        assert client.server_info is not None
        assert client.server_info.name == "e2b-agent-mcp"


async def test_prompts_are_for_the_tasks_that_people_try_first(client: Client) -> None:
    prompts = {prompt.name: prompt for prompt in (await client.list_prompts()).prompts}
    assert set(prompts) == {"analyze_sales", "train_classifier", "web_sentiment", "build_dashboard"}
    message = (await client.get_prompt("analyze_sales", {"data": "/home/user/x.csv"})).messages[0]
    assert isinstance(message.content, TextContent)
    assert "Load the sales data from /home/user/x.csv" in message.content.text


# --- run_python ---------------------------------------------------------------------------------


@ERAS
async def test_variables_are_there_in_the_next_call(settings: Settings, mode: str) -> None:
    async with Client(create_server(settings), mode=mode) as client:
        first = await data(client, "run_python", code="x = 20")
        second = await data(client, "run_python", code="print('hi'); x + 1")
        await client.call_tool("end_session", {})
    assert first["sandbox_state"] == "created"
    del second["duration"]
    assert second == {
        "session": settings.session,
        "sandbox_id": first["sandbox_id"],
        "sandbox_state": "reused",
        "note": "",
        "status": "ok",
        "text": "21",
        "stdout": "hi\n",
        "stderr": "",
        "error": None,
        "results": [{"mime_types": ["text/plain"], "text": "21", "is_main_result": True}],
        "files": [],
        "truncated": False,
    }


async def test_an_exception_of_the_code_is_a_result(client: Client) -> None:
    result = await client.call_tool("run_python", {"code": "print('before')\n1/0"})
    assert not result.is_error
    assert result.structured_content["status"] == "error"
    assert result.structured_content["stdout"] == "before\n"
    assert result.structured_content["error"]["name"] == "ZeroDivisionError"
    assert "ZeroDivisionError: division by zero" in text_of(result)
    assert "\x1b" not in json.dumps(result.structured_content, ensure_ascii=False)


async def test_every_plot_is_an_image_and_a_frame_is_a_table(client: Client) -> None:
    code = """
import matplotlib.pyplot as plt, pandas as pd
for title in ("one", "two"):
    plt.plot([1, 2, 3]); plt.title(title); plt.show()
pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
"""
    result = await client.call_tool("run_python", {"code": code})
    images = [block for block in result.content if isinstance(block, ImageContent)]
    assert [image.mime_type for image in images] == ["image/png"] * 2
    *charts, table = result.structured_content["results"]
    assert [chart["chart"]["title"] for chart in charts] == ["one", "two"]
    assert table["data"] == {"a": [1, 2], "b": ["x", "y"]}
    assert "<table" in table["html"]
    assert "0  1  x" in text_of(result)


async def test_a_new_file_is_a_link_that_can_be_read(client: Client, settings: Settings) -> None:
    code = "open('a b.bin', 'wb').write(bytes(range(256))); open('t.csv', 'w').write('a,b')"
    result = await client.call_tool("run_python", {"code": code})
    links = {link.name: link for link in result.content if isinstance(link, ResourceLink)}
    binary = (await client.read_resource(links["a b.bin"].uri)).contents[0]
    text = (await client.read_resource(links["t.csv"].uri)).contents[0]
    assert isinstance(binary, BlobResourceContents)
    assert base64.b64decode(binary.blob) == bytes(range(256))
    assert isinstance(text, TextResourceContents)
    assert (text.text, text.mime_type) == ("a,b", "text/csv")
    relative = (await client.read_resource(f"sandbox://{settings.session}/t.csv")).contents[0]
    assert isinstance(relative, TextResourceContents)
    assert relative.text == "a,b"


async def test_a_timeout_interrupts_and_keeps_variables(client: Client) -> None:
    code = "import time\nx = 1\nprint('started')\ntime.sleep(60)\nx = 2"
    result = await client.call_tool("run_python", {"code": code, "timeout": 1})
    assert not result.is_error
    assert result.structured_content["status"] == "timeout"
    assert result.structured_content["stdout"] == "started\n"
    assert "stopped by its time limit after 1" in text_of(result)
    assert "kept" in result.structured_content["note"]
    assert (await data(client, "run_python", code="x"))["text"] == "1"


@ERAS
async def test_a_call_that_the_client_gives_up_is_interrupted(
    settings: Settings, mode: str
) -> None:
    async with (
        Client(create_server(settings), mode=mode) as client,
        anyio.create_task_group() as tg,
    ):
        started = anyio.Event()

        async def heard(progress: float, total: float | None, message: str | None) -> None:
            if message == "started":
                started.set()

        async def call() -> None:
            code = "import time\nx = 1\nprint('started')\ntime.sleep(60)"
            await client.call_tool("run_python", {"code": code}, progress_callback=heard)

        tg.start_soon(call)
        with anyio.fail_after(30):
            await started.wait()
        tg.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(15):
            assert (await data(client, "run_python", code="x"))["text"] == "1"
            await client.call_tool("end_session", {})


@ERAS
async def test_what_is_printed_is_reported_while_the_code_runs(
    settings: Settings, mode: str
) -> None:
    messages: list[tuple[float, str | None]] = []

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        messages.append((progress, message))

    code = "import time\nfor i in range(4):\n    print('step', i); time.sleep(0.6)"
    async with Client(create_server(settings), mode=mode) as client:
        await client.call_tool("run_python", {"code": code}, progress_callback=heard)
        await client.call_tool("end_session", {})
    assert {"step 0", "step 3"} <= {message for _, message in messages}
    times = [time for time, _ in messages]
    assert all(later - earlier > 0.4 for earlier, later in pairwise(times))


async def test_a_call_hears_what_is_being_prepared_for_it(settings: Settings) -> None:
    heard: list[str | None] = []
    connecting, told = anyio.Event(), anyio.Event()

    async def connect(*, on_progress: Progress | None) -> E2BParams:
        assert on_progress is not None
        await on_progress("preparing the sandbox environment")
        connecting.set()
        await told.wait()
        return await e2b_params(settings)

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)
        told.set()

    with anyio.fail_after(60):
        async with (
            SandboxManager(settings, connect=connect) as manager,
            Client(create_server(settings, manager=manager)) as client,
        ):
            await connecting.wait()
            await client.call_tool("run_python", {"code": "1"}, progress_callback=hear)
            await client.call_tool("end_session", {})
    assert heard[0] == "preparing the sandbox environment"


async def test_long_output_is_cut_and_all_of_it_can_be_read(client: Client) -> None:
    code = "print('\\n'.join(f'line {i}' for i in range(60_000)))"
    result = await client.call_tool("run_python", {"code": code})
    (kept,) = result.structured_content["files"]
    assert kept["path"] in text_of(result)
    assert result.structured_content["truncated"]
    contents = (await client.read_resource(kept["uri"])).contents[0]
    assert isinstance(contents, TextResourceContents)
    assert contents.text.splitlines() == [f"line {i}" for i in range(60_000)]


async def test_packages_are_installed_before_the_code_runs(client: Client) -> None:
    code = "import cowsay; cowsay.__name__"
    assert (await data(client, "run_python", code=code))["status"] == "error"
    result = await data(client, "run_python", code=code, packages=["cowsay"])
    assert result["text"] == "cowsay"


async def test_a_package_that_does_not_exist_is_named(client: Client) -> None:
    error = await failure(client, "run_python", code="1", packages=["no-such-package-at-all"])
    assert error["code"] == "invalid_argument"
    assert "no-such-package-at-all" in error["message"]


async def test_sessions_are_apart_and_run_at_the_same_time(client: Client) -> None:
    names = [f"a-{uuid.uuid4().hex[:8]}", f"b-{uuid.uuid4().hex[:8]}"]
    running = [anyio.Event(), anyio.Event()]

    async def call(index: int) -> None:
        async def heard(progress: float, total: float | None, message: str | None) -> None:
            if message == "running":
                running[index].set()

        code = f"import os, time\nwho = {index}\nprint('running')\n" + (
            "while not os.path.exists('go'): time.sleep(0.05)"
        )
        arguments = {"code": code, "session": names[index]}
        await client.call_tool("run_python", arguments, progress_callback=heard)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tg:
            tg.start_soon(call, 0)
            tg.start_soon(call, 1)
            for event in running:
                await event.wait()
            tg.cancel_scope.cancel()
    for index, name in enumerate(names):
        assert (await data(client, "run_python", code="who", session=name))["text"] == str(index)
        assert (await data(client, "end_session", session=name))["ended"]


async def test_a_sandbox_that_is_gone_is_replaced_and_the_model_is_told(
    client: Client, e2b: E2B
) -> None:
    first = await data(client, "run_python", code="x = 1")
    await e2b.AsyncSandbox.kill(first["sandbox_id"])
    result = await client.call_tool("run_python", {"code": "x"})
    assert result.structured_content["sandbox_state"] == "recreated"
    assert "gone" in result.structured_content["note"]
    assert result.structured_content["note"] in text_of(result)


# --- the other tools ----------------------------------------------------------------------------


async def test_a_command_runs_where_the_code_runs(client: Client) -> None:
    await data(client, "run_python", code="open('made.txt', 'w').write('by python')")
    result = await client.call_tool(
        "run_command", {"command": "cat made.txt; echo oops >&2; exit 3", "cwd": "/home/user"}
    )
    structured = result.structured_content
    assert (structured["status"], structured["exit_code"]) == ("error", 3)
    assert (structured["stdout"], structured["stderr"]) == ("by python", "oops\n")
    assert "exit code 3" in text_of(result)


async def test_a_command_is_stopped_in_time(client: Client) -> None:
    with anyio.fail_after(20):
        result = await data(client, "run_command", command="echo so far; sleep 60", timeout=1)
    assert (result["status"], result["exit_code"]) == ("timeout", None)
    assert result["stdout"] == "so far\n"


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        pytest.param({"text": "höllo"}, "höllo".encode(), id="text"),
        pytest.param({"text": ""}, b"", id="an empty text"),
        pytest.param({"text": '{"a": [1]}'}, b'{"a": [1]}', id="a text that is JSON"),
        pytest.param({"base64": "AAEC"}, b"\0\1\2", id="base64"),
        pytest.param({"text": "", "base64": "AAEC"}, b"\0\1\2", id="defaults filled in"),
        pytest.param({"text": "x", "base64": None}, b"x", id="nulls"),
    ],
)
async def test_content_is_uploaded(
    client: Client, arguments: dict[str, str], content: bytes
) -> None:
    result = await data(client, "upload_file", path="new/file", **arguments)
    assert (result["path"], result["size"]) == ("/home/user/new/file", len(content))
    read = await data(client, "run_python", code="open('new/file', 'rb').read()")
    assert read["text"] == repr(content)


async def test_host_files_go_in_and_out_without_passing_through_the_conversation(
    client: Client, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "in.bin").write_bytes(content)
    await data(client, "upload_file", path="x.bin", source_path=str(tmp_path / "in.bin"))
    target = tmp_path / "out.bin"
    result = await data(client, "download_file", path="x.bin", target_path=str(target))
    assert target.read_bytes() == content
    assert (result["saved_to"], result["text"], result["base64"]) == (str(target), None, None)


async def test_a_small_file_comes_back_in_the_result(client: Client) -> None:
    await data(client, "upload_file", path="t.txt", text="hello")
    await data(client, "upload_file", path="b.bin", base64="AAEC")
    text = await client.call_tool("download_file", {"path": "t.txt"})
    binary = await data(client, "download_file", path="b.bin")
    assert text_of(text).startswith("hello")
    assert text.structured_content["text"] == "hello"
    assert (binary["text"], binary["base64"]) == (None, "AAEC")


async def test_an_image_comes_back_as_an_image(client: Client) -> None:
    code = "from PIL import Image; Image.new('RGB', (4, 4)).save(open('i.png', 'wb'), 'PNG')"
    await data(client, "run_python", code=code)
    result = await client.call_tool("download_file", {"path": "i.png"})
    assert any(isinstance(block, ImageContent) for block in result.content)


async def test_a_larger_file_comes_back_as_a_link(client: Client) -> None:
    await data(client, "upload_file", path="t.txt", text="x" * 2000)
    result = await client.call_tool("download_file", {"path": "t.txt"})
    (link,) = (block for block in result.content if isinstance(block, ResourceLink))
    assert link.size == 2000
    contents = (await client.read_resource(link.uri)).contents[0]
    assert isinstance(contents, TextResourceContents)
    assert contents.text == "x" * 2000


async def test_a_folder_is_listed(client: Client) -> None:
    await data(client, "run_command", command="mkdir -p d/sub && echo hello > d/file.txt")
    result = await client.call_tool("list_files", {"path": "d"})
    listed = [(e["path"], e["type"]) for e in result.structured_content["entries"]]
    assert listed == [
        ("/home/user/d/file.txt", "file"),
        ("/home/user/d/sub", "directory"),
    ]
    assert "/home/user/d/file.txt (6 bytes)\n/home/user/d/sub/" in text_of(result)


async def test_a_session_is_listed_restarted_and_ended(client: Client, settings: Settings) -> None:
    first = await data(client, "run_python", code="x = 1; open('kept', 'w').close()")
    sessions = (await data(client, "list_sessions"))["sessions"]
    (mine,) = (s for s in sessions if s["session"] == settings.session)
    assert (mine["sandbox_id"], mine["state"]) == (first["sandbox_id"], "running")
    assert 0 < mine["expires_in"] <= settings.sandboxes.idle_after
    assert 0 < mine["usage"]["memory_used"] < mine["usage"]["memory_total"]
    assert 0 < mine["usage"]["disk_used"] < mine["usage"]["disk_total"]
    assert mine["spent"]["sandbox_seconds"] > 0
    assert mine["spent"]["sandbox_usd"] == 0

    await data(client, "restart_session")
    after = await data(client, "run_python", code="import os; 'x' in globals(), os.listdir()")
    assert after["sandbox_id"] == first["sandbox_id"]
    assert after["text"].startswith("(False, ")
    assert "'kept'" in after["text"]

    assert (await data(client, "end_session"))["ended"]
    assert not (await data(client, "end_session"))["ended"]
    assert (await data(client, "run_python", code="1"))["sandbox_state"] == "created"


async def test_session_names_are_completed(client: Client, settings: Settings) -> None:
    await data(client, "run_python", code="1")
    for ref in (
        PromptReference(name="analyze_sales"),
        ResourceTemplateReference(uri="sandbox://{session}/{+path}"),
    ):
        found = await client.complete(ref, {"name": "session", "value": settings.session[:5]})
        assert settings.session in found.completion.values


async def test_the_sessions_are_a_resource(client: Client, settings: Settings) -> None:
    await data(client, "run_python", code="1")
    contents = (await client.read_resource("sandbox://sessions")).contents[0]
    assert isinstance(contents, TextResourceContents)
    names = [session["session"] for session in json.loads(contents.text)]
    assert settings.session in names


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("run_python", {}, "code: is required"),
        ("run_python", {"code": " \n"}, "code: is empty."),
        ("run_python", {"code": 5}, "code: Input should be a valid string"),
        ("run_python", {"code": "1", "timeout": 0}, "timeout: Input should be greater than 0"),
        ("run_python", {"code": "1", "timeout": "nan"}, "timeout: Input should be a finite number"),
        (
            "run_python",
            {"code": "1", "timeout": 3601},
            "timeout: 3601 s is more than the 3600 s allowed.",
        ),
        ("run_python", {"code": "1", "timout": 5}, "timout: no such argument of run_python."),
        ("run_python", {"code": "1", "session": "a/b"}, "session: 'a/b' is not a name."),
        ("run_python", {"code": "1", "packages": "x"}, "packages: Input should be a valid list"),
        (
            "run_python",
            {"code": "1", "packages": ["ok", "-r x"]},
            "packages[1]: '-r x' is not a requirement.",
        ),
        ("run_command", {"command": ""}, "command: is empty."),
        ("upload_file", {"path": "x"}, "text, base64, source_path: give one of them."),
        (
            "upload_file",
            {"path": "x", "text": "a", "base64": "YQ=="},
            "text, base64: give only one of them.",
        ),
        (
            "upload_file",
            {"path": "x", "base64": "!"},
            "base64: cannot be decoded (Only base64 data is allowed).",
        ),
        ("upload_file", {"path": "", "text": "a"}, "path: is empty."),
        ("no_such_tool", {}, "Unknown tool: no_such_tool"),
    ],
)
async def test_a_bad_argument_is_named(
    settings: Settings, tool: str, arguments: dict[str, object], message: str
) -> None:
    async with Client(create_server(settings)) as client:
        error = await failure(client, tool, **arguments)
    assert (error["code"], error["message"]) == ("invalid_argument", message)


async def test_a_missing_file_is_not_found(client: Client) -> None:
    assert (await failure(client, "download_file", path="missing"))["code"] == "not_found"
    assert (await failure(client, "list_files", path="missing"))["code"] == "not_found"
    error = await failure(client, "download_file", path="/home/user")
    assert error["message"] == "path: /home/user is a folder."


async def test_a_host_path_outside_the_roots_is_refused(client: Client, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret"
    secret.write_text("key")
    (tmp_path / "link").symlink_to(secret)
    for path in (str(secret), str(tmp_path / "link"), str(tmp_path / ".." / "secret")):
        error = await failure(client, "upload_file", path="x", source_path=path)
        assert error["code"] == "path_not_allowed"
        error = await failure(
            client, "download_file", path="/etc/hostname", target_path=str(secret)
        )
        assert error["code"] == "path_not_allowed"
    assert secret.read_text() == "key"


async def test_too_large_a_file_is_refused_both_ways(client: Client, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5_000_001))
    error = await failure(client, "upload_file", path="x", source_path=str(tmp_path / "big"))
    assert error["code"] == "too_large"
    await data(client, "run_command", command="truncate -s 5000001 big")
    error = await failure(client, "download_file", path="big", target_path=str(tmp_path / "b"))
    assert error["code"] == "too_large"
    assert "files.size_limit" in error["message"]


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("sandbox://no-such-session/home/user/x", id="a session that has no sandbox"),
        pytest.param("sandbox://{session}/home/user/missing", id="no file"),
        pytest.param("sandbox://{session}/home/user", id="a folder"),
    ],
)
async def test_a_resource_that_is_not_there(client: Client, settings: Settings, uri: str) -> None:
    await data(client, "run_python", code="1")
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri.format(session=settings.session))
    assert caught.value.error.code == -32602


async def test_reading_a_resource_creates_no_sandbox(settings: Settings, e2b: E2B) -> None:
    async with Client(create_server(settings)) as client:
        with pytest.raises(MCPError, match="has a sandbox"):
            await client.read_resource(f"sandbox://{settings.session}/home/user/x")
        names = [s["session"] for s in (await data(client, "list_sessions"))["sessions"]]
    assert settings.session not in names


async def test_an_e2b_that_cannot_be_reached_is_explained(settings: Settings) -> None:
    nowhere = "http://127.0.0.1:9"
    unreachable = replace(
        settings,
        e2b=E2BSettings(api_key=Secret("e2b_secret"), api_url=nowhere, sandbox_url=nowhere),
    )
    async with Client(create_server(unreachable)) as client:
        error = await failure(client, "run_python", code="1")
    assert error["code"] == "sandbox_unavailable"
    assert "E2B_API_URL" in error["hint"]
    assert "e2b_secret" not in json.dumps(error)


async def test_a_rejected_key_is_explained(settings: Settings) -> None:
    wrong = replace(settings, e2b=replace(settings.e2b, api_key=Secret("e2b_wrong")))
    async with Client(create_server(wrong)) as client:
        error = await failure(client, "run_python", code="1")
    assert error["code"] == "authentication"
    assert "E2B_API_KEY" in error["hint"]
    assert "e2b_wrong" not in json.dumps(error)


async def test_a_defect_of_ours_is_logged_and_not_shown(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    closed = SandboxManager(settings, connect=partial(e2b_params, settings))
    async with Client(create_server(settings, manager=closed)) as client:
        error = await failure(client, "run_python", code="1")
    assert error["code"] == "internal"
    assert error["message"] == "run_python failed: RuntimeError, a defect of this server."
    assert "Use the manager with `async with`" in caplog.text

"""The server over HTTP: who may call, whose session a call is, and how it ends."""

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from e2b_agent_mcp.engine import EngineAddress

ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"], ids=["2026-07-28", "2025-11-25"])
END_LIMIT = 2.0  # seconds
DELAYED = 0.04  # seconds for which Linux keeps an acknowledgement back, and a small packet with it


class Server(NamedTuple):
    url: str
    process: "subprocess.Popen[str]"

    @asynccontextmanager
    async def client(
        self, mode: str = "auto", token: str = "", **options: Any
    ) -> AsyncIterator[Client]:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(
                streamable_http_client(self.url, http_client=http), mode=mode, **options
            ) as client,
        ):
            yield client


@contextmanager
def start(engine: EngineAddress, *arguments: str, **environ: str) -> Iterator[Server]:
    env = {
        "E2B_API_KEY": engine.api_key,
        "E2B_API_URL": engine.api_url,
        "E2B_SANDBOX_URL": engine.sandbox_url,
        **environ,
    }
    command = [sys.executable, "-m", "e2b_agent_mcp", "serve", "--transport", "http"]
    with subprocess.Popen(
        [*command, "--port", "0", *arguments], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            yield Server(process.stderr.readline().rpartition(" ")[2].strip(), process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(engine: EngineAddress) -> Iterator[Server]:
    """Without tokens."""
    with start(engine) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(engine: EngineAddress) -> Iterator[Server]:
    """With tokens of Ann and Bob."""
    with start(engine, E2B_AGENT_MCP_HTTP_TOKENS="ann=token-of-ann,bob=token-of-bob") as server:
        yield server


async def run(client: Client, code: str, session: str | None = None) -> dict[str, Any]:
    result = await client.call_tool("run_python", {"code": code, "session": session})
    assert not result.is_error, result.content
    structured: dict[str, Any] = result.structured_content
    return structured


async def end(client: Client, *sessions: str) -> None:
    for session in sessions:
        await client.call_tool("end_session", {"session": session})


# --- sessions -----------------------------------------------------------------------------------


async def test_a_legacy_client_has_a_session_of_its_own(server: Server) -> None:
    async with server.client("legacy") as one, server.client("legacy") as two:
        first = await run(one, "x = 1")
        assert (await run(one, "x"))["text"] == "1"
        assert (await run(two, "x"))["error"]["name"] == "NameError"
        await end(one, first["session"])
        await two.call_tool("end_session", {})


async def test_a_modern_client_without_a_token_is_told_the_session_to_go_on_with(
    server: Server,
) -> None:
    async with server.client() as client:
        first, other = await run(client, "x = 1"), await run(client, "2")
        again = await run(client, "x", first["session"])
        await end(client, first["session"], other["session"])
    assert first["session"] != other["session"]
    assert f"Pass session={first['session']!r}" in first["note"]
    assert (again["sandbox_state"], again["text"]) == ("reused", "1")


async def test_a_session_without_a_chosen_name_is_not_listed_to_others(server: Server) -> None:
    async with server.client() as one, server.client("legacy") as two:
        made = (await run(one, "1"))["session"]
        own = (await run(two, "1"))["session"]
        result = await two.call_tool("list_sessions", {})
        names = [session["session"] for session in result.structured_content["sessions"]]
        await end(one, made)
        await end(two, own)
    assert own in names
    assert made not in names


async def test_an_answer_is_not_held_back(server: Server) -> None:
    took = []
    async with server.client() as client:
        for _ in range(20):
            started = time.perf_counter()
            await client.call_tool("get_agent_task", {"task_id": "none"})
            took.append(time.perf_counter() - started)
    assert min(took) < DELAYED


@ERAS
async def test_a_session_outlives_its_client(server: Server, mode: str) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    async with server.client(mode) as client:
        await run(client, "x = 1", name)
    async with server.client(mode) as client:
        assert (await run(client, "x", name))["text"] == "1"
        await end(client, name)


async def test_tokens_keep_sessions_apart(guarded: Server) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    async with (
        guarded.client(token="token-of-ann") as ann,
        guarded.client(token="token-of-bob") as bob,
    ):
        await run(ann, "x = 'of Ann'", name)
        assert (await run(bob, "x", name))["error"]["name"] == "NameError"
        bobs = (await bob.call_tool("list_sessions", {})).structured_content["sessions"]
        await end(bob, name)
        assert (await run(ann, "x", name))["text"] == "of Ann"
        await end(ann, name)
    assert [session["session"] for session in bobs] == [name]


async def test_a_modern_client_with_a_token_has_a_default_session(guarded: Server) -> None:
    async with guarded.client(token="token-of-ann") as client:
        first = await run(client, "x = 1")
        second = await run(client, "x")
        await end(client, first["session"])
    assert (first["session"], second["session"]) == ("default", "default")
    assert second["text"] == "1"


# --- calls --------------------------------------------------------------------------------------


@ERAS
async def test_a_call_that_the_client_gives_up_is_interrupted(server: Server, mode: str) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    started = anyio.Event()

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        if message == "started":
            started.set()

    async def call() -> None:
        code = "import time\nx = 1\nprint('started')\ntime.sleep(60)"
        arguments = {"code": code, "session": name}
        await client.call_tool("run_python", arguments, progress_callback=heard)

    async with server.client(mode) as client:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tg:
                tg.start_soon(call)
                await started.wait()
                tg.cancel_scope.cancel()
        with anyio.fail_after(15):
            assert (await run(client, "x", name))["text"] == "1"
        await end(client, name)


async def test_host_files_are_out_of_reach(server: Server) -> None:
    async with server.client("legacy") as client:
        arguments = {"path": "x", "source_path": "/etc/hostname"}
        result = await client.call_tool("upload_file", arguments)
    assert result.structured_content["error"]["code"] == "path_not_allowed"


# --- who may call -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"host": "evil.example"}, 421, id="another host"),
        pytest.param({"origin": "https://evil.example"}, 403, id="a page of another site"),
        pytest.param(
            {"host": "localhost", "origin": "http://localhost:3000"}, 400, id="a local page"
        ),
    ],
)
def test_a_browser_cannot_be_sent_here(
    server: Server, headers: dict[str, str], status: int
) -> None:
    answer = httpx2.post(server.url, headers=headers, json={})
    assert answer.status_code == status


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic dG9rZW4tb2YtYW5u"])
def test_without_a_token_nothing_is_answered(guarded: Server, authorization: str) -> None:
    headers = {"authorization": authorization} if authorization else {}
    answer = httpx2.post(guarded.url, headers=headers, json={})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert "resource_metadata" not in answer.headers["www-authenticate"]


def test_health_needs_no_token(guarded: Server) -> None:
    answer = httpx2.get(guarded.url.replace("/mcp", "/healthz"))
    assert (answer.status_code, answer.text) == (200, "ok\n")


def test_it_does_not_serve_strangers_without_a_token(engine: EngineAddress) -> None:
    with start(engine, "--host", "0.0.0.0") as server:
        assert server.process.wait(30) != 0
        assert server.process.stderr is not None
        assert "E2B_AGENT_MCP_HTTP_TOKENS" in server.process.stderr.read()


# --- the end ------------------------------------------------------------------------------------


async def test_it_ends_in_time_with_a_call_in_flight(engine: EngineAddress) -> None:
    started = anyio.Event()
    name = f"t-{uuid.uuid4().hex[:8]}"

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        if message == "started":
            started.set()

    async def call(server: Server) -> None:
        code = "x = 1\nprint('started')\nimport time; time.sleep(60)"
        arguments = {"code": code, "session": name}
        with pytest.raises(ExceptionGroup):  # the client's word for a call without an answer
            async with server.client() as client:
                await client.call_tool("run_python", arguments, progress_callback=heard)

    with start(engine) as server, anyio.fail_after(60):
        async with anyio.create_task_group() as tg:
            tg.start_soon(call, server)
            await started.wait()
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = await anyio.to_thread.run_sync(server.process.wait, 30)
            seconds = time.monotonic() - began
    assert code == 128 + signal.SIGTERM
    assert seconds < END_LIMIT
    with start(engine) as server:
        async with server.client() as client:
            assert (await run(client, "x", name))["text"] == "1"
            await end(client, name)

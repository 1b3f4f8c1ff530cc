"""The data plane: who gets in, and that bytes, ends and breaks pass through unchanged."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from e2b import SandboxNetworkOpts, SandboxNotRunningException

from e2b_agent_mcp.engine.connection import MAX_ANSWER, MAX_HEAD, GuestGone, exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from anyio.abc import SocketStream
    from e2b_code_interpreter import E2B, AsyncSandbox

    from e2b_agent_mcp.engine import EngineAddress

ENVD = "49983"

# Answers with what it was sent, or starts an answer and prints when the client has gone.
SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += connection.recv(65536)
    if head.startswith(b"GET /hang"):
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
        connection.sendall(b"2\\r\\nhi\\r\\n")
        connection.recv(1)
        print("gone", flush=True)
    elif b"\\r\\nx-refuse:" in head.lower():
        connection.sendall(b"HTTP/1.1 418 No\\r\\nContent-Length: 2\\r\\n\\r\\nno")
        open("heard", "wb").write(connection.recv(65536))
        print("gone", flush=True)
    elif b"\\r\\nupgrade:" in head.lower():
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\n\\r\\n")
        while data := connection.recv(65536):
            connection.sendall(data)
        print("gone", flush=True)
    else:
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n" + head)
    connection.close()
"""


@pytest.fixture
async def http(engine: EngineAddress) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.api_url, trust_env=False) as client:
        yield client


def headers(sandbox: AsyncSandbox, port: str = ENVD) -> dict[str, str]:
    return {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": port,
        "X-Access-Token": sandbox._envd_access_token or "",
        "E2B-Traffic-Access-Token": sandbox.traffic_access_token or "",
    }


@asynccontextmanager
async def server_in(sandbox: AsyncSandbox) -> AsyncIterator[tuple[str, anyio.Event]]:
    """The port of `SERVER`, and what is set when a client of it has gone."""
    await sandbox.files.write("server.py", SERVER)
    port, started, gone = "", anyio.Event(), anyio.Event()

    def hear(text: str) -> None:
        nonlocal port
        if text.strip() == "gone":
            gone.set()
        else:
            port = text.strip()
            started.set()

    process = await sandbox.commands.run(
        "python3 server.py", background=True, timeout=0, on_stdout=hear
    )
    with anyio.fail_after(20):
        await started.wait()
    try:
        yield port, gone
    finally:
        await process.disconnect()


# Who gets in


@pytest.mark.parametrize(
    ("port", "taken", "status"),
    [
        pytest.param(ENVD, ["X-Access-Token"], 401, id="envd without its token"),
        pytest.param(ENVD, ["E2B-Traffic-Access-Token"], 204, id="envd with its token"),
        pytest.param("49999", ["X-Access-Token"], 200, id="interpreter with the traffic token"),
        pytest.param("49999", ["E2B-Traffic-Access-Token"], 200, id="interpreter with envd's"),
        pytest.param(
            "49999", ["X-Access-Token", "E2B-Traffic-Access-Token"], 403, id="interpreter, none"
        ),
        pytest.param(
            "8000", ["X-Access-Token", "E2B-Traffic-Access-Token"], 502, id="a public port"
        ),
    ],
)
async def test_the_sandboxs_own_services_ask_for_a_token(
    http: httpx.AsyncClient, sandbox: AsyncSandbox, port: str, taken: list[str], status: int
) -> None:
    given = {k: v for k, v in headers(sandbox, port).items() if k not in taken}
    wrong = given | dict.fromkeys(taken, "0" * 64)
    assert (await http.get("/health", headers=given)).status_code == status
    assert (await http.get("/health", headers=wrong)).status_code == status


async def test_ports_can_be_closed_to_those_without_the_token(
    http: httpx.AsyncClient, e2b: E2B
) -> None:
    closed: SandboxNetworkOpts = {"allow_public_traffic": False}
    async with await e2b.AsyncSandbox.create(timeout=60, network=closed) as sandbox:
        assert (await sandbox.get_info()).network == closed
        async with server_in(sandbox) as (port, _):
            host = {"Host": sandbox.get_host(int(port))}
            refused = await http.get("/", headers=host)
            assert refused.status_code == 403
            assert refused.json()["sandboxId"] == sandbox.sandbox_id
            token = {"E2B-Traffic-Access-Token": sandbox.traffic_access_token or ""}
            assert (await http.get("/", headers=host | token)).status_code == 200
            async with upgraded(http, host) as (status, _):
                assert status == 403


async def test_who_knows_the_host_name_reaches_a_server_in_the_sandbox(
    http: httpx.AsyncClient, sandbox: AsyncSandbox, engine: EngineAddress
) -> None:
    port_of_engine = httpx.URL(engine.api_url).port
    async with server_in(sandbox) as (port, _):
        host = sandbox.get_host(int(port))
        assert host == f"{port}-{sandbox.sandbox_id}.localhost:{port_of_engine}"
        answer = await http.get("/path?q=1", headers={"Host": host})
        assert answer.text.startswith("GET /path?q=1 HTTP/1.1\r\n")
        assert f"host: {host}\r\n" in answer.text.lower()


async def test_a_server_can_be_shown_another_host_name(http: httpx.AsyncClient, e2b: E2B) -> None:
    mask: SandboxNetworkOpts = {"mask_request_host": "${PORT}-app.example"}
    sandbox = await e2b.AsyncSandbox.create(timeout=60, network=mask)
    async with sandbox, server_in(sandbox) as (port, _):
        answer = await http.get("/", headers={"Host": sandbox.get_host(int(port))})
        assert f"host: {port}-app.example\r\n" in answer.text.lower()


async def test_an_upgraded_connection_carries_bytes_both_ways(
    http: httpx.AsyncClient, sandbox: AsyncSandbox
) -> None:
    async with server_in(sandbox) as (port, gone):
        async with upgraded(http, {"Host": sandbox.get_host(int(port))}) as (status, stream):
            assert status == 101
            for data in (b"\x81\x02hi", bytes(300_000)):
                await stream.send(data)
                echo = b""
                while len(echo) < len(data):
                    echo += await stream.receive()
                assert echo == data
        with anyio.fail_after(10):
            await gone.wait()


async def test_a_refused_upgrade_never_leaves_its_connection_to_the_sandbox(
    http: httpx.AsyncClient, sandbox: AsyncSandbox
) -> None:
    """Else a client would send its next request there, which may hold the key of the engine."""
    async with server_in(sandbox) as (port, gone):
        host = {"Host": sandbox.get_host(int(port)), "X-Refuse": "1"}
        async with upgraded(http, host) as (status, stream):
            assert status == 418
            await stream.send(b"GET /v2/sandboxes HTTP/1.1\r\nX-API-KEY: secret\r\n\r\n")
            rest = b""
            with anyio.fail_after(10):
                while not rest.endswith(b"no"):
                    rest += await stream.receive()
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
        with anyio.fail_after(10):
            await gone.wait()
    assert await sandbox.files.read("heard") == ""


async def test_a_request_with_a_long_head_arrives(
    http: httpx.AsyncClient, sandbox: AsyncSandbox
) -> None:
    long = headers(sandbox) | {"X-Long": "x" * 900_000}
    assert (await http.get("/health", headers=long)).status_code == 204


async def test_an_upgraded_connection_ends_with_its_sandbox(
    http: httpx.AsyncClient, e2b: E2B
) -> None:
    sandbox = await e2b.AsyncSandbox.create(timeout=60)
    async with (
        sandbox,
        server_in(sandbox) as (port, _),
        upgraded(http, {"Host": sandbox.get_host(int(port))}) as (status, stream),
    ):
        assert status == 101
        await sandbox.pause()
        with anyio.fail_after(10), pytest.raises((anyio.EndOfStream, ConnectionError)):
            await stream.receive()


@pytest.mark.parametrize(
    ("port", "status"), [(ENVD, 401), ("49999", 403), ("1", 502), ("65536", 502)]
)
async def test_what_cannot_be_upgraded_is_refused(
    http: httpx.AsyncClient, sandbox: AsyncSandbox, port: str, status: int
) -> None:
    with_token = headers(sandbox, port) | {"Host": "localhost"}
    for given, expected in (
        ({"Host": sandbox.get_host(int(port))}, status),
        ({"Host": "127.0.0.1"}, 404),
        (with_token, 502),
    ):
        async with upgraded(http, given) as (refused, _):
            assert refused == expected


@asynccontextmanager
async def upgraded(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> AsyncIterator[tuple[int, SocketStream]]:
    """The status of the answer, and the connection behind its head."""
    lines = ["GET /socket HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    async with await anyio.connect_tcp(http.base_url.host, http.base_url.port or 80) as stream:
        await stream.send("\r\n".join([*lines, "", ""]).encode())
        head = b""
        with anyio.fail_after(10):
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive(1)
        yield int(head.split()[1]), stream


async def test_the_token_of_another_sandbox_does_not_open(
    http: httpx.AsyncClient, e2b: E2B, sandbox: AsyncSandbox
) -> None:
    other = await e2b.AsyncSandbox.create(timeout=60)
    try:
        mixed = headers(other) | {"E2b-Sandbox-Id": sandbox.sandbox_id}
        assert (await http.get("/health", headers=mixed)).status_code == 401
    finally:
        await other.kill()


async def test_the_engines_own_calls_are_closed_to_clients(
    http: httpx.AsyncClient, sandbox: AsyncSandbox
) -> None:
    answer = await http.post("/init", headers=headers(sandbox), json={"envVars": {}})
    assert answer.status_code == 403
    encoded = await http.post("/%69nit", headers=headers(sandbox), json={"envVars": {}})
    assert encoded.status_code == 403


async def test_the_host_name_can_say_where_to_go(
    http: httpx.AsyncClient, sandbox: AsyncSandbox
) -> None:
    named = {
        "Host": f"{ENVD}-{sandbox.sandbox_id}.example",
        "X-Access-Token": sandbox._envd_access_token or "",
    }
    assert (await http.get("/health", headers=named)).status_code == 204


@pytest.mark.parametrize("port", [ENVD, "49999", "0", "x", "99999999"])
async def test_an_unknown_sandbox_is_answered_as_e2b_does(
    http: httpx.AsyncClient, port: str
) -> None:
    where = {"E2b-Sandbox-Id": "inone", "E2b-Sandbox-Port": port}
    answer = await http.get("/health", headers=where)
    assert answer.status_code == 502
    assert answer.json() == {
        "sandboxId": "inone",
        "message": "The sandbox was not found",
        "code": 502,
    }


async def test_a_signed_url_opens_its_file_and_no_other(
    http: httpx.AsyncClient, e2b: E2B, sandbox: AsyncSandbox
) -> None:
    other = await e2b.AsyncSandbox.create(timeout=60)
    try:
        for one, text in ((other, "theirs"), (sandbox, "mine")):
            await one.files.write("a b&c.txt", text)
            url = one.download_url("a b&c.txt", use_signature_expiration=60)
            assert (await http.get(url)).text == text
        elsewhere = url.replace("a%20b", "x").replace("a+b", "x")
        assert (await http.get(elsewhere)).status_code == 401
        assert (await http.post(url)).status_code == 401
    finally:
        await other.kill()


@pytest.mark.parametrize(
    ("asked", "status", "content", "told"),
    [
        pytest.param("bytes=2-4", 206, "234", "bytes 2-4/10", id="a part"),
        pytest.param("bytes=7-", 206, "789", "bytes 7-9/10", id="from"),
        pytest.param("bytes=-2", 206, "89", "bytes 8-9/10", id="the end"),
        pytest.param("bytes=8-99", 206, "89", "bytes 8-9/10", id="beyond the end"),
        pytest.param("bytes=-99", 206, "0123456789", "bytes 0-9/10", id="more than there is"),
        pytest.param("bytes=0-0,2-3", 200, "0123456789", None, id="several"),
        pytest.param("bytes=4-2", 200, "0123456789", None, id="backwards"),
        pytest.param("lines=1-2", 200, "0123456789", None, id="another unit"),
    ],
)
async def test_a_download_can_be_taken_up_where_it_ended(
    http: httpx.AsyncClient,
    sandbox: AsyncSandbox,
    asked: str,
    status: int,
    content: str,
    told: str | None,
) -> None:
    await sandbox.files.write("digits", "0123456789")
    answer = await http.get(sandbox.download_url("digits"), headers={"Range": asked})
    assert (answer.status_code, answer.text) == (status, content)
    assert answer.headers.get("content-range") == told


async def test_a_download_from_beyond_the_end_is_refused(
    http: httpx.AsyncClient, sandbox: AsyncSandbox
) -> None:
    await sandbox.files.write("digits", "0123456789")
    answer = await http.get(sandbox.download_url("digits"), headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10")


async def test_a_signed_url_expires(http: httpx.AsyncClient, sandbox: AsyncSandbox) -> None:
    url = sandbox.download_url("a.txt", use_signature_expiration=-10)
    answer = await http.get(url)
    assert (answer.status_code, answer.json()) == (
        401,
        {"code": 401, "message": "signature is already expired"},
    )


async def test_a_signed_url_takes_an_upload(http: httpx.AsyncClient, sandbox: AsyncSandbox) -> None:
    url = sandbox.upload_url("up.txt", use_signature_expiration=60)
    answer = await http.post(url, files={"file": b"uploaded"})
    assert answer.status_code == 200
    assert await sandbox.files.read("up.txt") == "uploaded"


# What passes through


async def test_a_hundred_megabytes_pass_in_both_directions(sandbox: AsyncSandbox) -> None:
    data = os.urandom(1_000_000) * 100
    await sandbox.files.write("big", data)
    back = await sandbox.files.read("big", format="bytes")
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


async def test_a_slow_reader_is_waited_for(
    http: httpx.AsyncClient, sandbox: AsyncSandbox, engine: EngineAddress
) -> None:
    """The engine's memory does not grow by what a client has not taken yet."""
    size = 200_000_000
    await sandbox.commands.run(f"truncate -s {size} big")
    before, taken = memory_of(engine.pid), 0
    path = "/files?path=big"
    async with http.stream("GET", path, headers=headers(sandbox)) as answer:
        async for part in answer.aiter_raw(1_000_000):
            if taken == 0:
                await sandbox.commands.run("true")  # time for the engine to run ahead
                assert memory_of(engine.pid) - before < 20_000_000
            taken += len(part)
    assert taken == size


def memory_of(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_a_sandboxs_tokens_do_not_reach_what_runs_in_it(
    http: httpx.AsyncClient, sandbox: AsyncSandbox, engine: EngineAddress
) -> None:
    async with server_in(sandbox) as (port, _):
        sent = headers(sandbox, port) | {"X-API-KEY": engine.api_key, "X-Mine": "kept"}
        heard = (await http.get("/echo?a=%20b", headers=sent)).text
    assert "GET /echo?a=%20b" in heard
    assert "kept" in heard
    for secret in (engine.api_key, sandbox._envd_access_token, sandbox.traffic_access_token):
        assert secret
        assert secret not in heard


async def test_a_client_that_leaves_is_noticed_at_once(
    http: httpx.AsyncClient, sandbox: AsyncSandbox
) -> None:
    async with server_in(sandbox) as (port, gone):
        async with http.stream("GET", "/hang", headers=headers(sandbox, port)) as answer:
            assert await anext(answer.aiter_raw()) == b"hi"
            left = time.monotonic()
        with anyio.fail_after(5):
            await gone.wait()
        assert time.monotonic() - left < 2


@pytest.mark.parametrize("end", ["kill", "pause"])
async def test_an_answer_that_is_cut_never_looks_complete(
    http: httpx.AsyncClient, e2b: E2B, end: str
) -> None:
    sandbox = await e2b.AsyncSandbox.create(timeout=60)
    async with server_in(sandbox) as (port, _):
        async with http.stream("GET", "/hang", headers=headers(sandbox, port)) as answer:
            parts = answer.aiter_raw()
            assert await anext(parts) == b"hi"
            await getattr(sandbox, end)()
            with anyio.fail_after(5), pytest.raises(httpx.RemoteProtocolError):
                await anext(parts)
        if end == "pause":
            await e2b.AsyncSandbox.connect(sandbox.sandbox_id)
    await sandbox.kill()


async def test_a_command_learns_that_its_sandbox_was_killed(e2b: E2B) -> None:
    sandbox = await e2b.AsyncSandbox.create(timeout=60)
    process = await sandbox.commands.run("sleep 1000", background=True, timeout=0)
    await sandbox.kill()
    with anyio.fail_after(10), pytest.raises(SandboxNotRunningException):
        await process.wait()


# A guest that has been taken over


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\xff" * 1000, id="garbage"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", id="cut body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD + 1), id="endless head"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", id="bad chunk"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", id="two lengths"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (MAX_ANSWER + 1),
            id="more than is read whole",
        ),
    ],
)
async def test_what_is_no_answer_is_refused(short_path: Path, answer: bytes) -> None:
    async def speak(client: SocketStream) -> None:
        async with client:
            await client.receive()
            await client.send(answer)

    async with serving(short_path, speak):
        with anyio.fail_after(5), pytest.raises(GuestGone):
            await exchange(short_path, "GET", "/health")


@pytest.fixture
def short_path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@asynccontextmanager
async def serving(path: Path, speak: Callable[[SocketStream], Any]) -> AsyncIterator[None]:
    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as t:
        t.start_soon(listener.serve, speak)
        yield
        t.cancel_scope.cancel()

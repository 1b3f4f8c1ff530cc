"""E2B's SDK against our control plane; raw HTTP only for what the SDK cannot show."""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from e2b import (
    AuthenticationException,
    NotFoundException,
    SandboxException,
    SandboxLifecycle,
    SandboxNetworkOpts,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    ServiceBusyException,
    TimeoutException,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2b_code_interpreter import E2B, AsyncSandbox

    from e2b_agent_mcp.engine import EngineAddress


@pytest.fixture
def http(engine: EngineAddress) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.api_url, headers={"X-API-KEY": engine.api_key}) as client:
        yield client


async def listed(e2b: E2B, **options: object) -> list[str]:
    pages = e2b.AsyncSandbox.list(**options)  # type: ignore[arg-type]
    found = []
    while pages.has_next:
        found += [info.sandbox_id for info in await pages.next_items()]
    return found


async def test_a_sandbox_is_described_as_it_was_asked_for(e2b: E2B, sandbox: AsyncSandbox) -> None:
    before = datetime.now(UTC)
    await sandbox.set_timeout(45)
    info = await sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.template_id == "code-interpreter-v1"
    assert info.state is SandboxState.RUNNING
    assert info.lifecycle == {"on_timeout": "kill", "auto_resume": False}
    assert timedelta(seconds=44) < info.end_at - before < timedelta(seconds=50)


@pytest.mark.parametrize(
    ("network", "internet"),
    [
        pytest.param({}, None, id="nothing said"),
        pytest.param({"deny_out": ["0.0.0.0/0"], "allow_out": ["*.example.com"]}, True, id="lists"),
        pytest.param({"allow_public_traffic": True}, False, id="what is the default anyway"),
    ],
)
async def test_of_the_network_is_told_what_was_said_of_it(
    e2b: E2B, network: SandboxNetworkOpts, internet: bool | None
) -> None:
    sandbox = await e2b.AsyncSandbox.create(
        timeout=60, network=network, allow_internet_access=internet
    )
    async with sandbox:
        info = await sandbox.get_info()
        assert (info.network, info.allow_internet_access) == (network, internet)


async def test_a_killed_sandbox_is_gone(e2b: E2B) -> None:
    sandbox = await e2b.AsyncSandbox.create(timeout=60)
    assert await sandbox.is_running()
    assert await sandbox.kill() is True
    assert await sandbox.kill() is False
    assert await sandbox.is_running() is False
    with pytest.raises(SandboxNotFoundException):
        await sandbox.get_info()
    with pytest.raises(SandboxNotFoundException):
        await e2b.AsyncSandbox.connect(sandbox.sandbox_id)


async def test_sandboxes_are_found_by_metadata_state_and_page(e2b: E2B) -> None:
    mark = {"a key/ü": f"v & {uuid.uuid4()} %41=+"}
    query = SandboxQuery(metadata=mark)
    created = [await e2b.AsyncSandbox.create(timeout=60, metadata=mark) for _ in range(3)]
    ids = [sandbox.sandbox_id for sandbox in created]
    try:
        await created[1].pause()
        assert await listed(e2b, query=query) == ids[::-1]
        assert await listed(e2b, query=query, order="asc", limit=2) == ids
        assert await listed(e2b, query=query, limit=1) == ids[::-1]
        paused = SandboxQuery(metadata=mark, state=[SandboxState.PAUSED])
        assert await listed(e2b, query=paused) == [ids[1]]
        running = SandboxQuery(metadata=mark, state=[SandboxState.RUNNING])
        assert await listed(e2b, query=running) == [ids[2], ids[0]]
        assert await listed(e2b, query=SandboxQuery(metadata={"a key/ü": "other"})) == []
        second = (await created[1].get_info()).started_at
        at_or_after = SandboxQuery(metadata=mark, started_after=second)
        assert await listed(e2b, query=at_or_after) == ids[:0:-1]
    finally:
        for sandbox in created:
            assert await sandbox.kill()


async def test_a_pause_keeps_processes_and_a_second_one_is_refused(
    e2b: E2B, sandbox: AsyncSandbox
) -> None:
    process = await sandbox.commands.run("sleep 1000", background=True)
    assert await sandbox.pause() is True
    assert await sandbox.pause() is False
    assert await sandbox.is_running() is False
    resumed = await e2b.AsyncSandbox.connect(sandbox.sandbox_id, timeout=60)
    assert process.pid in [found.pid for found in await resumed.commands.list()]


async def test_a_pause_without_memory_keeps_only_files(e2b: E2B, sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("kept.txt", "kept")
    process = await sandbox.commands.run("sleep 1000", background=True)
    assert await sandbox.pause(keep_memory=False)
    assert (await sandbox.get_info()).state is SandboxState.PAUSED
    resumed = await e2b.AsyncSandbox.connect(sandbox.sandbox_id, timeout=60)
    assert await resumed.files.read("kept.txt") == "kept"
    assert process.pid not in [found.pid for found in await resumed.commands.list()]


async def test_a_sandbox_that_does_not_answer_is_not_paused_when_strict(
    e2b: E2B, sandbox: AsyncSandbox
) -> None:
    await sandbox.files.write("kept.txt", "kept")
    # The guest is the command's parent. It stops when nobody waits for an answer of it.
    await sandbox.commands.run("(sleep 0.5; kill -STOP $PPID) > /dev/null 2>&1 &")

    async def runs() -> None:
        while await sandbox.is_running(request_timeout=1):
            await anyio.sleep(0.1)

    with anyio.fail_after(30), pytest.raises(TimeoutException):
        await runs()
    with pytest.raises(ServiceBusyException, match="not paused"):
        await sandbox.pause(strict=True)
    assert (await sandbox.get_info()).state is SandboxState.RUNNING
    assert await sandbox.pause() is True
    await sandbox.connect(on_resume="reboot")
    assert await sandbox.files.read("kept.txt") == "kept"


async def test_a_reboot_starts_processes_anew(e2b: E2B, sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run("sleep 1000", background=True)
    await sandbox.pause()
    rebooted = await e2b.AsyncSandbox.connect(sandbox.sandbox_id, on_resume="reboot")
    assert await rebooted.commands.list() == []


async def test_traffic_wakes_a_paused_sandbox_that_asked_for_it(e2b: E2B) -> None:
    lifecycle: SandboxLifecycle = {"on_timeout": "pause", "auto_resume": True}
    sandbox = await e2b.AsyncSandbox.create(timeout=60, lifecycle=lifecycle)
    try:
        await sandbox.pause()
        assert (await sandbox.commands.run("echo awake")).stdout == "awake\n"
        assert (await sandbox.get_info()).state is SandboxState.RUNNING
    finally:
        await sandbox.kill()


async def test_connecting_to_a_running_sandbox_never_shortens_its_life(
    e2b: E2B, sandbox: AsyncSandbox
) -> None:
    before = (await sandbox.get_info()).end_at
    await e2b.AsyncSandbox.connect(sandbox.sandbox_id, timeout=1)
    assert (await sandbox.get_info()).end_at == before


async def test_one_idempotency_key_makes_one_sandbox(e2b: E2B, sandbox: AsyncSandbox) -> None:
    key = str(uuid.uuid4())
    first = await e2b.AsyncSandbox.create(timeout=60, idempotency_key=key)
    try:
        again = await e2b.AsyncSandbox.create(timeout=60, idempotency_key=key)
        assert again.sandbox_id == first.sandbox_id
        with pytest.raises(SandboxException, match="422"):
            await e2b.AsyncSandbox.create(timeout=61, idempotency_key=key)
    finally:
        await first.kill()


async def test_a_client_that_leaves_during_a_create_makes_no_second_sandbox(
    e2b: E2B, engine: EngineAddress
) -> None:
    key, mark = str(uuid.uuid4()), {"left": str(uuid.uuid4())}
    # The body that the SDK sends for the create below.
    body = {"templateID": "code-interpreter-v1", "timeout": 60, "metadata": mark, "envVars": {}}
    url, content = httpx.URL(engine.api_url), json.dumps(body)
    head = [
        "POST /v2/sandboxes HTTP/1.1",
        f"Host: {url.host}",
        f"X-API-KEY: {engine.api_key}",
        f"Idempotency-Key: {key}",
        f"Content-Length: {len(content)}",
    ]
    async with await anyio.connect_tcp(url.host, url.port or 80) as leaving:
        await leaving.send("\r\n".join([*head, "", content]).encode())
    sandbox = await e2b.AsyncSandbox.create(timeout=60, metadata=mark, idempotency_key=key)
    try:
        found = await listed(e2b, query=SandboxQuery(metadata=mark))
        assert found == [sandbox.sandbox_id]
    finally:
        await sandbox.kill()


async def test_metrics_come_from_the_box(sandbox: AsyncSandbox) -> None:
    [sample] = await sandbox.get_metrics()
    assert sample.cpu_count == 2
    assert 0 < sample.mem_used < sample.mem_total
    assert 0 <= sample.cpu_used_pct <= 100 * (os.cpu_count() or 1)
    [again] = await sandbox.get_metrics(start=sample.timestamp, end=sample.timestamp)
    assert again.timestamp == sample.timestamp
    assert await sandbox.get_metrics(end=sample.timestamp - timedelta(seconds=5)) == []
    assert 0 < sample.disk_used < sample.disk_total


async def test_a_wrong_key_is_refused(e2b: E2B) -> None:
    with pytest.raises(AuthenticationException):
        await e2b.AsyncSandbox.create(api_key="e2b_wrong")


async def test_an_unknown_template_is_named(e2b: E2B) -> None:
    with pytest.raises((NotFoundException, SandboxException), match="no-such-template"):
        await e2b.AsyncSandbox.create(template="no-such-template")


@pytest.mark.parametrize("template", ["base", "code-interpreter-v1"])
async def test_both_templates_of_e2b_exist(e2b: E2B, template: str) -> None:
    sandbox = await e2b.AsyncSandbox.create(template=template, timeout=60)
    assert (await sandbox.get_info()).template_id == template
    code = "import os; os.environ['E2B_TEMPLATE_ID']"
    assert (await sandbox.run_code(code)).text == template
    await sandbox.kill()


CREATE = "/v2/sandboxes"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        pytest.param("POST", CREATE, {"timeout": 0}, 400, "greater than 0", id="timeout 0"),
        pytest.param("POST", CREATE, {"timeout": -5}, 400, "greater than 0", id="timeout < 0"),
        pytest.param("POST", CREATE, {"timeout": 10**400}, 400, "timeout", id="timeout huge"),
        pytest.param("POST", CREATE, {"timeout": True}, 400, "whole number", id="timeout bool"),
        pytest.param("POST", CREATE, {"timeout": "9"}, 400, "whole number", id="timeout text"),
        pytest.param("POST", CREATE, {"metadata": {"a": 1}}, 400, "metadata", id="metadata"),
        pytest.param("POST", CREATE, {"metadata": {"a": "\ud800"}}, 400, "text", id="surrogate"),
        pytest.param("POST", CREATE, {"envVars": {"A": "\0"}}, 400, "text", id="NUL"),
        pytest.param("POST", CREATE, {"envVars": [1]}, 400, "envVars", id="env vars"),
        pytest.param("POST", CREATE, [], 400, "JSON object", id="not an object"),
        pytest.param("POST", CREATE, {"autoPauseMemory": False}, 400, "autoPause", id="memory"),
        pytest.param("POST", CREATE, {"templateID": "x"}, 404, "'x' not found", id="template"),
        pytest.param(
            "POST",
            CREATE,
            {"mcp": {"a": {}}, "templateID": "mcp-gateway"},
            501,
            "mcp is not supported",
            id="mcp",
        ),
        pytest.param("POST", CREATE, {"network": {"allowOut": ["!"]}}, 400, "allowOut", id="rule"),
        pytest.param(
            "POST",
            CREATE,
            {"network": {"allowOut": ["1.1.1.1", "*.example.com"], "denyOut": ["10.0.0.0/8"]}},
            400,
            "Add 0.0.0.0/0",
            id="allowed names that restrict nothing",
        ),
        pytest.param(
            "POST", CREATE, {"network": {"maskRequestHost": "a\r\nb"}}, 400, "mask", id="mask"
        ),
        pytest.param("DELETE", "/templates/base", None, 404, "not found", id="no snapshot"),
        pytest.param(
            "POST", CREATE, {"volumeMounts": [{"name": "v"}]}, 501, "volumeMounts", id="volumes"
        ),
        pytest.param(
            "POST", CREATE, {"network": {"dnsServers": ["1.1.1.1"]}}, 501, "dnsServers", id="dns"
        ),
        pytest.param("POST", CREATE, {"network": 1}, 400, "network", id="network"),
        pytest.param("GET", "/sandboxes/inone", None, 404, "doesn't exist", id="unknown id"),
        pytest.param("POST", "/sandboxes/inone/pause", {}, 404, "doesn't", id="pause unknown"),
        pytest.param("POST", "/sandboxes/inone/fork", {}, 404, "doesn't", id="fork"),
        pytest.param("POST", "/sandboxes/i/snapshots", {}, 404, "doesn't", id="snapshot"),
        pytest.param("POST", "/v3/templates", {}, 501, "templates", id="template build"),
        pytest.param("GET", "/volumes", None, 501, "Volumes", id="list volumes"),
        pytest.param("GET", "/v2/sandboxes?limit=0", None, 400, "limit", id="limit"),
        pytest.param(
            "GET", "/v2/sandboxes?limit=" + "1" * 5000, None, 400, "limit", id="limit huge"
        ),
        pytest.param("GET", "/v2/sandboxes?nextToken=x", None, 400, "nextToken", id="token"),
        pytest.param("GET", "/v2/sandboxes?startedAfter=x", None, 400, "ISO", id="time"),
        pytest.param("GET", "/sandboxes/", None, 404, "Not Found", id="no id"),
        pytest.param("GET", "/nowhere", None, 404, "Not Found", id="unknown path"),
        pytest.param("PATCH", "/sandboxes", None, 405, "Method", id="unknown method"),
    ],
)
def test_every_refusal_is_json_that_says_why(
    http: httpx.Client, method: str, path: str, body: object, status: int, message: str
) -> None:
    content = None if body is None else json.dumps(body)  # in ASCII, as the SDK escapes it
    answer = http.request(method, path, content=content)
    assert answer.status_code == status
    assert answer.json()["code"] == status
    assert message in answer.json()["message"]


async def test_a_sdk_may_name_the_sandbox_when_it_connects_to_it(
    http: httpx.Client, sandbox: AsyncSandbox
) -> None:
    """As those of 2.15 do; without the key it is led to the sandbox."""
    named = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    path = f"/sandboxes/{sandbox.sandbox_id}/connect"
    answer = http.post(path, json={"timeout": 60}, headers=named)
    assert (answer.status_code, answer.json()["sandboxID"]) == (200, sandbox.sandbox_id)
    led = http.post(path, json={"timeout": 60}, headers={**named, "X-API-KEY": "wrong"})
    assert (led.status_code, led.json()["message"][:16]) == (401, "The access token")


def test_a_body_that_is_not_json_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v2/sandboxes", content=b"{" * 100_000)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)


def test_a_body_beyond_the_limit_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v2/sandboxes", content=b" " * 2_000_000)
    assert (answer.status_code, answer.json()["code"]) == (413, 413)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_page_that_rebinds_its_name_is_refused(http: httpx.Client, host: str) -> None:
    answer = http.get("/v2/sandboxes", headers={"Host": host})
    assert answer.status_code == 403


def test_no_answer_lets_another_origin_read_it(http: httpx.Client) -> None:
    origin = {"Origin": "https://evil.example"}
    preflight = http.options(
        "/v2/sandboxes",
        headers=origin | {"Access-Control-Request-Method": "POST", "X-API-KEY": ""},
    )
    read = http.get("/v2/sandboxes", headers=origin)
    assert preflight.status_code == 401
    for answer in (preflight, read):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_health_needs_no_key_and_tells_nothing(engine: EngineAddress) -> None:
    answer = httpx.get(f"{engine.api_url}/health")
    assert (answer.status_code, answer.json()) == (200, {})

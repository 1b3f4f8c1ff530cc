"""One engine per state folder: found when it lives, started when not, replaced when it differs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from e2b import SandboxNotFoundException, SandboxState
from e2b_code_interpreter import E2B

from e2b_agent_mcp.engine import (
    EngineAddress,
    EngineError,
    EngineOptions,
    StartError,
    ensure_ready,
    find,
    stop,
)
from e2b_agent_mcp.engine.discovery import inherited_environment, lasting_key, write_runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def options(fresh_options: EngineOptions) -> AsyncIterator[EngineOptions]:
    yield fresh_options
    await stop(fresh_options)
    assert not fresh_options.runtime_file.exists()


def has_ended(pid: int) -> bool:
    """A zombie has: who reaps it is the system's affair."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


async def test_an_engine_is_started_once_and_then_found(options: EngineOptions) -> None:
    first = await ensure_ready(options)
    assert await ensure_ready(options) == first
    assert await find(options) == first
    assert httpx.get(f"{first.api_url}/health").status_code == 200


async def test_ten_that_start_at_once_get_one_engine(options: EngineOptions) -> None:
    found: list[EngineAddress] = []

    async def ready() -> None:
        found.append(await ensure_ready(options))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(ready)
    assert len(found) == 10
    assert len(set(found)) == 1


async def test_the_engine_outlives_who_started_it_and_takes_nothing_along(
    options: EngineOptions,
) -> None:
    program = (
        "import anyio, sys\n"
        "from e2b_agent_mcp.engine import EngineOptions, ensure_ready\n"
        "options = EngineOptions.from_json(sys.argv[1])\n"
        "print(anyio.run(ensure_ready, options).pid)\n"
    )
    options = replace(options, zygote=False)  # it has pipes of its own
    environment = {**os.environ, "OPENAI_API_KEY": "canary", "E2B_AGENT_MCP_X": "canary"}
    ended = subprocess.run(
        [sys.executable, "-c", program, options.to_json()],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=60,
    )
    pid = int(ended.stdout)
    address = await find(options)
    assert address is not None
    assert address.pid == pid
    assert "canary" not in Path(f"/proc/{pid}/environ").read_text()
    assert os.getsid(pid) != os.getsid(0)
    files = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert not [file for file in files if file.startswith("pipe:") or "pts" in file]


async def test_stopping_ends_the_process_and_its_sandboxes(options: EngineOptions) -> None:
    address = await ensure_ready(options)
    await client(address).AsyncSandbox.create(timeout=60)
    assert await stop(options) is True
    assert has_ended(address.pid)
    assert list(options.homes_dir.iterdir()) == []
    assert await stop(options) is False


async def test_a_signal_ends_everything_within_two_seconds(options: EngineOptions) -> None:
    address = await ensure_ready(options)
    for _ in range(2):
        sandbox = await client(address).AsyncSandbox.create(timeout=60)
        await sandbox.commands.run("sleep 1000", background=True, timeout=0)
    process = os.pidfd_open(address.pid)
    os.kill(address.pid, signal.SIGTERM)
    with anyio.fail_after(2):
        await anyio.wait_readable(process)
    os.close(process)
    assert list(options.homes_dir.iterdir()) == list(options.engine_dir.iterdir()) == []


async def test_a_package_index_that_hangs_keeps_no_engine(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        address = await ensure_ready(options)
        silent.settimeout(20)
        asked, _ = silent.accept()
        with asked:
            process = os.pidfd_open(address.pid)
            os.kill(address.pid, signal.SIGINT)
            with anyio.fail_after(5):  # sooner than the question is given up
                await anyio.wait_readable(process)
            os.close(process)


async def test_an_idle_engine_ends_by_itself(options: EngineOptions) -> None:
    address = await ensure_ready(replace(options, idle_exit=0.5))
    process = os.pidfd_open(address.pid)
    with anyio.fail_after(20):
        await anyio.wait_readable(process)
    os.close(process)
    assert not options.runtime_file.exists()


async def test_programs_go_on_with_the_files_of_an_engine_that_was_killed(
    options: EngineOptions,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        fixed = replace(options, port=reserved.getsockname()[1])
    killed = await ensure_ready(fixed)
    old = client(killed).AsyncSandbox
    running, paused = [await old.create(timeout=600, metadata={"n": str(n)}) for n in range(2)]
    ended = await old.create(timeout=1)
    await running.run_code("x = 1")
    for sandbox in (running, paused):
        await sandbox.files.write("kept.txt", "kept")
    await paused.pause()
    end_at = (await running.get_info()).end_at
    os.kill(killed.pid, signal.SIGKILL)
    assert await find(fixed) is None

    next_one = await ensure_ready(fixed)
    assert (next_one.api_url, next_one.api_key) == (killed.api_url, killed.api_key)
    for sandbox in (running, paused):
        assert (await sandbox.get_info()).state is SandboxState.PAUSED
        await sandbox.connect(timeout=60)
        assert await sandbox.files.read("kept.txt") == "kept"
    execution = await running.run_code("x")
    assert execution.error is not None
    assert execution.error.name == "NameError"
    assert execution.execution_count == 1
    assert (await running.get_info()).end_at < end_at
    with anyio.fail_after(5), suppress(SandboxNotFoundException):
        while await ended.get_info():  # until its second is over
            pass
    for sandbox in (running, paused):
        assert await sandbox.kill()
        assert not (options.homes_dir / sandbox.sandbox_id).exists()
    assert list(options.records_dir.iterdir()) == []


async def test_an_idle_engine_with_other_options_is_replaced(options: EngineOptions) -> None:
    old = await ensure_ready(options)
    new = await ensure_ready(replace(options, memory_mb=1024))
    assert new != old
    assert has_ended(old.pid)


async def test_programs_that_disagree_about_the_runtime_folder_share_the_engine(
    options: EngineOptions,
) -> None:
    first = await ensure_ready(options)
    elsewhere = replace(options, runtime_dir=options.state_dir / "run")
    assert await ensure_ready(elsewhere) == first


async def test_a_busy_engine_is_used_with_other_limits_but_not_with_another_safety(
    options: EngineOptions,
) -> None:
    old = await ensure_ready(options)
    await client(old).AsyncSandbox.create(timeout=60)
    assert await ensure_ready(replace(options, memory_mb=1024)) == old
    with pytest.raises(StartError, match="still has sandboxes"):
        await ensure_ready(replace(options, network="none"))


async def test_a_failed_start_shows_the_end_of_the_log(options: EngineOptions) -> None:
    async with listening() as port:
        with pytest.raises(StartError, match=f"Cannot listen on 127.0.0.1:{port}"):
            await ensure_ready(replace(options, port=port))


async def test_a_second_engine_on_the_same_folder_is_refused(options: EngineOptions) -> None:
    await ensure_ready(options)
    second = subprocess.run(
        [sys.executable, "-m", "e2b_agent_mcp.engine", "--options-json", options.to_json()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (second.returncode, second.stdout) == (1, "")
    assert "Another engine uses" in second.stderr


async def test_a_stranger_at_the_engines_port_is_not_believed(options: EngineOptions) -> None:
    """Nor does it hear the key."""
    options.make_dirs()
    async with listening() as port:
        url = f"http://127.0.0.1:{port}"
        write_runtime(options, EngineAddress(url, url, "e2b_key", os.getpid()))
        assert await find(options) is None
    options.runtime_file.unlink()


async def test_a_runtime_file_that_others_can_read_is_not_believed(
    options: EngineOptions,
) -> None:
    address = await ensure_ready(options)
    for mode in (0o644, 0o666):
        options.runtime_file.chmod(mode)
        assert await find(options) is None
    options.runtime_file.chmod(0o600)
    assert await find(options) == address


async def test_a_folder_that_others_can_write_is_refused(options: EngineOptions) -> None:
    options.make_dirs()
    options.runtime_dir.chmod(0o777)
    with pytest.raises(EngineError, match="other users"):
        await ensure_ready(options)


def test_only_loopback_is_served() -> None:
    with pytest.raises(EngineError, match="loopback"):
        EngineOptions(host="0.0.0.0")


def test_a_key_that_others_can_read_is_replaced(fresh_options: EngineOptions) -> None:
    fresh_options.make_dirs()
    key = lasting_key(fresh_options)
    assert lasting_key(fresh_options) == key
    (fresh_options.state_dir / "engine.key").chmod(0o644)
    assert lasting_key(fresh_options) != key


def test_the_runtime_file_is_private(fresh_options: EngineOptions) -> None:
    fresh_options.make_dirs()
    write_runtime(fresh_options, EngineAddress("u", "u", "k", 1))
    assert fresh_options.runtime_file.stat().st_mode & 0o777 == 0o600
    assert json.loads(fresh_options.runtime_file.read_text())["api_key"] == "k"


def test_the_engine_inherits_what_it_needs_and_no_secret() -> None:
    kept = {
        "PATH": "p",
        "HOME": "h",
        "LC_ALL": "C",
        "XDG_STATE_HOME": "x",
        "PIP_INDEX_URL": "i",
        "UV_INDEX_URL": "i",
        "https_proxy": "q",
        "SSL_CERT_FILE": "c",
    }
    dropped = {
        "OPENAI_API_KEY": "s",
        "E2B_API_KEY": "s",
        "UV_PUBLISH_TOKEN": "s",
        "PIP_PASSWORD": "s",
        "AWS_PROFILE": "a",
        "SSH_AUTH_SOCK": "a",
    }
    assert inherited_environment(kept | dropped) == kept


def client(address: EngineAddress) -> E2B:
    return E2B(api_url=address.api_url, sandbox_url=address.sandbox_url, api_key=address.api_key)


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """A port of somebody else, who answers everything."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            yield port
            tasks.cancel_scope.cancel()


async def answer(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        asked = await stream.receive()
        assert b"e2b_key" not in asked
        body = b'{"proof": "0000"}'
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

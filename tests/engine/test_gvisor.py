"""Sandboxes on gVisor's kernel, where `runsc` is installed. Debian's knows ptrace alone: slow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from e2b import SandboxException

from boxes import gone
from conftest import client, descendants, running_engine, temporary_options
from e2b_agent_mcp.engine import EngineAddress, ensure_ready, stop
from e2b_agent_mcp.engine.errors import IsolationUnavailable
from e2b_agent_mcp.engine.isolation import probe
from rounds import rounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from e2b_code_interpreter import E2B, AsyncSandbox

    from e2b_agent_mcp.engine import EngineOptions

needs_runsc = pytest.mark.skipif(
    shutil.which("runsc") is None or os.getuid() != 0,
    reason="needs root and runsc (apt install runsc)",
)


@pytest.fixture(scope="module")
def options() -> Iterator[EngineOptions]:
    with temporary_options(isolation="gvisor", memory_mb=600) as options:
        yield options


@pytest.fixture(scope="module")
def gvisor(options: EngineOptions) -> Iterator[E2B]:
    with running_engine(options) as address:
        yield client(address)


@pytest.fixture
async def sandbox(gvisor: E2B) -> AsyncIterator[AsyncSandbox]:
    sandbox = await gvisor.AsyncSandbox.create(timeout=300)
    yield sandbox
    await sandbox.kill()


@needs_runsc
async def test_a_sandbox_works_as_any_other_on_another_kernel(sandbox: AsyncSandbox) -> None:
    run = await sandbox.run_code("import pandas, platform\nplatform.release()")
    assert run.error is None
    assert run.text != repr(os.uname().release)
    assert "gVisor" in (await sandbox.commands.run("dmesg")).stdout

    await sandbox.run_code("kept = 41")
    await sandbox.pause()
    await sandbox.connect()
    assert (await sandbox.run_code("kept + 1")).text == "42"

    await sandbox.files.write("note.txt", "x" * 1_000_000)
    assert len(await sandbox.files.read("note.txt")) == 1_000_000
    assert (await sandbox.commands.run("wc -c < note.txt; id -un")).stdout == "1000000\nuser\n"


@needs_runsc
async def test_a_second_sandbox_begins_with_a_snapshot_of_the_first(
    gvisor: E2B, sandbox: AsyncSandbox
) -> None:
    await sandbox.commands.run("mkdir d; echo kept > d/f")
    await sandbox.run_code("f = open('open.txt', 'w'); f.write('flushed'); f.flush()")
    snapshot = await sandbox.create_snapshot()
    try:
        copy = await gvisor.AsyncSandbox.create(snapshot.snapshot_id, timeout=100)
        async with copy:
            assert (await copy.commands.run("cat d/f open.txt")).stdout == "kept\nflushed"
    finally:
        await gvisor.AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
    await sandbox.pause(mode="filesystem")
    await sandbox.connect(timeout=100)
    assert (await sandbox.commands.run("cat d/f open.txt")).stdout == "kept\nflushed"


@needs_runsc
async def test_a_sandbox_sees_nothing_of_the_host(sandbox: AsyncSandbox, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        run = await sandbox.run_code(f"""
import glob, os, socket
seen = [path for path in ({str(canary)!r}, "/root/.ssh", "/srv", "/var/lib", "/boot")
        if os.path.exists(path)]
for address in (("127.0.0.1", {server.getsockname()[1]}), ("1.1.1.1", 80)):
    try:
        socket.create_connection(address, timeout=5)
        seen.append(address)
    except OSError:
        pass
def writable(folder):
    try:
        open(f"{{folder}}/canary", "w").close()
        return True
    except OSError:
        return False
seen += [f for f in ("/", "/etc", "/usr", "/opt/e2b", "/run/egress") if writable(f)]
proxy = socket.socket(socket.AF_UNIX)
proxy.connect("/run/egress/proxy.sock")
proxy.sendall(b"CONNECT localhost:{server.getsockname()[1]} HTTP/1.1\\r\\n\\r\\n")
seen, proxy.recv(100).split()[1], os.path.exists({str(Path(sys.prefix))!r})
""")

    assert run.text == "([], b'403', False)", run.error


@needs_runsc
async def test_a_link_in_place_of_the_guests_socket_is_not_followed(
    gvisor: E2B, tmp_path: Path
) -> None:
    """It would lead the engine, which is root, to any socket of the host."""
    sandbox = await gvisor.AsyncSandbox.create(timeout=300)
    place = tmp_path / "host.sock"
    with socket.socket(socket.AF_UNIX) as victim:
        victim.bind(str(place))
        victim.listen()
        victim.settimeout(0)
        code = f"import os; os.unlink('/run/guest/s'); os.symlink({str(place)!r}, '/run/guest/s')"
        assert (await sandbox.run_code(code)).error is None
        with pytest.raises(SandboxException):
            await sandbox.files.list("/", request_timeout=10)
        with pytest.raises(BlockingIOError):
            victim.accept()
    assert await sandbox.kill()


@needs_runsc
async def test_a_memory_bomb_ends_its_sandbox_which_says_why(
    gvisor: E2B, options: EngineOptions
) -> None:
    """The host sees one process: it cannot tell the guest from the bomb."""
    sandbox = await gvisor.AsyncSandbox.create(timeout=300)
    with pytest.raises(SandboxException):
        await sandbox.run_code("import mmap\nmmap.mmap(-1, 1 << 30).write(bytes(1 << 30))")
    with anyio.fail_after(30):
        while (options.homes_dir / sandbox.sandbox_id).exists():
            await anyio.sleep(0.05)  # the end of a sandbox has no event for others
    with pytest.raises(SandboxException, match="killed: memory limit 600 MiB"):
        await sandbox.files.list("/")


@needs_runsc
async def test_the_next_engine_has_the_files_of_a_paused_sandbox_and_says_that_no_memory_is_left(
    fresh_options: EngineOptions,
) -> None:
    options = replace(fresh_options, isolation="gvisor")
    try:
        address = await ensure_ready(options)
        sandbox = await client(address).AsyncSandbox.create(timeout=300)
        await sandbox.run_code("kept = 41; open('f', 'w').write('kept')")
        await sandbox.pause()
        assert await pause_mode(address, sandbox) == "full"
        await stop(options)

        address = await ensure_ready(options)
        assert await pause_mode(address, sandbox) == "filesystem"
        again = await client(address).AsyncSandbox.connect(sandbox.sandbox_id)
        run = await again.run_code("open('f').read(), 'kept' in globals()")
        assert (run.text, run.execution_count) == ("('kept', False)", 1)
    finally:
        await stop(options)


async def pause_mode(address: EngineAddress, sandbox: AsyncSandbox) -> object:
    """The SDK reads the field and shows it nowhere."""
    async with httpx.AsyncClient(base_url=address.api_url) as http:
        headers = {"X-API-KEY": address.api_key}
        answer = await http.get(f"/sandboxes/{sandbox.sandbox_id}", headers=headers)
    return answer.json()["pauseMode"]


@needs_runsc
@pytest.mark.skipif(rounds(few=0, many=1) == 0, reason="with LONG_TESTS=1")
async def test_a_killed_engine_leaves_no_process() -> None:
    with temporary_options(isolation="gvisor") as options:
        argv = [sys.executable, "-m", "e2b_agent_mcp.engine", "--json"]
        with subprocess.Popen(
            [*argv, "--options-json", options.to_json()], stdout=subprocess.PIPE, text=True
        ) as engine:
            assert engine.stdout is not None
            line = await anyio.to_thread.run_sync(engine.stdout.readline)
            sandbox = await client(EngineAddress(**json.loads(line))).AsyncSandbox.create()
            assert (await sandbox.run_code("1")).text == "1"
            pids = set(descendants(engine.pid))
            os.kill(engine.pid, signal.SIGKILL)
        await gone(pids)

    assert len(pids) > 3


async def test_without_runsc_the_choice_of_gvisor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never another isolation than the one that was asked for."""
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "runsc" else real(name))

    with pytest.raises(IsolationUnavailable, match=r"apt install runsc"):
        await probe(cache_dir=tmp_path, choice="gvisor")

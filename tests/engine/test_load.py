"""Hundreds of connections at once, many of which break off: afterwards the engine and the guest
hold no descriptor more than before, and the engine's memory has not grown with their number.
What passes through does so in memory that is used again."""

from __future__ import annotations

import os
import urllib.parse
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from conftest import client, running_engine, temporary_options
from rounds import rounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2b_code_interpreter import AsyncSandbox

    from e2b_agent_mcp.engine import EngineAddress

BURSTS = rounds(few=1, many=60)
AT_ONCE = 200  # connections
SLACK = 8  # descriptors that come with time and not with connections: a zygote's, a timer's
UPLOAD = 32 * 1024 * 1024  # bytes
UPLOADS = 6
GROWTH = 16  # MiB that the engine's memory may differ by, however many bursts there were
BOUND = 60  # seconds

Request = tuple[str, str, dict[str, str], bytes]


@pytest.fixture(scope="module")
def loaded() -> Iterator[EngineAddress]:
    with temporary_options(spares=0) as options, running_engine(options) as address:
        yield address


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid: int) -> float:
    """MiB, resident."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def faults(pid: int) -> int:
    """How often the kernel had to give it a page."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


async def descriptors_inside(sandbox: AsyncSandbox) -> int:
    """Of all processes in the box that are not the one that counts."""
    count = "for p in /proc/[0-9]*; do ls $p/fd; done 2>/dev/null | wc -l"
    return int((await sandbox.commands.run(count)).stdout)


def requests(sandbox: AsyncSandbox) -> list[Request]:
    token = {"X-Access-Token": sandbox._envd_access_token or ""}
    envd = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", **token}
    interpreter = {**envd, "E2b-Sandbox-Port": "49999"}
    octets = {**envd, "Content-Type": "application/octet-stream"}
    return [
        ("GET", "/health", envd, b""),
        ("POST", "/files?path=a", octets, b"x" * 300_000),
        ("GET", "/files?path=there", envd, b""),
        ("POST", "/execute", interpreter, b'{"code": "1"}'),
        ("GET", "/nowhere", {**envd, "E2b-Sandbox-Port": "8888"}, b""),
    ]


async def exchange(url: str, request: Request, *, patience: float | None) -> None:
    """On a connection of its own, which is closed after `patience` seconds at the latest."""
    method, path, headers, body = request
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    lines = {**headers, "Host": parts.netloc, "Connection": "close", "Content-Length": len(body)}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
    with anyio.move_on_after(patience), suppress(anyio.BrokenResourceError, anyio.EndOfStream):
        async with await anyio.connect_tcp(parts.hostname, parts.port) as stream:
            await stream.send(head.encode() + b"\r\n" + body)
            while True:
                await stream.receive()


async def burst(url: str, sandbox: AsyncSandbox) -> None:
    kinds = requests(sandbox)
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            for number in range(AT_ONCE):
                kind = kinds[number % len(kinds)]
                patience = 0.01 * (number % 7) if number % 2 else None

                async def one(kind: Request, patience: float | None) -> None:
                    await exchange(url, kind, patience=patience)

                tasks.start_soon(one, kind, patience)


async def test_connections_leave_no_descriptor_and_no_memory_behind(loaded: EngineAddress) -> None:
    sandbox = await client(loaded).AsyncSandbox.create(timeout=600)
    await sandbox.files.write("there", b"y" * 300_000)
    await sandbox.run_code("1")
    await burst(loaded.sandbox_url, sandbox)  # what is made once has been made
    before = descriptors(loaded.pid)
    inside = await descriptors_inside(sandbox)
    size = memory(loaded.pid)
    for _ in range(BURSTS):
        await burst(loaded.sandbox_url, sandbox)

    assert (await sandbox.run_code("6 * 7")).text == "42"
    with anyio.fail_after(BOUND):
        while descriptors(loaded.pid) > before + SLACK:
            await anyio.sleep(0.05)
        while await descriptors_inside(sandbox) > inside + SLACK:
            await anyio.sleep(0.05)
    assert memory(loaded.pid) - size < GROWTH
    await sandbox.kill()


async def test_an_upload_passes_through_memory_that_the_engine_has(loaded: EngineAddress) -> None:
    """The best of several counts: whatever else the machine does, and bytes that pile up then,
    only adds to one."""
    sandbox = await client(loaded).AsyncSandbox.create(timeout=600)
    content = bytes(UPLOAD)
    counts = [faults(loaded.pid)]
    for _ in range(UPLOADS):
        await sandbox.files.write("data", content, use_octet_stream=True)
        counts.append(faults(loaded.pid))

    fewest = min(after - before for before, after in pairwise(counts))
    assert fewest < UPLOAD / os.sysconf("SC_PAGESIZE") / 4
    await sandbox.kill()

"""Snapshots of files, through E2B's SDK."""

from __future__ import annotations

import shutil
import uuid
from typing import TYPE_CHECKING

import anyio
import pytest
from e2b import InvalidArgumentException, SandboxException, SandboxNotFoundException

from e2b_agent_mcp.engine import ensure_ready, stop

from .test_discovery import client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from e2b_code_interpreter import E2B, AsyncSandbox

    from e2b_agent_mcp.engine import EngineOptions


@pytest.fixture
async def name(e2b: E2B) -> AsyncIterator[str]:
    """Of a snapshot that is gone afterwards."""
    name = f"snap-{uuid.uuid4()}"
    yield name
    await e2b.AsyncSandbox.delete_snapshot(name)


async def test_a_sandbox_begins_with_the_files_of_a_snapshot(
    e2b: E2B, sandbox: AsyncSandbox, name: str
) -> None:
    script = "umask 027; echo kept > file; ln -s file link; ln -s /etc/passwd out; mkfifo pipe"
    await sandbox.commands.run(
        f"{script}; chmod 4750 file; touch -d @1000000000 file; mkdir -p a/b"
    )
    await sandbox.files.write("with.txt", "metadata", metadata={"k": "v"})
    await sandbox.run_code("x = 1")
    snapshot = await sandbox.create_snapshot(name)
    await sandbox.files.write("file", "changed later")
    assert (await sandbox.run_code("x")).text == "1"

    copy = await e2b.AsyncSandbox.create(snapshot.snapshot_id, timeout=60, envs={"A": "b"})
    try:
        await sandbox.kill()
        look = "cat file; readlink link out; stat -c '%a %Y %U' file; stat -c %F pipe; ls -d a/b"
        assert (await copy.commands.run(look)).stdout.splitlines() == [
            *("kept", "file", "/etc/passwd", "4750 1000000000 user", "fifo", "a/b")
        ]
        assert (await copy.files.get_info("with.txt")).metadata == {"k": "v"}
        assert (await copy.run_code("import os; os.environ['A']")).text == "b"
        assert (await copy.run_code("x")).error is not None
        assert (await copy.get_info()).template_id == snapshot.snapshot_id
    finally:
        await copy.kill()


async def test_snapshots_are_listed_named_and_deleted(
    e2b: E2B, sandbox: AsyncSandbox, name: str
) -> None:
    unnamed = await sandbox.create_snapshot()
    named = await sandbox.create_snapshot(f"{name}:v1", mode="filesystem")
    assert unnamed.names == []
    assert named.names == [named.snapshot_id] == [f"local/{name}:v1"]

    pages = sandbox.list_snapshots(limit=1)
    found = []
    while pages.has_next:
        found += [info.snapshot_id for info in await pages.next_items()]
    assert found == [named.snapshot_id, unnamed.snapshot_id]
    for reference, expected in ((name, 1), (f"{name}:v1", 1), (f"{name}:v2", 0), ("other", 0)):
        listed = await e2b.AsyncSandbox.list_snapshots(name=reference).next_items()
        assert len(listed) == expected

    assert await e2b.AsyncSandbox.delete_snapshot(unnamed.snapshot_id) is True
    assert await e2b.AsyncSandbox.delete_snapshot(unnamed.snapshot_id) is False
    with pytest.raises(SandboxException, match="404"):
        await e2b.AsyncSandbox.create(unnamed.snapshot_id)
    assert await e2b.AsyncSandbox.delete_snapshot("base") is False


async def test_a_name_means_the_newest_snapshot(e2b: E2B, sandbox: AsyncSandbox, name: str) -> None:
    for text in ("first", "second"):
        await sandbox.files.write("file", text)
        await sandbox.create_snapshot(name)
    assert len(await sandbox.list_snapshots().next_items()) == 1
    async with await e2b.AsyncSandbox.create(name, timeout=60) as copy:
        assert await copy.files.read("file") == "second"


async def test_a_name_alone_means_the_default_tag_or_all_of_them_when_it_is_deleted(
    e2b: E2B, sandbox: AsyncSandbox, name: str
) -> None:
    for tag in ("", ":v2"):
        await sandbox.files.write("file", f"of {tag}")
        await sandbox.create_snapshot(name + tag)
    async with await e2b.AsyncSandbox.create(name, timeout=60) as copy:
        assert await copy.files.read("file") == "of "
    assert await e2b.AsyncSandbox.delete_snapshot(name) is True
    assert await e2b.AsyncSandbox.delete_snapshot(f"{name}:v2") is False
    assert await sandbox.list_snapshots().next_items() == []


async def test_a_paused_sandbox_has_snapshots_too(
    e2b: E2B, sandbox: AsyncSandbox, name: str
) -> None:
    await sandbox.files.write("file", "kept")
    await sandbox.pause()
    await sandbox.create_snapshot(name)
    async with await e2b.AsyncSandbox.create(name, timeout=60) as copy:
        assert await copy.files.read("file") == "kept"


async def test_what_a_snapshot_cannot_be_is_refused(e2b: E2B, sandbox: AsyncSandbox) -> None:
    with pytest.raises(SandboxException, match=r"501.*memory"):
        await sandbox.create_snapshot(mode="full")
    with pytest.raises(SandboxException, match=r"501.*snapshot"):
        await sandbox.fork()
    with pytest.raises(SandboxException, match="400"):
        await sandbox.create_snapshot("../../Name")
    with pytest.raises(InvalidArgumentException):
        await sandbox.create_snapshot(mode="other")  # type: ignore[arg-type]
    for refused in (e2b.AsyncSandbox.create_snapshot("inone"), e2b.AsyncSandbox.fork("inone")):
        with pytest.raises(SandboxNotFoundException):
            await refused


async def test_a_file_that_cannot_be_copied_is_named(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run("touch secret; chmod 0 secret")
    with pytest.raises(SandboxException, match="secret"):
        await sandbox.create_snapshot()
    assert await sandbox.list_snapshots().next_items() == []
    assert (await sandbox.commands.run("echo runs")).stdout == "runs\n"


async def test_snapshots_outlive_their_engine(fresh_options: EngineOptions) -> None:
    first = client(await ensure_ready(fresh_options)).AsyncSandbox
    sandbox = await first.create(timeout=60)
    await sandbox.files.write("file", "kept")
    kept, torn = [await sandbox.create_snapshot() for _ in range(2)]
    await stop(fresh_options)
    shutil.rmtree(_files_of(torn.snapshot_id, fresh_options))
    (fresh_options.snapshots_dir / "halfway").mkdir()

    second = client(await ensure_ready(fresh_options)).AsyncSandbox
    try:
        listed = await second.list_snapshots().next_items()
        assert [info.snapshot_id for info in listed] == [kept.snapshot_id]
        async with await second.create(kept.snapshot_id, timeout=60) as copy:
            assert await copy.files.read("file") == "kept"
        assert await second.delete_snapshot(kept.snapshot_id)
        with anyio.fail_after(10):
            while list(fresh_options.snapshots_dir.iterdir()):
                await anyio.sleep(0.005)
        assert list(fresh_options.snapshot_records_dir.iterdir()) == []
    finally:
        await stop(fresh_options)


def _files_of(snapshot_id: str, options: EngineOptions) -> Path:
    return options.snapshots_dir / snapshot_id.partition(":")[0]

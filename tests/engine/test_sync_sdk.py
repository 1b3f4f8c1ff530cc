"""The synchronous SDK, from a create to a kill: a client of its own, with its own connections."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
from e2b import (
    NotFoundException,
    PtySize,
    SandboxNotRunningException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2b_code_interpreter import E2B, Sandbox


@pytest.fixture(scope="module")
def mark() -> dict[str, str]:
    return {"mark": str(uuid.uuid4())}


@pytest.fixture(scope="module")
def sandbox(e2b: E2B, mark: dict[str, str]) -> Iterator[Sandbox]:
    with e2b.Sandbox.create(timeout=300, metadata=mark, envs={"GIVEN": "value"}) as sandbox:
        yield sandbox
    assert not sandbox.is_running()


def test_a_life_from_create_to_kill(e2b: E2B, sandbox: Sandbox, mark: dict[str, str]) -> None:
    query = SandboxQuery(metadata=mark, started_after=datetime.now(UTC) - timedelta(hours=1))
    [info] = e2b.Sandbox.list(query=query).next_items()
    assert (info.sandbox_id, info.state) == (sandbox.sandbox_id, SandboxState.RUNNING)
    later = SandboxQuery(metadata=mark, started_after=datetime.now(UTC) + timedelta(hours=1))
    assert e2b.Sandbox.list(query=later).next_items() == []
    other = SandboxQuery(metadata=mark, template="base")
    assert e2b.Sandbox.list(query=other).next_items() == []

    sandbox.run_code("x = 1")
    assert sandbox.pause() is True
    assert sandbox.beta_pause() is False
    assert not sandbox.is_running()
    with pytest.raises(SandboxNotRunningException):
        sandbox.commands.run("true")
    connected = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert connected.run_code("x").text == "1"
    connected.set_timeout(200)
    assert connected.get_info().end_at > datetime.now(UTC) + timedelta(seconds=150)
    assert e2b.Sandbox.kill("inone") is False


def test_snapshots_and_metrics(e2b: E2B, sandbox: Sandbox) -> None:
    assert sandbox.get_metrics()[-1].mem_used > 0
    sandbox.files.write("kept", "kept")
    snapshot = sandbox.create_snapshot()
    try:
        listed = e2b.Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id).next_items()
        assert listed == [snapshot]
        with e2b.Sandbox.create(snapshot.snapshot_id, timeout=60) as copy:
            assert copy.files.read("kept") == "kept"
    finally:
        assert e2b.Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_files_and_their_urls(sandbox: Sandbox) -> None:
    watch = sandbox.files.watch_dir(".", recursive=True)
    written = sandbox.files.write_files(
        [{"path": "a/1", "data": "ü"}, {"path": "a/2", "data": b""}]
    )
    assert [entry.path for entry in written] == ["/home/user/a/1", "/home/user/a/2"]
    assert {event.name for event in watch.get_new_events()} >= {"a", "a/1", "a/2"}
    watch.stop()
    assert b"".join(sandbox.files.read("a/1", format="stream")).decode() == "ü"
    assert [entry.name for entry in sandbox.files.list(".", depth=2) if entry.name in "12"] == [
        *("1", "2")
    ]
    url = sandbox.download_url("a/1", use_signature_expiration=60)
    assert httpx.get(url, trust_env=False).text == "ü"
    expired = httpx.get(sandbox.download_url("a/1", use_signature_expiration=-5), trust_env=False)
    assert expired.status_code == 401
    assert expired.json()["message"] == "signature is already expired"


def test_code_contexts_and_terminals(sandbox: Sandbox) -> None:
    context = sandbox.create_code_context(cwd="/tmp", language="bash")
    assert sandbox.run_code("pwd; echo $GIVEN", context=context).logs.stdout == [
        "/tmp\n",
        "value\n",
    ]
    sandbox.remove_code_context(context)
    with pytest.raises(NotFoundException):
        sandbox.run_code("true", context=context)
    terminal = sandbox.pty.create(PtySize(rows=5, cols=50))
    sandbox.pty.send_stdin(terminal.pid, b"echo $COLUMNS-$GIVEN; exit\n")
    assert b"50-value" in b"".join(data for _, _, data in terminal if data)


def test_who_waits_learns_that_the_sandbox_was_killed(e2b: E2B) -> None:
    sandbox = e2b.Sandbox.create(timeout=60)
    command = sandbox.commands.run("sleep 60", background=True)
    killer = threading.Timer(0.5, sandbox.kill)
    killer.start()
    with pytest.raises(TimeoutException, match="killed"):
        sandbox.run_code("import time; time.sleep(60)")
    with pytest.raises(SandboxNotRunningException):
        command.wait()
    killer.join()

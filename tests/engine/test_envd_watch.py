"""Watching directories, streamed (async SDK) and polled (sync SDK)."""

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from e2b import (
    FileNotFoundException,
    FilesystemEvent,
    FilesystemEventType,
    InvalidArgumentException,
    SandboxException,
    TimeoutException,
)
from e2b_code_interpreter import E2B, AsyncSandbox

from e2b_agent_mcp.engine.guest.envd.inotify import DirectoryWatch
from e2b_agent_mcp.engine.guest.envd.rpc import RpcError
from e2b_agent_mcp.engine.guest.envd.watch import PolledWatch, Watch

CREATE, WRITE = FilesystemEventType.CREATE, FilesystemEventType.WRITE
REMOVE, RENAME = FilesystemEventType.REMOVE, FilesystemEventType.RENAME
CHMOD = FilesystemEventType.CHMOD

Seen = tuple[FilesystemEventType, str]


class Log:
    """Collects the events of a watch."""

    def __init__(self) -> None:
        self.events: list[FilesystemEvent] = []
        self._changed = anyio.Event()

    def __call__(self, event: FilesystemEvent) -> None:
        self.events.append(event)
        self._changed.set()

    @property
    def seen(self) -> list[Seen]:
        return [(event.type, event.name) for event in self.events]

    async def until(self, *seen: Seen) -> None:
        with anyio.fail_after(5):
            while not set(seen) <= set(self.seen):
                self._changed = anyio.Event()
                await self._changed.wait()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param("touch d/new", [(CREATE, "new"), (CHMOD, "new")], id="created"),
        pytest.param("echo x >> d/file", [(WRITE, "file")], id="written"),
        pytest.param("chmod 600 d/file", [(CHMOD, "file")], id="mode changed"),
        pytest.param("rm d/file", [(REMOVE, "file")], id="removed"),
        pytest.param("mv d/file d/b", [(RENAME, "file"), (CREATE, "b")], id="renamed"),
        pytest.param("mkdir d/sub", [(CREATE, "sub")], id="directory"),
        pytest.param("touch d/a/deep; rm d/file", [(REMOVE, "file")], id="not recursive"),
    ],
)
async def test_what_happens_in_a_directory_is_told(
    sandbox: AsyncSandbox, log: Log, command: str, expected: list[Seen]
) -> None:
    await sandbox.commands.run("mkdir -p d/a; touch d/file")
    watch = await sandbox.files.watch_dir("d", on_event=log)
    await sandbox.commands.run(command)
    await log.until(*expected)
    assert log.seen == expected
    await watch.stop()


async def test_an_upload_is_seen(sandbox: AsyncSandbox, log: Log) -> None:
    await sandbox.files.make_dir("d")
    await sandbox.files.watch_dir("d", on_event=log)
    await sandbox.files.write("d/file", "content")
    await log.until((CREATE, "file"), (WRITE, "file"))


async def test_a_recursive_watch_sees_directories_that_come_later(
    sandbox: AsyncSandbox, log: Log
) -> None:
    await sandbox.commands.run("mkdir -p d/old")
    await sandbox.files.watch_dir("d", on_event=log, recursive=True)
    await sandbox.commands.run(
        "touch d/old/file; mkdir -p d/x/y/z; touch d/x/y/z/early; mv d/x d/moved"
    )
    await log.until((CREATE, "old/file"), (CREATE, "moved/y/z/early"))
    await sandbox.commands.run("touch d/moved/y/z/late")
    await log.until((CREATE, "moved/y/z/late"))


async def test_nothing_is_told_twice_or_missed_in_new_directories(
    sandbox: AsyncSandbox, log: Log
) -> None:
    await sandbox.files.make_dir("d")
    await sandbox.files.watch_dir("d", on_event=log, recursive=True)
    await sandbox.commands.run("for i in $(seq 50); do mkdir -p d/$i/sub; : > d/$i/sub/f; done")
    created = [(CREATE, f"{i}{tail}") for i in range(1, 51) for tail in ("", "/sub", "/sub/f")]
    await log.until(*created)
    assert sorted(log.seen) == sorted(created)


async def test_entries_come_with_the_events_if_asked_for(sandbox: AsyncSandbox, log: Log) -> None:
    await sandbox.files.make_dir("d")
    await sandbox.files.watch_dir("d", on_event=log, include_entry=True)
    await sandbox.files.write("d/file", "12345")
    await log.until((WRITE, "file"))
    entry = log.events[-1].entry
    assert entry is not None
    assert (entry.name, entry.size) == ("file", 5)
    await sandbox.files.remove("d/file")
    await log.until((REMOVE, "file"))
    assert log.events[-1].entry is None


@pytest.mark.parametrize(
    ("path", "error"),
    [
        pytest.param("missing", FileNotFoundException, id="missing"),
        pytest.param("file", InvalidArgumentException, id="a file"),
    ],
)
async def test_only_directories_are_watched(
    sandbox: AsyncSandbox, path: str, error: type[Exception]
) -> None:
    await sandbox.files.write("file", "")
    with pytest.raises(error):
        await sandbox.files.watch_dir(path, on_event=print)


async def test_a_watch_ends_at_its_timeout(sandbox: AsyncSandbox) -> None:
    ended = anyio.Event()
    errors: list[Exception | None] = []

    def on_exit(error: Exception | None) -> None:
        errors.append(error)
        ended.set()

    await sandbox.files.watch_dir("", on_event=print, on_exit=on_exit, timeout=0.3)
    with anyio.fail_after(5):
        await ended.wait()
    assert isinstance(errors[0], TimeoutException)


def test_the_sync_sdk_polls(e2b: E2B) -> None:
    sandbox = e2b.Sandbox.create()
    sandbox.files.make_dir("d")
    watch = sandbox.files.watch_dir("d", recursive=True)
    sandbox.commands.run("mkdir d/sub")
    assert poll_until(watch.get_new_events, (CREATE, "sub")) == [(CREATE, "sub")]
    sandbox.commands.run(": > d/sub/file; echo x > d/sub/file")
    seen = poll_until(watch.get_new_events, (WRITE, "sub/file"))
    assert seen[0] == (CREATE, "sub/file")
    assert watch.get_new_events() == []
    watch.stop()
    with pytest.raises(SandboxException):
        watch.get_new_events()
    sandbox.kill()


def poll_until(poll: Callable[[], list[FilesystemEvent]], last: Seen) -> list[Seen]:
    seen: list[Seen] = []
    for _ in range(200):
        seen += [(event.type, event.name) for event in poll()]
        if last in seen:
            return seen
    raise AssertionError(seen)


def test_what_cannot_be_watched_ends_neither_its_watch_nor_anything_else(e2b: E2B) -> None:
    """A folder that is shut, and paths that are longer than a path may be."""
    deep = "import os\nos.chdir('/tmp')\nfor _ in range(1500):\n os.mkdir('dd')\n os.chdir('dd')"
    with e2b.Sandbox.create(timeout=120) as sandbox:
        watch = sandbox.files.watch_dir("/tmp", recursive=True)
        sandbox.commands.run("mkdir -m 000 /tmp/shut")
        sandbox.run_code(deep)
        sandbox.commands.run("touch /tmp/last")
        seen = {name for _, name in poll_until(watch.get_new_events, (CREATE, "last"))}
        assert {"shut", "dd", "dd/dd"} <= seen
        assert sandbox.run_code("1 + 1").text == "2"


async def test_events_that_nobody_takes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2b_agent_mcp.engine.guest.envd.watch.MOST_EVENTS", 10)
    directory = DirectoryWatch(str(tmp_path), recursive=False)
    watch = PolledWatch(Watch(str(tmp_path), directory, with_entries=False))
    for number in range(100):
        (tmp_path / str(number)).touch()
    with anyio.fail_after(5):
        await watch.collect()
    assert len(watch.take()) == 10
    with pytest.raises(RpcError, match="lost"):
        watch.take()

"""The watches of the `filesystem.Filesystem` service: streamed, or kept until they are polled."""

import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.to_thread import run_sync
from starlette.routing import Route

from .filesystem import entry_info, filesystem_errors, require_directory
from .inotify import Change, ChangesLost, DirectoryWatch
from .paths import printable, resolve
from .rpc import Call, Emit, Fields, Reply, RpcError, server_stream, unary

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger(__name__)

MOST_EVENTS = 100_000  # that wait for a poll
LOST = "more changes came than are kept: some events were lost"


class Watches:
    def __init__(self, home: Path) -> None:
        self._home = home
        self._polled: dict[str, PolledWatch] = {}
        self._tasks: TaskGroup

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    def routes(self) -> list[Route]:
        methods = {
            "WatchDir": server_stream(self.watch, keepalive={"keepalive": {}}),
            "CreateWatcher": unary(self.create),
            "GetWatcherEvents": unary(self.poll),
            "RemoveWatcher": unary(self.remove),
        }
        return [
            Route(f"/filesystem.Filesystem/{name}", endpoint, methods=["POST"])
            for name, endpoint in methods.items()
        ]

    async def watch(self, call: Call, emit: Emit) -> None:
        watch = await self._open(call.fields)
        with watch.directory:
            await emit({"start": {}})
            async with aclosing(watch.events()) as events:
                async for event in events:
                    await emit({"filesystem": event})

    async def create(self, call: Call) -> Reply:
        watch = PolledWatch(await self._open(call.fields))
        watcher_id = secrets.token_hex(8)
        self._polled[watcher_id] = watch
        self._tasks.start_soon(watch.collect)
        return {"watcherId": watcher_id}

    async def poll(self, call: Call) -> Reply:
        return {"events": self._find(call.fields).take()}

    async def remove(self, call: Call) -> Reply:
        self._find(call.fields).scope.cancel()
        del self._polled[call.fields.text("watcherId")]
        return {}

    def _find(self, fields: Fields) -> "PolledWatch":
        watcher_id = fields.text("watcherId")
        if watcher_id not in self._polled:
            raise RpcError("not_found", f"watcher with id '{watcher_id}' not found")
        return self._polled[watcher_id]

    async def _open(self, fields: Fields) -> "Watch":
        root = resolve(fields.text("path"), self._home)
        with filesystem_errors():
            directory = await run_sync(_open_directory, root, fields.flag("recursive"))
        return Watch(root, directory, with_entries=fields.flag("includeEntry"))


def _open_directory(root: str, recursive: bool) -> DirectoryWatch:
    require_directory(root)
    return DirectoryWatch(root, recursive=recursive)


class Watch:
    def __init__(self, root: str, directory: DirectoryWatch, *, with_entries: bool) -> None:
        self.directory = directory
        self._root = root
        self._with_entries = with_entries

    async def events(self) -> AsyncGenerator[Reply, None]:
        """`FilesystemEvent`s of the wire."""
        try:
            async for change in self.directory.changes():
                yield self._event(change)
        except ChangesLost as error:
            raise RpcError("resource_exhausted", LOST) from error
        except OSError as error:
            message = f"not all can be watched any more: {error.strerror}"
            raise RpcError("resource_exhausted", message) from error

    def _event(self, change: Change) -> Reply:
        name = printable(os.path.relpath(change.path, self._root))
        event: dict[str, object] = {"name": name, "type": f"EVENT_TYPE_{change.kind}"}
        if self._with_entries:
            with suppress(OSError):  # gone: the event comes without its entry
                event["entry"] = entry_info(change.path)
        return event


class PolledWatch:
    """A watch whose events wait for the next poll; they are kept until it is removed.

    Whatever goes wrong ends this watch alone, and the one who polls is told.
    """

    def __init__(self, watch: Watch) -> None:
        self.scope = anyio.CancelScope()
        self._watch = watch
        self._events: list[Reply] = []
        self._failure: RpcError | None = None

    async def collect(self) -> None:
        with self.scope, self._watch.directory:
            try:
                async for event in self._watch.events():
                    if len(self._events) == MOST_EVENTS:
                        raise RpcError("resource_exhausted", LOST)
                    self._events.append(event)
            except RpcError as error:
                self._failure = error
            except Exception:
                logger.exception("a watch failed")
                self._failure = RpcError("internal", "the watch failed")

    def take(self) -> list[Reply]:
        """The events since the last time; a failed watch says so once those are taken."""
        events, self._events = self._events, []
        if self._failure and not events:
            raise self._failure
        return events

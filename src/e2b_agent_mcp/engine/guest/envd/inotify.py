"""Changes in a directory, as Linux's inotify tells them.

A recursive watch follows directories as they come and go. What a new directory already holds when
its own watch begins is reported as created, so that nothing is missed and nothing comes twice.
"""

import ctypes
import errno
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Literal, NamedTuple, Self

import anyio

CREATE, MODIFY, ATTRIB, DELETE = 0x100, 0x2, 0x4, 0x200
MOVED_FROM, MOVED_TO = 0x40, 0x80
QUEUE_OVERFLOW, IGNORED, IS_DIRECTORY = 0x4000, 0x8000, 0x40000000
ONLY_DIRECTORY = 0x01000000
WATCHED = CREATE | MODIFY | ATTRIB | DELETE | MOVED_FROM | MOVED_TO | ONLY_DIRECTORY

LIMITS = (errno.ENOSPC, errno.EMFILE, errno.ENOMEM)  # of the system: watches, files, memory

EVENT_HEAD = struct.Struct("iIII")  # watch descriptor, mask, cookie, length of the name
BUFFER = 64 * 1024  # bytes

Kind = Literal["CREATE", "WRITE", "REMOVE", "RENAME", "CHMOD"]
KINDS: dict[int, Kind] = {
    CREATE: "CREATE",
    MOVED_TO: "CREATE",
    MODIFY: "WRITE",
    DELETE: "REMOVE",
    MOVED_FROM: "RENAME",
    ATTRIB: "CHMOD",
}


class Change(NamedTuple):
    path: str
    kind: Kind


class ChangesLost(Exception):
    """More changes came than the kernel keeps: what this watch said is incomplete."""


class DirectoryWatch:
    """Opening it walks the whole tree if it is `recursive`; closing it is the owner's duty.

    Raises `OSError` if `root` is not a directory or the system's limit of watches is reached.
    """

    def __init__(self, root: str, *, recursive: bool) -> None:
        self._recursive = recursive
        self._directories: dict[int, str] = {}
        self._announced: set[str] = set()  # found by a look into a new directory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._add(root)
            if recursive:
                for _ in self._look_into(root):
                    pass
        except OSError:
            self.close()
            raise
        self._announced.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    async def changes(self) -> AsyncIterator[Change]:
        """Endless; raises `ChangesLost`, or `OSError` when a limit of the system is reached."""
        while True:
            await anyio.wait_readable(self._fd)
            data = os.read(self._fd, BUFFER)
            while data:
                descriptor, mask, _, length = EVENT_HEAD.unpack_from(data)
                name = data[EVENT_HEAD.size : EVENT_HEAD.size + length].rstrip(b"\0")
                for change in self._understand(descriptor, mask, os.fsdecode(name)):
                    yield change
                data = data[EVENT_HEAD.size + length :]

    def _understand(self, descriptor: int, mask: int, name: str) -> Iterator[Change]:
        if mask & QUEUE_OVERFLOW:
            raise ChangesLost
        if mask & IGNORED:
            self._directories.pop(descriptor, None)
        directory = self._directories.get(descriptor)
        if not directory or not name:  # a watched directory itself: its parent tells that too
            return
        path = os.path.join(directory, name)
        known = path in self._announced
        yield from self._changes_at(path, mask)
        if self._recursive and mask & IS_DIRECTORY:
            if mask & MOVED_FROM:
                self._forget(path)
            if mask & (CREATE | MOVED_TO) and not known:
                yield from self._look_into(path)

    def _changes_at(self, path: str, mask: int) -> Iterator[Change]:
        for bit, kind in KINDS.items():
            if mask & bit:
                known = path in self._announced
                if kind != "WRITE" and kind != "CHMOD":
                    self._announced.discard(path)
                if not (known and kind == "CREATE"):
                    yield Change(path, kind)

    def _look_into(self, directory: str) -> Iterator[Change]:
        waiting = [directory]  # no recursion: trees are as deep as programs make them
        while waiting:
            here = waiting.pop()
            try:
                self._add(here)
                for entry in os.scandir(here):
                    self._announced.add(entry.path)
                    yield Change(entry.path, "CREATE")
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
            except OSError as error:
                # Else it is gone again, replaced, shut, or its path is too long: others are not.
                if error.errno in LIMITS:
                    raise

    def _add(self, directory: str) -> None:
        path = os.fsencode(directory)
        descriptor = self._call("inotify_add_watch", self._fd, path, WATCHED, about=directory)
        self._directories[descriptor] = directory

    def _forget(self, directory: str) -> None:
        for descriptor, path in list(self._directories.items()):
            if path == directory or path.startswith(directory + os.sep):
                with suppress(OSError):  # it was deleted meanwhile
                    self._call("inotify_rm_watch", self._fd, descriptor)
                del self._directories[descriptor]

    def _call(self, function: str, *arguments: int | bytes, about: str = "") -> int:
        result: int = self._libc[function](*arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), about)
        return result

"""What connects engine and box besides the listener: two pipes, and files that are nowhere."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_BYTES = 64 * 1024  # of what bubblewrap and the guest wrote, the end is kept


class Cord:
    """The two pipes between engine and box: a log, and a stdin whose end says that all is over.

    `stdin` and `log` are the box's ends.
    """

    def __init__(self) -> None:
        self.stdin, stdin_end = os.pipe()
        log_end, self.log = os.pipe()
        self._stdin_end: int | None = stdin_end
        self._tail = _Log(log_end)

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """Afterwards only the box has its ends; or nobody has any, if that failed."""
        try:
            yield
        except BaseException:
            self.close()
            raise
        finally:
            os.close(self.stdin)
            os.close(self.log)

    def text(self) -> str:
        return self._tail.text()

    def hang_up(self) -> None:
        if self._stdin_end is not None:
            os.close(self._stdin_end)
            self._stdin_end = None

    def close(self) -> None:
        self._tail.close()
        self.hang_up()


class _Log:
    """Keeps the end of a pipe that a sandbox may flood."""

    def __init__(self, pipe: int) -> None:
        self._pipe: int | None = pipe
        self._tail = bytearray()
        os.set_blocking(pipe, False)
        asyncio.get_running_loop().add_reader(pipe, self._read)

    def text(self) -> str:
        self._read()
        return self._tail.decode(errors="replace")

    def close(self) -> None:
        if self._pipe is not None:
            self._read()
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = None

    def _read(self) -> None:
        if self._pipe is None:
            return
        with suppress(BlockingIOError):
            data = os.read(self._pipe, LOG_BYTES)
            self._tail += data
            del self._tail[:-LOG_BYTES]
            if not data:
                asyncio.get_running_loop().remove_reader(self._pipe)


@contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """A descriptor, at its start, of a file that is nowhere."""
    with closing(os.memfd_create("box")) as fd:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd


@contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)

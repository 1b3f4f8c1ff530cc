"""Printing is fast and bounded: no message is longer than `CHUNK`, and no more than that waits.

A thread that prints faster than its output is read sleeps in `write`; an interrupt wakes it.
Nothing that was sent is kept. Text belongs to the cell that runs when it is sent.
"""

import codecs
import os
import select
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from io import TextIOWrapper
from typing import Any

from ipykernel.iostream import OutStream

CHUNK = 1 << 19  # bytes
PIPE = 1 << 16  # bytes that programs can have written without being read


class _Chunks(deque[bytes]):
    """The file below a `TextIOWrapper`. To append is one step of the interpreter: two threads
    that empty the wrapper at the same time cannot change the order of what it held."""

    write = deque.append
    closed = False

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    seekable = readable

    def flush(self) -> None:
        """There is nothing below."""

    close = flush


class BoundedStream(OutStream):
    """`sys.stdout` and `sys.stderr` of a kernel. A cell may print a million times: what is
    printed is gathered by `TextIOWrapper`, which is written in C."""

    # ipykernel gives up on a flush after 10 s, which is when a slow reader is to be waited for.
    flush_timeout = 86400.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._gather_anew()
        super().__init__(*args, **kwargs)
        os.register_at_fork(after_in_child=self._gather_anew)

    def _gather_anew(self) -> None:
        """What a forked process finds gathered, its parent will send."""
        self._chunks = _Chunks()
        # Half a surrogate pair would make a message that takes its neighbours with it.
        self._text = TextIOWrapper(self._chunks, "utf-8", "replace", "\n")  # type: ignore[type-var]
        self._text._CHUNK_SIZE = CHUNK  # type: ignore[attr-defined]
        self._gather = self._text.write
        self._flush_pending = False
        self._programs = threading.Lock()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def write(self, string: str) -> int:
        size = self._gather(string)
        if self._chunks or not self._flush_pending:
            self._send_soon()
        return size

    def flush(self) -> None:
        """At the end of a cell, what programs have written until then is the cell's."""
        if threading.current_thread() is threading.main_thread() and self._is_master_process():
            self._gather_of_programs()
        super().flush()

    def _watch_pipe_fd(self) -> None:
        """Writes what programs print to the file descriptor, in a thread of its own."""
        written = select.poll()
        written.register(self._fid, select.POLLIN)
        while written.poll() and self._should_watch and self._gather_of_programs():
            self.write("")

    def _gather_of_programs(self) -> bool:
        """False when none can write any more. What is there is taken, none is waited for."""
        with self._programs, suppress(OSError):  # code may have closed the file descriptor
            written = select.poll()
            written.register(-1 if self._fid is None else self._fid, select.POLLIN)
            if not written.poll(0):
                return True
            octets = os.read(self._fid, PIPE)
            self._gather(self._decode(octets))
            return bool(octets)
        return False

    def _send_soon(self) -> None:
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        if self._chunks or not self._is_master_process():
            self.flush()
        else:
            self._schedule_flush()

    def _flush(self) -> None:
        """Sends the text beside its message: as JSON it would be written here to be read again."""
        self._flush_pending = False
        self._text.flush()
        while self._chunks:
            for part in _split(self._chunks.popleft()):
                self.session.pid = os.getpid()  # forked processes print too
                self.session.send(
                    self.pub_thread,
                    "stream",
                    {"name": self.name},
                    parent=self._parent_header_global,
                    ident=self.topic,
                    buffers=[part],
                )


def _split(chunk: bytes) -> Iterator[bytes]:
    """No longer parts than `CHUNK`, but for characters of several bytes; no empty ones."""
    if not chunk:
        return
    if len(chunk) <= CHUNK:
        yield chunk
        return
    text = chunk.decode()
    for start in range(0, len(text), CHUNK):
        yield text[start : start + CHUNK].encode()


# `Any`: an IPython shell, which has no types.
def keep_none(shell: Any) -> None:
    """IPython would remember all that was ever shown or printed, for `%notebook` alone."""

    def tee(channel: str) -> AbstractContextManager[None]:
        return nullcontext()

    shell._tee = tee
    shell.history_manager.outputs = _Forgetful()


class _Forgetful(defaultdict[int, list[Any]]):
    def __missing__(self, key: int) -> list[Any]:
        return []

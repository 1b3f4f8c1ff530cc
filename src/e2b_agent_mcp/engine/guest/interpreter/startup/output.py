"""Printing is bounded: no message is longer than `CHUNK`, and no more than that waits.

A thread that prints faster than its output is read sleeps in `write`; an interrupt wakes it.
Nothing that was sent is kept.
"""

import os
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ipykernel.iostream import OutStream

CHUNK = 1 << 18  # characters


class BoundedStream(OutStream):
    """`sys.stdout` and `sys.stderr` of a kernel."""

    # ipykernel gives up on a flush after 10 s, which is when a slow reader is to be waited for.
    flush_timeout = 86400.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unflushed = 0
        self._last: tuple[Any, Any, Any] | None = None  # where the last write went, and whose
        super().__init__(*args, **kwargs)
        os.register_at_fork(after_in_child=self._forget_last)

    def write(self, string: str) -> int:
        # A cell may print a million times. What the last write found out is mostly still so.
        last = self._last
        if last is not None and type(string) is str and string.isascii():
            parent, buffers, write = last
            size = len(string)
            with self._buffer_lock:
                # A flush takes `_buffers` away, and before it `_flush_pending`.
                if (
                    self._flush_pending
                    and buffers is self._buffers
                    and parent is self._parent_header.get(self._parent_header_global)
                    and self._unflushed + size <= CHUNK
                ):
                    self._unflushed += size
                    write(string)
                    return size
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        for start in range(0, len(string), CHUNK):
            self._write(_without_surrogates(string[start : start + CHUNK]))
        return len(string)

    def _write(self, chunk: str) -> None:
        if self._unflushed + len(chunk) > CHUNK:
            self.flush()
        super().write(chunk)
        # Two threads may lose an addition here: the bound is then a little late.
        self._unflushed += len(chunk)
        if self.echo is None and self._is_master_process():
            self._remember_last()

    def _remember_last(self) -> None:
        parent = self.parent_header
        with self._buffer_lock:
            buffers = self._buffers
            self._last = parent, buffers, buffers[frozenset(parent.items())].write

    def _forget_last(self) -> None:
        self._last = None

    def _flush(self) -> None:
        self._unflushed = 0
        super()._flush()


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


def _without_surrogates(chunk: str) -> str:
    """A message with half a surrogate pair is never sent, and takes its neighbours with it."""
    return chunk if chunk.isascii() else chunk.encode("utf-8", "replace").decode()

"""Printing is bounded: no message is longer than `CHUNK`, and no more than that waits.

A thread that prints faster than its output is read sleeps in `write`; an interrupt wakes it.
"""

from typing import Any

from ipykernel.iostream import OutStream

CHUNK = 1 << 18  # characters


class BoundedStream(OutStream):
    """`sys.stdout` and `sys.stderr` of a kernel."""

    # ipykernel gives up on a flush after 10 s, which is when a slow reader is to be waited for.
    flush_timeout = 86400.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unflushed = 0
        super().__init__(*args, **kwargs)

    def write(self, string: str) -> int:
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

    def _flush(self) -> None:
        self._unflushed = 0
        super()._flush()


def _without_surrogates(chunk: str) -> str:
    """A message with half a surrogate pair is never sent, and takes its neighbours with it."""
    return chunk if chunk.isascii() else chunk.encode("utf-8", "replace").decode()

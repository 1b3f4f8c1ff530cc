"""A lease's files: which a run changed, and what passes in and out."""

import logging
import mimetypes
import posixpath
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from e2b_agent_mcp.errors import (
    E2BAgentError,
    InvalidArgumentError,
    SandboxUnavailableError,
    TooLargeError,
)
from e2b_agent_mcp.lifecycle.access import Access
from e2b_agent_mcp.lifecycle.control import bounded
from e2b_agent_mcp.lifecycle.session import Stamp

if TYPE_CHECKING:
    from e2b import EntryInfo

logger = logging.getLogger(__name__)

HOME = "/home/user"
TRANSFER_RATE = 1_000_000  # bytes per second; a slower transfer of a whole file is given up
LISTING_LIMIT = 5.0  # seconds
LISTING_DEPTH = 4
MOST_CHANGED = 50  # files


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    path: str
    kind: Literal["file", "directory"]
    size: int  # bytes
    mime_type: str
    modified_at: datetime


class Files(Access):
    """The part of a lease that moves files."""

    async def confirm(self) -> None:
        """For a caller that must know `state` and `lost` before it does anything else."""
        await self.stat_file(HOME)

    async def changed_files(self) -> list[FileInfo]:
        """Files below the home that are new or changed since this lease first ran something.

        Hidden ones are left out, and so are those deeper than four folders or beyond the fifty
        newest. One listing; empty when the folder is too large to list in 5 s.
        """
        before = self._session.baseline
        self._session.baseline = None
        entries = await self._home()
        if entries is None:
            return []
        self._session.baseline = {path: _stamp(entry) for path, entry in entries.items()}
        if before is None:
            return []
        changed = [info for path, info in entries.items() if before.get(path) != _stamp(info)]
        newest = sorted(changed, key=lambda info: info.modified_at)[-MOST_CHANGED:]
        return sorted(newest, key=lambda info: info.path)

    async def _look_before_running(self) -> None:
        if self._session.baseline is None:
            entries = await self._home()
            if entries is not None:
                self._session.baseline = {path: _stamp(info) for path, info in entries.items()}

    async def _home(self) -> dict[str, FileInfo] | None:
        try:
            entries = await bounded(
                "listing changed files",
                LISTING_LIMIT,
                lambda: self.sandbox.files.list(HOME, depth=LISTING_DEPTH),
            )
        except E2BAgentError as exc:
            logger.info("no listing of sandbox=%s: %s", self._sandbox_id, exc.message)
            return None
        shown = (_file_info(entry) for entry in entries if _is_shown(entry.path))
        return {info.path: info for info in shown if info.kind == "file"}

    async def list_files(self, path: str) -> list[FileInfo]:
        """One folder, hidden files included."""
        entries = await self._first(
            lambda: self._data("listing files", lambda: self.sandbox.files.list(path))
        )
        return [_file_info(entry) for entry in entries]

    async def stat_file(self, path: str) -> FileInfo:
        entry = await self._first(
            lambda: self._data("looking up a file", lambda: self.sandbox.files.get_info(path))
        )
        return _file_info(entry)

    async def read_file(self, path: str) -> bytes:
        """The whole file; `TooLargeError` over `files.size_limit`."""
        async with self.stream_file(path) as chunks:
            return b"".join([chunk async for chunk in chunks])

    @asynccontextmanager
    async def stream_file(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The file in pieces, each within `sandboxes.request_timeout`; bounded like `read_file`."""
        info = await self.stat_file(path)
        if info.kind == "directory":
            raise InvalidArgumentError(f"{path} is a folder, not a file.")
        limit = self._settings.files.size_limit
        if info.size > limit:
            raise _too_large(path, limit)
        reader = await self._data(
            "reading a file", lambda: self.sandbox.files.read(path, format="stream")
        )
        async with reader:
            yield self._pieces(reader, info)

    async def _pieces(self, reader: AsyncIterator[bytes], info: FileInfo) -> AsyncIterator[bytes]:
        limit = self._settings.files.size_limit
        size = 0
        while (
            piece := await self._data("reading a file", lambda: anext(reader, None))
        ) is not None:
            size += len(piece)
            if size > limit:  # it grew while it was read
                raise _too_large(info.path, limit)
            yield piece
        if size < info.size:
            raise SandboxUnavailableError(
                f"{info.path} ended after {size:,} of its {info.size:,} bytes: it was cut off on "
                "the way, or became shorter while it was read.",
                hint="Read it again.",
            )

    async def write_file(self, path: str, data: bytes | AsyncIterable[bytes]) -> None:
        """Writes the whole file and makes its folders; the caller bounds the size of a stream."""
        limit = self._settings.files.size_limit
        if isinstance(data, bytes) and len(data) > limit:
            raise _too_large(path, limit)
        most = len(data) if isinstance(data, bytes) else limit
        seconds = self._settings.sandboxes.request_timeout + most / TRANSFER_RATE
        self._session.baseline = None
        if not isinstance(data, bytes):
            # A stream can be read once only, so the sandbox has to be there.
            await self.confirm()
        await self._first(
            lambda: self._data(
                "writing a file",
                lambda: self.sandbox.files.write(path, data, request_timeout=seconds),
                seconds,
            )
        )


# The standard library's own table: the host's files of MIME types differ between machines.
_MIME_TYPES = mimetypes.MimeTypes(filenames=())
for _type, _suffix in (
    ("application/vnd.apache.parquet", ".parquet"),
    ("application/x-ipynb+json", ".ipynb"),
    ("text/markdown", ".md"),
    ("image/webp", ".webp"),
    ("application/yaml", ".yaml"),
):
    _MIME_TYPES.add_type(_type, _suffix)


def _file_info(entry: "EntryInfo") -> FileInfo:
    is_folder = entry.type is not None and entry.type.value == "dir"
    guessed = _MIME_TYPES.guess_type(f"file:{entry.name}")[0]
    return FileInfo(
        path=entry.path,
        kind="directory" if is_folder else "file",
        size=entry.size,
        mime_type="inode/directory" if is_folder else guessed or "application/octet-stream",
        modified_at=entry.modified_time,
    )


def _stamp(info: FileInfo) -> Stamp:
    return Stamp(info.size, info.modified_at)


def _is_shown(path: str) -> bool:
    parts = posixpath.relpath(path, HOME).split("/")
    return not any(
        part.startswith(".") or part in ("__pycache__", "node_modules") for part in parts
    )


def _too_large(path: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"{path} is larger than {limit:,} bytes, the limit of files.size_limit.",
        hint="Move less, or raise E2B_AGENT_MCP_FILES_SIZE_LIMIT.",
    )

"""The tools that move files between the caller, the host and a sandbox."""

import base64 as base64_codec
import binascii
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, BinaryIO

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import (
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ToolAnnotations,
)
from pydantic import Field

from e2b_agent_mcp.errors import InvalidArgumentError, PathNotAllowedError, TooLargeError
from e2b_agent_mcp.lifecycle import FileInfo, Lease
from e2b_agent_mcp.rendering import (
    Place,
    answer,
    file_entry,
    file_link,
)
from e2b_agent_mcp.rendering.results import DownloadResult, Entry, FilesResult, UploadResult
from e2b_agent_mcp.server.arguments import SessionArgument, check_not_empty
from e2b_agent_mcp.server.calls import Calls, place_of
from e2b_agent_mcp.server.host_files import open_source, open_target
from e2b_agent_mcp.server.sessions import current_caller
from e2b_agent_mcp.server.tools import READS, add_tool
from e2b_agent_mcp.settings import FileSettings, Settings

CHUNK = 1 << 20  # bytes of a file moved at once
MOST_ENTRIES = 500  # of one folder's listing

WRITES = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
)


class _Omitted(str):
    """The default of a text argument for which "" is a value."""


# `text` is annotated as plain `str`: the MCP SDK would parse what a `str | None` argument holds
# when it looks like JSON, and a JSON file is a text worth uploading.
_OMITTED = _Omitted()


def add_file_tools(mcp: MCPServer[None], settings: Settings, calls: Calls) -> None:
    tools = FileTools(settings.files, calls)
    add = partial(add_tool, mcp, settings)
    add(tools.upload_file, title="Upload a file", annotations=WRITES)
    add(tools.download_file, title="Download a file", annotations=WRITES)
    add(tools.list_files, title="List files", annotations=READS)


class FileTools:
    def __init__(self, settings: FileSettings, calls: Calls) -> None:
        self._settings = settings
        self._calls = calls

    async def upload_file(
        self,
        path: Annotated[str, Field(description="Where in the sandbox; relative to /home/user")],
        ctx: Context[None],
        text: Annotated[str, Field(description="The content, for a text file")] = _OMITTED,
        base64: Annotated[
            str | None, Field(description="The content, for any other file, in base64")
        ] = None,
        source_path: Annotated[
            str | None, Field(description="A file of the user's machine, where that is allowed")
        ] = None,
        session: SessionArgument = None,
    ) -> Annotated[CallToolResult, UploadResult]:
        """Writes a file into the session's sandbox, replacing what is there; folders are made as
        needed. Give exactly one of `text`, `base64` and `source_path`. The last copies a file of
        the machine that this server runs on without passing it through the conversation; its
        operator allows folders for that.
        """
        check_not_empty("path", path)
        key = current_caller().key(session)
        if _source(text, base64, source_path) == "source_path":
            _check_local("source_path")
            with open_source(source_path or "", self._settings.roots) as file:
                check_size(os.fstat(file.fileno()).st_size, self._settings)
                async with self._calls.lease(key, ctx) as (lease, _):
                    await lease.write_file(path, chunks(file))
                    return await _uploaded(lease, path)
        content = text.encode("utf-8", "replace") if base64 is None else _decode(base64)
        check_size(len(content), self._settings)
        async with self._calls.lease(key, ctx) as (lease, _):
            await lease.write_file(path, content)
            return await _uploaded(lease, path)

    async def download_file(
        self,
        path: Annotated[str, Field(description="Where in the sandbox; relative to /home/user")],
        ctx: Context[None],
        session: SessionArgument = None,
        target_path: Annotated[
            str | None,
            Field(description="Where on the user's machine to save it, where that is allowed"),
        ] = None,
    ) -> Annotated[CallToolResult, DownloadResult]:
        """Reads a file of the session's sandbox. A file of at most {inline_limit:,} bytes comes
        back in the result, an image as an image; a larger one as a resource link, which a program
        can read. With `target_path` it is saved on the machine that this server runs on instead,
        without passing through the conversation; its operator allows folders for that.
        """
        check_not_empty("path", path)
        key = current_caller().key(session)
        if target_path is not None:
            _check_local("target_path")
        async with self._calls.lease(key, ctx, use="read") as (lease, _):
            info = await lease.stat_file(path)
            if info.kind == "directory":
                raise InvalidArgumentError(
                    f"path: {path} is a folder.", hint="Use list_files to see what is in it."
                )
            check_size(info.size, self._settings)
            if target_path is not None:
                with open_target(target_path, self._settings.roots) as file:
                    await _save(lease, info, file)
                return _saved(place_of(lease), info, target_path)
            if info.size <= self._settings.inline_limit:
                content = await lease.read_file(info.path)
                return _inline(place_of(lease), info, content)
            return _linked(place_of(lease), info)

    async def list_files(
        self,
        ctx: Context[None],
        path: Annotated[str, Field(description="A folder; relative to /home/user")] = "/home/user",
        session: SessionArgument = None,
    ) -> Annotated[CallToolResult, FilesResult]:
        """Lists the files and folders of one folder of the session's sandbox."""
        check_not_empty("path", path)
        key = current_caller().key(session)
        async with self._calls.lease(key, ctx, use="read") as (lease, _):
            found = await lease.list_files(path)
            return _listing(place_of(lease), path, sorted(found, key=lambda info: info.path))


def check_size(size: int, settings: FileSettings) -> None:
    limit = settings.size_limit
    if size > limit:
        raise TooLargeError(
            f"The file has {size:,} bytes, more than the {limit:,} of files.size_limit.",
            hint="Compress or split it.",
        )


def _check_local(argument: str) -> None:
    if not current_caller().is_local:
        raise PathNotAllowedError(
            f"{argument}: over HTTP there is no host file to use.",
            hint="Pass the content itself, or have the sandbox fetch it.",
        )


# --- uploads ------------------------------------------------------------------------------------


def _source(text: str, base64: str | None, source_path: str | None) -> str:
    """The one argument that has the content."""
    others = {"base64": base64, "source_path": source_path}
    given = [name for name, value in others.items() if value is not None]
    # A client that fills in every default sends "" beside the one it means.
    if text or (not given and not isinstance(text, _Omitted)):
        given.insert(0, "text")
    if len(given) != 1:
        raise InvalidArgumentError(
            f"{', '.join(given)}: give only one of them."
            if given
            else "text, base64, source_path: give one of them."
        )
    return given[0]


def _decode(content: str) -> bytes:
    try:
        return base64_codec.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidArgumentError(f"base64: cannot be decoded ({exc}).") from exc


async def chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await anyio.to_thread.run_sync(file.read, CHUNK):
        yield chunk


async def _uploaded(lease: Lease, path: str) -> CallToolResult:
    place = place_of(lease)
    entry = file_entry(place.session, await lease.stat_file(path))
    structured: UploadResult = {
        **place.fields(),
        "path": entry["path"],
        "size": entry["size"],
        "uri": entry["uri"],
    }
    return answer(structured, f"{entry['path']} has {entry['size']:,} bytes.\n{place.line()}")


# --- downloads ----------------------------------------------------------------------------------


async def _save(lease: Lease, info: FileInfo, file: BinaryIO) -> None:
    async with lease.stream_file(info.path) as chunks:
        async for chunk in chunks:
            await anyio.to_thread.run_sync(file.write, chunk)


def _saved(place: Place, info: FileInfo, target_path: str) -> CallToolResult:
    structured = _download(place, info, saved_to=target_path)
    words = f"{structured['path']} ({info.size:,} bytes) is saved as {target_path}."
    return answer(structured, f"{words}\n{place.line()}")


def _linked(place: Place, info: FileInfo) -> CallToolResult:
    structured = _download(place, info)
    words = (
        f"{structured['path']} has {info.size:,} bytes, too many to show. Read its resource "
        f"{structured['uri']}, or look at parts of it with run_python."
    )
    link = file_link(file_entry(place.session, info))
    return answer(structured, f"{words}\n{place.line()}", link)


def _inline(place: Place, info: FileInfo, content: bytes) -> CallToolResult:
    text = as_text(content)
    encoded = base64_codec.b64encode(content).decode() if text is None else None
    structured = _download(place, info, text=text, base64=encoded)
    if text is not None:
        return answer(structured, f"{text}\n\n{place.line()}")
    words = f"{structured['path']}: {len(content):,} bytes, {info.mime_type}"
    return answer(structured, f"{words}\n{place.line()}", _block(structured, encoded or ""))


def _block(file: DownloadResult, data: str) -> ContentBlock:
    if file["mime_type"] in {"image/png", "image/jpeg", "image/gif", "image/webp"}:
        return ImageContent(data=data, mime_type=file["mime_type"])
    contents = BlobResourceContents(uri=file["uri"], mime_type=file["mime_type"], blob=data)
    return EmbeddedResource(resource=contents)


def as_text(content: bytes) -> str | None:
    """None for what is no text."""
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _download(
    place: Place,
    info: FileInfo,
    *,
    text: str | None = None,
    base64: str | None = None,
    saved_to: str | None = None,
) -> DownloadResult:
    return {
        **place.fields(),
        **file_entry(place.session, info),
        "text": text,
        "base64": base64,
        "saved_to": saved_to,
    }


# --- listings -----------------------------------------------------------------------------------


def _listing(place: Place, path: str, found: list[FileInfo]) -> CallToolResult:
    shown = found[:MOST_ENTRIES]
    structured: FilesResult = {
        **place.fields(),
        "path": path,
        "entries": [_entry(place, info) for info in shown],
        "truncated": len(shown) < len(found),
    }
    lines = [_line(entry) for entry in structured["entries"]] or ["(empty)"]
    if structured["truncated"]:
        lines.append(f"and {len(found) - len(shown):,} more")
    return answer(structured, "\n".join([*lines, place.line()]))


def _entry(place: Place, info: FileInfo) -> Entry:
    return {
        **file_entry(place.session, info),
        "type": info.kind,
        "modified_at": info.modified_at.isoformat(),
    }


def _line(entry: Entry) -> str:
    return (
        f"{entry['path']}/"
        if entry["type"] == "directory"
        else (f"{entry['path']} ({entry['size']:,} bytes)")
    )

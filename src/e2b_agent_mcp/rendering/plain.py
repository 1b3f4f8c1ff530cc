"""Results that need no limits: failures, answers of a few words, links to files."""

import mimetypes
from collections.abc import Mapping
from urllib.parse import quote

from mcp.types import CallToolResult, ContentBlock, ResourceLink, TextContent

from e2b_agent_mcp.lifecycle import FileInfo
from e2b_agent_mcp.rendering.results import ErrorResult, File
from e2b_agent_mcp.rendering.text import cut, encodable

MESSAGE_LIMIT = 8_000  # characters; pip and E2B may have much to say


def failure(code: str, message: str, hint: str = "") -> CallToolResult:
    """A call that did nothing useful; `code` is one of errors.py, or `internal`."""
    message = cut(encodable(message), MESSAGE_LIMIT, rest="it is lost")
    structured: ErrorResult = {"error": {"code": code, "message": message, "hint": hint}}
    text = TextContent(text=f"{message}\n{hint}".strip())
    return CallToolResult(content=[text], structured_content=structured, is_error=True)


def answer(structured: Mapping[str, object], text: str, *blocks: ContentBlock) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text), *blocks], structured_content=structured)


def sandbox_uri(session: str, path: str) -> str:
    """The resource that has the bytes of a file; `path` is absolute."""
    return f"sandbox://{session}/{quote(encodable(path).lstrip('/'), safe='/')}"


def file_entry(session: str, info: FileInfo) -> File:
    return {
        "path": encodable(info.path),
        "size": info.size,
        "mime_type": info.mime_type,
        "uri": sandbox_uri(session, info.path),
    }


def kept_entry(session: str, path: str, size: int) -> File:
    mime_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return {
        "path": path,
        "size": size,
        "mime_type": mime_type,
        "uri": sandbox_uri(session, path),
    }


def file_link(file: File) -> ResourceLink:
    name = file["path"].rpartition("/")[2]
    return ResourceLink(uri=file["uri"], name=name, mime_type=file["mime_type"], size=file["size"])

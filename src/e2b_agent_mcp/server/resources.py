"""Resources: the sessions, and the files of a session's sandbox. Reading one creates no sandbox."""

import json
import mimetypes

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)

from e2b_agent_mcp.errors import E2BAgentError, NotFoundError
from e2b_agent_mcp.lifecycle import FileInfo, Lease, SandboxManager
from e2b_agent_mcp.server.file_tools import as_text
from e2b_agent_mcp.server.sessions import check_name, current_caller
from e2b_agent_mcp.server.tools import visible_sessions

SESSIONS_URI = "sandbox://sessions"
FILE_TEMPLATE = "sandbox://{session}/{+path}"
SIZE_LIMIT = 16_000_000  # bytes; a client holds the whole of a resource, in base64


def mime_type_of(uri: str, content: str | bytes) -> str:
    """A template has one MIME type for all its resources, so it is guessed from the name."""
    if uri == SESSIONS_URI:
        return "application/json"
    fallback = "text/plain" if isinstance(content, str) else "application/octet-stream"
    return mimetypes.guess_type(uri)[0] or fallback


def add_resources(mcp: MCPServer[None], manager: SandboxManager) -> None:
    resources = Resources(manager)
    mcp.resource(
        SESSIONS_URI,
        name="sessions",
        title="Sessions",
        description="The sessions that have a sandbox, as JSON.",
        mime_type="application/json",
    )(resources.sessions)
    mcp.resource(
        FILE_TEMPLATE,
        name="file",
        title="File of a sandbox",
        description="The bytes of a file in a session's sandbox; `path` may be relative to "
        "/home/user.",
        mime_type="application/octet-stream",
    )(resources.file)
    # The SDK gives this decorator no types.
    mcp.completion()(resources.complete)  # type: ignore[no-untyped-call]


class Resources:
    def __init__(self, manager: SandboxManager) -> None:
        self._manager = manager

    async def sessions(self) -> str:
        return json.dumps(await visible_sessions(self._manager), indent=2)

    async def file(self, session: str, path: str) -> str | bytes:
        try:
            content = await self._read(session, path)
        except NotFoundError as exc:
            raise ResourceNotFoundError(str(exc)) from exc
        except E2BAgentError as exc:
            raise ResourceError(str(exc)) from exc
        return as_text(content) or content

    async def _read(self, session: str, path: str) -> bytes:
        key = current_caller().key(check_name(session))
        sessions = await self._manager.list_sessions(key.owner)
        if key.name not in {info.name for info in sessions}:
            raise NotFoundError(f"No session {session!r} has a sandbox.")
        async with self._manager.lease(key, use="read") as lease:
            info = await _stat(lease, path)
            path = info.path
            if info.kind == "directory":
                raise NotFoundError(f"{path} is a folder.")
            if info.size > SIZE_LIMIT:
                raise ResourceError(
                    f"{path} has {info.size:,} bytes, more than the {SIZE_LIMIT:,} of a resource. "
                    "Save it with download_file and `target_path`."
                )
            return await lease.read_file(path)

    async def complete(
        self,
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        """Names of sessions, wherever one is asked for."""
        if argument.name != "session":
            return None
        names = [session["session"] for session in await visible_sessions(self._manager)]
        matching = [name for name in names if name.startswith(argument.value)]
        return Completion(values=matching[:100], total=len(matching), has_more=len(matching) > 100)


async def _stat(lease: Lease, path: str) -> FileInfo:
    """A URI has no room for a leading slash, so both readings of `path` are tried."""
    try:
        return await lease.stat_file(f"/{path}")
    except NotFoundError:
        return await lease.stat_file(path)

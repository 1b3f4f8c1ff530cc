"""The composition root: settings, sandboxes, tools, resources and prompts become one server."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from mcp.server import MCPServer
from mcp.server.auth.provider import TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.types import CallToolResult, InputRequiredResult, Tool
from pydantic import AnyHttpUrl, AnyUrl, ValidationError

from e2b_agent_mcp.connection import tasks_dir
from e2b_agent_mcp.errors import E2BAgentError, InvalidArgumentError
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.owned_tasks import owned_tasks
from e2b_agent_mcp.rendering import failure, or_failure
from e2b_agent_mcp.server.agent_tools import add_agent_tools
from e2b_agent_mcp.server.arguments import explain
from e2b_agent_mcp.server.background import BackgroundCalls
from e2b_agent_mcp.server.calls import Calls
from e2b_agent_mcp.server.file_tools import add_file_tools
from e2b_agent_mcp.server.prompts import add_prompts
from e2b_agent_mcp.server.resources import add_resources, mime_type_of
from e2b_agent_mcp.server.sessions import CallerMiddleware
from e2b_agent_mcp.server.task_extension import TaskExtension
from e2b_agent_mcp.server.tools import add_run_tools
from e2b_agent_mcp.settings import Settings
from e2b_agent_mcp.tasks import TaskRegistry, TaskStore

logger = logging.getLogger(__name__)

INSTRUCTIONS = """Runs code in isolated Linux sandboxes. run_python is a notebook that keeps its \
variables from call to call; run_command is a shell on the same machine. A session is the name of \
such a machine: omit it and you always get the same one, name another to keep work apart. Bring \
files in with upload_file and out with download_file. Every result says whether the sandbox was \
reused or is new: in a new one, earlier variables and files are gone."""


def create_server(
    settings: Settings,
    *,
    manager: SandboxManager | None = None,
    background: BackgroundCalls | None = None,
    token_verifier: TokenVerifier | None = None,
) -> MCPServer[None]:
    """An MCP server with all tools, to be run by any of the SDK's transports.

    A `manager` of the caller's stays the caller's, to open and to close; without one the server
    makes its own, which lives as long as the server runs. Who adds tools whose calls may become
    tasks says so in `background.after`. Configure logging before: otherwise the SDK does.
    """
    own = manager is None
    manager = manager or SandboxManager(settings)
    store = TaskStore(partial(tasks_dir, settings))
    calls = Calls(manager, TaskRegistry(settings, manager, store))
    background = background or BackgroundCalls()
    mcp = SandboxServer(
        "e2b-agent-mcp",
        title="Python sandboxes and agents",
        version=version("e2b-agent-mcp"),
        instructions=INSTRUCTIONS,
        lifespan=partial(_lifespan, calls, background, own),
        extensions=[TaskExtension(settings, calls.tasks, background)],
        middleware=[CallerMiddleware(settings)],
        token_verifier=token_verifier,
        auth=_STATIC_TOKENS if token_verifier else None,
    )
    add_run_tools(mcp, settings, calls)
    add_agent_tools(mcp, settings, calls)
    add_file_tools(mcp, settings, calls)
    add_resources(mcp, calls.manager)
    add_prompts(mcp)
    return mcp


# Tokens come from the settings, so no OAuth server is to be discovered; a URL is required all the
# same and goes nowhere.
_STATIC_TOKENS = AuthSettings(
    issuer_url=AnyHttpUrl("http://localhost"),
    resource_server_url=None,
)


class SandboxServer(MCPServer[None]):
    """Turns what a tool raises into a failed call that says what to do: the one place for that."""

    async def list_tools(self) -> list[Tool]:
        """With output schemas that failed calls satisfy too: TypeScript clients check those, and
        would show the model a schema error instead of ours."""
        return [
            tool.model_copy(update={"output_schema": or_failure(tool.output_schema)})
            if tool.output_schema
            else tool
            for tool in await super().list_tools()
        ]

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],  # Any: JSON
        context: Context[None, Any] | None = None,
    ) -> CallToolResult | InputRequiredResult:
        """A null means the same as an argument that is left out: many clients send nulls."""
        given = {key: value for key, value in arguments.items() if value is not None}
        try:
            await self._check_known(name, given)
            return await super().call_tool(name, given, context)
        except E2BAgentError as exc:
            return _refused(name, exc)
        except ToolError as exc:
            return _failed(name, exc)

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[None, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        contents = await super().read_resource(uri, context)
        if isinstance(contents, InputRequiredResult):
            return contents
        return [replace(item, mime_type=mime_type_of(str(uri), item.content)) for item in contents]

    async def _check_known(self, name: str, arguments: dict[str, Any]) -> None:
        """Refuses arguments that the tool does not have: ignored, `timout` would mislead."""
        for tool in await self.list_tools():
            if tool.name != name:
                continue
            known = tool.input_schema.get("properties", {})
            if unknown := sorted(set(arguments) - set(known)):
                raise InvalidArgumentError(
                    f"{', '.join(unknown)[:200]}: no such argument of {name}.",
                    hint=f"It takes: {', '.join(known) or 'none'}.",
                )


def _failed(name: str, error: ToolError) -> CallToolResult:
    cause = error.__cause__
    if isinstance(cause, E2BAgentError):
        return _refused(name, cause)
    if isinstance(cause, ValidationError) and not isinstance(error, UnexpectedToolError):
        return _refused(name, InvalidArgumentError(explain(cause)))
    if not isinstance(error, UnexpectedToolError):  # a name that no tool has
        return failure(InvalidArgumentError.code, str(error))
    logger.error("%s failed", name, exc_info=cause)
    return failure(
        "internal",
        f"{name} failed: {type(cause).__name__}, a defect of this server.",
        "Its log on stderr has the details.",
    )


def _refused(name: str, error: E2BAgentError) -> CallToolResult:
    logger.info("%s: %s", name, error.code)
    return failure(error.code, error.message, error.hint)


@asynccontextmanager
async def _lifespan(
    calls: Calls, background: BackgroundCalls, own: bool, _: MCPServer[None]
) -> AsyncIterator[None]:
    """Opens the manager, and gets ready for the first call meanwhile."""
    async with AsyncExitStack() as stack:
        if own:
            await stack.enter_async_context(calls.manager)
        await stack.enter_async_context(calls.tasks)
        await stack.enter_async_context(background)
        tasks = await stack.enter_async_context(owned_tasks())
        tasks.start_soon(calls.prepare)
        yield

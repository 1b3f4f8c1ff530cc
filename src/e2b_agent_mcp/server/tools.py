"""The tools that run things and manage sessions: argument checks, one lease, one rendered result.

The methods' docstrings are the descriptions that models read; `add_tool` fills their `{}` fields
from the settings. What a method raises becomes a failed call in one place,
`SandboxServer.call_tool`.
"""

import inspect
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from e2b_agent_mcp.costs import Spent
from e2b_agent_mcp.errors import E2BAgentError
from e2b_agent_mcp.lifecycle import Lease, SandboxManager, SessionInfo
from e2b_agent_mcp.rendering import Rendered, answer, command_result, python_result
from e2b_agent_mcp.rendering.results import (
    CommandResult,
    EndResult,
    PythonResult,
    RestartResult,
    Session,
    SessionsResult,
)
from e2b_agent_mcp.rendering.sessions import session_entry, sessions_result
from e2b_agent_mcp.server.arguments import (
    SessionArgument,
    TimeoutArgument,
    check_not_empty,
    check_packages,
    check_timeout,
)
from e2b_agent_mcp.server.calls import Calls, place_of
from e2b_agent_mcp.server.sessions import Caller, current_caller
from e2b_agent_mcp.settings import Settings

KEPT_FOLDER = "/home/user/.output"

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
RUNS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)
ENDS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)


def add_tool(
    mcp: MCPServer[None],
    settings: Settings,
    method: Callable[..., Any],  # Any: tools differ in their arguments
    *,
    title: str,
    annotations: ToolAnnotations,
) -> None:
    description = inspect.cleandoc(method.__doc__ or "").format(
        timeout=settings.runs.timeout,
        max_timeout=settings.runs.max_timeout,
        inline_limit=settings.files.inline_limit,
        life=settings.sandboxes.kept,
        wait=settings.agent.wait,
        max_steps=settings.agent.max_steps,
    )
    mcp.add_tool(method, title=title, description=description, annotations=annotations)


def add_run_tools(mcp: MCPServer[None], settings: Settings, calls: Calls) -> None:
    tools = RunTools(settings, calls)
    add = partial(add_tool, mcp, settings)
    add(tools.run_python, title="Run Python", annotations=RUNS)
    add(tools.run_command, title="Run a shell command", annotations=RUNS)
    add(tools.list_sessions, title="List sessions", annotations=READS)
    add(tools.restart_session, title="Restart a session", annotations=ENDS)
    add(tools.end_session, title="End a session", annotations=ENDS)


class RunTools:
    def __init__(self, settings: Settings, calls: Calls) -> None:
        self._settings = settings
        self._calls = calls

    async def run_python(
        self,
        code: Annotated[str, Field(description="Python code; the last expression is the result")],
        ctx: Context[None],
        session: SessionArgument = None,
        timeout: TimeoutArgument = None,
        packages: Annotated[
            list[str] | None,
            Field(description="PyPI requirements to install first, such as 'polars' or 'x>=2'"),
        ] = None,
    ) -> Annotated[CallToolResult, PythonResult]:
        """Runs Python code in an isolated sandbox, as in a notebook: the session keeps variables,
        imports, files and installed packages for the next call.

        Installed: numpy, pandas, matplotlib, seaborn, plotly, scikit-learn, scipy, sympy, requests,
        beautifulsoup4, openpyxl, pillow; others by `packages`. The value of the last expression and
        everything displayed come back: text, tables, and each matplotlib or PIL image as an image
        (call plt.show()). Files that the code writes to its working folder /home/user are listed
        and can be read with download_file. An exception in the code comes back with its traceback.

        The code may run {timeout:g} s (`timeout`: at most {max_timeout:g}), then it is interrupted
        and variables are kept. Long output is cut; the result says where all of it is. A sandbox
        ends {life:g} s after its last use; `sandbox_state` 'created' or 'recreated' means that it
        is new and has no variables of earlier calls. Code cannot see the user's own files:
        upload_file brings them in.
        """
        limit = check_timeout(timeout, self._settings.runs)
        check_not_empty("code", code)
        requirements = check_packages(packages or [])
        async with self._calls.lease(current_caller().key(session), ctx) as (lease, progress):
            if requirements:
                await progress.doing(f"installing {', '.join(requirements)}")
                await lease.install(requirements, timeout=self._settings.runs.install_timeout)
            run = await lease.run_code(
                code, timeout=limit, on_stdout=progress.printed, on_stderr=progress.printed
            )
            return await self._finish(lease, partial(python_result, run))

    async def run_command(
        self,
        command: Annotated[str, Field(description="A command line for bash")],
        ctx: Context[None],
        session: SessionArgument = None,
        timeout: TimeoutArgument = None,
        cwd: Annotated[
            str | None, Field(description="Folder to run it in; /home/user when omitted")
        ] = None,
    ) -> Annotated[CallToolResult, CommandResult]:
        """Runs a shell command in the session's sandbox: the same machine, files and packages that
        run_python works with. Each command has a shell of its own, so `cd` and variables do not
        last. Use it for git, curl, unzip, pip, tests and command line programs; there is no input,
        so pass options such as -y.

        It may run {timeout:g} s (`timeout`: at most {max_timeout:g}), then it is stopped. An exit
        code other than 0 gives status 'error'. Long output is cut; the result says where all of it
        is.
        """
        limit = check_timeout(timeout, self._settings.runs)
        check_not_empty("command", command)
        async with self._calls.lease(current_caller().key(session), ctx) as (lease, progress):
            run = await lease.run_command(
                command,
                timeout=limit,
                cwd=cwd,
                on_stdout=progress.printed,
                on_stderr=progress.printed,
            )
            return await self._finish(lease, partial(command_result, run))

    async def list_sessions(self) -> Annotated[CallToolResult, SessionsResult]:
        """Lists the sessions that have a sandbox: its state, its age, when it will end, what it
        uses of its CPUs, memory and disk, and what the session has cost this month.
        """
        manager, caller = self._calls.manager, current_caller()
        found = await visible(manager, caller)
        usage = await manager.usage(info.sandbox_id for info in found if info.state == "running")
        spending = await manager.spending(caller.owner)
        now = datetime.now(UTC)
        sessions = [session_entry(info, now, usage.get(info.sandbox_id)) for info in found]
        # What anonymous callers spend together is nothing that one of them should learn.
        mine = sum((info.spent for info in found), Spent()) if caller.is_anonymous else None
        return sessions_result(sessions, spending, mine or spending.total)

    async def restart_session(
        self, ctx: Context[None], session: SessionArgument = None
    ) -> Annotated[CallToolResult, RestartResult]:
        """Gives the session a fresh Python interpreter: variables and imports are gone, files and
        installed packages stay. Use it when the interpreter is in a bad state, or to import a
        package again that was upgraded.
        """
        key = current_caller().existing_key(session)
        async with self._calls.lease(key, ctx) as (lease, _):
            await lease.restart()
            note = "The interpreter is new; files and installed packages are as they were."
            place = place_of(lease)
            structured: RestartResult = {**place.fields(note)}
            return answer(structured, place.line(note))

    async def end_session(
        self, session: SessionArgument = None
    ) -> Annotated[CallToolResult, EndResult]:
        """Ends the session and its sandbox for good: variables, files and packages are gone. Use it
        when the work is done and its files are downloaded; a later call starts anew.
        """
        key = current_caller().existing_key(session)
        await self._calls.tasks.end_session(key)
        ended = await self._calls.manager.end_session(key)
        structured: EndResult = {"session": key.name, "ended": ended}
        words = "has ended" if ended else "had no sandbox"
        return answer(structured, f"Session {key.name!r} {words}.")

    async def _finish(self, lease: Lease, render: Callable[..., Rendered]) -> CallToolResult:
        """Renders a run, and writes what its result has no room for into the sandbox."""
        try:
            files = await lease.changed_files()
        except E2BAgentError:  # the run's note says what became of the sandbox
            files = []
        render = partial(render, place=place_of(lease), files=files, limits=self._settings.outputs)
        folder = f"{KEPT_FOLDER}/{time.time_ns() // 1_000_000}"
        rendered = await anyio.to_thread.run_sync(partial(render, folder=folder))
        try:
            for kept in rendered.kept:
                await lease.write_file(kept.path, kept.content)
        except E2BAgentError:
            rendered = await anyio.to_thread.run_sync(partial(render, folder=None))
        return rendered.result


async def visible_sessions(manager: SandboxManager) -> list[Session]:
    """The sessions that the current caller may know of."""
    found = await visible(manager, current_caller())
    return [session_entry(info, datetime.now(UTC)) for info in found]


async def visible(manager: SandboxManager, caller: Caller) -> list[SessionInfo]:
    found = await manager.list_sessions(caller.owner)
    return [info for info in found if caller.may_see(info.name)]

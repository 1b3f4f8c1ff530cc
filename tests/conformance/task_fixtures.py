"""What the conformance suite's scenarios of the tasks extension expect a server to offer.

The tools run in the same `BackgroundCalls` as run_python; only the time after which they become
tasks is their own.
"""

from typing import Any

import anyio
from fixtures import _answers, _ask, _text
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, require_client_extension
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, CallToolResult, InputRequiredResult

from e2b_agent_mcp.server.background import BackgroundCalls, current_background
from e2b_agent_mcp.server.sessions import TASKS

AT_ONCE = 0.0  # seconds
SOON = 0.5  # seconds: a first round that only asks is answered within its request
LONGER = 1.5  # seconds


def register(server: MCPServer[Any], background: BackgroundCalls) -> None:
    for tool in (
        *(greet, slow_compute, failing_job, protocol_error_job),
        *(confirm_delete, multi_input, test_tool_with_task),
    ):
        server.add_tool(tool, structured_output=False)
        if tool is not greet:
            background.after[tool.__name__] = SOON if tool is test_tool_with_task else AT_ONCE


def greet(name: str) -> str:
    """Greets at once; never a task."""
    return f"Hello, {name}!"


async def slow_compute(seconds: float, label: str = "") -> str:
    """Takes its time."""
    await anyio.sleep(seconds)
    return f"Computed {label} in {seconds:g} s."


async def failing_job(ctx: Context) -> str:
    """Fails after a second; for clients that take tasks only."""
    require_client_extension(ctx.request_context, TASKS)
    await anyio.sleep(1.0)
    raise ToolError("This job always fails.")


async def protocol_error_job() -> str:
    """Ends with an error of the protocol."""
    raise MCPError(INTERNAL_ERROR, "This job breaks the protocol.")


async def confirm_delete(filename: str) -> str:
    """Asks before it would delete."""
    answer = await _asked(f"Delete {filename}?", confirm="boolean")
    return f"{'Deleted' if answer.get('confirm') else 'Kept'} {filename}."


async def multi_input() -> str:
    """Asks two things at once."""
    answers: list[dict[str, Any]] = []

    async def ask(message: str) -> None:
        answers.append(await _asked(message, name="string"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "Who are you?")
        tasks.start_soon(ask, "Who else is there?")
    return f"Heard {len(answers)} answers."


async def test_tool_with_task(ctx: Context) -> CallToolResult | InputRequiredResult:
    """Asks for a name, then takes its time to greet."""
    answers = _answers(ctx, "user_name")
    if answers is None:
        asked = _ask("What is your name?", name="string")
        return InputRequiredResult(input_requests={"user_name": asked}, request_state="asked")
    await anyio.sleep(LONGER)
    return _text(f"Hello, {(answers[0].content or {}).get('name')}!")


async def _asked(message: str, **kinds: str) -> dict[str, Any]:
    """The user's answer, from within a task."""
    background = current_background()
    if background is None:
        raise ToolError("This client takes no tasks.")
    answer: dict[str, Any] = await background.questions.ask(_ask(message, **kinds))
    content: dict[str, Any] = answer.get("content") or {}
    return content

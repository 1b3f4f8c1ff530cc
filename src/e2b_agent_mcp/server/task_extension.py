"""The MCP tasks extension (SEP-2663): clients that declare it get a task for a call that is long.

A call of run_agent_task is one from the start, unless it says itself how long to `wait`: its id is
the task's own, so it is on disk, outlives this server and is known to get_agent_task too. (One that
is gone on with afterwards is at work again under its id.) Calls of run_python and run_command
become one after `HAND_OVER` seconds, and end with the server; see `background`.

What a task asks of its client, such as a reply of the client's model, is shown by tasks/get and
answered by tasks/update. Tasks are their owner's; another's is unknown.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp.types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    CreateMessageResult,
    RequestParams,
)
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError

from e2b_agent_mcp.errors import NotFoundError
from e2b_agent_mcp.server.agent_tools import render_task, words
from e2b_agent_mcp.server.background import KEPT, BackgroundCall, BackgroundCalls
from e2b_agent_mcp.server.sampling import to_reply, to_request
from e2b_agent_mcp.server.sessions import TASKS, current_caller, declares_tasks
from e2b_agent_mcp.settings import Settings
from e2b_agent_mcp.tasks import TaskRecord, TaskRegistry
from e2b_agent_mcp.tasks.store import LEAST_KEPT

HAND_OVER = 5.0  # seconds of a call, after which it becomes a task
POLL = 1.0  # seconds that clients are advised to wait between two looks

# Any, in this module: JSON, and the SDK's types for the transport's request.
Json = dict[str, Any]
Ctx = ServerRequestContext[Any, Any]


class TaskParams(RequestParams):
    task_id: str


class UpdateParams(TaskParams):
    input_responses: dict[str, Any]


class TaskExtension(Extension):
    identifier = TASKS

    def __init__(self, settings: Settings, tasks: TaskRegistry, calls: BackgroundCalls) -> None:
        self._settings = settings
        self._tasks = tasks
        self._calls = calls
        calls.after.update(run_python=HAND_OVER, run_command=HAND_OVER)

    def methods(self) -> list[MethodBinding]:
        bind = partial(MethodBinding, protocol_versions=frozenset(MODERN_PROTOCOL_VERSIONS))
        return [
            bind("tasks/get", TaskParams, _checked(self._get)),
            bind("tasks/update", UpdateParams, _checked(self._update)),
            bind("tasks/cancel", TaskParams, _checked(self._cancel)),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Ctx, call_next: CallNext
    ) -> HandlerResult:
        if not declares_tasks(ctx):
            return await call_next(ctx)
        owner = current_caller().owner
        if params.name == "run_agent_task":
            result = await call_next(ctx)
            task_id = _handed_back(params, result)
            return await self._created(owner, task_id) if task_id else result
        answer = await self._calls.run(owner, params.name, partial(call_next, ctx))
        if isinstance(answer, BackgroundCall):
            return {"resultType": "task", **_call_fields(answer), "status": "working"}
        return answer

    async def _created(self, owner: str, task_id: str) -> Json:
        record = await self._tasks.get(owner, task_id)
        return {"resultType": "task", **_task_fields(record), "status": "working"}

    # --- methods --------------------------------------------------------------------------------

    async def _get(self, params: TaskParams) -> Json:
        caller = current_caller()
        if params.task_id.startswith("c-"):
            return _call_detail(self._calls.find(caller.owner, params.task_id))
        record = await self._tasks.get(caller.owner, params.task_id)
        fields = _task_fields(record)
        if record.status == "cancelled":
            return {**fields, "status": "cancelled"}
        if record.status != "working":
            result = await render_task(record, caller, self._settings)
            return {**fields, "status": "completed", "result": _dump(result)}
        latest = self._tasks.latest(caller.owner, params.task_id)
        if latest is not None and (said := words(latest)):
            fields["statusMessage"] = said[-1]
        questions = self._tasks.questions(caller.owner, params.task_id)
        return _waiting(fields, {item.key: to_request(item.asked) for item in questions})

    async def _update(self, params: UpdateParams) -> Json:
        """Answers to what is no longer asked are ignored."""
        owner = current_caller().owner
        if params.task_id.startswith("c-"):
            call = self._calls.find(owner, params.task_id)
            for key, answer in params.input_responses.items():
                if (asked := call.questions.find(key)) is not None:
                    asked.answer(answer)
            return {}
        await self._tasks.get(owner, params.task_id)
        for question in self._tasks.questions(owner, params.task_id):
            if question.key in params.input_responses:
                question.answer(to_reply(_sampled(params.input_responses[question.key])))
        return {}

    async def _cancel(self, params: TaskParams) -> Json:
        owner = current_caller().owner
        if params.task_id.startswith("c-"):
            self._calls.find(owner, params.task_id).scope.cancel()
        else:
            await self._tasks.cancel(owner, params.task_id)
        return {}


def _checked(
    method: Callable[[Any], Awaitable[Json]],
) -> Callable[[Ctx, Any], Awaitable[HandlerResult]]:
    """What holds for each of the methods; their SDK's own checks know only its own methods."""

    async def checked(ctx: Ctx, params: TaskParams) -> HandlerResult:
        require_client_extension(ctx, TASKS)
        headers = getattr(ctx.request, "headers", None)
        if headers is not None and decode_header_value(headers.get(MCP_NAME_HEADER)) != (
            params.task_id
        ):
            raise MCPError(HEADER_MISMATCH, "The header Mcp-Name must be the taskId.")
        try:
            return await method(params)
        except NotFoundError as exc:
            raise MCPError(INVALID_PARAMS, str(exc)) from exc

    return checked


def _handed_back(params: CallToolRequestParams, result: HandlerResult) -> str:
    """The id of a task that goes on, unless the call itself said how long it waits."""
    if (params.arguments or {}).get("wait") is not None or not isinstance(result, CallToolResult):
        return ""
    task = result.structured_content or {}
    return str(task["task_id"]) if task.get("status") == "working" else ""


def _sampled(answer: Any) -> CreateMessageResult:
    try:
        return CreateMessageResult.model_validate(answer, by_name=False)
    except ValidationError as exc:
        raise MCPError(INVALID_PARAMS, "This is no answer to sampling/createMessage.") from exc


# --- the wire -----------------------------------------------------------------------------------


def _task_fields(record: TaskRecord) -> Json:
    return _fields(record.task_id, record.created_at, record.changed_at, kept=LEAST_KEPT)


def _call_fields(call: BackgroundCall) -> Json:
    fields = _fields(call.call_id, call.created_at, call.changed_at, kept=KEPT)
    return {**fields, "statusMessage": call.words} if call.words else fields


def _fields(task_id: str, created_at: float, changed_at: float, *, kept: float) -> Json:
    """The time to live is the least: it grows with each change, and often it is longer."""
    return {
        "taskId": task_id,
        "createdAt": _time(created_at),
        "lastUpdatedAt": _time(changed_at),
        "ttlMs": int((changed_at - created_at + kept) * 1000),
        "pollIntervalMs": int(POLL * 1000),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _call_detail(call: BackgroundCall) -> Json:
    fields, outcome = _call_fields(call), call.outcome
    if not call.over.is_set():
        return _waiting(fields, {item.key: item.asked for item in call.questions.open})
    if outcome is None:
        return {**fields, "status": "cancelled"}
    if isinstance(outcome, CallToolResult):
        return {**fields, "status": "completed", "result": _dump(outcome)}
    error = call.error
    return {
        **fields,
        "status": "failed",
        "statusMessage": error.message,
        "error": error.model_dump(by_alias=True, mode="json", exclude_none=True),
    }


def _waiting(fields: Json, asked: dict[str, BaseModel]) -> Json:
    if not asked:
        return {**fields, "status": "working"}
    requests = {key: _dump(request) for key, request in asked.items()}
    return {**fields, "status": "input_required", "inputRequests": requests}


def _dump(model: BaseModel) -> Json:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)

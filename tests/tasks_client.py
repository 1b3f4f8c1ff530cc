"""A client of the tasks extension: the SDK's own client, with what the extension adds to it.

tasks = TasksClient()
async with Client(server, extensions=[tasks]) as client:
    result = await client.call_tool("run_agent_task", {"task": "..."})   # polls until the end
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
from mcp.client import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.session import ClientSession
from mcp.types import (
    CallToolResult,
    CreateMessageRequestParams,
    CreateMessageResult,
    Request,
    RequestParams,
    Result,
)
from pydantic import ConfigDict

from e2b_agent_mcp.server.sessions import TASKS

POLL = 0.05  # seconds
ENDS = ("completed", "failed", "cancelled")

# Any, in this module: JSON.
Json = dict[str, Any]
Sample = Callable[[CreateMessageRequestParams], Awaitable[CreateMessageResult]]


class Created(Result):
    result_type: Literal["task"] = "task"
    model_config = ConfigDict(extra="allow")
    task_id: str


class Anything(Result):
    model_config = ConfigDict(extra="allow")


class TaskRequestParams(RequestParams):
    model_config = ConfigDict(extra="allow")
    task_id: str


class TaskMethod(Request[TaskRequestParams, str]):
    name_param = "taskId"


class TasksClient(ClientExtension):
    identifier = TASKS

    def __init__(self, sample: Sample | None = None) -> None:
        self.created: list[str] = []  # ids, in their order
        self.seen: list[Json] = []  # what tasks/get said
        self._sample = sample

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Created, resolve=self._resolve)]

    async def _resolve(self, created: Created, ctx: ClaimContext) -> CallToolResult:
        self.created.append(created.task_id)
        task = await self.follow(ctx.session, created.task_id)
        assert task["status"] == "completed", task
        return CallToolResult.model_validate(task["result"])

    async def follow(self, session: ClientSession, task_id: str) -> Json:
        """Answers what is asked until the task is over."""
        answered: set[str] = set()
        while True:
            task = await ask(session, "tasks/get", taskId=task_id)
            self.seen.append(task)
            if task["status"] in ENDS:
                return task
            for key, request in task.get("inputRequests", {}).items():
                assert request["method"] == "sampling/createMessage"
                if self._sample is not None and key not in answered:
                    answered.add(key)
                    params = CreateMessageRequestParams.model_validate(request["params"])
                    answer = (await self._sample(params)).model_dump(
                        by_alias=True, mode="json", exclude_none=True
                    )
                    await ask(session, "tasks/update", taskId=task_id, inputResponses={key: answer})
            await anyio.sleep(POLL)


async def ask(session: ClientSession, method: str, **params: Any) -> Json:
    """One of the extension's methods."""
    request = TaskMethod(method=method, params=TaskRequestParams.model_validate(params))
    result = await session.send_request(request, Anything)
    return result.model_dump(by_alias=True, mode="json", exclude_none=True)


async def create(client: Client, tool: str, **arguments: object) -> Json:
    """The task that a call is answered with; the client does not follow it."""
    result = await client.session.call_tool(tool, arguments, allow_claimed=True)
    task = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    assert task.get("resultType") == "task", task
    return task

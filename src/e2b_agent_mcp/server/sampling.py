"""The language model of the caller's client, for an agent that asks it (MCP sampling).

Three ways, by what the client speaks:

    up to 2025-11-25            the server sends the question while the call waits
    2026-07-28                  the call ends with the question, and is made again with the answer
    2026-07-28, tasks           `task_extension` shows the question to who looks after the task

In the second one clients give up after ten rounds of a call, so after `ROUNDS` the task comes back
as it stands; get_agent_task has as many rounds again.
"""

import json
from collections.abc import Mapping
from typing import Any

import anyio
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ImageContent,
    InputRequiredResult,
    SamplingMessage,
    TextContent,
)
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS

from e2b_agent_mcp.agent.llm import ClientReply, Request
from e2b_agent_mcp.errors import ModelError
from e2b_agent_mcp.tasks import ModelQuestion, TaskRegistry

ROUNDS = 9  # questions in one call of 2026-07-28
LONGEST_REPLY = 8192  # tokens, where the task's budget sets no lower limit: MCP demands one
LONGEST_NAME = 80  # characters of a model's name, which is the client's word

ASKED_ENOUGH = (
    f"The model of your client was asked {ROUNDS} times in this call, as often as clients allow; "
    "call get_agent_task to go on."
)
WAITS = "It waits for the model of its client, which is asked while get_agent_task waits."


def lends_model(ctx: Context[None]) -> bool:
    """Whether the client offers its model, and can be asked."""
    can = ctx.client_capabilities
    offers = can is not None and can.sampling is not None
    return offers and (not _is_legacy(ctx) or ctx.session.can_send_request)


class ClientModel:
    """The questions of one task, as one call can have them answered."""

    def __init__(self, ctx: Context[None]) -> None:
        self._ctx = ctx
        self._legacy = _is_legacy(ctx)
        state = json.loads(ctx.request_state or "{}")  # sealed by the SDK: our own words
        self.task_id: str = state.get("task_id", "")  # of the round before
        self._round: int = state.get("round", 0)
        self._left: ModelQuestion | None = None

    def deliver(self, tasks: TaskRegistry, owner: str) -> None:
        """Hands on what the client answered in this round."""
        answers = self._ctx.input_responses or {}
        for question in tasks.questions(owner, self.task_id):
            if isinstance(answer := answers.get(question.key), CreateMessageResult):
                question.answer(to_reply(answer))

    async def attend(self, question: ModelQuestion) -> bool:
        """Has the question answered, or leaves it for the next round."""
        if self._legacy:
            await self._ask(question)
            return True
        self._left = question
        return False

    def next_round(self, task_id: str) -> InputRequiredResult | None:
        if self._left is None or self._round >= ROUNDS:
            return None
        return InputRequiredResult(
            input_requests={self._left.key: to_request(self._left.asked)},
            request_state=json.dumps({"task_id": task_id, "round": self._round + 1}),
        )

    @property
    def note(self) -> str:
        return ASKED_ENOUGH if self._left is not None else ""

    async def _ask(self, question: ModelQuestion) -> None:
        async def withdraw() -> None:
            await question.closed.wait()
            asking.cancel_scope.cancel()

        async with anyio.create_task_group() as asking:
            asking.start_soon(withdraw)
            question.answer(await self._said(question.asked))
            asking.cancel_scope.cancel()

    async def _said(self, asked: Request) -> ClientReply | ModelError:
        related = ServerMessageMetadata(related_request_id=self._ctx.request_context.request_id)
        session = self._ctx.session
        try:
            # Not `session.create_message`, which warns on stderr that sampling is deprecated.
            return to_reply(
                await session.send_request(to_request(asked), CreateMessageResult, metadata=related)
            )
        except MCPError as exc:
            return ModelError(
                f"Your client refused to ask its model: {exc.error.message[:200]}",
                hint="Allow it in the client, or set a model of the server's.",
            )
        except ValueError:  # pydantic's
            return ModelError("Your client answered for its model with something that is no text.")


def to_request(asked: Request) -> CreateMessageRequest:
    system = "\n\n".join(
        str(message["content"]) for message in asked.messages if message["role"] == "system"
    )
    longest = LONGEST_REPLY if asked.longest is None else min(asked.longest, LONGEST_REPLY)
    return CreateMessageRequest(
        params=CreateMessageRequestParams(
            messages=[said for message in asked.messages for said in _messages(message)],
            system_prompt=system or None,
            max_tokens=longest,
            stop_sequences=list(asked.stop) or None,
        )
    )


def to_reply(result: CreateMessageResult) -> ClientReply:
    return ClientReply(
        text=result.content.text if isinstance(result.content, TextContent) else "",
        complete=result.stop_reason != "maxTokens",
        model=result.model[:LONGEST_NAME],
    )


# Any: the parts of a chat API's message.
def _messages(message: Mapping[str, Any]) -> list[SamplingMessage]:
    """One per part: not every client takes several in a message."""
    role, content = message["role"], message["content"]
    if role == "system":
        return []
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return [SamplingMessage(role=role, content=_content(part)) for part in parts]


def _content(part: Mapping[str, Any]) -> TextContent | ImageContent:
    if part["type"] == "text":
        return TextContent(text=part["text"])
    kind, _, data = part["image_url"]["url"].removeprefix("data:").partition(";base64,")
    return ImageContent(data=data, mime_type=kind)


def _is_legacy(ctx: Context[None]) -> bool:
    return ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS

"""The `CodeAgent` of a run, and the model it asks: smolagents' side of the agent's thread.

Everything here blocks. A reply that was cut off at its longest is never run: smolagents would close
its code block and run the half; here the model is told instead.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, cast

from smolagents import CodeAgent, Model
from smolagents.memory import ActionStep
from smolagents.models import ChatMessage, MessageRole
from smolagents.monitoring import AgentLogger, LogLevel, TokenUsage
from smolagents.utils import AgentGenerationError, AgentParsingError

from e2b_agent_mcp.agent.executor import WorkspaceExecutor
from e2b_agent_mcp.agent.llm import Reply, Request
from e2b_agent_mcp.agent.messages import has_images, to_messages
from e2b_agent_mcp.agent.prompts import Conditions, templates
from e2b_agent_mcp.agent.replies import (
    CLOSING,
    OPENING,
    REPLY_FORMAT,
    from_json,
    tidy,
    to_json,
)
from e2b_agent_mcp.errors import ModelContextError, ModelError

if TYPE_CHECKING:
    from smolagents.agents import PromptTemplates

LONGEST_CUT_REPLY = 2000  # characters of it that the model is shown again

TOO_LONG = (
    "Your reply was cut off because it was too long, so no code was run. "
    "Write less: do the task in smaller steps."
)

NO_CODE = (
    "No code was found in your reply, so none was run. Reply in the form that was asked for. When "
    "the task is done, the code calls final_answer with the result."
)


class ReplyCut(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(TOO_LONG)
        self.text = text


class AgentModel(Model):
    """Asks by `ask`, which blocks and is called in the agent's thread."""

    def __init__(
        self,
        ask: Callable[[Request, bool], Reply],
        *,
        model_id: str,
        images: bool,
        as_json: bool,
    ) -> None:
        super().__init__(model_id=model_id)
        self._as_json = as_json
        self._ask = ask
        self._images = images
        self._shorten = False

    # Any: smolagents' options; an agent of code passes only these.
    def generate(
        self,
        messages: list[ChatMessage],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: object = None,
        **_: Any,
    ) -> ChatMessage:
        # smolagents asks for a step with stop sequences, and without for the last answer.
        is_last = stop_sequences is None
        as_json = self._as_json and not is_last
        stop = [] if is_last or as_json else [CLOSING]
        options = {"response_format": REPLY_FORMAT} if as_json else {}
        reply = self._said(messages, stop, options, is_last)
        if not reply.complete and not is_last:
            raise ReplyCut(reply.text)
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content=from_json(reply.text) if as_json else tidy(reply.text),
            token_usage=TokenUsage(reply.usage.input_tokens, reply.usage.output_tokens),
        )

    def _said(
        self,
        memory: Sequence[ChatMessage],
        stop: Sequence[str],
        options: dict[str, Any],
        is_last: bool,
    ) -> Reply:
        """Asks, and once more with less where less may help; later calls then send less too."""
        while True:
            messages = self._messages(memory)
            request = Request(messages=messages, stop=stop, options=options)
            try:
                return self._ask(request, is_last)
            except ModelContextError:
                if self._shorten:
                    raise
                self._shorten, self._images = True, False
            except ModelError as exc:
                # It may have refused the images: a broken one would end every later call too.
                if type(exc) is not ModelError or not has_images(messages):
                    raise
                self._images = False

    def _messages(self, memory: Sequence[ChatMessage]) -> list[dict[str, object]]:
        messages = to_messages(memory, images=self._images, shorten=self._shorten)
        for message in messages if self._as_json else ():
            if message["role"] == "assistant":
                message["content"] = to_json(str(message["content"]))
        return messages


class SessionAgent(CodeAgent):
    """A `CodeAgent` that is told when its reply was cut off or has no code."""

    def _step_stream(self, memory_step: ActionStep) -> Generator[Any, None, None]:
        try:
            yield from super()._step_stream(memory_step)
        except AgentGenerationError as exc:
            if not isinstance(exc.__cause__, ReplyCut):
                raise
            memory_step.model_output = exc.__cause__.text[:LONGEST_CUT_REPLY] + "…"
            raise AgentParsingError(TOO_LONG, self.logger) from None
        except AgentParsingError:
            raise AgentParsingError(NO_CODE, self.logger) from None


def build(
    model: AgentModel,
    executor: WorkspaceExecutor,
    conditions: Conditions,
    *,
    on_step: Callable[[ActionStep], None],
) -> SessionAgent:
    return SessionAgent(
        tools=[],
        model=model,
        executor=executor,
        prompt_templates=cast("PromptTemplates", templates(conditions)),
        code_block_tags=(OPENING, CLOSING),
        max_steps=conditions.max_steps,
        additional_authorized_imports=["*"],
        step_callbacks={ActionStep: on_step},
        logger=executor.logger,
    )


def silent_logger() -> AgentLogger:
    """smolagents prints what happens; here events tell it."""
    return AgentLogger(level=LogLevel.OFF)

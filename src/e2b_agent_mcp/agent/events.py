"""What a run of the agent tells while it goes on, and what it hands back. Plain data, cheap to
import: no smolagents, no litellm.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

RunStatus = Literal["completed", "failed", "cancelled", "budget_exceeded"]


@dataclass(frozen=True)
class Image:
    """An image that code displayed, as it left the sandbox: undecoded, unchecked."""

    data: bytes = field(repr=False)
    mime_type: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What was spent. Seconds; `cost_usd` is None once a call's price is unknown."""

    llm_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    sandbox_seconds: float = 0.0  # during which code ran
    duration: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of the agent: a thought, the code it wrote, what came of it."""

    number: int  # from 1 in each run
    thought: str = ""
    code: str = ""  # "" when the reply held none
    output: str = ""  # what the model was shown, cut to a limit
    error: str = ""
    duration: float = 0.0
    images: tuple[Image, ...] = ()
    usage: Usage = field(default_factory=Usage)  # of this step alone


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run did not complete; `code` is one of `errors.py`'s, or `budget_exceeded`."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class AgentRun:
    """A run as it stands. `memory` continues the conversation in a later run, JSON-able."""

    status: RunStatus
    answer: object = None  # JSON; the best partial one when the status is not "completed"
    answer_text: str = ""
    steps: tuple[Step, ...] = ()
    images: tuple[Image, ...] = ()  # of all steps, in order, each once
    usage: Usage = field(default_factory=Usage)
    model: str = ""  # that gave the last reply
    error: Failure | None = None
    memory: tuple[dict[str, object], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepStarted:
    number: int


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """The model is writing; comes with every piece it sends."""

    number: int
    characters: int  # of the reply so far


@dataclass(frozen=True, kw_only=True)
class CodeStarted:
    number: int
    thought: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Output:
    """Text that the running code printed, and at its end what it displayed."""

    number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class StepFinished:
    step: Step


@dataclass(frozen=True, kw_only=True)
class ModelRetry:
    """A call of the model failed and is made again, with the same model or the next."""

    reason: str
    delay: float  # seconds until then
    model: str  # that is asked next


AgentEvent = StepStarted | Thinking | CodeStarted | Output | StepFinished | ModelRetry

OnEvent = Callable[[AgentEvent], Awaitable[None]]

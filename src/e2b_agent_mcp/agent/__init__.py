"""The agent: a smolagents `CodeAgent` that works in a session's sandbox, with a model by litellm.

The door of smolagents and litellm, which take five seconds of CPU to import: they are loaded in a
thread, by the first run. The names here cost nothing.
"""

from e2b_agent_mcp.agent.budget import Budget
from e2b_agent_mcp.agent.events import (
    AgentEvent,
    AgentRun,
    CodeStarted,
    Failure,
    Image,
    ModelRetry,
    OnEvent,
    Output,
    RunStatus,
    Step,
    StepFinished,
    StepStarted,
    Thinking,
    Usage,
)
from e2b_agent_mcp.agent.run import AgentRunner, preload

__all__ = [
    "AgentEvent",
    "AgentRun",
    "AgentRunner",
    "Budget",
    "CodeStarted",
    "Failure",
    "Image",
    "ModelRetry",
    "OnEvent",
    "Output",
    "RunStatus",
    "Step",
    "StepFinished",
    "StepStarted",
    "Thinking",
    "Usage",
    "preload",
]

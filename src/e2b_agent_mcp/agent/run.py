"""One task, done by an agent in a session's sandbox: `AgentRunner`.

Cancelling the scope that `run` is awaited in stops the model's reply and the code at once;
`snapshot` then tells what was done until there.
"""

from collections.abc import Sequence

from e2b_agent_mcp.agent.budget import Budget
from e2b_agent_mcp.agent.events import AgentEvent, AgentRun, OnEvent
from e2b_agent_mcp.lifecycle import Lease
from e2b_agent_mcp.settings import Settings


async def ignore(event: AgentEvent) -> None:
    pass


class AgentRunner:
    """One run of one task; made for each task anew."""

    def __init__(
        self,
        task: str,
        lease: Lease,
        *,
        settings: Settings,
        model: str | None = None,
        budget: Budget | None = None,
        memory: Sequence[dict[str, object]] = (),
        on_event: OnEvent = ignore,
    ) -> None:
        """`memory` is an earlier run's, in the same session. `on_event` is awaited in order.

        Raises `ModelNotConfiguredError` when no model can be chosen.
        """
        raise NotImplementedError

    @property
    def model(self) -> str:
        """The model that is asked first."""
        raise NotImplementedError

    async def run(self) -> AgentRun:
        """Runs to the end; what the model or the sandbox refuses is a status, not an exception."""
        raise NotImplementedError

    def snapshot(self) -> AgentRun:
        """The run as it stands, at any moment; `cancelled` unless it has ended otherwise."""
        raise NotImplementedError

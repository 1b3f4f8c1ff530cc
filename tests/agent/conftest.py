"""A scripted model, a real sandbox, and a run of the agent that uses both."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from conftest import Connector
from e2b_agent_mcp.agent import AgentEvent, AgentRunner
from e2b_agent_mcp.lifecycle import Lease, SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import SandboxSettings, Settings
from scripted_llm import ScriptedLLM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from e2b_agent_mcp.engine import EngineAddress


@pytest.fixture
def llm() -> Iterator[ScriptedLLM]:
    with ScriptedLLM() as llm:
        yield llm


@pytest.fixture
async def manager(engine: EngineAddress) -> AsyncIterator[SandboxManager]:
    settings = Settings(sandboxes=SandboxSettings(idle_after=120))
    async with SandboxManager(settings, connect=Connector(engine)) as manager:
        yield manager


@pytest.fixture
async def lease(manager: SandboxManager) -> AsyncIterator[Lease]:
    key = SessionKey(uuid.uuid4().hex, "analysis")
    async with manager.lease(key) as lease:
        yield lease
    await manager.end_session(key)


class Agent:
    """Makes runs over one lease and one model, and hears what they tell."""

    def __init__(self, llm: ScriptedLLM, lease: Lease) -> None:
        self.llm = llm
        self.lease = lease
        self.events: list[AgentEvent] = []

    def runner(
        self, task: str = "Do it.", *, agent: dict[str, Any] | None = None, **given: Any
    ) -> AgentRunner:
        settings = Settings(agent=self.llm.settings(**(agent or {})))
        given = {"on_event": self._hear, **given}
        return AgentRunner(task, self.lease, settings=settings, **given)

    async def text(self, code: str) -> str | None:
        """What a caller of run_python sees afterwards."""
        run = await self.lease.run_code(code, timeout=30)
        assert run.status == "ok", run
        return run.execution.text

    def heard(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def _hear(self, event: AgentEvent) -> None:
        self.events.append(event)


@pytest.fixture
def agent(llm: ScriptedLLM, lease: Lease) -> Agent:
    return Agent(llm, lease)

"""Smolagents' executor over a `Workspace`: what the agent's code does, in smolagents' terms.

smolagents turns every `Exception` of an executor into a message for the model and goes on. What the
model can do nothing about is raised as `Aborted`, which is none and ends the run.
"""

from collections.abc import Callable
from typing import Any

from smolagents.local_python_executor import CodeOutput
from smolagents.monitoring import AgentLogger
from smolagents.remote_executors import RemotePythonExecutor

from e2b_agent_mcp.agent.text import quoted
from e2b_agent_mcp.agent.workspace import Observation


class Aborted(BaseException):
    """Ends a run of the agent; the cause says why."""


class CodeFailed(Exception):
    """The code failed; the model is told and goes on."""


class WorkspaceExecutor(RemotePythonExecutor):
    """Runs code by `run`, which blocks and is called in the agent's thread."""

    def __init__(self, run: Callable[[str], Observation], logger: AgentLogger) -> None:
        super().__init__([], logger)
        self.state: dict[str, Any] = {}  # where CodeAgent finds what was printed before an error
        self.last: Observation | None = None
        self._run = run

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        self.last = seen = self._run(code)
        self.state["_print_outputs"] = seen.output
        if seen.answer is not None:
            return CodeOutput(seen.answer.value, seen.output, is_final_answer=True)
        if seen.error:
            raise CodeFailed(quoted(seen.error))
        return CodeOutput(seen.result, seen.output, is_final_answer=False)

    def send_tools(self, tools: dict[str, Any]) -> None:
        """There are none but `final_answer`, which the workspace brings."""

    def send_variables(self, variables: dict[str, Any]) -> None:
        """The session has its own."""

    def cleanup(self) -> None:
        """The sandbox is the session's."""

"""Smolagents' executor over a `Workspace`: what the agent's code does, in smolagents' terms.

smolagents turns every `Exception` of an executor into a message for the model and goes on. What the
model can do nothing about is raised as `Aborted`, which is none and ends the run.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smolagents.local_python_executor import CodeOutput
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import RemotePythonExecutor

from e2b_agent_mcp.agent.own_sandbox import OwnSandbox, settings_for
from e2b_agent_mcp.agent.text import quoted
from e2b_agent_mcp.agent.workspace import Observation
from e2b_agent_mcp.settings import Settings

if TYPE_CHECKING:
    from e2b_agent_mcp.agent.events import Image


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


class SandboxExecutor(WorkspaceExecutor):
    """For agents of your own: `CodeAgent(tools, model, executor=SandboxExecutor())`.

    All of the agent's code runs in a sandbox, made by the first code and ended by `cleanup`, at the
    end of `with agent:` or with the program. Plots are kept in `images`; a figure or table may be a
    final answer; `agent.run(..., reset=False)` goes on with the same variables. Without an
    `api_key` (and without E2B_API_KEY) the sandbox runs on the embedded engine.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        template_id: str | None = None,
        timeout: float = 300,
        max_runtime: float = 600,
        settings: Settings | None = None,
    ) -> None:
        """`timeout` limits one step's code; `max_runtime` is how long the sandbox outlives its
        last use when the program dies. Seconds."""
        self.images: list[Image] = []
        self._sandbox = OwnSandbox(
            settings_for(settings, api_key=api_key, template=template_id, life=max_runtime),
            timeout=timeout,
        )
        super().__init__(self._sandbox.run, AgentLogger(level=LogLevel.OFF))

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        try:
            ran = super().run_code_raise_errors(code)
        finally:
            if self.last is not None:
                self.images += self.last.images
        # smolagents writes on after it, in the same line.
        return replace(ran, logs=f"{ran.logs}\n") if ran.logs else ran

    def send_tools(self, tools: dict[str, Any]) -> None:
        """Sends the source of the tools' classes; `final_answer` is there already."""
        if others := {name: tool for name, tool in tools.items() if name != "final_answer"}:
            RemotePythonExecutor.send_tools(self, others)

    def send_variables(self, variables: dict[str, Any]) -> None:
        RemotePythonExecutor.send_variables(self, variables)

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        self._sandbox.install(additional_imports)
        return additional_imports

    def cleanup(self) -> None:
        """Ends the sandbox, with its variables and files."""
        self._sandbox.close()

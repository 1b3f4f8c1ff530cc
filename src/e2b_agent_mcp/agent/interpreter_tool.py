"""`E2BPythonInterpreterTool`: an interpreter in a sandbox, as a tool of a smolagents agent."""

from typing import TYPE_CHECKING

from smolagents import Tool

from e2b_agent_mcp.agent.own_sandbox import OwnSandbox, settings_for
from e2b_agent_mcp.settings import Settings

if TYPE_CHECKING:
    from e2b_agent_mcp.agent.events import Image


class E2BPythonInterpreterTool(Tool):  # type: ignore[no-untyped-call]  # smolagents' hook
    """Runs Python in a sandbox that keeps variables and files from call to call.

    Without an `api_key` (and without E2B_API_KEY) the sandbox runs on the embedded engine. It is
    made by the first call and ended by `close`, or with the program. For a `CodeAgent` there is
    `SandboxExecutor`, which runs all of its code in a sandbox, not only what it gives to a tool.
    """

    name = "python_interpreter"
    description = (
        "Runs Python code in an isolated sandbox and returns what it printed, the value of its "
        "last expression, and its error if it failed. Variables, imports and files stay from call "
        "to call. Plots are shown to the user. The usual scientific packages are installed."
    )
    inputs = {"code": {"type": "string", "description": "The Python code to run."}}  # noqa: RUF012
    output_type = "string"

    def __init__(
        self,
        api_key: str | None = None,
        template_id: str | None = None,
        timeout: float = 300,
        max_runtime: float = 600,
        settings: Settings | None = None,
    ) -> None:
        """`timeout` limits one call; `max_runtime` is how long the sandbox outlives its last use
        when the program dies. Seconds."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.images: list[Image] = []  # of all calls
        self._sandbox = OwnSandbox(
            settings_for(settings, api_key=api_key, template=template_id, life=max_runtime),
            timeout=timeout,
        )

    def forward(self, code: str) -> str:
        seen = self._sandbox.run(code)
        self.images += seen.images
        said = [part for part in (seen.output, seen.error) if part]
        if seen.answer is not None:
            said.append(seen.answer.text)
        return "\n".join(said) or "(nothing was printed)"

    def close(self) -> None:
        """Ends the sandbox, with its variables and files."""
        self._sandbox.close()

"""What a run has sent so far, also when it never ends."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2b_code_interpreter import ExecutionError, OutputMessage, Result

Output = Callable[[str], Awaitable[None]]

OUTPUT_LIMIT = 50_000_000  # characters; a run that prints more is stopped


class Flood(Exception):
    """More output than we are ready to hold."""


class Received:
    """What a run has sent so far: the SDK hands over an execution only when it is complete."""

    def __init__(self, on_stdout: Output | None, on_stderr: Output | None) -> None:
        from e2b_code_interpreter import Execution

        self.execution = Execution()
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self._size = 0

    async def stdout(self, message: "OutputMessage") -> None:
        await self.text(message.line)

    async def stderr(self, message: "OutputMessage") -> None:
        await self.error_text(message.line)

    async def text(self, text: str) -> None:
        self.execution.logs.stdout.append(text)
        await self._pass_on(text, self._on_stdout)

    async def error_text(self, text: str) -> None:
        self.execution.logs.stderr.append(text)
        await self._pass_on(text, self._on_stderr)

    async def result(self, result: "Result") -> None:
        self.execution.results.append(result)

    async def error(self, error: "ExecutionError") -> None:
        self.execution.error = error

    async def _pass_on(self, text: str, output: Output | None) -> None:
        self._size += len(text)
        if self._size > OUTPUT_LIMIT:
            raise Flood
        if output is not None:
            await output(text)

"""The demo's tasks for the agent: what the fixed parts do by code, a language model does by itself.

They run in the demo's session, after its fixed parts, when a model is configured. They cost what
the model costs, so what is asked and how much each may spend is said before. A part that does not
complete is told in the report and ends nothing; when the model itself refuses, the others are left
out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.text import Text

from e2b_agent_mcp import examples
from e2b_agent_mcp.agent.choice import choose
from e2b_agent_mcp.commands.terminal import TaskView, print_answer, print_end
from e2b_agent_mcp.demo.report import Block, Plot, Prose, Section
from e2b_agent_mcp.errors import E2BAgentError, ModelNotConfiguredError
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import AgentSettings, Settings
from e2b_agent_mcp.tasks import TaskRecord, TaskRegistry, TaskRequest

LARGEST_FILE = 20_000_000  # bytes that are saved; plotly's own code alone takes five million
REVIEWS = "http://127.0.0.1:{port}/reviews"  # served in the sandbox, so it needs no network

# Errors of the model that the next part would meet too.
HOPELESS = frozenset(
    {"model_authentication", "model_quota", "model_not_found", "model_unavailable"}
)

NO_MODEL = (
    "With a language model (OPENAI_API_KEY, ANTHROPIC_API_KEY, DEEPSEEK_API_KEY, or "
    "E2B_AGENT_MCP_AGENT_MODEL) an agent does four more tasks here."
)


@dataclass(frozen=True)
class AgentPart:
    name: str
    title: str
    task: str


def agent_parts(port: int) -> tuple[AgentPart, ...]:
    return (
        AgentPart("sales", examples.SALES, examples.sales()),
        AgentPart("classifier", examples.CLASSIFIER, examples.classifier("breast_cancer")),
        AgentPart("sentiment", examples.SENTIMENT, examples.sentiment(REVIEWS.format(port=port))),
        AgentPart("dashboard", examples.DASHBOARD, examples.dashboard()),
    )


def model_of(settings: AgentSettings) -> str | None:
    """The model that the agent would ask; None when none is configured."""
    try:
        return choose(settings)[0].model
    except ModelNotConfiguredError:
        return None


class AgentDemo:
    """Does the parts with the registry's tasks, in `key`'s session."""

    def __init__(self, tasks: TaskRegistry, manager: SandboxManager, settings: Settings) -> None:
        self._tasks = tasks
        self._manager = manager
        self._limit = settings.agent.max_cost_usd
        self.model = model_of(settings.agent)

    async def run(
        self, key: SessionKey, port: int, output: Path, console: Console
    ) -> list[Section]:
        if self.model is None:
            console.print(Text(NO_MODEL, style="dim"))
            return []
        most = f"at most ${self._limit:g} each" if self._limit else "without a limit of cost"
        console.print(
            Text(f"Now {self.model} works as an agent, {most}; --no-agent leaves it out.")
        )
        sections = []
        for part in agent_parts(port):
            console.rule(f"[bold]{part.title}", align="left")
            view = TaskView(console, _emptied(output / "plots" / part.name))
            record = await self._do(part, key, view)
            print_end(record, console)
            print_answer(record, console)
            await self._save_files(record, output / "files", console)
            sections.append(_section(part, record, view))
            if record.error is not None and record.error.code in HOPELESS:
                break
        await self._tasks.end_session(key)  # the next demo starts afresh
        return sections

    async def _do(self, part: AgentPart, key: SessionKey, view: TaskView) -> TaskRecord:
        request = TaskRequest(key=key, task=part.task, new=True)
        try:
            return await self._tasks.run(request, wait=math.inf, listener=view.show)
        finally:
            view.finish()

    async def _save_files(self, record: TaskRecord, folder: Path, console: Console) -> None:
        for file in record.files:
            if file.size > LARGEST_FILE:
                continue
            # The name alone: a sandbox must not choose a folder of this machine.
            target = folder / PurePosixPath(file.path).name
            try:
                async with self._manager.lease(record.key, use="read") as lease:
                    content = await lease.read_file(file.path)
            except E2BAgentError as exc:
                console.print(Text(f"{target.name} was not saved: {exc.message}", style="yellow"))
                continue
            _write(target, content)
            console.print(Text.assemble(("saved ", "dim"), (str(target), "green")))


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _emptied(folder: Path) -> Path:
    """Without the plots of an earlier demo."""
    for plot in folder.glob("plot-*"):
        plot.unlink()
    return folder


def _section(part: AgentPart, record: TaskRecord, view: TaskView) -> Section:
    code = "\n\n".join(step.code for step in record.steps if step.code)
    return Section(
        title=part.title,
        code=code,
        blocks=tuple(_blocks(part, record, view)),
        seconds=record.usage.duration,
    )


def _blocks(part: AgentPart, record: TaskRecord, view: TaskView) -> Iterator[Block]:
    yield Prose("What the agent was asked", part.task)
    if record.error is not None:
        yield Prose(f"Not completed: {record.status}", record.error.message)
    if record.answer_text:
        yield Prose("Its answer", record.answer_text)
    for plot in view.plots:
        if plot.suffix == ".png":
            yield Plot(f"{part.name}/{plot.name}", plot.read_bytes())

"""The tools that have an agent do a task: argument checks, progress in words, rendered results.

A call hands the task back before the client's own limit, and the task goes on (`agent.wait`).
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, TypeVar

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, InputRequiredResult
from pydantic import Field

from e2b_agent_mcp.agent import (
    CodeStarted,
    ModelRetry,
    Output,
    StepFinished,
    StepStarted,
)
from e2b_agent_mcp.errors import InvalidArgumentError, NotFoundError
from e2b_agent_mcp.lifecycle import Lease
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.rendering import task_result
from e2b_agent_mcp.rendering.results import TaskResult
from e2b_agent_mcp.server.arguments import SessionArgument, check_not_empty, check_packages
from e2b_agent_mcp.server.calls import Calls
from e2b_agent_mcp.server.file_tools import check_size, chunks
from e2b_agent_mcp.server.host_files import open_source
from e2b_agent_mcp.server.progress import Progress
from e2b_agent_mcp.server.sampling import WAITS, ClientModel, lends_model
from e2b_agent_mcp.server.sessions import Caller, current_caller, declares_tasks
from e2b_agent_mcp.server.tools import ENDS, READS, RUNS, add_tool
from e2b_agent_mcp.settings import AgentSettings, Settings
from e2b_agent_mcp.tasks import Doing, Prepare, TaskEvent, TaskRecord, TaskRequest

Number = TypeVar("Number", int, float)

LONGEST_WORDS = 150  # characters of a thought or an output in one message

WaitArgument = Annotated[
    float | None,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="Seconds to wait for the end; then the task comes back as it stands and goes "
        "on",
    ),
]
TaskIdArgument = Annotated[str, Field(description="`task_id` of an earlier result")]


def add_agent_tools(mcp: MCPServer[None], settings: Settings, calls: Calls) -> None:
    tools = AgentTools(settings, calls)
    add = partial(add_tool, mcp, settings)
    add(tools.run_agent_task, title="Have an agent do a task", annotations=RUNS)
    add(tools.get_agent_task, title="Look after a task", annotations=READS)
    add(tools.cancel_agent_task, title="Cancel a task", annotations=ENDS)


class AgentTools:
    def __init__(self, settings: Settings, calls: Calls) -> None:
        self._settings = settings
        self._calls = calls

    async def run_agent_task(
        self,
        ctx: Context[None],
        # `str`, not `str | None`: the MCP SDK would parse a task that looks like JSON.
        task: Annotated[
            str,
            Field(description="What to do, with all that the agent must know; files by their path"),
        ] = "",
        session: SessionArgument = None,
        model: Annotated[
            str | None,
            Field(
                description="As LiteLLM names it, such as 'openai/gpt-5.4-mini'; 'client' for your "
                "client's own model, where it offers MCP sampling"
            ),
        ] = None,
        max_steps: Annotated[int | None, Field(gt=0, description="Most steps it may take")] = None,
        max_cost_usd: Annotated[
            float | None, Field(gt=0, allow_inf_nan=False, description="Most US dollars to spend")
        ] = None,
        max_tokens: Annotated[
            int | None, Field(gt=0, description="Most tokens to spend, in and out together")
        ] = None,
        timeout: Annotated[
            float | None,
            Field(gt=0, allow_inf_nan=False, description="Seconds that the whole task may take"),
        ] = None,
        wait: WaitArgument = None,
        packages: Annotated[
            list[str] | None, Field(description="PyPI requirements to install first")
        ] = None,
        files: Annotated[
            list[str] | None,
            Field(
                description="Files it needs: paths in the sandbox, or of the user's machine where "
                "that is allowed"
            ),
        ] = None,
        new: Annotated[
            bool, Field(description="Start without what earlier tasks of the session know")
        ] = False,
        task_id: Annotated[
            str,
            Field(description="An earlier task to go on with; `task` then says what is wanted now"),
        ] = "",
    ) -> Annotated[CallToolResult, TaskResult] | InputRequiredResult:
        """Has an agent, a language model of its own that writes and runs Python step by step, do a
        whole task in the session's sandbox: analysing data, training a model, fetching and
        processing web pages, building files. It works with the variables, files and packages that
        run_python made there, and what it makes is there afterwards. Use run_python where you know
        the code; use this for a task of several steps.

        The answer comes back as data where it is data and as text, every plot as an image, new
        files as links, with the steps and what they cost. A task that takes longer than {wait:g} s
        (`wait`) comes back with status 'working' and a task_id and goes on: call get_agent_task.
        A later task in the session knows the earlier ones; `new` starts afresh. With `task_id` a
        task that was interrupted, cancelled or out of budget goes on. The same call again while
        the task runs waits for the same task. It may take {max_steps} steps (`max_steps`).
        """
        caller = current_caller()
        key = await self._key(caller, session, task_id)
        request = TaskRequest(
            key=key,
            task=task.strip(),
            model=model,
            max_steps=max_steps,
            max_tokens=_within("max_tokens", max_tokens, self._settings.agent),
            max_cost_usd=_within("max_cost_usd", max_cost_usd, self._settings.agent),
            timeout=timeout,
            packages=tuple(check_packages(packages or [])),
            files=tuple(files or ()),
            new=new,
            task_id=task_id,
            client=lends_model(ctx),
        )
        if not task_id:
            check_not_empty("task", task)
        run = partial(
            self._calls.tasks.run,
            request,
            prepare=self._preparation(request, local=caller.is_local),
        )
        # A client that looks after tasks does so from the start.
        default = 0.0 if declares_tasks(ctx.request_context) else self._settings.agent.wait
        return await self._wait(ctx, caller, run, default if wait is None else wait, owns=True)

    async def get_agent_task(
        self, task_id: TaskIdArgument, ctx: Context[None], wait: WaitArgument = None
    ) -> Annotated[CallToolResult, TaskResult] | InputRequiredResult:
        """Waits for a task that run_agent_task has handed back, at most {wait:g} s (`wait`; 0 only
        looks): its result when it is over, else its steps so far. Tasks are kept for 30 days.
        """
        caller = current_caller()
        get = partial(self._calls.tasks.get, caller.owner, task_id)
        wait = self._settings.agent.wait if wait is None else wait
        return await self._wait(ctx, caller, get, wait, owns=False)

    async def _wait(
        self,
        ctx: Context[None],
        caller: Caller,
        call: Callable[..., Awaitable[TaskRecord]],
        wait: float,
        *,
        owns: bool,
    ) -> CallToolResult | InputRequiredResult:
        """The task at its end or as it stands, or what the client is to be asked for it first.

        `owns`: when the call is cancelled, so is the task."""
        tasks, model = self._calls.tasks, ClientModel(ctx)
        if model.task_id:  # a further round of the same call
            model.deliver(tasks, caller.owner)
            call = partial(tasks.get, caller.owner, model.task_id, follow=owns)
        async with self._calls.reporting(ctx) as progress:
            record = await call(
                wait=wait,
                listener=partial(_report, progress),
                attendant=model.attend if lends_model(ctx) else None,
            )
        if record.status == "working" and (round := model.next_round(record.task_id)) is not None:
            return round
        return await self._render(record, caller, model.note)

    async def cancel_agent_task(
        self, task_id: TaskIdArgument
    ) -> Annotated[CallToolResult, TaskResult]:
        """Stops a task: its code is interrupted, what it did so far comes back and is kept, and so
        is the session with its variables and files.
        """
        caller = current_caller()
        return await self._render(await self._calls.tasks.cancel(caller.owner, task_id), caller)

    async def _key(self, caller: Caller, session: str | None, task_id: str) -> SessionKey:
        if session is None and task_id:
            return (await self._calls.tasks.get(caller.owner, task_id)).key
        return caller.key(session)

    async def _render(self, record: TaskRecord, caller: Caller, note: str = "") -> CallToolResult:
        if record.status == "working" and self._calls.tasks.questions(caller.owner, record.task_id):
            note = note or WAITS
        return await render_task(record, caller, self._settings, note)

    # --- what a task needs ----------------------------------------------------------------------

    def _preparation(self, request: TaskRequest, *, local: bool) -> Prepare:
        async def prepare(lease: Lease) -> str:
            if request.packages:
                timeout = self._settings.runs.install_timeout
                await lease.install(request.packages, timeout=timeout)
            found = [await self._bring(lease, file, local=local) for file in request.files]
            return f"Files for this task: {', '.join(found)}" if found else ""

        return prepare

    async def _bring(self, lease: Lease, file: str, *, local: bool) -> str:
        """Where in the sandbox the file is; brings it there when it is one of the host's."""
        check_not_empty("files", file)
        try:
            return (await lease.stat_file(file)).path
        except NotFoundError:
            if not local or not os.path.isabs(file):
                raise NotFoundError(
                    f"files: there is no file {file[:200]!r} in the sandbox.",
                    hint="Bring it in with upload_file first.",
                ) from None
        name = os.path.basename(file)
        with open_source(file, self._settings.files.roots, argument="files") as source:
            check_size(os.fstat(source.fileno()).st_size, self._settings.files)
            await lease.write_file(name, chunks(source))
        return (await lease.stat_file(name)).path


async def render_task(
    record: TaskRecord, caller: Caller, settings: Settings, note: str = ""
) -> CallToolResult:
    reminder = " ".join(filter(None, (note, caller.reminder(record.key.name))))
    render = partial(task_result, record, limits=settings.outputs, reminder=reminder)
    return await anyio.to_thread.run_sync(render)


# The name of the limit is that of the argument and of the setting.
def _within(name: str, value: Number | None, settings: AgentSettings) -> Number | None:
    limit = getattr(settings, name)
    if value is not None and limit and value > limit:
        raise InvalidArgumentError(
            f"{name}: {value:g} is more than the {limit:g} allowed.",
            hint=f"The operator can raise it: E2B_AGENT_MCP_AGENT_{name.upper()}.",
        )
    return value


async def _report(progress: Progress, event: TaskEvent) -> None:
    for line in words(event):
        if isinstance(event, Output):
            await progress.printed(f"{line}\n")
        else:
            await progress.told(line)


def words(event: TaskEvent) -> Sequence[str]:
    """What the client is told of an event, a line each; a reply's pieces are too many to tell."""
    match event:
        case Doing(said):
            return [said]
        case StepStarted(number=number):
            return [f"step {number}: thinking"]
        case CodeStarted(number=number, thought=thought, code=code):
            lines = len(code.splitlines())
            return [
                *([f"step {number}: {_short(thought)}"] if thought.strip() else []),
                f"step {number}: running {lines} line{'s' * (lines != 1)}",
            ]
        case Output(number=number, text=text):
            return [f"step {number}: {_end(text)}"] if text.strip() else []
        case StepFinished(step=step):
            how, shown = ("failed", step.error) if step.error else ("done", step.output)
            line = f"step {step.number}: {how} in {step.duration:.1f} s"
            return [f"{line}: {_end(shown)}" if shown.strip() else line]
        case ModelRetry(reason=reason, delay=delay, model=model):
            return [f"{_short(reason)}; asking {model} in {delay:.0f} s"]
    return []


def _short(text: str) -> str:
    """A thought has its point first."""
    return " ".join(text.split())[:LONGEST_WORDS]


def _end(text: str) -> str:
    """The end of a traceback or of what was printed says most."""
    return " ".join(text[-2 * LONGEST_WORDS :].split())[-LONGEST_WORDS:]

"""`task`: one task, its steps on stderr, its answer on stdout."""

import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console

from e2b_agent_mcp.commands.terminal import TaskView, answer_of, print_end
from e2b_agent_mcp.connection import tasks_dir
from e2b_agent_mcp.errors import InvalidArgumentError
from e2b_agent_mcp.lifecycle import Lease, SandboxManager
from e2b_agent_mcp.rendering import task_result
from e2b_agent_mcp.settings import Settings
from e2b_agent_mcp.tasks import Prepare, TaskRecord, TaskRegistry, TaskRequest, TaskStore


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What the command line says besides the task itself."""

    output: Path
    as_json: bool = False


def run_task(request: TaskRequest, options: TaskOptions, settings: Settings) -> int:
    """Returns the exit code: 0 when the task is completed."""
    record = anyio.run(_run, request, options, settings)
    return 0 if record.status == "completed" else 1


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[SandboxManager, TaskRegistry]]:
    """The tasks and sandboxes that a server of this user with these settings works with."""
    store = TaskStore(partial(tasks_dir, settings))
    async with (
        SandboxManager(settings) as manager,
        TaskRegistry(settings, manager, store) as tasks,
    ):
        yield manager, tasks


def bringing(files: Sequence[str], packages: Sequence[str], settings: Settings) -> Prepare:
    """Brings files of this machine and installs the packages before the agent begins."""

    async def prepare(lease: Lease) -> str:
        if packages:
            await lease.install(packages, timeout=settings.runs.install_timeout)
        for file in map(Path, files):
            content = await anyio.to_thread.run_sync(_read, file)
            await lease.write_file(file.name, content)
        names = ", ".join(Path(file).name for file in files)
        return f"Files for this task, in your working folder: {names}" if files else ""

    return prepare


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise InvalidArgumentError(f"Cannot read {file}: {exc.strerror}.") from exc


async def _run(request: TaskRequest, options: TaskOptions, settings: Settings) -> TaskRecord:
    console = Console(stderr=True)
    view = TaskView(console, options.output)
    async with opened(settings) as (_, tasks):
        try:
            if request.task_id:
                earlier = await tasks.get(request.key.owner, request.task_id)
                request = replace(request, key=earlier.key)
            record = await tasks.run(
                request,
                wait=math.inf,
                prepare=bringing(request.files, request.packages, settings),
                listener=view.show,
            )
        finally:
            view.finish()
    print_end(record, console)
    _print_answer(record, view, options, settings)
    return record


def _print_answer(
    record: TaskRecord, view: TaskView, options: TaskOptions, settings: Settings
) -> None:
    out = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
    if options.as_json:
        data = task_result(record, limits=settings.outputs).structured_content or {}
        data["plots"] = [str(path) for path in view.plots]
        out.file.write(json.dumps(data, ensure_ascii=False) + "\n")
    elif record.answer_text:
        out.print(answer_of(record))

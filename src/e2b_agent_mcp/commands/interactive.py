"""`interactive`: a conversation with the agent in one session.

The prompt has the main thread, tasks and sandboxes have an event loop in another. So Ctrl-C is an
exception where the user is: at the prompt it drops the line, during a task it stops the task and
keeps the session.
"""

import math
import readline
import shlex
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from rich.console import Console
from rich.table import Table
from rich.text import Text

from e2b_agent_mcp.agent import Usage
from e2b_agent_mcp.agent.budget import add
from e2b_agent_mcp.agent.choice import choose
from e2b_agent_mcp.commands.task import opened
from e2b_agent_mcp.commands.terminal import TaskView, print_answer, print_end, safe, spent
from e2b_agent_mcp.errors import E2BAgentError, InvalidArgumentError, NotFoundError
from e2b_agent_mcp.lifecycle import FileInfo, Lease, SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import Settings
from e2b_agent_mcp.tasks import TaskRecord, TaskRegistry, TaskRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

HOME = "/home/user"
HISTORY_LINES = 1000

HELP = """\
Type a task; the agent knows the earlier ones. Ctrl-C stops it, Ctrl-D leaves; the session stays.

  :files [FOLDER]     list files of the sandbox
  :get PATH [TARGET]  save a file of the sandbox here
  :model [NAME]       show or choose the model
  :cost               what this conversation has used
  :reset              end the session: a new sandbox, nothing remembered
  :help               this
  :quit               leave"""


class Conversation:
    """One session and what was used in it; `request` has its options."""

    def __init__(
        self,
        settings: Settings,
        request: TaskRequest,
        console: Console,
        output: Path,
        *,
        portal: BlockingPortal,
        manager: SandboxManager,
        tasks: TaskRegistry,
    ) -> None:
        self._settings = settings
        self._request = request
        self._console = console
        self._output = output
        self._portal = portal
        self._manager = manager
        self._tasks = tasks
        self._usage = Usage()
        self._commands: dict[str, Callable[..., None]] = {
            "files": self.files,
            "get": self.get,
            "model": self.model,
            "cost": self.cost,
            "reset": self.reset,
            "help": self.help,
        }

    def take(self, line: str) -> bool:
        """Does what the line says; False when it says to leave."""
        if line in (":quit", ":q", ":exit"):
            return False
        try:
            if line.startswith(":"):
                self._command(*_words(line[1:]))
            elif line:
                self.task(line)
        except E2BAgentError as exc:
            self._console.print(Text(safe(str(exc)), style="red"))
        return True

    def _command(self, name: str = "", *arguments: str) -> None:
        command = self._commands.get(name)
        if command is None:
            raise InvalidArgumentError(f"There is no :{name}.", hint=":help lists what there is.")
        try:
            command(*arguments)
        except TypeError:
            raise InvalidArgumentError(f":{name}: see :help.") from None

    def task(self, text: str) -> None:
        view = TaskView(self._console, self._output)
        request = replace(self._request, task=text)
        run = partial(self._tasks.run, request, wait=math.inf, listener=view.show)
        future = self._portal.start_task_soon(run)
        try:
            record = future.result()
        except KeyboardInterrupt:
            try:
                record = self._portal.call(self._tasks.stop, request)
            except NotFoundError:  # it ended at that moment, or is another process's
                future.cancel()
                raise
        finally:
            view.finish()
        self._show(record)

    def _show(self, record: TaskRecord) -> None:
        self._usage = add(self._usage, record.usage)
        print_end(record, self._console)
        print_answer(record, self._console)

    def files(self, folder: str = HOME) -> None:
        async def listing() -> list[FileInfo]:
            async with self._reading() as lease:
                return await lease.list_files(folder)

        shown = [info for info in self._result_of(listing) if not _is_hidden(info)]
        table = Table.grid(padding=(0, 2))
        for info in sorted(shown, key=lambda info: info.path):
            size = "folder" if info.kind == "directory" else f"{info.size:,}"
            table.add_row(Text(safe(info.path)), Text(size, justify="right"))
        self._console.print(table if shown else "No files.")

    def get(self, path: str, target: str = "") -> None:
        async def fetch() -> bytes:
            async with self._reading() as lease:
                return await lease.read_file(path)

        # The name alone: a sandbox must not choose a folder of this machine.
        place = Path(target or Path(path).name)
        if place.is_dir():
            place /= Path(path).name
        try:
            with place.open("xb") as file:
                try:
                    file.write(self._result_of(fetch))
                except BaseException:
                    place.unlink()
                    raise
        except FileExistsError:
            raise InvalidArgumentError(f"{place} exists.", hint="Give another TARGET.") from None
        except OSError as exc:
            raise NotFoundError(f"Cannot write {place}: {exc.strerror}.") from exc
        self._console.print(Text(f"saved {place}"))

    def _reading(self) -> AbstractAsyncContextManager[Lease]:
        async def say(words: str) -> None:
            self._console.print(Text(safe(words), style="dim"))

        return self._manager.lease(self._request.key, use="read", on_progress=say)

    def _result_of(self, call: "Callable[[], Awaitable[T]]") -> T:
        """Ctrl-C stops it: the session's next call would wait for what goes on unseen."""
        future = self._portal.start_task_soon(call)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def model(self, name: str = "") -> None:
        if name:
            choose(self._settings.agent, name)
            self._request = replace(self._request, model=name)
        choice = choose(self._settings.agent, self._request.model)[0]
        self._console.print(Text(f"model {choice.model}"))

    def cost(self) -> None:
        self._console.print(Text(spent(self._usage)))

    def reset(self) -> None:
        async def end() -> None:
            await self._tasks.end_session(self._request.key)
            await self._manager.end_session(self._request.key)

        self._result_of(end)
        self._console.print("The session has ended; the next task starts in a new one.")

    def help(self) -> None:
        self._console.print(HELP, highlight=False)


def converse(request: TaskRequest, output: Path, settings: Settings, history: Path) -> int:
    """Reads lines until the end of input; `request` has the session and the options of tasks."""
    console = Console()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(opened(settings)) as (manager, tasks),
    ):
        conversation = Conversation(
            settings, request, console, output, portal=portal, manager=manager, tasks=tasks
        )
        _greet(conversation, request.key, console)
        with suppress(OSError):
            readline.read_history_file(history)
        try:
            _read_lines(conversation, console)
        finally:
            _keep_history(history)
    return 0


def _greet(conversation: Conversation, key: SessionKey, console: Console) -> None:
    console.print(Text(f"Session {key.name}. Type a task, or :help."))
    conversation.take(":model")


def _read_lines(conversation: Conversation, console: Console) -> None:
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            console.print()
            continue
        except EOFError:
            console.print()
            return
        try:
            if not conversation.take(line):
                return
        except KeyboardInterrupt:  # during a command that is no task
            console.print("Stopped.")


def _keep_history(path: Path) -> None:
    """Tasks may say what nobody else should read."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.set_history_length(HISTORY_LINES)
        readline.write_history_file(path)


def _words(line: str) -> list[str]:
    """As a shell has them: a path with spaces stands in quotes."""
    try:
        return shlex.split(line)
    except ValueError as exc:
        raise InvalidArgumentError(f"{exc}.") from exc


def _is_hidden(info: FileInfo) -> bool:
    return info.path.rpartition("/")[2].startswith(".")

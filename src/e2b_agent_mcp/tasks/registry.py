"""Tasks under way and tasks that were: started, joined, waited for, cancelled, gone on with.

    async with TaskRegistry(settings, manager, store) as tasks:
        record = await tasks.run(TaskRequest(key=key, task="…"), wait=45)

Contract: a task belongs to the registry, not to the call that started it. A call that waits long
enough gets the task as it stands, and the task goes on. A call of `run` that is cancelled cancels
its task, unless another call waits for it too. Each step is stored when it is over; leaving the
registry stores what runs as `interrupted` before it is stopped.

A task that works with the model of its caller's client asks for each reply by a question: whoever
waits for the task at that moment answers it, or leaves in order to have it answered.

A task has its session's lease from its start to its end, so whatever else is called in the session
waits for its turn.

The servers of a user share the store and their turns: in each of them a task can be waited for and
cancelled, the same call joins it, and others of its session wait for it. Its questions are answered
in its own process only, and a call that joined a task of another process does not cancel it.
"""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
import anyio.to_thread

from e2b_agent_mcp.agent import (
    AgentEvent,
    AgentRunner,
    Budget,
    Failure,
    ModelRetry,
    StepFinished,
    Usage,
    preload,
)
from e2b_agent_mcp.agent.choice import Choice, choose
from e2b_agent_mcp.errors import E2BAgentError, InvalidArgumentError, NotFoundError
from e2b_agent_mcp.lifecycle import FileInfo, Lease, SandboxManager
from e2b_agent_mcp.owned_tasks import owned_tasks
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import Settings
from e2b_agent_mcp.tasks.live import (
    Attendant,
    Listener,
    LiveTask,
    ModelQuestion,
    Prepare,
    TaskEvent,
    TaskRequest,
    prepare_nothing,
)
from e2b_agent_mcp.tasks.record import NewFile, TaskRecord, TaskStatus, new_task_id
from e2b_agent_mcp.tasks.store import Memory, TaskStore, still_at_work

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL = 0.2  # seconds between two looks at what another process does, or wants
CANCEL_LIMIT = 8.0  # seconds that cancelling waits for code that does not stop
CLOSE_LIMIT = 1.0  # seconds for storing what runs when the server ends
FILES_LIMIT = 2.0  # seconds for listing the files of a task that was stopped

GO_ON = "Go on with the task where you stopped."
NEW_SANDBOX = (
    "The sandbox is a new one: variables, files and installed packages of your earlier steps "
    "are gone."
)


class TaskRegistry:
    """The tasks of one server; use it with `async with`, inside of the manager's block."""

    def __init__(self, settings: Settings, manager: SandboxManager, store: TaskStore) -> None:
        self._settings = settings
        self._manager = manager
        self._store = store
        self._live: dict[str, LiveTask] = {}
        self._closing = False
        self._watching = False
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._closing = self._watching = False
        # One thread at a time: the store's connection serves one caller.
        self._one = anyio.CapacityLimiter(1)
        self._tasks = await self._stack.enter_async_context(owned_tasks())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closing = True
        with anyio.move_on_after(CLOSE_LIMIT, shield=True):
            for live in tuple(self._live.values()):
                if live.is_ours:
                    await self._keep(live, replace(live.now(), status="interrupted"))
        await self._stack.aclose()
        self._tasks = None
        self._store.close()

    async def run(
        self,
        request: TaskRequest,
        *,
        wait: float,
        prepare: Prepare = prepare_nothing,
        listener: Listener | None = None,
        attendant: Attendant | None = None,
    ) -> TaskRecord:
        """Starts the task, or joins the same one, and waits for its end, at most `wait` seconds.

        It is stored before this returns."""
        return await self._follow(await self._start(request, prepare), wait, listener, attendant)

    async def get(
        self,
        owner: str,
        task_id: str,
        *,
        wait: float = 0.0,
        listener: Listener | None = None,
        attendant: Attendant | None = None,
        follow: bool = False,
    ) -> TaskRecord:
        """The task at its end, or as it stands after `wait` seconds.

        `follow`: the call goes on with one of `run`, so cancelling it cancels the task.
        """
        if (live := self._find(owner, task_id)) is not None:
            if follow:
                return await self._follow(live, wait, listener, attendant)
            return await live.attend(wait, listener, attendant)
        return await self._elsewhere(owner, task_id, wait)

    async def cancel(self, owner: str, task_id: str) -> TaskRecord:
        """Stops the task and waits until it has stopped; one that is over stays as it is."""
        if (live := self._find(owner, task_id)) is not None:
            live.stop()
            return await live.attend(CANCEL_LIMIT)
        record = await self._do(self._store.load, owner, task_id)
        if record.status == "working":
            await self._do(self._store.ask_to_cancel, task_id)
            record = await self._elsewhere(owner, task_id, CANCEL_LIMIT)
        return record

    async def stop(self, request: TaskRequest) -> TaskRecord:
        """Cancels the task that was asked for and is not over."""
        live = self._same(request)
        if live is None:
            raise NotFoundError("The task is over.")
        live.stop()
        return await live.attend(CANCEL_LIMIT)

    async def end_session(self, key: SessionKey) -> None:
        """Cancels the session's tasks; a later one in it knows nothing of those before."""
        for live in [live for live in self._live.values() if live.record.key == key]:
            live.stop()
            await live.attend(CANCEL_LIMIT)
        for task_id in await self._do(self._store.working, key):
            await self.cancel(key.owner, task_id)
        await self._do(self._store.end_session, key)

    def questions(self, owner: str, task_id: str) -> tuple[ModelQuestion, ...]:
        """What the task waits for its client to answer."""
        live = self._find(owner, task_id)
        return live.questions.open if live is not None else ()

    def latest(self, owner: str, task_id: str) -> TaskEvent | None:
        """What the task does at the moment."""
        live = self._find(owner, task_id)
        return live.latest if live is not None else None

    def busy(self, key: SessionKey) -> str:
        """What a call in this session has to wait for, in words; "" for nothing."""
        for live in self._live.values():
            if live.record.key == key:
                return f"Waiting for task {live.record.task_id}, which works in session {key.name}"
        return ""

    # --- one call -------------------------------------------------------------------------------

    async def _start(self, request: TaskRequest, prepare: Prepare) -> LiveTask:
        if (same := self._same(request)) is not None:
            return same
        # Refuses what no model can be asked for.
        choices = choose(self._settings.agent, request.model, client=request.client)
        record = await self._record_for(request)
        if (same := self._same(request)) is not None:  # started meanwhile
            return same
        if record.task_id in self._live:
            raise still_at_work()
        if self._tasks is None:
            raise RuntimeError("Use the registry with `async with`.")
        live = LiveTask(request=request, record=record, prepare=prepare, stored=len(record.steps))
        self._live[record.task_id] = live
        # Side by side: the session's next call must not overtake the task while it is written.
        self._tasks.start_soon(self._save, live)
        self._tasks.start_soon(self._carry_out, live)
        self._tasks.start_soon(_load_ahead, choices)
        if not self._watching:
            self._watching = True
            self._tasks.start_soon(self._watch)
        return live

    async def _save(self, live: LiveTask) -> None:
        """Or finds out that another process is at work on the same."""
        try:
            live.elsewhere = await self._do(self._store.begin, live.record)
        except InvalidArgumentError as exc:
            live.refusal = exc
        except sqlite3.Error as exc:
            logger.warning("a task could not be stored: %s", exc)
        live.saved.set()
        if not live.is_ours:
            live.stop()

    async def _watch(self) -> None:
        """Cancels what other processes want cancelled, for as long as there are tasks."""
        while self._live:
            await anyio.sleep(POLL)
            try:
                for task_id in await self._do(self._store.to_cancel):
                    if task_id in self._live:
                        self._live[task_id].stop()
            except sqlite3.Error as exc:
                logger.warning("cannot see which tasks are to be cancelled: %s", exc)
        self._watching = False

    async def _elsewhere(self, owner: str, task_id: str, wait: float) -> TaskRecord:
        """A task that this process does not do, at its end or after `wait` seconds."""
        record = await self._do(self._store.load, owner, task_id)
        if record.status != "working" or not wait:
            return record
        with anyio.move_on_after(wait):
            # No event tells of what another process does.
            while await self._do(self._store.is_working, task_id):  # noqa: ASYNC110
                await anyio.sleep(POLL)
        return await self._do(self._store.load, owner, task_id)

    def _find(self, owner: str, task_id: str) -> LiveTask | None:
        live = self._live.get(task_id)
        return live if live is not None and live.record.key.owner == owner else None

    def _same(self, request: TaskRequest) -> LiveTask | None:
        """One that is being stopped is over for whoever asks anew."""
        for live in self._live.values():
            if live.request == request and not live.scope.cancel_called:
                return live
        return None

    async def _record_for(self, request: TaskRequest) -> TaskRecord:
        if not request.task_id:
            return TaskRecord(
                task_id=new_task_id(),
                key=request.key,
                task=request.task,
                asked=request.fingerprint,
            )
        record = await self._do(self._store.load, request.key.owner, request.task_id)
        if record.key != request.key:
            raise InvalidArgumentError(
                f"session: the task belongs to session {record.key.name!r}.",
                hint="Leave out `session` to go on with it.",
            )
        asked = request.fingerprint
        return replace(record, status="working", error=None, note="", asked=asked)

    async def _follow(
        self,
        live: LiveTask,
        wait: float,
        listener: Listener | None,
        attendant: Attendant | None,
    ) -> TaskRecord:
        try:
            with live.waited_for():
                await live.saved.wait()
                if live.refusal is not None:
                    raise live.refusal
                if live.elsewhere:
                    return await self._elsewhere(live.record.key.owner, live.elsewhere, wait)
                return await live.attend(wait, listener, attendant)
        except anyio.get_cancelled_exc_class():
            if not live.callers:
                live.stop()
            raise

    # --- one task -------------------------------------------------------------------------------

    async def _carry_out(self, live: LiveTask) -> None:
        status: TaskStatus | None = None
        error: Failure | None = None
        try:
            with live.scope:
                status = await self._work(live)
        except E2BAgentError as exc:
            error = Failure(code=exc.code, message=exc.message, hint=exc.hint)
        # A defect of ours, or of smolagents: the caller must hear of an end.
        except Exception as exc:
            logger.exception("task %s failed", live.record.task_id)
            error = Failure(
                code="internal",
                message=f"The task failed: {type(exc).__name__}, a defect of this server.",
                hint="Its log on stderr has the details.",
            )
        finally:
            record = live.now()
            if status is None:
                status = "failed" if error else self._stopped(live)
            await self._finish(live, replace(record, status=status, error=error or record.error))

    def _stopped(self, live: LiveTask) -> TaskStatus:
        """The status of a task that was cancelled, perhaps after its end."""
        ended = live.runner.snapshot().status if live.runner is not None else "cancelled"
        # The calls of a server that ends are cancelled too: that is nobody's wish.
        return "interrupted" if ended == "cancelled" and self._closing else ended

    async def _work(self, live: LiveTask) -> TaskStatus:
        key = live.record.key
        if any(other.record.key == key for other in self._live.values() if other is not live):
            await live.say(f"Waiting for an earlier task of session {key.name}")
        async with self._manager.lease(key, on_progress=live.say) as lease:
            await live.saved.wait()
            await lease.confirm()
            live.doing = ""
            memory = await self._memory(live)
            brief = [await live.prepare(lease)]
            if memory.turns and memory.sandbox_id != lease.sandbox_id:
                brief.append(NEW_SANDBOX)
            live.record = _placed(live.record, lease)
            live.runner = self._runner(live, lease, memory, "\n\n".join(filter(None, brief)))
            try:
                run = await live.runner.run()
            finally:
                live.record = replace(_placed(live.record, lease), files=await self._files(lease))
            return run.status

    async def _memory(self, live: LiveTask) -> Memory:
        request = live.request
        if request.task_id:
            return await self._do(self._store.memory, request.task_id)
        if request.new:
            return Memory()
        return await self._do(self._store.latest_memory, request.key)

    def _runner(self, live: LiveTask, lease: Lease, memory: Memory, brief: str) -> AgentRunner:
        request = live.request
        task = request.task or (GO_ON if memory.turns else live.record.task)
        budget = Budget.of(
            self._settings.agent,
            max_steps=request.max_steps,
            max_tokens=request.max_tokens,
            max_cost_usd=request.max_cost_usd,
            timeout=request.timeout,
        )
        return AgentRunner(
            "\n\n".join(filter(None, [task, brief])),
            lease,
            settings=self._settings,
            model=request.model,
            budget=budget,
            memory=memory.turns,
            on_event=partial(self._on_event, live),
            client=live.questions.ask if request.client else None,
        )

    async def _on_event(self, live: LiveTask, event: AgentEvent) -> None:
        self._account(live)
        if isinstance(event, StepFinished):
            await self._keep_steps(live)
        await live.tell(_numbered(event, after=len(live.record.steps)))

    def _account(self, live: LiveTask) -> None:
        """Counts what the model has cost since the last look for the owner's month."""
        if live.runner is None or live.runner.spent == live.accounted:
            return
        before, now = live.accounted, live.runner.spent
        live.accounted = now
        self._manager.account_model(
            live.record.key,
            usd=max((now.cost_usd or 0.0) - (before.cost_usd or 0.0), 0.0),
            tokens=_tokens(now) - _tokens(before),
        )

    async def _files(self, lease: Lease) -> tuple[NewFile, ...]:
        found: list[FileInfo] = []
        with anyio.move_on_after(FILES_LIMIT, shield=True):
            try:
                found = await lease.changed_files()
            except E2BAgentError as exc:
                logger.info("no files of sandbox=%s: %s", lease.sandbox_id, exc.message)
        return tuple(NewFile(path=f.path, size=f.size, mime_type=f.mime_type) for f in found)

    async def _finish(self, live: LiveTask, record: TaskRecord) -> None:
        self._account(live)
        with anyio.move_on_after(CLOSE_LIMIT, shield=True):
            if live.is_ours:
                await self._keep(live, record)
        del self._live[record.task_id]
        live.finish(record)
        logger.info("task %s %s after %d steps", record.task_id, record.status, len(record.steps))

    async def _keep(self, live: LiveTask, record: TaskRecord) -> None:
        await self._write(self._store.save, record)
        await self._keep_steps(live)

    async def _keep_steps(self, live: LiveTask) -> None:
        """Those that are not stored yet; one that was cut short comes without a word of its end."""
        if live.runner is not None:
            steps = live.now().steps[live.stored :]
            live.stored += len(steps)
            memory = live.runner.snapshot().memory
            await self._write(self._store.add_steps, live.record.task_id, steps, memory)

    async def _write(self, action: Callable[..., None], *args: object) -> None:
        """A task does not fail because the disk is full."""
        try:
            await self._do(action, *args)
        except sqlite3.Error as exc:
            logger.warning("a task could not be stored: %s", exc)

    async def _do(self, action: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(partial(action, *args), limiter=self._one)


async def _load_ahead(choices: Sequence[Choice]) -> None:
    """What the run will wait for, while its sandbox is made. A failure is the run's to tell."""
    with suppress(Exception):
        await preload(choices)


def _placed(record: TaskRecord, lease: Lease) -> TaskRecord:
    note = " ".join(filter(None, [lease.lost, lease.warning]))
    return replace(record, sandbox_id=lease.sandbox_id, sandbox_state=lease.state, note=note)


def _tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.output_tokens


def _numbered(event: AgentEvent, *, after: int) -> AgentEvent:
    """With the number that the step has in the whole task."""
    if isinstance(event, ModelRetry):
        return event
    if isinstance(event, StepFinished):
        return StepFinished(step=replace(event.step, number=after + event.step.number))
    return replace(event, number=after + event.number)

"""A task of this process that is not over: what is asked, how far it is, who waits for it."""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import anyio

from e2b_agent_mcp.agent import AgentEvent, AgentRunner, Thinking, Usage
from e2b_agent_mcp.agent.budget import add
from e2b_agent_mcp.agent.llm import ClientReply, Request
from e2b_agent_mcp.errors import InvalidArgumentError
from e2b_agent_mcp.lifecycle import Lease
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.tasks.questions import Question, Questions
from e2b_agent_mcp.tasks.record import TaskRecord


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """What is asked; two equal requests are the same task while the first one runs."""

    key: SessionKey
    task: str
    model: str | None = None
    max_steps: int | None = None
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    timeout: float | None = None  # seconds, of the whole task
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    new: bool = False  # without what the session's earlier tasks know
    task_id: str = ""  # an earlier task to go on with
    client: bool = False  # the caller's client lends its model

    @property
    def fingerprint(self) -> str:
        """The same for equal requests, in every process."""
        told = json.dumps({**vars(self), "key": None, "client": None}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True)
class Doing:
    """What happens to a task outside of the agent's steps, in words."""

    words: str


TaskEvent = AgentEvent | Doing
Listener = Callable[[TaskEvent], Awaitable[None]]
ModelQuestion = Question[Request, ClientReply]
# Answers a question, or returns False: then the call that waits gets the task as it stands.
Attendant = Callable[[ModelQuestion], Awaitable[bool]]
# Gets the sandbox ready for the task; the words it returns are for the agent.
Prepare = Callable[[Lease], Awaitable[str]]


async def prepare_nothing(lease: Lease) -> str:
    return ""


@dataclass(eq=False, kw_only=True)
class LiveTask:
    request: TaskRequest
    record: TaskRecord  # as it was before this run's steps
    prepare: Prepare
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)
    listeners: list[Listener] = field(default_factory=list)
    callers: int = 0  # that wait for it
    runner: AgentRunner | None = None
    accounted: Usage = field(default_factory=Usage)  # of the runner's model
    saved: anyio.Event = field(default_factory=anyio.Event)
    elsewhere: str = ""  # the task of another process, which is the same
    refusal: InvalidArgumentError | None = None  # another process goes on with it otherwise
    stored: int  # steps, of all runs
    doing: str = ""
    latest: TaskEvent | None = None  # but for the pieces of a reply
    changed_at: float = field(default_factory=time.time)
    questions: Questions[Request, ClientReply] = field(default_factory=Questions)

    def now(self) -> TaskRecord:
        if self.runner is None:
            return replace(self.record, changed_at=self.changed_at)
        run = self.runner.snapshot()
        first = len(self.record.steps)
        steps = [replace(step, number=first + step.number) for step in run.steps]
        return replace(
            self.record,
            steps=(*self.record.steps, *steps),
            usage=add(self.record.usage, run.usage),
            model=run.model or self.runner.model,
            answer=run.answer,
            answer_text=run.answer_text,
            error=run.error,
            changed_at=self.changed_at,
        )

    async def tell(self, event: TaskEvent) -> None:
        if not isinstance(event, Thinking):
            self.latest, self.changed_at = event, time.time()
        for listener in tuple(self.listeners):
            await listener(event)

    async def say(self, words: str) -> None:
        self.doing = words
        await self.tell(Doing(words))

    @property
    def is_ours(self) -> bool:
        """Known once it is `saved`."""
        return not self.elsewhere and self.refusal is None

    def stop(self) -> None:
        self.scope.cancel()

    def finish(self, record: TaskRecord) -> None:
        self.record, self.runner = record, None
        self.over.set()
        self.questions.wake()

    async def attend(
        self,
        wait: float,
        listener: Listener | None = None,
        attendant: Attendant | None = None,
    ) -> TaskRecord:
        """Waits for the end, at most `wait` seconds, and answers questions meanwhile.

        An answer that is under way is paid for: it may come later than that.
        """
        deadline = anyio.current_time() + wait
        with self.waited_for(), self._listening(listener):
            if listener is not None and self.doing:
                await listener(Doing(self.doing))
            go_on = True
            while go_on and not self.over.is_set() and anyio.current_time() < deadline:
                with anyio.CancelScope(deadline=deadline):
                    await self._over_or(asked=attendant is not None)
                if attendant is not None and (question := self.questions.next()) is not None:
                    with question.being_answered():
                        go_on = await attendant(question)
                    self.questions.wake()
        return self.record if self.over.is_set() else self.now()

    async def _over_or(self, *, asked: bool) -> None:
        if not asked:
            await self.over.wait()
        while not self.over.is_set() and self.questions.next() is None:
            await self.questions.news()

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        self.callers += 1
        try:
            yield
        finally:
            self.callers -= 1

    @contextmanager
    def _listening(self, listener: Listener | None) -> Iterator[None]:
        if listener is not None:
            self.listeners.append(listener)
        try:
            yield
        finally:
            if listener is not None:
                self.listeners.remove(listener)

"""One task, done by an agent in a session's sandbox: `AgentRunner`.

    runner = AgentRunner(task, lease, settings=settings, on_event=show)
    run = await runner.run()

smolagents blocks, so it has a thread; all it does there is to call back into the task that awaits
`run`, for each reply of the model and each run of code. Cancelling that task closes the model's
connection and stops the code at once; `snapshot` then tells what was done until there.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio import to_thread

from e2b_agent_mcp.agent import libraries
from e2b_agent_mcp.agent.bridge import Bridge
from e2b_agent_mcp.agent.budget import LEAST_REPLY, Budget
from e2b_agent_mcp.agent.choice import CLIENT, Choice, choose, keys
from e2b_agent_mcp.agent.events import (
    AgentEvent,
    AgentRun,
    CodeStarted,
    Failure,
    ModelRetry,
    OnEvent,
    Output,
    RunStatus,
    Step,
    StepFinished,
    StepStarted,
    Thinking,
    Usage,
)
from e2b_agent_mcp.agent.llm import AskClient, Llm, Reply, Request, estimate, sees
from e2b_agent_mcp.agent.prompts import Conditions, shown, task_prompt
from e2b_agent_mcp.agent.replies import from_json, thought_of
from e2b_agent_mcp.agent.variables import showing_variables
from e2b_agent_mcp.agent.workspace import Observation, Workspace
from e2b_agent_mcp.errors import E2BAgentError, ModelError
from e2b_agent_mcp.lifecycle import Lease
from e2b_agent_mcp.settings import Settings

if TYPE_CHECKING:
    from smolagents.memory import ActionStep

    from e2b_agent_mcp.agent.code_agent import SessionAgent
    from e2b_agent_mcp.agent.executor import WorkspaceExecutor

logger = logging.getLogger(__name__)

LARGEST_CAP = 32_000  # tokens; a reply that may be longer than this needs no cap of ours
CUT_SHORT = "The code did not run to its end."


async def ignore(event: AgentEvent) -> None:
    pass


async def preload(choices: Sequence[Choice] = ()) -> None:
    """Loads smolagents and litellm in a thread, ahead of the first run; without litellm when only
    the client's model is to be asked."""
    with_litellm = not choices or any(choice.model != CLIENT for choice in choices)
    load = partial(libraries.load, with_litellm=with_litellm)
    await to_thread.run_sync(load, abandon_on_cancel=True)


class AgentRunner:
    """One run of one task; made for each task anew."""

    def __init__(
        self,
        task: str,
        lease: Lease,
        *,
        settings: Settings,
        model: str | None = None,
        budget: Budget | None = None,
        memory: Sequence[dict[str, object]] = (),
        on_event: OnEvent = ignore,
        client: AskClient | None = None,
    ) -> None:
        """`memory` is an earlier run's, in the same session. `on_event` is awaited in order.
        `client` asks the model of the caller's client, where there is one that lends it.

        Raises `ModelNotConfiguredError` when no model can be chosen.
        """
        self._task = task
        self._lease = lease
        self._settings = settings.agent
        self._as_json = settings.agent.replies == "json"
        self._network = settings.e2b.api_key is not None or settings.engine.network == "public"
        self._budget = budget or Budget.of(settings.agent)
        self._memory = tuple(memory)
        self._tell = on_event
        self._choices = choose(settings.agent, model, client=client is not None)
        self._llm = Llm(
            self._choices,
            secrets=keys(settings.agent),
            silence=settings.agent.request_timeout,
            on_text=self._on_text,
            on_retry=self._on_retry,
            client=client,
        )
        self._bridge = Bridge()
        self._workspace = Workspace(lease, on_output=self._on_output)
        self._prompt = ""  # the task, and what is in the sandbox
        self._agent: SessionAgent | None = None
        self._executor: WorkspaceExecutor | None = None
        self._started: float | None = None
        self._ended: float | None = None
        self._number = 0  # of the step that is under way
        self._thought = ""
        self._before = Usage()  # what had been spent when the step began
        self._steps: list[Step] = []
        self._vision = False
        self._status: RunStatus = "cancelled"
        self._error: Failure | None = None
        self._answer: object = None
        self._answer_text = ""

    @property
    def model(self) -> str:
        """The model that answered last; before that, the one that is asked first."""
        return self._llm.model

    async def run(self) -> AgentRun:
        """Runs to the end; what the model or the sandbox refuses is a status, not an exception."""
        self._started = time.monotonic()
        try:
            with anyio.move_on_after(self._budget.timeout) as limit:
                await self._run()
            if limit.cancelled_caught and self._status != "completed":
                self._exceed(f"{self._budget.timeout:g} s have passed")
                self._accept("")
        except E2BAgentError as exc:
            self._fail(exc)
        finally:
            self._ended = time.monotonic()
        return self.snapshot()

    def snapshot(self) -> AgentRun:
        """The run as it stands, at any moment; `cancelled` unless it has ended otherwise.

        One that has its answer is `completed`, whatever cancels it afterwards.
        """
        images = dict.fromkeys(image for step in self._steps for image in step.images)
        return AgentRun(
            status=self._status,
            answer=self._answer,
            answer_text=self._answer_text,
            steps=tuple(self._steps),
            images=tuple(images),
            usage=self._usage(),
            model=self.model,
            error=self._error,
            memory=self._dump(),
        )

    async def _run(self) -> None:
        await preload(self._choices)
        facts = await self._workspace.prepare()
        self._prompt = task_prompt(self._task, facts, self._lease.lost)
        await self._bridge.run(self._work)

    # In the agent's thread.

    def _work(self) -> None:
        from e2b_agent_mcp.agent.executor import Aborted

        try:
            self._build()
            self._drive()
        except Aborted as exc:
            if exc.__cause__ is not None:
                raise exc.__cause__ from None
            self._exceed(str(exc))
            self._answer_at_last()

    def _build(self) -> None:
        from e2b_agent_mcp.agent import memory
        from e2b_agent_mcp.agent.code_agent import AgentModel, build, silent_logger
        from e2b_agent_mcp.agent.executor import WorkspaceExecutor

        vision = self._settings.vision
        self._vision = sees(self.model) if vision == "auto" else vision == "on"
        log = silent_logger()
        self._executor = WorkspaceExecutor(self._execute, log)
        self._agent = build(
            AgentModel(self._ask, model_id=self.model, images=self._vision, as_json=self._as_json),
            self._executor,
            Conditions(
                max_steps=self._budget.max_steps,
                step_timeout=self._settings.step_timeout,
                network=self._network,
                as_json=self._as_json,
            ),
            on_step=self._record,
        )
        self._agent.memory.steps.extend(memory.load(self._memory, log))

    def _drive(self) -> None:
        """Runs the agent to its end. Its generator is never closed early: it cannot be."""
        from smolagents.memory import ActionStep, FinalAnswerStep
        from smolagents.utils import AgentGenerationError

        assert self._agent is not None
        told = 0
        answer: object = None
        try:
            # Any: a generator when it streams, which its declared type does not say.
            items: Any = self._agent.run(self._prompt, stream=True, reset=False)
            for item in items:
                if isinstance(item, ActionStep) and len(self._steps) > told:
                    told = len(self._steps)
                    self._bridge.call(self._finished, self._steps[-1])
                elif isinstance(item, FinalAnswerStep):
                    answer = item.output
        except AgentGenerationError as exc:
            raise exc.__cause__ or exc from None
        self._conclude(answer)

    def _ask(self, request: Request, is_last: bool) -> Reply:
        from e2b_agent_mcp.agent.executor import Aborted

        budget = self._budget.for_last_answer() if is_last else self._budget.for_steps()
        longest = budget.reply_tokens(
            self.spent, prompt=estimate(request.messages), price=self._llm.price
        )
        reason = budget.exceeded(self._charged())
        if reason or longest < LEAST_REPLY:
            raise Aborted(reason or "the next call could exceed its limit of tokens or dollars")
        if longest < LARGEST_CAP:
            request = replace(request, longest=int(longest))
        return self._bridge.call(self._reply, request, is_last)

    def _execute(self, code: str) -> Observation:
        from e2b_agent_mcp.agent.executor import Aborted

        left = self._budget.sandbox_seconds - self._workspace.seconds
        if left <= 0:
            raise Aborted(self._budget.exceeded(self._charged()))
        try:
            return self._bridge.call(self._observe, code, min(self._settings.step_timeout, left))
        except Exception as exc:  # for the model there is nothing to be done about it
            raise Aborted from exc

    def _record(self, action: "ActionStep") -> None:
        """Called before the step enters the agent's memory, also when the run is cancelled."""
        from smolagents.utils import AgentMaxStepsError

        assert self._executor is not None
        seen, self._executor.last = self._executor.last, None
        if isinstance(action.error, AgentMaxStepsError) or action.model_output is None:
            return
        if seen is not None:
            again = bool(self._steps) and action.code_action == self._steps[-1].code
            action.observations = shown(seen, again=again) or None
            if self._vision and seen.images:
                # Typed for PIL's; only `messages` reads them, and it takes ours undecoded.
                action.observations_images = cast("Any", list(seen.images))
        if seen is not None and seen.answer is not None:
            self._status = "completed"
            self._answer, self._answer_text = seen.answer
        self._steps.append(self._step(action, seen))

    def _step(self, action: "ActionStep", seen: Observation | None) -> Step:
        usage = _difference(self._usage(), self._before)
        if seen is not None:
            error = seen.error
        else:
            error = str(action.error) if action.error is not None else CUT_SHORT
        return Step(
            number=self._number,
            thought=self._thought,
            code=action.code_action or "",
            output=seen.output if seen is not None else "",
            error=error,
            duration=usage.duration,
            images=seen.images if seen is not None else (),
            usage=usage,
        )

    def _conclude(self, answer: object) -> None:
        if self._status == "completed":
            return
        self._exceed(f"{self._budget.max_steps} steps were taken")
        # smolagents gives back a list when the model failed here.
        self._accept(answer if isinstance(answer, str) else "")

    def _answer_at_last(self) -> None:
        """What was found so far, in the model's words, if that is still within the budget."""
        from e2b_agent_mcp.agent.executor import Aborted

        assert self._agent is not None
        said: Any = ""
        try:
            said = self._agent.provide_final_answer(self._prompt).content
        except Aborted:
            logger.info("no budget left for a last answer")
        self._accept(said if isinstance(said, str) else "")

    # In the event loop.

    async def _reply(self, request: Request, is_last: bool) -> Reply:
        number = len(self._steps) + 1
        if not is_last and number != self._number:
            self._number, self._before = number, self._usage()
            await self._tell(StepStarted(number=number))
        reply = await self._llm.ask(request)
        self._thought = thought_of(from_json(reply.text) if self._as_json else reply.text)
        return reply

    async def _observe(self, code: str, timeout: float) -> Observation:
        await self._tell(CodeStarted(number=self._number, thought=self._thought, code=code))
        return await self._workspace.run(showing_variables(code), timeout=timeout)

    async def _finished(self, step: Step) -> None:
        await self._tell(StepFinished(step=step))

    async def _on_text(self, characters: int) -> None:
        await self._tell(Thinking(number=self._number, characters=characters))

    async def _on_retry(self, error: ModelError, delay: float, model: str) -> None:
        await self._tell(ModelRetry(reason=error.message, delay=delay, model=model))

    async def _on_output(self, text: str) -> None:
        await self._tell(Output(number=self._number, text=text))

    # The run's state.

    @property
    def spent(self) -> Usage:
        """What its models have cost so far, as far as their prices are known."""
        return replace(self._llm.spent, cost_usd=self._llm.dollars)

    def _charged(self) -> Usage:
        """What counts against the budget: one model without a price must not hide the others'."""
        return replace(self._usage(), cost_usd=self._llm.dollars)

    def _usage(self) -> Usage:
        if self._started is None:
            return Usage()
        now = self._ended if self._ended is not None else time.monotonic()
        return replace(
            self._llm.spent,
            sandbox_seconds=self._workspace.seconds,
            duration=now - self._started,
        )

    def _dump(self) -> tuple[dict[str, object], ...]:
        if self._agent is None:
            return self._memory
        from e2b_agent_mcp.agent import memory

        return memory.dump(self._agent.memory.steps, tasks={self._prompt: self._task})

    def _fail(self, error: E2BAgentError) -> None:
        self._status = "failed"
        self._error = Failure(code=error.code, message=error.message, hint=error.hint)

    def _exceed(self, reason: str) -> None:
        self._status = "budget_exceeded"
        self._error = Failure(
            code="budget_exceeded",
            message=f"The task's budget is used up: {reason}.",
            hint="Continue it with a new call, or raise the limit.",
        )

    def _accept(self, said: str) -> None:
        """The model's last words, else what the last steps showed."""
        found = (step.output or step.thought for step in reversed(self._steps))
        self._answer_text = said.strip() or next((text for text in found if text), "")
        self._answer = said.strip() or None


def _difference(now: Usage, before: Usage) -> Usage:
    known = now.cost_usd is not None and before.cost_usd is not None
    return Usage(
        llm_calls=now.llm_calls - before.llm_calls,
        input_tokens=now.input_tokens - before.input_tokens,
        output_tokens=now.output_tokens - before.output_tokens,
        cost_usd=(now.cost_usd or 0.0) - (before.cost_usd or 0.0) if known else None,
        sandbox_seconds=now.sandbox_seconds - before.sandbox_seconds,
        duration=now.duration - before.duration,
    )

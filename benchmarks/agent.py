"""What the agent costs beside its model and its code, next to stock smolagents in the same run.

    python benchmarks/agent.py [step|prompt|start]... [--rounds N]

step    milliseconds of one step that are neither the model's nor the code's: from a request's
        arrival to the next one's, without the model's time to answer and what the same code takes
        when run_python runs it
prompt  tokens of one step's prompt, at four characters each
start   seconds from starting a server's process to its first request to the model

The model is a scripted server that answers at once; stock smolagents asks the same one, and runs
its code by its local executor, without a sandbox. Both do the same five steps, in turns, so
whatever else the machine does falls on both. Uses the E2B that the environment names, else the
embedded engine. `cpu` is the whole process's, per step.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from mcp import Client, StdioServerParameters

from e2b_agent_mcp import SandboxManager, Settings
from e2b_agent_mcp.agent import preload
from e2b_agent_mcp.commands.task import opened
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.tasks import TaskRegistry, TaskRequest
from scripted_llm import KEY, ScriptedLLM
from scripted_llm import code as ours_of

if TYPE_CHECKING:
    from collections.abc import Callable

TASK = "Sum the numbers that you make."
STEPS = (
    "numbers = list(range(100))",
    "total = sum(numbers)",
    "print(total)",
    "average = total / 100",
)
LAST = "final_answer(average)"
CODE = (*STEPS, LAST)
STEP_TARGET = 25.0  # milliseconds
PROMPT_TARGET = 0.40  # of stock smolagents' tokens


def stock_of(source: str) -> str:
    return f"Thought: Let me see.\n<code>\n{source}\n</code>"


def tokens(request: dict[str, object]) -> float:
    total = 0
    for message in request["messages"]:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part["text"] for part in content]
        total += sum(map(len, parts))
    return total / 4


class Figures:
    """One side's runs: seconds without the model's, and prompt tokens, per step."""

    def __init__(self, llm: ScriptedLLM, form: Callable[[str], str]) -> None:
        self.seconds: list[float] = []
        self.model: list[float] = []
        self.cpu: list[float] = []
        self.prompts: list[float] = []
        self._llm = llm
        self._form = form

    def script(self) -> None:
        self._llm.script(*map(self._form, CODE))
        self._asked = len(self._llm.requests)

    def count(self, cpu: float) -> None:
        """From an answer to the next request is a step, but for the last."""
        times, answering = self._llm.times[self._asked :], self._llm.answering[self._asked :]
        between = [later - before for before, later in pairwise(times)]
        self.model += answering
        self.seconds += [whole - model for whole, model in zip(between, answering, strict=False)]
        self.prompts += map(tokens, self._llm.requests[self._asked :])
        self.cpu.append(cpu / len(CODE))


async def run_ours(figures: Figures, tasks: TaskRegistry, key: SessionKey) -> None:
    """As the server does it, with each step stored."""
    figures.script()
    before = time.process_time()
    record = await tasks.run(TaskRequest(key=key, task=TASK, new=True), wait=math.inf)
    assert record.answer == 49.5, record
    figures.count(time.process_time() - before)


async def run_stock(figures: Figures, url: str) -> None:
    from smolagents import CodeAgent, LiteLLMModel, LogLevel

    model = LiteLLMModel("openai/scripted", api_base=url, api_key=KEY)
    agent = CodeAgent(tools=[], model=model, verbosity_level=LogLevel.OFF)
    figures.script()
    before = time.process_time()
    assert await to_thread.run_sync(agent.run, TASK) == 49.5
    figures.count(time.process_time() - before)


async def steps(rounds: int) -> tuple[Figures, Figures, list[float]]:
    """Ours, stock smolagents', and what the same code takes in the sandbox without an agent."""
    with ScriptedLLM() as llm:
        settings = settings_for(llm)
        ours, stock, bare = Figures(llm, ours_of), Figures(llm, stock_of), []
        await preload()
        async with opened(settings) as (manager, tasks):
            key = SessionKey(settings.local_owner, "benchmark-agent")
            for number in range(rounds + 1):
                await run_ours(ours, tasks, key)
                await run_stock(stock, llm.url)
                async with manager.lease(key) as lease:
                    for source in STEPS:
                        started = time.perf_counter()
                        await lease.run_code(source, timeout=60)
                        bare.append(time.perf_counter() - started)
                if not number:  # the first round loads what later ones have
                    ours, stock, bare = Figures(llm, ours_of), Figures(llm, stock_of), []
            await manager.end_session(key)
    return ours, stock, bare


def settings_for(llm: ScriptedLLM) -> Settings:
    return Settings.load(
        {
            **os.environ,
            "E2B_AGENT_MCP_AGENT_MODEL": "openai/scripted",
            "E2B_AGENT_MCP_AGENT_BASE_URL": llm.url,
            "E2B_AGENT_MCP_AGENT_API_KEY": KEY,
        }
    )


def median(values: list[float]) -> float:
    return statistics.median(values)


async def report_steps(rounds: int) -> None:
    ours, stock, bare = await steps(rounds)
    whole, code, reference = (median(x) * 1e3 for x in (ours.seconds, bare, stock.seconds))
    print(f"step    ours {whole - code:.1f} ms (target {STEP_TARGET:.0f} ms)", end="")
    print(f" beside {code:.1f} ms of code in the sandbox", end="")
    print(f" and {median(ours.model) * 1e3:.1f} ms of the model")
    print(
        f"        stock smolagents {reference:.1f} ms, its local executor's code included", end=""
    )
    print(f", beside {median(stock.model) * 1e3:.1f} ms of the model")
    print(
        f"        cpu: ours {median(ours.cpu) * 1e3:.1f} ms, stock {median(stock.cpu) * 1e3:.1f} ms"
    )


async def report_prompts(rounds: int) -> None:
    ours, stock, _ = await steps(1)
    share = median(ours.prompts) / median(stock.prompts)
    print(
        f"prompt  ours {median(ours.prompts):.0f} tokens, stock {median(stock.prompts):.0f}: ",
        end="",
    )
    print(f"{share:.0%} (target {PROMPT_TARGET:.0%})")


async def report_start(rounds: int) -> None:
    seconds = [await start() for _ in range(min(rounds, 5))]
    print(f"start   {median(seconds):.2f} s from a cold server to the first request", end="")
    print(f" (fastest {min(seconds):.2f} s; no target)")


async def start() -> float:
    """The engine and its template are there; the server and its sandbox are not."""
    with ScriptedLLM() as llm:
        llm.script(ours_of("final_answer(1)"))
        environment = {
            **os.environ,
            "E2B_AGENT_MCP_AGENT_MODEL": "openai/scripted",
            "E2B_AGENT_MCP_AGENT_BASE_URL": llm.url,
            "E2B_AGENT_MCP_AGENT_API_KEY": KEY,
            "E2B_AGENT_MCP_SESSION": "benchmark-start",
        }
        async with SandboxManager(settings_for(llm)) as manager:
            await manager.prepare()
        command = StdioServerParameters(
            command=sys.executable, args=["-m", "e2b_agent_mcp"], env=environment
        )
        started = time.monotonic()
        async with Client(command) as client:
            result = await client.call_tool("run_agent_task", {"task": TASK})
            assert (result.structured_content or {})["answer"] == 1, result
            await client.call_tool("end_session", {})
        return llm.times[0] - started


REPORTS = {"step": report_steps, "prompt": report_prompts, "start": report_start}


async def main(names: list[str], rounds: int) -> None:
    for name in names:
        await REPORTS[name](rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="step|prompt|start")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    anyio.run(main, given.names or list(REPORTS), given.rounds)

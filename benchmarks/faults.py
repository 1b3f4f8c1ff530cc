"""Many sessions at once behind a proxy where 1 % of all requests fail: what comes out wrong.

    python benchmarks/faults.py [SESSIONS] [CALLS] [SEED]

An engine of its own, the manager, and between them the proxy of the tests. A call's code adds a
number to a list and shows the list, so that every answer can be checked against those before it. A
call that ends with one of the manager's errors is not wrong, nor one that tells what was lost; one
that answers what is not so, runs code twice or loses in silence what was answered is. Afterwards,
without faults, every session is looked at and ended: what the engine then still has is a leak.
"""

import ast
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import faults
from conftest import Connector, client, running_engine, temporary_options
from e2b_agent_mcp import SandboxManager, Settings
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.errors import SandboxError
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import SandboxSettings
from faults import ROUTES, FaultProxy, Random

SHARE = 0.01  # of requests that fail
OWNER = "benchmark"
RUN_LIMIT = 60.0  # seconds
FAULTS = [
    *(faults.close_before, faults.close_after, faults.reset_before, faults.reset_after),
    *(faults.truncate, faults.end_early, faults.not_json, faults.empty, faults.hang_after),
    *(faults.answer(status) for status in (429, 500, 502, 503, 504)),
    *(faults.answer(status, forwarded=True) for status in (502, 504)),
    *(faults.answer(503, retry_after=1), faults.delay(0.5), faults.slow(0.05)),
]


@dataclass(eq=False)
class Session:
    """What a session's calls have answered."""

    name: str
    done: set[int] = field(default_factory=set)
    sent: set[int] = field(default_factory=set)

    def check(self, number: int, printed: str) -> str:
        """What is wrong with an answer; empty when nothing is."""
        ran = ast.literal_eval(printed)
        if ran.count(number) != 1 or len(ran) != len({*ran}):
            return "code ran twice or not at all"
        if not self.done <= {*ran}:
            return "what was answered is lost"
        if not {*ran} <= self.sent:
            return "another session's code"
        self.done = {*ran}
        return ""

    def lose(self) -> None:
        """A loss that was told."""
        self.done.clear()


@dataclass(eq=False)
class Report:
    times: list[float] = field(default_factory=list)  # seconds of each call
    errors: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)  # in the words of the result
    wrong: list[str] = field(default_factory=list)


async def call(manager: SandboxManager, session: Session, number: int, report: Report) -> None:
    session.sent.add(number)
    code = f"ran = globals().get('ran', []); ran.append({number}); print(ran)"
    started = time.perf_counter()
    try:
        async with manager.lease(SessionKey(OWNER, session.name)) as lease:
            run = await lease.run_code(code, timeout=RUN_LIMIT)
    except SandboxError as exc:
        report.errors[exc.code] += 1
        return
    finally:
        report.times.append(time.perf_counter() - started)
    if lease.lost:
        report.losses[lease.lost] += 1
        session.lose()
    if run.status == "timeout":
        report.errors["timeout"] += 1
    elif problem := session.check(number, "".join(run.execution.logs.stdout)):
        report.wrong.append(f"{session.name}: {problem}")


async def main(engine: EngineAddress, sessions: int, calls: int, seed: int) -> None:
    report = Report()
    every = [Session(str(number)) for number in range(sessions)]
    settings = Settings(
        sandboxes=SandboxSettings(max=sessions, create_timeout=600, request_timeout=30)
    )

    async def use(manager: SandboxManager, session: Session) -> None:
        for number in range(calls):
            await call(manager, session, number, report)

    async with FaultProxy.serve(engine) as proxy:
        proxy.program = Random(seed, SHARE, FAULTS, ROUTES)
        async with SandboxManager(settings, connect=Connector(proxy.address)) as manager:
            started = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for session in every:
                    tasks.start_soon(use, manager, session)
            took = time.perf_counter() - started
        met = Counter(exchange.fault for exchange in proxy.faults())
        requests = len(proxy.log)
    after = Report()
    async with SandboxManager(settings, connect=Connector(engine)) as manager:
        for session in every:
            await call(manager, session, calls, after)
            await manager.end_session(SessionKey(OWNER, session.name))
    leaks = await left(engine)
    print(f"{sessions} sessions x {calls} calls, seed {seed}: {took:.1f} s")
    print(f"calls           {len(report.times) / took:7.1f} per second")
    print(f"                {statistics.median(report.times) * 1e3:7.0f} ms median")
    print(f"requests        {requests:7}   failed {met.total()}: {dict(met.most_common())}")
    print(f"errors told     {report.errors.total():7}   {dict(report.errors.most_common())}")
    print(f"losses told     {report.losses.total():7}   {dict(report.losses)}")
    print(f"errors after    {after.errors.total():7}   {dict(after.errors)}")
    print(f"wrong results   {len(report.wrong + after.wrong):7}   {report.wrong + after.wrong}")
    print(f"leaks           {leaks:7}")


async def left(engine: EngineAddress) -> int:
    pages = client(engine).AsyncSandbox.list()
    found = 0
    while pages.has_next:
        found += len(await pages.next_items())
    return found


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    defaults = [50, 20, time.time_ns() % 10**6]
    sessions, calls, seed = given + defaults[len(given) :]
    with (
        temporary_options(max_sandboxes=sessions + 5) as options,
        running_engine(options) as engine,
    ):
        anyio.run(main, engine, sessions, calls, seed)

"""Random histories of servers, calls, failures and crashes, and what must be true in all of them.

Several servers of one owner share sessions on a real engine, through a proxy that fails at times.
Every piece of code that is run has a number, which it adds to a list in the interpreter and to a
file; so each answer shows what ran before it in the same sandbox, and the proxy's log what was sent
how often.

What holds, whatever happens:
- A session has at most one sandbox, not older than it may be.
- No code is sent to a live sandbox twice.
- What an answered call did is there in the next one, unless that says that it is lost; what is said
  to be lost is; and nothing is lost but for a cause. A call fails only if a request failed.
- No more sandboxes run than may. Several servers may be wrong by one each.
- What nobody uses any more is ended or paused in time, and a sweep ends what is left.
- What ran has been counted, to two seconds, but for what a server could not know.

`world` says so in code. Histories differ in their settings, and in whether their servers are on one
machine, where they take turns.
"""

import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest

import faults
from conftest import Connector, running_engine
from e2b_agent_mcp.engine import EngineAddress, EngineOptions
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.settings import EngineSettings, SandboxSettings, Settings
from faults import CONTROL, DATA, ROUTES, Fault
from rounds import rounds
from stacks import deadline
from world import ENDLESSLY, MOST_SERVERS, NAMES, Burst, Server, World

HISTORIES = rounds(few=2, many=44)
AT_ONCE = 4  # histories, each of an owner of its own
STEPS = rounds(few=20, many=50)
DEADLINE = 120.0  # seconds for one step

LIMITS = SandboxSettings(idle_after=1200.0, max=len(NAMES), create_timeout=20, request_timeout=30)
SETUPS = {
    "plain": LIMITS,
    "aging": replace(LIMITS, max_age=4),
    "pausing": replace(LIMITS, idle_action="pause"),
    "warm": replace(LIMITS, max=len(NAMES) + MOST_SERVERS, warm=1),
    "few, warm": replace(LIMITS, warm=1),
    "few": replace(LIMITS, max=len(NAMES) - 1),
    "refusing": replace(LIMITS, max=len(NAMES) - 1, at_limit="refuse"),
    "few, aging, warm, pausing": replace(
        LIMITS, max=len(NAMES) - 1, max_age=6, warm=1, idle_action="pause"
    ),
}

CREATED = 201  # HTTP

FAULTS: dict[str, Fault] = {
    "close before": faults.close_before,
    "close after": faults.close_after,
    "reset before": faults.reset_before,
    "reset after": faults.reset_after,
    "truncate": faults.truncate,
    "not JSON": faults.not_json,
    "late": faults.delay(0.2),
    **{str(status): faults.answer(status) for status in (429, 500, 502, 503, 504)},
    **{f"{status} after": faults.answer(status, forwarded=True) for status in (502, 504)},
}


# What may happen next: each draws what it needs.

Action = Callable[[World, random.Random], Awaitable[None]]


def any_server(world: World, draw: random.Random) -> Server:
    return draw.choice(world.servers)


def few_requests(draw: random.Random) -> int:
    return draw.randint(1, 8)


async def start_server(world: World, draw: random.Random) -> None:
    if world.may_start:
        await world.start_server()


async def crash(world: World, draw: random.Random) -> None:
    await world.crash(any_server(world, draw))


async def crash_in_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    await world.crash_in_call(server, name, few_requests(draw))


async def call(world: World, draw: random.Random) -> None:
    await world.failing(partial(world.call, any_server(world, draw), draw.choice(NAMES)))


async def calls_at_once(world: World, draw: random.Random) -> None:
    calls = range(draw.randint(2, 6))
    await world.calls_at_once([(any_server(world, draw), draw.choice(NAMES)) for _ in calls])


async def cancelled_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    await world.cancelled_call(server, name, few_requests(draw))


async def long_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    await world.failing(partial(world.call, server, name, then=ENDLESSLY, limit=0.3))


async def killed_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    await world.killed_call(server, name, few_requests(draw))


async def end(world: World, draw: random.Random) -> None:
    await world.failing(partial(world.end, any_server(world, draw), draw.choice(NAMES)))


async def list_sessions(world: World, draw: random.Random) -> None:
    await world.failing(partial(world.list_sessions, any_server(world, draw)))


async def kill(world: World, draw: random.Random) -> None:
    await world.kill(draw.choice(NAMES))


async def pause(world: World, draw: random.Random) -> None:
    await world.pause(draw.choice(NAMES))


async def be_unused(world: World, draw: random.Random) -> None:
    await world.let_time_pass(draw.choice(NAMES))


async def prune(world: World, draw: random.Random) -> None:
    await world.failing(partial(world.prune, any_server(world, draw)))


async def fail(world: World, draw: random.Random) -> None:
    routes = draw.choice([*((route,) for route in ROUTES), *(CONTROL, DATA, ROUTES) * 4])
    world.burst = Burst(FAULTS[draw.choice(sorted(FAULTS))], routes, draw.randint(1, 6))


async def recover(world: World, draw: random.Random) -> None:
    world.burst = None


ACTIONS: dict[Action, int] = {  # and how often each is drawn
    **dict.fromkeys((call, calls_at_once, fail), 3),
    **dict.fromkeys((cancelled_call, crash_in_call, killed_call, long_call), 2),
    **dict.fromkeys((start_server, crash, end, list_sessions, prune), 1),
    **dict.fromkeys((kill, pause, be_unused, recover), 1),
}


async def live(
    engine: EngineAddress, seed: int, counts: Counter[str], slowest: Counter[str]
) -> None:
    """One history, the same for the same seed but for what runs at the same time."""
    draw = random.Random(seed)
    setup, apart = draw.choice(sorted(SETUPS)), draw.choice((False, True))
    steps: list[str] = []
    try:
        async with opened(engine, SETUPS[setup], apart=apart) as world:
            world.counts = counts
            await world.start_server()
            for action in draw.choices([*ACTIONS], weights=[*ACTIONS.values()], k=STEPS):
                steps.append(name := action.__name__.replace("_", " "))
                began = time.monotonic()
                async with deadline(DEADLINE):
                    await action(world, draw)
                    await world.check()
                slowest[name] = max(slowest[name], time.monotonic() - began)
                counts.update(("steps", f"step: {name}"))
            steps.append("finish")
            async with deadline(DEADLINE):
                await world.finish()
    except Exception as exc:
        exc.add_note(f"history {seed}, {setup}: {', '.join(steps)}")
        raise
    counts.update(("histories", f"history: {setup}"))
    counts["histories of servers on different machines"] += apart
    counts["requests"] += len(world.log)
    counts.update(f"fault: {item.fault}" for item in world.log if item.fault)
    counts["sandboxes created"] += sum(
        item.route == "create" and item.status == CREATED for item in world.log
    )


@asynccontextmanager
async def opened(
    engine: EngineAddress, setup: SandboxSettings, *, apart: bool
) -> AsyncIterator[World]:
    with TemporaryDirectory() as folder:
        numbers = itertools.count()

        def turns() -> Path:
            return Path(folder, f"turns-{next(numbers) if apart else 0}")

        own_ledger = Settings(engine=EngineSettings(state_dir=Path(folder)))
        async with (
            SandboxManager(own_ledger, connect=Connector(engine)) as observer,
            anyio.create_task_group() as tasks,
        ):
            yield World(engine, tasks, observer, setup, turns)
            tasks.cancel_scope.cancel()


@pytest.fixture
def engine(fresh_options: EngineOptions) -> Iterator[EngineAddress]:
    """One of its own, with room for all that run at once; it leaves nothing behind."""
    with running_engine(replace(fresh_options, max_sandboxes=100)) as address:
        yield address


@pytest.mark.timeout(rounds(few=120, many=7200))
async def test_whatever_happens_no_session_is_lost_and_no_sandbox_left(
    engine: EngineAddress,
) -> None:
    counts, slowest = Counter[str](), Counter[str]()
    seeds = [random.randrange(2**32) for _ in range(HISTORIES)]

    async def live_on() -> None:
        while seeds:
            await live(engine, seeds.pop(), counts, slowest)

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(live_on)
    finally:
        print(*(f"{number:7} {what}" for what, number in sorted(counts.items())), sep="\n")
        print("slowest:", ", ".join(f"{name} {took:.1f} s" for name, took in slowest.most_common()))

"""Cancelled at any moment: everything stops, the session stays, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from e2b_agent_mcp.agent import preload
from scripted_llm import FOREVER, Reply, code

if TYPE_CHECKING:
    from agent.conftest import Agent

ROUNDS = int(os.environ.get("CANCEL_ROUNDS", "25"))
LIMIT = 1.5  # seconds; the promise is that all has stopped within one

TURNS = (
    code("n += 1"),
    code("n += 1\nimport time\ntime.sleep(60)"),
    code("!sleep 60"),
    code("while True: n += 1"),
    code("1 / 0"),
    Reply(text=code("n += 1"), delay=FOREVER),
    Reply(text=code("n += 1"), stall=FOREVER),
    Reply(status=429, headers={"retry-after": "30"}),
)


@pytest.mark.timeout(60 + 5 * ROUNDS)
async def test_cancelling_at_any_moment_keeps_the_session_and_leaks_nothing(agent: Agent) -> None:
    await preload()
    await agent.text("n = 0")
    chance = random.Random(7)
    for round_ in range(ROUNDS):
        if round_ == ROUNDS // 2:
            threads = threading.active_count()  # the pools have grown by now
        agent.llm.forget()
        agent.llm.script(*chance.choices(TURNS, k=30))
        before = int(await agent.text("n") or -1)
        runner = agent.runner()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run)
            await anyio.sleep(chance.choice([0, 0.02, 0.1, 0.3]) * chance.random())
            started = anyio.current_time()
            tasks.cancel_scope.cancel()
        assert anyio.current_time() - started < LIMIT
        assert runner.snapshot().status == "cancelled"
        assert int(await agent.text("n") or -1) >= before
    assert threading.active_count() <= threads + 2  # idle ones of the event loop
    assert not [task for task in asyncio.all_tasks() if "bridge" in repr(task)]

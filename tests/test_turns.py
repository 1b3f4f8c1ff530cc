"""Turns in a session among processes, each of which has its own `Turns` over one folder."""

import random
from pathlib import Path

import anyio
import pytest

from e2b_agent_mcp.lifecycle.turns import Turns
from e2b_agent_mcp.pool import SessionKey

pytestmark = pytest.mark.anyio

KEY = SessionKey("ann", "analysis")


async def test_one_has_the_turn_at_a_time_and_no_file_is_left(tmp_path: Path) -> None:
    chance = random.Random(5)
    inside, visits = 0, 0

    async def visit() -> None:
        nonlocal inside, visits
        async with Turns(lambda: tmp_path / "turns").turn(KEY):
            inside, visits = inside + 1, visits + 1
            assert inside == 1
            for _ in range(chance.randrange(20)):
                await anyio.lowlevel.checkpoint()
            inside -= 1

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(visit)
    assert visits == 40
    assert list((tmp_path / "turns").iterdir()) == []


async def test_who_waits_hears_of_it_and_other_sessions_do_not_wait(tmp_path: Path) -> None:
    said: list[str] = []
    one, other = Turns(lambda: tmp_path), Turns(lambda: tmp_path)

    async def hear(words: str) -> None:
        said.append(words)
        tasks.cancel_scope.cancel()

    async def wait() -> None:
        async with other.turn(KEY, hear):
            raise AssertionError

    async with one.turn(KEY, hear):
        for key in (SessionKey("bob", "analysis"), SessionKey("ann", "other")):
            async with other.turn(key, hear):
                assert said == []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
    assert said == ["Waiting for a call or task of another server in session analysis"]


async def test_where_no_file_can_be_made_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one, other = (Turns(lambda: tmp_path / "file" / "turns") for _ in range(2))
    async with one.turn(KEY), other.turn(KEY):
        pass

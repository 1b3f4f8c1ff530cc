"""An engine that is killed at any moment: what it had answered for is there again, and no more.

LONG_TESTS=1 kills it many times.
"""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import pytest
from e2b import SandboxState

from e2b_agent_mcp.engine import EngineOptions, ensure_ready, stop
from rounds import rounds

from .test_discovery import client

if TYPE_CHECKING:
    from e2b_code_interpreter import E2B, AsyncSandbox

LIFE = 1500.0  # ms at most between the first request and the kill
PAUSES = ("full", "filesystem")


@dataclass
class Known:
    """What the client was told. An answer that was lost says nothing."""

    alive: dict[str, str] = field(default_factory=dict)  # sandbox id: what its file holds
    doomed: set[str] = field(default_factory=set)  # a kill was asked for
    snapshots: dict[str, str] = field(default_factory=dict)


@pytest.mark.timeout(1800)
async def test_a_killed_engine_loses_nothing_that_it_had_answered_for(
    fresh_options: EngineOptions,
) -> None:
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    known = Known()
    try:
        for number in range(rounds(few=1, many=60)):
            address = await ensure_ready(fresh_options)
            e2b = client(address)
            await check(e2b, known, fresh_options)
            async with anyio.create_task_group() as tasks:
                for worker in range(3):
                    rng = random.Random(chance.random())
                    tasks.start_soon(use, e2b, known, rng, f"{number}-{worker}")
                await anyio.sleep(chance.uniform(0, LIFE) / 1000)
                os.kill(address.pid, signal.SIGKILL)
                tasks.cancel_scope.cancel()
        e2b = client(await ensure_ready(fresh_options))
        await check(e2b, known, fresh_options)
        await clear(e2b, fresh_options)
    finally:
        await stop(fresh_options)


async def use(e2b: E2B, known: Known, chance: random.Random, mark: str) -> None:
    """Until the engine is killed, or the round is over."""
    with suppress(Exception):  # whatever a client meets whose engine is killed
        sandbox = await e2b.AsyncSandbox.create(timeout=3000)
        await sandbox.files.write("mark", mark)
        known.alive[sandbox.sandbox_id] = mark
        while True:
            await step(e2b, sandbox, known, chance, mark)


async def step(
    e2b: E2B, sandbox: AsyncSandbox, known: Known, chance: random.Random, mark: str
) -> None:
    match chance.randrange(5):
        case 0:
            await sandbox.pause(mode=chance.choice(PAUSES))  # type: ignore[arg-type]
            await sandbox.connect(timeout=3000)
        case 1:
            snapshot = await sandbox.create_snapshot()
            known.snapshots[snapshot.snapshot_id] = mark
        case 2:
            await sandbox.set_timeout(3000)
        case 3:
            await sandbox.run_code("print(open('mark').read())")
        case 4:
            known.doomed.add(sandbox.sandbox_id)
            del known.alive[sandbox.sandbox_id]
            await sandbox.kill()
            raise EOFError


async def check(e2b: E2B, known: Known, options: EngineOptions) -> None:
    pages = e2b.AsyncSandbox.list()
    listed = {}
    while pages.has_next:
        listed |= {info.sandbox_id: info for info in await pages.next_items()}
    assert known.alive.keys() <= listed.keys()
    assert {info.state for info in listed.values()} <= {SandboxState.PAUSED}
    homes = {path.name for path in options.homes_dir.iterdir()}
    records = {path.stem for path in options.records_dir.iterdir()}
    assert listed.keys() == records
    assert records <= homes  # a sandbox that is kept ready has a home and no record

    for sandbox_id, mark in known.alive.items():
        sandbox = await e2b.AsyncSandbox.connect(sandbox_id, timeout=3000)
        assert await sandbox.files.read("mark") == mark
        await sandbox.pause(mode="filesystem")
    snapshots = e2b.AsyncSandbox.list_snapshots()
    found = set()
    while snapshots.has_next:
        found |= {info.snapshot_id for info in await snapshots.next_items()}
    assert known.snapshots.keys() <= found
    kept = {path.name for path in options.snapshots_dir.iterdir() if path.name[0] != "."}
    assert {reference.partition(":")[0] for reference in found} == kept
    for reference, mark in list(known.snapshots.items())[-1:]:
        async with await e2b.AsyncSandbox.create(reference, timeout=60) as copy:
            assert await copy.files.read("mark") == mark
    for sandbox_id in list(known.alive)[:-3]:  # some stay for rounds
        await e2b.AsyncSandbox.kill(sandbox_id)
        del known.alive[sandbox_id]
    for sandbox_id in listed.keys() - known.alive.keys():
        await e2b.AsyncSandbox.kill(sandbox_id)
    for reference in list(known.snapshots)[:-2]:
        await e2b.AsyncSandbox.delete_snapshot(reference)
        del known.snapshots[reference]


async def clear(e2b: E2B, options: EngineOptions) -> None:
    for info in await e2b.AsyncSandbox.list().next_items():
        await e2b.AsyncSandbox.kill(info.sandbox_id)
    for snapshot in await e2b.AsyncSandbox.list_snapshots().next_items():
        await e2b.AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
    for folder in (options.records_dir, options.snapshots_dir, options.snapshot_records_dir):
        with anyio.fail_after(10):
            while list(folder.iterdir()):
                await anyio.sleep(0.005)

"""Parts of a sandbox, or of the engine, that are killed or stand still at any moment.

Nobody who calls waits for longer than the time limit he gave; sandboxes that were not hit go on
with their memory; whatever was hit can be ended, and nothing of it stays. That the engine leaves
nothing behind `running_engine` proves, for all that happened to it here.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from e2b_code_interpreter import E2B, AsyncSandbox, SandboxException, TimeoutException

from conftest import client, descendants, running_engine, temporary_options
from e2b_agent_mcp.engine import EngineAddress
from rounds import rounds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from e2b_code_interpreter import Execution

ROUNDS = rounds(few=4, many=240)
slow = pytest.mark.skipif(rounds(few=1, many=0) == 1, reason="LONG_TESTS=1 runs it")
LIMIT = 3  # seconds that a call gives
BOUND = 45  # seconds that anything may take; on a machine with other work
BIG = b"x" * 3_000_000

Call = "Callable[[AsyncSandbox], Awaitable[object]]"


@pytest.fixture(scope="module")
def hit_engine() -> Iterator[EngineAddress]:
    """One that other tests do not use."""
    with (
        temporary_options(max_sandboxes=50, spares=1) as options,
        running_engine(options) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def hit_e2b(hit_engine: EngineAddress) -> E2B:
    return client(hit_engine)


@dataclass(frozen=True)
class Parts:
    """Pids on the host."""

    kernel: int
    nursery: int
    guest: int
    init: int

    @classmethod
    async def of(cls, sandbox: AsyncSandbox) -> Parts:
        """Of a sandbox that was forked."""
        code = "import os; os.readlink('/proc/self/ns/pid'), os.getpid(), os.getppid()"
        space, kernel, nursery = eval((await sandbox.run_code(code)).text or "")
        inside = dict(_pids_in(space))
        of_number = {number: pid for pid, number in inside.items()}
        guest = [
            pid for pid in inside if _parent(pid) == of_number[nursery] and pid != of_number[kernel]
        ]
        return cls(of_number[kernel], of_number[nursery], guest[0], of_number[1])


def _pids_in(space: str) -> Iterator[tuple[int, int]]:
    """Of the host, and as the processes of that pid namespace see them."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") == space:
                yield int(name), int(_status(int(name), "NSpid").split()[-1])


def _parent(pid: int) -> int:
    return int(_status(pid, "PPid"))


def _status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.partition(":")[2].strip()
    raise ProcessLookupError(pid)


async def create(e2b: E2B) -> AsyncSandbox:
    return await e2b.AsyncSandbox.create(timeout=600, request_timeout=BOUND)


async def create_forked(e2b: E2B) -> AsyncSandbox:
    with anyio.fail_after(60):
        while True:
            sandbox = await create(e2b)
            forked = await sandbox.run_code("'zygote' in open('/proc/self/cmdline').read()")
            if forked.text == "True":
                return sandbox
            await sandbox.kill()
            await anyio.sleep(0.2)


async def ended(pid: int) -> None:
    """Gone, or no more than a number that its parent has not asked for."""
    with anyio.fail_after(BOUND):
        while Path(f"/proc/{pid}").exists():
            with suppress(OSError, ProcessLookupError):
                if _status(pid, "State").startswith("Z"):
                    return
            await anyio.sleep(0.02)


async def run(sandbox: AsyncSandbox) -> Execution:
    return await sandbox.run_code("sum(range(3_000_000))", timeout=LIMIT, request_timeout=LIMIT)


async def command(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run("sleep 0.1; echo done", timeout=LIMIT, request_timeout=LIMIT)


async def transfer(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("big", BIG, request_timeout=LIMIT)
    await sandbox.files.read("big", format="bytes", request_timeout=LIMIT)


async def pause_and_resume(sandbox: AsyncSandbox) -> None:
    await sandbox.pause(request_timeout=BOUND)
    await sandbox.connect(timeout=600, request_timeout=BOUND)


async def kill(sandbox: AsyncSandbox) -> None:
    await sandbox.kill(request_timeout=BOUND)


async def nothing(sandbox: AsyncSandbox) -> None:
    await anyio.sleep(0.05)


STAGES: list[Call] = [run, command, transfer, pause_and_resume, kill, nothing]


async def hit_during(call: Awaitable[object], pid: int, number: int, moment: float) -> None:
    """The call may succeed or fail; it must come back."""

    async def strike() -> None:
        await anyio.sleep(moment)
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(strike)
            with suppress(SandboxException, httpx.TransportError):
                await call


async def test_whatever_is_hit_at_any_moment_nobody_hangs_and_no_other_sandbox_is_lost(
    hit_e2b: E2B,
) -> None:
    chance = random.Random(3)
    bystander = await create_forked(hit_e2b)
    await bystander.run_code("kept = 41")
    cases = [
        (part, number, stage)
        for part in ("kernel", "guest", "nursery", "init")
        for number in (signal.SIGKILL, signal.SIGSTOP)
        for stage in STAGES
    ]
    chance.shuffle(cases)
    for turn in range(ROUNDS):
        part, number, stage = cases[turn % len(cases)]
        sandbox = await create_forked(hit_e2b)
        parts = await Parts.of(sandbox)
        print(turn, part, number.name, stage.__name__)  # type: ignore[attr-defined]
        await hit_during(stage(sandbox), getattr(parts, part), number, chance.uniform(0, 0.15))  # type: ignore[operator]

        with anyio.fail_after(BOUND):
            assert (await bystander.run_code("kept + 1")).text == "42"
            await sandbox.kill(request_timeout=BOUND)
        for pid in (parts.kernel, parts.guest, parts.nursery, parts.init):
            await ended(pid)
    await bystander.kill()


async def test_processes_that_are_hit_as_they_are_born_cost_nobody_more_than_time(
    hit_engine: EngineAddress, hit_e2b: E2B
) -> None:
    """Creating goes on until there is a sandbox, whichever new process of the engine is killed."""
    chance = random.Random(4)
    for _ in range(ROUNDS):
        known = set(descendants(hit_engine.pid))
        skipped = chance.randrange(6)

        async def strike_a_newborn(known: set[int], skipped: int) -> None:
            while True:
                born = [pid for pid in descendants(hit_engine.pid) if pid not in known]
                if len(born) > skipped:
                    with suppress(ProcessLookupError):
                        os.kill(born[skipped], signal.SIGKILL)
                    return
                await anyio.sleep(0.001)

        made: list[AsyncSandbox] = []

        async def make(made: list[AsyncSandbox]) -> None:
            with suppress(SandboxException):
                made.append(await create(hit_e2b))

        with anyio.move_on_after(BOUND) as patience:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(strike_a_newborn, known, skipped)
                async with anyio.create_task_group() as makers:
                    for _ in range(2):
                        makers.start_soon(make, made)
                tasks.cancel_scope.cancel()
        assert not patience.cancelled_caught
        for sandbox in made:
            await sandbox.kill()
        with anyio.fail_after(BOUND):
            sandbox = await create(hit_e2b)
            assert (await sandbox.run_code("6 * 7")).text == "42"
            await sandbox.kill()


@slow
async def test_a_spare_that_hangs_is_replaced_when_it_is_wanted(
    hit_engine: EngineAddress, hit_e2b: E2B
) -> None:
    sandbox = await create_forked(hit_e2b)
    own = os.readlink(f"/proc/{(await Parts.of(sandbox)).init}/ns/pid")
    with anyio.fail_after(BOUND):
        while not (spares := {s: pids for s, pids in boxes(hit_engine).items() if s != own}):
            await anyio.sleep(0.1)
    for pid in (pid for pids in spares.values() for pid in pids):
        os.kill(pid, signal.SIGSTOP)
    with anyio.fail_after(BOUND):
        other = await create(hit_e2b)
        assert (await other.run_code("6 * 7")).text == "42"
    await other.kill()
    await sandbox.kill()


def boxes(engine: EngineAddress) -> dict[str, list[int]]:
    """The forked processes of each box that has its guest and its kernel, by pid namespace."""
    found = defaultdict(list)
    for pid in descendants(engine.pid):
        with suppress(OSError):
            if b"/zygote" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found[os.readlink(f"/proc/{pid}/ns/pid")].append(pid)
    return {space: pids for space, pids in found.items() if len(pids) >= 3}


async def test_a_kernel_that_stands_still_is_said_to_be_busy_and_can_be_restarted(
    hit_e2b: E2B,
) -> None:
    sandbox = await create_forked(hit_e2b)
    parts = await Parts.of(sandbox)
    os.kill(parts.kernel, signal.SIGSTOP)
    with pytest.raises(TimeoutException):
        await sandbox.run_code("1", timeout=1)
    with anyio.fail_after(BOUND):
        execution = await sandbox.run_code("2")
        assert execution.error is not None
        assert execution.error.name == "ContextBusy"
        default = (await sandbox.list_code_contexts())[0]
        await sandbox.restart_code_context(default)
        assert (await sandbox.run_code("3")).text == "3"
    await sandbox.kill()


async def test_a_context_that_finds_the_disk_full_takes_no_other_along(hit_e2b: E2B) -> None:
    sandbox = await create_forked(hit_e2b)
    await sandbox.run_code("kept = 1")
    await sandbox.commands.run("head -c 2G /dev/zero > /tmp/fill || true; ls > /tmp/more || true")
    with anyio.fail_after(BOUND):
        context = await sandbox.create_code_context()
        execution = await sandbox.run_code("1", context=context)
        assert execution.error is not None
        assert "could not start" in execution.error.value
        assert (await sandbox.run_code("kept")).text == "1"
        await sandbox.commands.run("rm /tmp/fill")
        assert (await sandbox.run_code("2", context=context)).text == "2"
    await sandbox.kill()


@slow
async def test_an_outer_box_that_is_killed_is_replaced(
    hit_engine: EngineAddress, hit_e2b: E2B
) -> None:
    """Its sandboxes end with it, known to everybody, and the next have another."""
    sandbox = await create_forked(hit_e2b)
    for tasks in Path(f"/proc/{hit_engine.pid}/task").glob("*/children"):
        for child in tasks.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    with anyio.fail_after(BOUND):
        while await sandbox.is_running(request_timeout=LIMIT):
            await anyio.sleep(0.05)
        other = await create_forked(hit_e2b)
        assert (await other.run_code("6 * 7")).text == "42"
    await other.kill()


@pytest.mark.parametrize("stage", ["running", "creating", "idle", "paused"][: rounds(1, 4)])
async def test_an_engine_that_is_killed_takes_its_boxes_along_and_the_next_cleans_up(
    stage: str,
) -> None:
    with temporary_options(zygote=stage != "creating") as options:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "e2b_agent_mcp.engine", "--json"),
                *("--options-json", options.to_json()),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            line = await anyio.to_thread.run_sync(process.stdout.readline)
            e2b = client(EngineAddress(**json.loads(line)))
            sandbox = await create(e2b)
            async with anyio.create_task_group() as tasks:
                if stage == "paused":
                    await sandbox.pause()
                elif stage == "running":
                    tasks.start_soon(_fail_quietly, sandbox.run_code("while True: pass"))
                elif stage == "creating":
                    tasks.start_soon(_fail_quietly, create(e2b))
                await anyio.sleep(0.3)
                started = list(descendants(process.pid))
                assert started
                process.kill()
        for pid in started:
            await ended(pid)
        with running_engine(options) as address:
            found = [s.sandbox_id for s in await client(address).AsyncSandbox.list().next_items()]
            assert sandbox.sandbox_id in found
            for sandbox_id in found:
                await client(address).AsyncSandbox.kill(sandbox_id)


async def _fail_quietly(call: Awaitable[object]) -> None:
    with suppress(Exception):
        await call

"""What is said of a sandbox's CPU, memory and disk after runs: when it matters, and only then."""

import uuid
from collections.abc import AsyncIterator

import anyio
import pytest

from e2b_agent_mcp import SandboxManager
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.lifecycle.usage import Outcome, Usage, explain
from e2b_agent_mcp.settings import E2BSettings, Secret, Settings

GIB = 2**30
LESS = (
    "Work on less at a time and delete variables that are not needed; its operator can give it "
    "more (engine.memory_mb, or another e2b.template)."
)


@pytest.fixture
async def manager(engine: EngineAddress) -> AsyncIterator[SandboxManager]:
    e2b = E2BSettings(
        api_key=Secret(engine.api_key), api_url=engine.api_url, sandbox_url=engine.sandbox_url
    )
    async with SandboxManager(Settings(e2b=e2b, owner=uuid.uuid4().hex)) as manager:
        yield manager
        await manager.end_session("analysis")


def usage(memory: float = 0.1, disk: float = 0.1, peak: float = 0.0) -> Usage:
    """Of 2 GiB of memory and 4 GiB of disk."""
    return Usage(
        vcpus=2,
        cpu_percent=50.0,
        memory_used=int(memory * 2 * GIB),
        memory_peak=int(max(memory, peak) * 2 * GIB),
        memory_total=2 * GIB,
        disk_used=int(disk * 4 * GIB),
        disk_total=4 * GIB,
    )


@pytest.mark.parametrize(
    ("outcome", "asks"),
    [
        pytest.param(Outcome(0.1), False, id="short"),
        pytest.param(Outcome(0.1, failed=True, words="NameError x"), False, id="a bug"),
        pytest.param(Outcome(6.0), True, id="long"),
        pytest.param(Outcome(0.1, failed=True, words="MemoryError "), True, id="memory"),
        pytest.param(Outcome(0.1, failed=True, died=True), True, id="killed"),
        pytest.param(
            Outcome(0.1, failed=True, words="OSError No space left on device"), True, id="disk"
        ),
        pytest.param(Outcome(0.1, words="MemoryError"), False, id="only printed"),
    ],
)
def test_e2b_is_asked_only_when_the_answer_may_matter(outcome: Outcome, asks: bool) -> None:
    assert outcome.raises_a_question is asks


@pytest.mark.parametrize(
    ("outcome", "used", "words"),
    [
        pytest.param(Outcome(6), usage(), "", id="plenty left"),
        pytest.param(Outcome(6), None, "", id="no figures"),
        pytest.param(Outcome(6), usage(peak=0.95), "", id="was full, is not"),
        pytest.param(
            Outcome(6),
            usage(memory=0.95),
            f"The sandbox's memory is nearly full: 1.9 GiB of 2.0 GiB. {LESS}",
            id="memory nearly full",
        ),
        pytest.param(
            Outcome(6),
            usage(disk=0.95),
            "The sandbox's disk is nearly full: 3.8 GiB of 4.0 GiB. Delete files that are not "
            "needed.",
            id="disk nearly full",
        ),
        pytest.param(
            Outcome(1, failed=True, words="_ArrayMemoryError Unable to allocate 9 GiB"),
            usage(),
            f"The code ran out of memory: the sandbox has 2.0 GiB. {LESS}",
            id="asked for too much",
        ),
        pytest.param(
            Outcome(1, failed=True, died=True),
            usage(peak=0.95),
            f"It was probably killed for want of memory: the sandbox has 2.0 GiB. {LESS}",
            id="killed at the limit",
        ),
        pytest.param(Outcome(1, failed=True, died=True), usage(), "", id="killed by itself"),
        pytest.param(
            Outcome(1, failed=True, died=True, words="killed: memory limit 400 MiB"),
            None,
            f"The code ran out of memory. {LESS}",
            id="the engine says why",
        ),
        pytest.param(
            Outcome(1, failed=True, words="cp: No space left on device"),
            usage(disk=1.0),
            "The sandbox's disk is full: 4.0 GiB of 4.0 GiB. Delete files that are not needed.",
            id="disk full",
        ),
    ],
)
def test_what_is_said_of_memory_and_disk(outcome: Outcome, used: Usage | None, words: str) -> None:
    assert explain(outcome, used) == words


async def test_code_that_asks_for_too_much_memory_is_told_how_much_there_is(
    manager: SandboxManager,
) -> None:
    async with manager.lease("analysis") as lease:
        run = await lease.run_code("kept = 1; bytearray(64 * 2**30)")
        assert run.execution.error is not None
        assert run.execution.error.name == "MemoryError"
        assert run.note == f"The code ran out of memory: the sandbox has 2.0 GiB. {LESS}"
        short = await lease.run_code("kept")
        assert (short.execution.text, short.note) == ("1", "")


async def test_a_command_that_runs_out_of_memory_is_told_so(manager: SandboxManager) -> None:
    async with manager.lease("analysis") as lease:
        run = await lease.run_command("python3 -c 'bytearray(64 * 2**30)'")
        assert run.status == "error"
        assert run.note.startswith("The code ran out of memory: the sandbox has 2.0 GiB.")


async def test_a_running_sandbox_is_measured_and_one_that_is_gone_is_left_out(
    manager: SandboxManager,
) -> None:
    async with manager.lease("analysis") as lease:
        await lease.run_code("held = b'x' * 200 * 2**20")
        await lease.write_file("large", b"x" * 10_000_000)
    with anyio.fail_after(60):
        measured: Usage | None = None
        while measured is None or measured.disk_used < 10_000_000:  # one sample in 5 s
            found = await manager.usage([lease.sandbox_id, "igone"])
            assert found.keys() <= {lease.sandbox_id}
            measured = found.get(lease.sandbox_id)
            await anyio.sleep(0.2)
    assert 200 * 2**20 < measured.memory_used <= measured.memory_peak < measured.memory_total
    assert measured.disk_used < measured.disk_total
    assert measured.vcpus > 0

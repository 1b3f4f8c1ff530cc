"""Code that does not end by itself: interrupted, ignored, killed, restarted."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from e2b import TimeoutException
from e2b_code_interpreter import AsyncSandbox, Execution

from rounds import rounds

PORT = 49999
ROUNDS = rounds(few=10, many=150)


@asynccontextmanager
async def raw_execution(sandbox: AsyncSandbox, code: str) -> AsyncIterator[httpx.Response]:
    """`/execute`, read by hand: for a client that stops reading, or goes away."""
    url = sandbox.connection_config.get_sandbox_url(sandbox.sandbox_id, None, port=PORT)
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": str(PORT),
        "E2B-Traffic-Access-Token": str(sandbox.traffic_access_token),
    }
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("POST", f"{url}/execute", json={"code": code}, headers=headers) as response,
    ):
        yield response


async def run_until_started(sandbox: AsyncSandbox, code: str) -> None:
    """Runs code that prints, and goes away as soon as it did."""
    async with raw_execution(sandbox, code) as response:
        async for line in response.aiter_lines():
            if '"stdout"' in line:
                return


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param("time.sleep(60)", id="sleeping"),
        pytest.param("while True: pass", id="computing"),
        pytest.param("os.system('sleep 60')", id="in a program"),
        pytest.param("await asyncio.sleep(60)", id="awaiting"),
        pytest.param("await asyncio.sleep(0)\nwhile True: pass", id="between awaits"),
        pytest.param("while True: print('x' * 1000)", id="printing"),
    ],
)
async def test_a_client_that_goes_away_has_its_code_interrupted(
    sandbox: AsyncSandbox, endless: str
) -> None:
    await sandbox.run_code("kept = 1; import asyncio, os, time")
    await run_until_started(sandbox, f"print('on', flush=True)\n{endless}")
    with anyio.fail_after(5):
        assert (await sandbox.run_code("kept")).text == "1"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("!sleep 4321", id="shown"),
        pytest.param("said = !sleep 4321", id="kept"),
        pytest.param("!trap '' INT HUP; sleep 4321", id="deaf and shown"),
        pytest.param("said = !trap '' INT HUP; sleep 4321", id="deaf and kept"),
    ],
)
@pytest.mark.timeout(60 + 2 * ROUNDS)
async def test_an_interrupt_ends_a_shell_command_and_its_cell_at_whatever_moment_it_comes(
    sandbox: AsyncSandbox, command: str
) -> None:
    chance = random.Random(3)
    for _ in range(ROUNDS):
        async with raw_execution(sandbox, f"print('on', flush=True)\n{command}\nwent_on = True"):
            await anyio.sleep(0.06 * chance.random())
        with anyio.fail_after(5):
            await sandbox.run_code("1")
    assert (await sandbox.run_code("'went_on' in globals()")).text == "False"
    processes = (await sandbox.commands.run("ps -eo args")).stdout
    assert "4321" not in processes
    assert "defunct" not in processes


async def test_a_timeout_interrupts_and_keeps_variables(sandbox: AsyncSandbox) -> None:
    await sandbox.run_code("kept = 2")
    with pytest.raises(TimeoutException):
        await sandbox.run_code("while True: pass", timeout=0.5)
    with anyio.fail_after(5):
        assert (await sandbox.run_code("kept")).text == "2"


async def test_a_client_that_leaves_while_it_waits_never_runs(sandbox: AsyncSandbox) -> None:
    started = anyio.Event()

    async def run_for_a_while() -> None:
        code = "import os, time\nprint('on', flush=True)\nwhile not os.path.exists('end'): pass"
        await sandbox.run_code(code, on_stdout=lambda message: started.set())

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_for_a_while)
            await started.wait()
            with pytest.raises(TimeoutException):
                await sandbox.run_code("ran = 1", timeout=0.2)
            await sandbox.files.write("end", "")
    assert (await sandbox.run_code("'ran' in globals()")).text == "False"


async def test_code_that_ignores_interrupts_makes_the_context_busy_until_it_ends(
    sandbox: AsyncSandbox,
) -> None:
    await run_until_started(
        sandbox,
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('on', flush=True)\n"
        "while not os.path.exists('end'): time.sleep(.01)",
    )
    with anyio.fail_after(20):
        execution = await sandbox.run_code("1")
    assert execution.error is not None
    assert execution.error.name == "ContextBusy"
    assert "Restart the context" in execution.error.value
    await sandbox.files.write("end", "")
    with anyio.fail_after(5):
        while (execution := await sandbox.run_code("2")).error:
            await anyio.lowlevel.checkpoint()
    assert execution.text == "2"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param("os.kill(os.getpid(), 9)", "was killed by code", id="killed"),
        pytest.param("os._exit(3)", "exited with status 3", id="exited"),
    ],
)
async def test_a_context_that_dies_says_why_and_starts_afresh(
    sandbox: AsyncSandbox, code: str, reason: str
) -> None:
    last = "import os, time\nprint('last words', flush=True)\ntime.sleep(.2)"
    execution = await sandbox.run_code(f"{last}\n{code}")
    assert execution.error is not None
    assert execution.error.name == "ContextRestarting"
    assert reason in execution.error.value
    assert "".join(execution.logs.stdout) == "last words\n"
    assert (await sandbox.run_code("'os' in globals()")).text == "False"


async def test_a_context_that_died_between_executions_says_so(sandbox: AsyncSandbox) -> None:
    pid = (await sandbox.run_code("import os; x = 1; os.getpid()")).text
    await sandbox.commands.run(f"kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do :; done")
    execution = await sandbox.run_code("'x' in globals()")
    assert execution.text == "False"
    assert "Its variables are lost." in "".join(execution.logs.stderr)


async def test_a_context_that_an_interrupt_kills_says_so_next_time(sandbox: AsyncSandbox) -> None:
    await run_until_started(
        sandbox,
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: os._exit(5))\n"
        "print('on', flush=True)\n"
        "time.sleep(60)",
    )
    execution = await sandbox.run_code("'os' in globals()")
    assert execution.text == "False"
    assert "exited with status 5. Its variables are lost." in "".join(execution.logs.stderr)


async def test_a_restart_ends_the_running_code_and_keeps_what_waits(
    sandbox: AsyncSandbox,
) -> None:
    (context,) = [c for c in await sandbox.list_code_contexts() if c.language == "python"]
    started = anyio.Event()
    executions: list[Execution] = []

    async def run(code: str) -> None:
        execution = await sandbox.run_code(code, on_stdout=lambda message: started.set())
        executions.append(execution)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "x = 1\nprint('on', flush=True)\nwhile True: pass")
            await started.wait()
            tasks.start_soon(run, "'x' in globals()")
            await sandbox.restart_code_context(context)
    first, second = executions
    assert first.error is not None
    assert first.error.name == "ContextRestarting"
    assert second.text == "False"


async def test_a_client_that_stops_reading_stops_the_printing(sandbox: AsyncSandbox) -> None:
    code = (
        "import itertools\n"
        "for n in itertools.count():\n"
        "    print('x' * 1_000_000)\n"
        "    open('count', 'w').write(str(n))\n"
    )
    stable = "until [ -s count ] && a=$(cat count) && sleep .5 && [ $a = $(cat count) ]; do :; done"
    async with raw_execution(sandbox, code):
        with anyio.fail_after(20):
            count = (await sandbox.commands.run(f"{stable}; cat count")).stdout
    assert int(count) < 30
    with anyio.fail_after(10):
        assert (await sandbox.run_code("n >= 0")).text == "True"

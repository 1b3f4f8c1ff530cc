"""Sandboxes that are forked: the same as started ones, separate from each other, and not to be
lost when a zygote dies. What such a box cannot do is shown by `test_isolation.py`, for both kinds.
"""

from __future__ import annotations

import ast
import os
import random
import signal
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

import anyio
import pytest

from e2b_agent_mcp.engine.guest.zygote.gathering import gather
from e2b_agent_mcp.engine.host import prepare_host
from e2b_agent_mcp.engine.isolation import BoxSpec, Nest, Zygotes
from rounds import rounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from e2b_code_interpreter import E2B, AsyncSandbox

    from e2b_agent_mcp.engine import EngineOptions
    from e2b_agent_mcp.engine.isolation import Box

ROUNDS = rounds(few=3, many=200)
TOUCH = "cd .venv/lib/python3*/site-packages && touch own.py"  # kernels are then started
IS_FORKED = "'zygote' in open('/proc/self/cmdline').read()"

# Everything that a program can learn about how it was started, but for ids and addresses.
FACTS = """
import os, sys, gc, signal, resource, threading, locale, logging, asyncio
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
names = ("Umask", "Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
         "Seccomp", "Seccomp_filters", "SigBlk", "SigIgn", "SigCgt")
facts = {
    "status": {name: status[name] for name in names},
    "limits": [resource.getrlimit(n) for n in range(16)],
    "environ": dict(os.environ),
    "path": sys.path, "argv": sys.argv[:1], "executable": sys.executable, "flags": str(sys.flags),
    "prefix": (sys.prefix, sys.base_prefix), "cwd": os.getcwd(), "orig": sys.orig_argv[0],
    "session": os.getsid(0) == os.getpid() == os.getpgrp(),
    "files": sorted({os.readlink(f"/proc/self/fd/{fd}").split(":")[0].partition("/kernel-")[0]
                     for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")}),
    "locale": locale.getlocale(), "encoding": sys.stdout.encoding, "gc": gc.isenabled(),
    "recursion": sys.getrecursionlimit(), "dir": sorted(dir()), "name": __name__,
    "folders": [str(folder) for folder in _dh],
    "main": sys.modules["__main__"].__dict__ is globals(),
    "logging": logging.getLogger().handlers,
    "threads": sorted(t.name.rpartition("-")[2].strip("1234 ") for t in threading.enumerate()),
    "policy": type(asyncio.get_event_loop_policy()).__name__,
    "guest": [m for m in sys.modules if m.startswith(("guest", "uvicorn", "starlette"))],
    "oom": open("/proc/self/oom_score_adj").read(), "nice": os.nice(0),
    "affinity": sorted(os.sched_getaffinity(0)), "dumpable": os.access("/proc/self/mem", os.W_OK),
}
facts
"""


@pytest.fixture
async def forked(e2b: E2B) -> AsyncIterator[AsyncSandbox]:
    sandbox = await make_forked(e2b)
    yield sandbox
    await sandbox.kill()


async def make_forked(e2b: E2B) -> AsyncSandbox:
    """The engine's zygote may still be importing: the first sandboxes are then started."""
    with anyio.fail_after(60):
        while True:
            sandbox = await e2b.AsyncSandbox.create(timeout=120)
            if (await sandbox.run_code(IS_FORKED)).text == "True":
                return sandbox
            await sandbox.kill()
            await anyio.sleep(0.2)


@pytest.fixture
async def nest(fresh_options: EngineOptions) -> Nest:
    fresh_options.make_dirs()
    host = await prepare_host(fresh_options, print)
    return Nest(
        launcher=host.isolation.launcher,
        template=host.template,
        engine_dir=fresh_options.engine_dir,
        homes_dir=fresh_options.homes_dir,
    )


@pytest.fixture
async def zygotes(nest: Nest) -> AsyncIterator[Zygotes]:
    async with Zygotes(nest) as zygotes:
        with anyio.fail_after(60):
            await zygotes.wait_ready()
        yield zygotes


def children() -> set[str]:
    """An outer box is one."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def sleeper(nest: Nest, name: str) -> BoxSpec:
    home = nest.homes_dir / name
    home.mkdir(mode=0o700)
    nest.launcher.owner.take(home)
    command = ("/bin/sh", "-c", "echo up; exec sleep 1000")
    return BoxSpec(sandbox_id=name, home=home, template=nest.template, command=command)


async def said(box: Box, word: str) -> None:
    with anyio.fail_after(10):
        while word not in box.log:
            await anyio.sleep(0.01)


async def test_a_forked_kernel_is_like_a_started_one(forked: AsyncSandbox) -> None:
    execution = await forked.run_code(FACTS)
    assert execution.text is not None, execution.error
    fork = ast.literal_eval(execution.text)
    await forked.commands.run(TOUCH)
    context = await forked.create_code_context()
    assert (await forked.run_code(IS_FORKED, context=context)).text == "False"
    execution = await forked.run_code(FACTS, context=context)
    assert execution.text is not None, execution.error
    start = ast.literal_eval(execution.text)

    differing = [name for name in fork if fork[name] != start[name]]
    for name in differing:
        print(name, fork[name], start[name])
    assert differing == []
    assert set(fork["environ"].items()) ^ set(start["environ"].items()) == set()


CONFIGURE = "c = get_config()\nc.InteractiveShell.ast_node_interactivity = 'all'"


async def test_a_forked_kernel_is_configured_by_files_of_the_user(forked: AsyncSandbox) -> None:
    await forked.files.write(".ipython/profile_default/ipython_config.py", CONFIGURE)
    context = await forked.create_code_context()
    assert (await forked.run_code(IS_FORKED, context=context)).text == "True"
    execution = await forked.run_code("1\n2", context=context)
    assert [result.text for result in execution.results] == ["1", "2"]


async def test_a_zygote_that_forked_has_no_other_thread(nest: Nest, zygotes: Zygotes) -> None:
    """Linear algebra's own end before a fork; another one's work would be cut."""
    async with await zygotes.launch(sleeper(nest, "one")) as box:
        await said(box, "up")
    assert zygotes.current is not None
    about = Path(f"/proc/self/fdinfo/{zygotes.current._pidfd}").read_text()
    pid = about.split("Pid:")[1].split()[0]
    assert len(os.listdir(f"/proc/{pid}/task")) == 1


def test_code_that_a_rehearsal_calls_is_copied_with_all_in_it_and_other_code_is_not() -> None:
    def called() -> list[int]:
        return [part() for part in (lambda: 1, lambda: 2)]

    def idle() -> None:
        """Never called."""

    left, untouched = called.__code__, idle.__code__
    gather(called)
    assert called() == [1, 2]
    assert idle.__code__ is untouched
    pairs = zip(left.co_consts, called.__code__.co_consts, strict=True)
    moved = [a is not b for a, b in pairs if isinstance(a, CodeType)]
    assert called.__code__ is not left
    assert moved
    assert all(moved)


def test_a_rehearsal_that_fails_moves_no_code() -> None:
    def failing() -> None:
        raise SystemExit

    left = failing.__code__
    gather(failing)
    assert failing.__code__ is left


async def test_a_package_that_was_installed_is_found(forked: AsyncSandbox) -> None:
    await forked.commands.run("cd .venv/lib/python3*/site-packages && echo 'mine = 1' > pandas.py")
    context = await forked.create_code_context()
    assert (await forked.run_code("import pandas; pandas.mine", context=context)).text == "1"


DRAWS = """
import numpy, os, random, secrets, tempfile, uuid
[
    random.random(),
    numpy.random.rand(),
    uuid.uuid4().hex,
    secrets.token_hex(),
    next(tempfile._get_candidate_names()),
    os.urandom(8),
]
"""


async def test_two_forks_do_not_draw_the_same_numbers(e2b: E2B, forked: AsyncSandbox) -> None:
    other = await make_forked(e2b)
    context = await forked.create_code_context()
    try:
        drawn = [
            (await forked.run_code(DRAWS)).text,
            (await forked.run_code(DRAWS, context=context)).text,
            (await other.run_code(DRAWS)).text,
        ]
    finally:
        await other.kill()
    for of_one_kind in zip(*(eval(text or "") for text in drawn), strict=True):
        assert len(set(of_one_kind)) == 3


async def test_linear_algebra_and_plots_work_in_a_fork(forked: AsyncSandbox) -> None:
    """Their libraries have threads and locks, which do not survive a fork by themselves."""
    execution = await forked.run_code(
        "import numpy as np, matplotlib.pyplot as plt\n"
        "a = np.random.rand(300, 300)\n"
        "plt.plot(np.linalg.svd(a)[1]);\n"
        "print(np.allclose(a @ np.linalg.inv(a), np.eye(300)))"
    )
    assert execution.logs.stdout == ["True\n"]
    assert [bool(r.png and r.chart) for r in execution.results] == [True]


async def test_a_kernel_that_dies_is_forked_again_and_how_it_ended_is_told(
    forked: AsyncSandbox,
) -> None:
    execution = await forked.run_code("import os; os._exit(3)")
    assert execution.error is not None
    assert "exited with status 3" in execution.error.value
    execution = await forked.run_code("import os; os.kill(os.getpid(), 9)")
    assert execution.error is not None
    assert "was killed" in execution.error.value
    assert (await forked.run_code(IS_FORKED)).text == "True"


async def test_ten_contexts_at_once(forked: AsyncSandbox) -> None:
    async def use(number: int) -> None:
        context = await forked.create_code_context()
        assert (await forked.run_code(f"{number} * 2", context=context)).text == str(number * 2)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(use, number)


async def test_a_zygote_that_dies_takes_no_box_along(zygotes: Zygotes) -> None:
    others = len(children()) - 1
    async with await zygotes.launch(sleeper(zygotes.nest, "before")) as before:
        await said(before, "up")
        first = zygotes.current
        assert first is not None
        first.kill()
        await first.dead.wait()
        with anyio.fail_after(60):
            while zygotes.current in (None, first):
                await anyio.sleep(0.02)
        async with await zygotes.launch(sleeper(zygotes.nest, "after")) as after:
            await said(after, "up")
            assert not before.ended
            assert len(children()) == others + 2
    with anyio.fail_after(10):
        while len(children()) > others + 1:
            await anyio.sleep(0.02)


async def test_a_zygote_that_hangs_is_replaced_and_the_box_is_started(
    zygotes: Zygotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2b_agent_mcp.engine.isolation.zygote.LAUNCH_TIMEOUT", 0.5)
    hung = zygotes.current
    assert hung is not None
    assert hung._pidfd is not None
    signal.pidfd_send_signal(hung._pidfd, signal.SIGSTOP)
    async with await zygotes.launch(sleeper(zygotes.nest, "box")) as box:
        await said(box, "up")
    with anyio.fail_after(10):
        await hung.dead.wait()


async def test_killed_at_any_moment_nothing_is_lost_or_left(nest: Nest) -> None:
    """Boxes that exist live on; one that is being made is made in the end."""
    chance = random.Random(1)
    others = children()
    descriptors = len(os.listdir("/proc/self/fd"))
    async with Zygotes(nest) as zygotes:
        for number in range(ROUNDS):
            with anyio.fail_after(60):
                await zygotes.wait_ready()
            victim = zygotes.current
            assert victim is not None
            async with await zygotes.launch(sleeper(nest, f"old{number}")) as old:
                await said(old, "up")

                async def kill_later(moment: float) -> None:
                    await anyio.sleep(moment)
                    victim.kill()  # noqa: B023

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(kill_later, chance.uniform(0, 0.03))
                    async with await zygotes.launch(sleeper(nest, f"new{number}")) as new:
                        await said(new, "up")
                        assert not old.ended
    assert children() == others
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_zygote_that_cannot_live_is_given_up(
    nest: Nest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2b_agent_mcp.engine.isolation.zygote._PROGRAM", "/nowhere")
    monkeypatch.setattr("e2b_agent_mcp.engine.isolation.zygote.RETRY_PAUSE", 0.01)
    others = children()
    async with Zygotes(nest) as zygotes:
        async with await zygotes.launch(sleeper(nest, "box")) as box:
            await said(box, "up")
        with anyio.fail_after(20):
            while children() != others:
                await anyio.sleep(0.02)
        assert zygotes.current is None

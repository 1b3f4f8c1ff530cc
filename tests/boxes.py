"""Real boxes for tests: launched by either way, and what is asked of them from outside."""

from __future__ import annotations

import contextlib
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from e2b_agent_mcp.engine.isolation import Box, BoxSpec, Isolation, Limits, Nest, Zygotes
from e2b_agent_mcp.engine.isolation.processes import namespace_of, pids_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from e2b_agent_mcp.engine.template import Template

START = "import sys; sys.path += ['/opt/e2b', '/opt/e2b/lib', '/opt/e2b/site']\n"


class Boxes:
    """Launches Python programs in boxes of one home, by either way."""

    def __init__(self, launcher: Isolation | Zygotes, template: Template, home: Path) -> None:
        self.launcher = launcher
        self.template = template
        self.home = home

    @property
    def are_forked(self) -> bool:
        return isinstance(self.launcher, Zygotes)

    def status(self, known: int) -> int | None:
        return None if self.are_forked else known

    @contextlib.asynccontextmanager
    async def open(self, code: str, **spec: object) -> AsyncIterator[Box]:
        box = await self.launcher.launch(self.spec(code, **spec))
        async with box:
            yield box

    def spec(self, code: str, **spec: object) -> BoxSpec:
        limits = spec.get("limits", Limits())
        assert isinstance(limits, Limits)
        prelude = (
            f"{START}from guest.limits import apply_limits\n"
            f"apply_limits('''{limits.to_json(os.uname().release)}''')\n"
        )
        command = (self.template.python, "-I", "-S", "-c", prelude + textwrap.dedent(code))
        return BoxSpec(
            sandbox_id="test",
            home=self.home,
            template=self.template,
            command=command,
            **spec,  # type: ignore[arg-type]
        )

    async def run(self, code: str, **spec: object) -> str:
        """What the program printed; it must have ended well."""
        with anyio.fail_after(60):
            async with self.open(code, **spec) as box:
                status = await box.wait()
                assert status == self.status(0), box.log
                return box.log.strip()


@contextlib.asynccontextmanager
async def running_zygotes(
    isolation: Isolation, template: Template, folder: Path
) -> AsyncIterator[Zygotes]:
    nest = Nest(launcher=isolation.launcher, template=template, engine_dir=folder, homes_dir=folder)
    async with Zygotes(nest) as zygotes:
        with anyio.fail_after(60):
            await zygotes.wait_ready()
        yield zygotes


SLEEPERS = """
    import os, subprocess, time
    for _ in range(3):
        subprocess.Popen(["/bin/sh", "-c", "trap '' TERM HUP; while :; do sleep 100; done"])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print("ready", flush=True)
            time.sleep(1000)
        os._exit(0)
    os.wait()
    print("waiting", flush=True)
    sys.stdin.read()
"""


async def said(box: Box, word: str) -> None:
    with anyio.fail_after(20):
        while word not in box.log:
            await anyio.sleep(0.01)  # what a box prints comes without an event


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pids: set[int]) -> None:
    """The kernel ends a pid namespace on its own: nobody gets an event for each process."""
    with anyio.fail_after(10):
        while any(is_alive(pid) for pid in pids):
            await anyio.sleep(0.01)


def pids_of(box: Box) -> set[int]:
    return set(pids_in(namespace_of(box.pid)))

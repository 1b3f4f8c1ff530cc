"""The demo: three small analyses that run in a sandbox, with no account and no language model;
with one, an agent does four more tasks (`agent_parts`).

Each part is a file in `parts/`, worth reading: it is exactly what an MCP client would send to
`run_python`. They run one after the other in one session, through the public `SandboxManager`.
"""

import base64
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from rich.console import Console

from e2b_agent_mcp.demo.agent_parts import AgentDemo
from e2b_agent_mcp.demo.report import Block, Plot, Prose, Section, Table, html, markdown
from e2b_agent_mcp.demo.terminal import print_section
from e2b_agent_mcp.errors import SandboxError
from e2b_agent_mcp.lifecycle import Lease, SandboxManager
from e2b_agent_mcp.pool import SessionKey

if TYPE_CHECKING:
    from e2b_code_interpreter.models import Result

SESSION = SessionKey("demo", "demo")
PART_TIMEOUT = 300.0  # seconds; a busy machine with one core needs a minute
API_PORT = 8123  # as in parts/network.py
END_GRACE = 5.0  # seconds to end the sandbox, also after Ctrl-C


@dataclass(frozen=True)
class Part:
    """A file of `parts/` and what its section is called."""

    name: str
    title: str


PARTS = (
    Part("data_science", "Data science: how long people live"),
    Part("machine_learning", "Machine learning: reading handwritten digits"),
    Part("network", "Network data: JSON from an HTTP service"),
)


def source(name: str) -> str:
    return files(__package__).joinpath("parts", f"{name}.py").read_text("utf-8")


async def run_demo(
    manager: SandboxManager, output: Path, console: Console, agent: AgentDemo | None = None
) -> Path:
    """Runs the parts in a new sandbox, prints their results, returns the HTML report's path.

    `output` is made if missing; files of an earlier demo in it are overwritten.
    """
    plots = output / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    async with _session(manager, console):
        async with manager.lease(SESSION) as lease:
            console.print(f"Sandbox [bold]{lease.sandbox_id}[/] is ready.")
            await _prepare(lease)
            sections = [await _run(part, lease, console) for part in PARTS]
        if agent is not None:
            sections += await agent.run(SESSION, API_PORT, output, console)
        facts = {"sandbox": lease.sandbox_id, "duration": f"{time.monotonic() - start:.1f} s"}
    for plot in (block for section in sections for block in section.blocks):
        if isinstance(plot, Plot):
            (plots / plot.name).write_bytes(plot.png)
    (output / "report.md").write_text(markdown(sections, facts), "utf-8")
    report = output / "report.html"
    report.write_text(html(sections, facts), "utf-8")
    return report


@asynccontextmanager
async def _session(manager: SandboxManager, console: Console) -> AsyncIterator[None]:
    """Begins without a sandbox, and ends the one that was used."""
    with console.status("Connecting …") as status:

        async def progress(message: str) -> None:
            status.update(message)
            if not console.is_terminal:
                console.print(message)

        await manager.prepare(progress)
        await manager.end_session(SESSION)
        status.update("Creating a sandbox …")
    try:
        yield
    finally:
        with anyio.move_on_after(END_GRACE, shield=True):
            await manager.end_session(SESSION)


async def _prepare(lease: Lease) -> None:
    """Puts the parts' module into the sandbox and starts the HTTP server that the last one asks."""
    for name in ("plots", "api_server"):
        await lease.write_file(f"{name}.py", source(name).encode())
    await lease.sandbox.commands.run(f"python api_server.py {API_PORT}", background=True, timeout=0)


async def _run(part: Part, lease: Lease, console: Console) -> Section:
    code = source(part.name)
    with console.status(f"{part.title} …"):
        run = await lease.run_code(code, timeout=PART_TIMEOUT)
    if run.status != "ok":
        error = run.execution.error
        reason = error.traceback if error else f"It took longer than {PART_TIMEOUT:.0f} s."
        raise SandboxError(f"Part {part.name!r} of the demo failed: {run.status}.\n{reason}")
    blocks = tuple(_blocks(part, run.execution.results))
    section = Section(title=part.title, code=code, blocks=blocks, seconds=run.duration)
    print_section(section, console)
    return section


def _blocks(part: Part, results: "list[Result]") -> Iterator[Block]:
    plots = 0
    for result in results:
        if result.png:
            plots += 1
            yield Plot(f"{part.name}_{plots}.png", base64.b64decode(result.png))
        elif result.data:
            columns = {str(name): list(values) for name, values in result.data.items()}
            yield Table(tuple(columns), tuple(zip(*columns.values(), strict=True)))
        elif result.markdown:
            title, _, text = result.markdown.partition("\n")
            yield Prose(title.lstrip("# "), text.strip())

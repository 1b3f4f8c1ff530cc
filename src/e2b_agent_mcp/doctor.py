"""Whether sandboxes can run here, and with which settings: what a bug report should contain.

Nothing is started and nothing is changed. Secrets are named, never shown.
"""

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version

import anyio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from e2b_agent_mcp.connection import engine_options
from e2b_agent_mcp.engine import EngineError, find, find_template, probe
from e2b_agent_mcp.errors import E2BAgentError
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.settings import Settings, options, without_credentials

PACKAGES = ("e2b-agent-mcp", "mcp", "e2b", "e2b-code-interpreter", "smolagents", "litellm", "uv")
CLOUD_TIMEOUT = 20.0  # seconds to answer a list of sandboxes


@dataclass(frozen=True)
class SettingLine:
    name: str
    env: str
    value: str
    origin: str


@dataclass
class Report:
    """What was found; `problems` are the reasons why `run_python` could not work."""

    versions: Mapping[str, str]
    settings: list[SettingLine]
    sandboxes: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {"ok": not self.problems, **asdict(self)}


async def examine(settings: Settings) -> Report:
    report = Report(versions=_versions(), settings=_setting_lines(settings))
    if settings.e2b.api_key is not None:
        await _examine_cloud(settings, report)
    else:
        await _examine_engine(settings, report)
    return report


def _versions() -> dict[str, str]:
    found = {"python": f"{platform.python_version()} ({sys.executable})"}
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _setting_lines(settings: Settings) -> list[SettingLine]:
    return [
        SettingLine(item.name, item.env, _shown(_value(settings, item.name)), origin)
        for item in options()
        if (origin := settings.origins.get(item.name, "default"))
    ]


def _value(settings: Settings, name: str) -> object:
    value: object = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _shown(value: object) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return without_credentials(str(value))  # a Secret gives ***


async def _examine_cloud(settings: Settings, report: Report) -> None:
    """Asks for a list of sandboxes, which needs the network and the key and costs nothing."""
    report.sandboxes["where"] = f"E2B ({settings.e2b.api_url or settings.e2b.domain or 'e2b.app'})"
    try:
        with anyio.fail_after(CLOUD_TIMEOUT):
            async with SandboxManager(settings) as manager:
                await manager.list_sessions(settings.local_owner)
        report.sandboxes["E2B"] = "reached, key accepted"
    except (E2BAgentError, TimeoutError) as exc:
        reason = str(exc) or f"no answer within {CLOUD_TIMEOUT:.0f} s"
        report.sandboxes["E2B"] = reason
        report.problems.append(reason)


async def _examine_engine(settings: Settings, report: Report) -> None:
    report.sandboxes["where"] = "embedded engine on this machine"
    try:
        given = engine_options(settings)
        running = await find(given)
        report.sandboxes |= {
            "engine": f"process {running.pid}, {running.api_url}" if running else "not running",
            "state folder": str(given.state_dir),
            "cache folder": str(given.cache_dir),
            "runtime folder": str(given.runtime_dir),
        }
        isolation = await probe(
            cache_dir=given.cache_dir, bubblewrap=given.bubblewrap, choice=given.isolation
        )
        report.sandboxes |= isolation.describe()
        template = find_template(given.cache_dir, isolation)
        report.sandboxes["template"] = str(template or "not built; the first sandbox builds it")
    except (EngineError, E2BAgentError, OSError) as exc:
        report.problems.append(str(exc))


def print_report(report: Report, console: Console) -> None:
    for title, found in (("Versions", report.versions), ("Sandboxes", report.sandboxes)):
        _print_table(console, title, found.items())
    lines = ((line.name, line.value, line.origin, line.env) for line in report.settings)
    _print_table(console, "Settings: name, value, where it comes from, variable", lines)
    for problem in report.problems:
        console.print(f"[bold red]Problem:[/] {escape(problem)}")
    if not report.problems:
        console.print("[bold green]Sandboxes can run here.[/]")


def _print_table(console: Console, title: str, rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    for column in table.columns:
        column.overflow = "fold"  # paths and names must be whole
    console.print(f"[bold]{title}[/]")
    console.print(table, "")

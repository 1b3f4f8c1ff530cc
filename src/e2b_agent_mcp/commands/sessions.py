"""`sessions`: which there are, what they use, what they and their models have cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from e2b_agent_mcp.costs import Spent, dollars
from e2b_agent_mcp.lifecycle import SandboxManager, SessionInfo, Usage
from e2b_agent_mcp.rendering.sessions import (
    session_entry,
    share,
    spending_line,
    spent_entry,
)
from e2b_agent_mcp.settings import Settings

WARM = "(kept warm)"  # sandboxes that no session has yet


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is printed: a table and lines below it, or the data for programs. Any: JSON."""

    data: Any
    rows: Sequence[Mapping[str, str]] = ()
    lines: Sequence[str] = ()


async def listing(settings: Settings) -> Report:
    async with SandboxManager(settings) as manager:
        found = await manager.list_sessions()
        usage = await manager.usage(info.sandbox_id for info in found if info.state == "running")
        spending = await manager.spending()
    lines = [spending_line(spending, spending.total)]
    return Report(
        data=[_entry(info, usage.get(info.sandbox_id)) for info in found],
        rows=[_row(info, usage.get(info.sandbox_id)) for info in found],
        lines=lines if found else ["No sessions.", *lines],
    )


async def prune(settings: Settings, dry_run: bool) -> Report:
    async with SandboxManager(settings) as manager:
        ended = await manager.prune(dry_run=dry_run)
    return Report(
        data=[_entry(info, None) for info in ended],
        rows=[_row(info, None) for info in ended],
        lines=[] if ended else ["No sessions."],
    )


async def spending(settings: Settings, month: str | None) -> Report:
    """Of all sessions that had a sandbox or a task in the month, ended ones too."""
    async with SandboxManager(settings) as manager:
        found = await manager.spending(month=month)
    names = sorted(found.sessions)
    return Report(
        data={
            "month": found.month,
            "sessions": [{"session": name, **spent_entry(found.sessions[name])} for name in names],
            "total": spent_entry(found.total),
            "warning": found.verdict.refusal or found.verdict.warning,
        },
        rows=[{"session": name or WARM, **_spent(found.sessions[name])} for name in names],
        lines=[spending_line(found, found.total)],
    )


def _entry(info: SessionInfo, usage: Usage | None) -> Mapping[str, object]:
    return session_entry(info, datetime.now(UTC), usage)


def _row(info: SessionInfo, usage: Usage | None) -> Mapping[str, str]:
    return {
        "session": info.name,
        "state": info.state,
        "sandbox_id": info.sandbox_id,
        "end_at": info.end_at.isoformat(timespec="seconds"),
        "cpu": "-" if usage is None else f"{usage.cpu_percent:.0f} %",
        "memory": "-" if usage is None else share(usage.memory_used, usage.memory_total),
        "disk": "-" if usage is None else share(usage.disk_used, usage.disk_total),
        **_spent(info.spent),
    }


def _spent(spent: Spent) -> Mapping[str, str]:
    return {
        "seconds": f"{spent.sandbox_seconds:.0f}",
        "sandbox": dollars(spent.sandbox_usd),
        "models": dollars(spent.model_usd),
    }

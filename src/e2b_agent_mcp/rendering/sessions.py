"""What is said of sessions: their state, what they use, what they have cost."""

from collections.abc import Sequence
from datetime import datetime

from mcp.types import CallToolResult

from e2b_agent_mcp.costs import Spending, Spent, dollars
from e2b_agent_mcp.lifecycle import SessionInfo, Usage
from e2b_agent_mcp.rendering.plain import answer
from e2b_agent_mcp.rendering.results import Session, SessionsResult, SpentResult, UsageNow


def session_entry(info: SessionInfo, now: datetime, usage: Usage | None = None) -> Session:
    return {
        "session": info.name,
        "sandbox_id": info.sandbox_id,
        "state": info.state,
        "started_at": info.started_at.isoformat(),
        "end_at": info.end_at.isoformat(),
        "age": round((now - info.created_at).total_seconds(), 1),
        "expires_in": round((info.end_at - now).total_seconds(), 1),
        "spent": spent_entry(info.spent),
        "usage": None if usage is None else usage_entry(usage),
    }


def spent_entry(spent: Spent) -> SpentResult:
    return {
        "sandbox_seconds": round(spent.sandbox_seconds, 1),
        "sandbox_usd": round(spent.sandbox_usd, 6),
        "model_usd": round(spent.model_usd, 6),
    }


def usage_entry(usage: Usage) -> UsageNow:
    return {
        "cpus": usage.vcpus,
        "cpu_percent": round(usage.cpu_percent, 1),
        "memory_used": usage.memory_used,
        "memory_total": usage.memory_total,
        "disk_used": usage.disk_used,
        "disk_total": usage.disk_total,
    }


def sessions_result(
    sessions: Sequence[Session], spending: Spending, spent: Spent
) -> CallToolResult:
    structured: SessionsResult = {
        "sessions": list(sessions),
        "month": spending.month,
        "spent": spent_entry(spent),
        "warning": spending.verdict.refusal or spending.verdict.warning,
    }
    lines = [session_line(session) for session in sessions] or ["No session has a sandbox."]
    return answer(structured, "\n".join([*lines, spending_line(spending, spent)]))


def session_line(session: Session) -> str:
    """One line for a model, or a person."""
    left = session["expires_in"]
    when = "its next call resumes it" if session["state"] == "paused" else f"ends in {left:.0f} s"
    parts = [f"{session['session']}: {session['state']}, {when}"]
    if usage := session["usage"]:
        parts.append(f"CPU {usage['cpu_percent']:.0f} %")
        parts.append(f"memory {share(usage['memory_used'], usage['memory_total'])}")
        parts.append(f"disk {share(usage['disk_used'], usage['disk_total'])}")
    parts.append(spent_words(session["spent"]))
    return ", ".join(parts)


def spending_line(spending: Spending, spent: Spent) -> str:
    line = f"Spent in {spending.month}: {spent_words(spent_entry(spent))}."
    return " ".join(filter(None, [line, spending.verdict.refusal, spending.verdict.warning]))


def spent_words(spent: SpentResult) -> str:
    words = f"{spent['sandbox_seconds']:.0f} s of sandbox"
    usd = spent["sandbox_usd"] + spent["model_usd"]
    return f"{words} and {dollars(usd)}" if usd else words


def share(used: int, total: int) -> str:
    """`0.9 of 2.0 GiB`"""
    return f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB"
